"""Where the reference material lies that is not part of the project."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("JAXMERGE_SHARED", ROOT.parent / "shared"))
