"""Notebooks as pages, with the outputs that are stored in them."""

from pathlib import Path

from nbconvert import MarkdownExporter


def pages(path: Path) -> dict[str, str | bytes]:
    """The Markdown of a notebook and the pictures that it shows, by their place."""
    body, resources = MarkdownExporter().from_filename(str(path))
    made: dict[str, str | bytes] = {f"notebooks/{path.stem}.md": body}
    for name, content in resources["outputs"].items():
        made[f"notebooks/{name}"] = content
    return made
