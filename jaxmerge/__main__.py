"""``python -m jaxmerge`` is the command line."""

from jaxmerge.cli import main

main()
