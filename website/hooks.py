"""What mkdocs calls: pages that are made, and links that work on a git host too.

The pages of docs/ link to each other and to files beside docs/, as a git host shows
them. On the site the readme is the first page, the changelog and pictures of
experiments are taken along, and other files are those of the repository on the net.
"""

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

import api
import notebooks
import pictures
import step_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from names import ROOT

from jaxmerge.spec import STEPS

TAKEN = {"README.md": "index.md", "CHANGELOG.md": "CHANGELOG.md"}  # to the site
_LINK = re.compile(r'(\]\(|src=")((?!https?://|#|mailto:)[^)"\s]+)(?=[)"])')
_FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
_CELL = re.compile(r"^\|.*\|$", re.M)
_METHOD = re.compile(r"`(\w+)`")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds what pyproject.toml says, and the pages of methods to the navigation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    config.repo_url = project["urls"]["Repository"]
    config.edit_uri = ""
    sections = {title: part for entry in config.nav for title, part in entry.items()}
    steps: list[Any] = ["methods/index.md"]
    for kind in step_pages.KINDS:
        of_kind = [name for name, step in STEPS.items() if step.kind == kind]
        steps.append({kind.capitalize(): [f"methods/{name}.md" for name in of_kind]})
    sections["Methods"].append({"All steps": steps})
    sections["API"].extend(f"api/{name}.md" for name in api.PACKAGES)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds every page that is made."""
    made: dict[str, str | bytes] = {
        "methods/index.md": step_pages.overview(),
        "api.md": api.page(),
    }
    for name in api.PACKAGES:
        made[f"api/{name}.md"] = api.package(name)
    for name in STEPS:
        made[f"methods/{name}.md"] = step_pages.page(name)
    for name in pictures.PICTURED:
        made[f"methods/{name}.svg"] = pictures.picture(name)
    for source, target in TAKEN.items():
        made[target] = (ROOT / source).read_text()
    for notebook in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        made |= notebooks.pages(notebook)
    for path in shown_beside():
        made[path] = (ROOT / path).read_bytes()
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Leads links from where a git host has the files to where the site has them."""
    uri = page.file.src_uri
    markdown = outside_of_fences(markdown, lambda text: _CELL.sub(_bars, text))
    if uri.startswith(("methods/", "api")):
        return markdown
    sources = {target: source for source, target in TAKEN.items()}
    source = sources.get(uri, f"docs/{uri}")

    def lead(found: re.Match[str]) -> str:
        path, hash_sign, anchor = found[2].partition("#")
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        return found[1] + target_of(there, uri, config, files) + hash_sign + anchor

    if uri == "methods.md":
        markdown = with_links_to_methods(markdown)
    return outside_of_fences(markdown, lambda text: _LINK.sub(lead, text))


def target_of(path: str, uri: str, config: MkDocsConfig, files: Files) -> str:
    """Where a file of the repository is, seen from a page of the site."""
    on_site = TAKEN.get(path) or path.removeprefix("docs/").replace(".ipynb", ".md")
    if files.get_file_from_path(on_site):
        return posixpath.relpath(on_site, posixpath.dirname(uri) or ".")
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"{uri} links to {path}, which does not exist")
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{config.repo_url}/{kind}/main/{path}"


def _bars(row: re.Match[str]) -> str:
    """Bars inside of code: git hosts want them escaped in a table, mkdocs does not."""
    return re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), row[0])


def with_links_to_methods(markdown: str) -> str:
    """Steps in the table of kinds lead to their pages."""
    start = markdown.index("| kind of step |")
    end = markdown.index("\n\n", start)
    linked = _METHOD.sub(r"[`\1`](methods/\1.md)", markdown[start:end])
    return markdown[:start] + linked + markdown[end:]


def outside_of_fences(markdown: str, change: Any) -> str:
    """Applies a change to all but blocks of code."""
    parts, end = [], 0
    for block in _FENCED.finditer(markdown):
        parts += [change(markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(markdown[end:])])


def shown_beside() -> list[str]:
    """Pictures outside of docs/ that its pages show."""
    shown = set()
    for page in sorted(Path(ROOT / "docs").glob("*.md")):
        shown |= set(re.findall(r'src="\.\./([^"]+)"', page.read_text()))
    return sorted(shown)
