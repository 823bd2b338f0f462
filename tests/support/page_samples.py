"""Reads the page of ``jaxmerge inspect``, and opens it in a browser."""

import json
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium or Chrome on this machine"
)


class Parsed(HTMLParser):
    """Tags with their attributes, and the text of the cells of all tables."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


PROBE = """
<script>
addEventListener("load", () => {
  const heads = document.querySelectorAll("table")[1].tHead.rows[0].cells;
  const column = () =>
    [...document.querySelectorAll("table")[1].tBodies[0].rows].map(
      (row) => +row.cells[1].dataset.value);
  heads[1].querySelector("button").click();
  const up = column();
  heads[1].querySelector("button").click();
  parent.postMessage(JSON.stringify({
    width: innerWidth,
    needed: document.documentElement.scrollWidth,
    hidden: [...document.querySelectorAll(".scroll")].filter(
      (part) => part.scrollWidth > part.clientWidth + 1).length,
    tables: document.querySelectorAll("table").length,
    images: [...document.images].map((x) => [x.naturalWidth, x.clientWidth]),
    up,
    down: column(),
    sort: heads[1].getAttribute("aria-sort"),
  }), "*");
});
</script>
"""


FRAME = """
<body><script>
addEventListener("message", (event) => document.body.dataset.probe = event.data);
</script><iframe src="probed.html" width="{width}" height="900" style="border: 0">
</iframe></body>
"""


def browse(page, folder, width):
    """What a script finds in the page, shown in a frame of a given width."""
    text = page.read_text(encoding="utf-8")
    probed = folder / "probed.html"
    probed.write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    frame = folder / "frame.html"  # windows themselves have a smallest width
    frame.write_text(FRAME.format(width=width), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    options += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=9000"]
    done = subprocess.run(
        [BROWSER, *options, frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (body,) = Parsed(done.stdout).all("body")
    return json.loads(body["data-probe"])
