"""What names a folder or a file. Not in `types`: reading headers needs no JAX."""

import os

Folder = str | os.PathLike[str]
