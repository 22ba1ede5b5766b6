"""Notebooks as pages: exported to HTML they read well without a kernel."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from PIL import Image

LESSONS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))
SPEAKS = re.compile(r"^(print|plt\.show|show\.)", re.MULTILINE)  # at top level


class Page(HTMLParser):
    """Collects pictures, links and anchors of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.pictures, self.links, self.anchors = [], [], set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.pictures.append(attrs.get("src", ""))
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        self.anchors |= {attrs[key] for key in ("id", "name") if attrs.get(key)}


def faults(notebook: nbformat.NotebookNode, folder: Path) -> list[str]:
    """What a reader of the exported page would miss."""
    page = Page(HTMLExporter(embed_images=False).from_notebook_node(notebook)[0])
    found = [f"broken picture: {src[:60]}" for src in page.pictures if not _is_picture(src, folder)]
    for link in page.links:
        file, _, anchor = link.partition("#")
        if "://" in file or link.startswith("mailto:"):
            continue
        if file and not (folder / file).exists():
            found.append(f"dead link: {link}")
        if not file and anchor and anchor not in page.anchors:
            found.append(f"dead anchor: {link}")
    for number, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        if SPEAKS.search(cell.source) and not cell.outputs:
            found.append(f"code cell {number} shows nothing: {cell.source[:60]!r}")
    return found


def _is_picture(src: str, folder: Path) -> bool:
    """Whether the source of a picture holds one, inside the page or as a file beside it."""
    try:
        inside = base64.b64decode(src.partition("base64,")[2]) if src.startswith("data:") else None
        with Image.open(BytesIO(inside) if inside is not None else folder / src) as picture:
            picture.load()
            return min(picture.size) > 1
    except (OSError, ValueError):
        return False


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_page_reads_well(path):
    assert faults(nbformat.read(path, as_version=4), path.parent) == []


def test_each_fault_is_seen(tmp_path):
    stream = BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    png = base64.b64encode(stream.getvalue()).decode()
    (tmp_path / "there.ipynb").touch()

    def page(text="", code="1", outputs=()):
        cell = nbformat.v4.new_code_cell(code, outputs=list(outputs), execution_count=1)
        text = nbformat.v4.new_markdown_cell(text)
        return faults(nbformat.v4.new_notebook(cells=[text, cell]), tmp_path)

    def picture(data):
        return nbformat.v4.new_output("display_data", data={"image/png": data})

    good = "# A title\n\n[up](#A-title), [file](there.ipynb), [paper](https://example.org)"
    assert page(good, "show.picture(x)", [picture(png)]) == []
    for bad, what in (
        (page("[x](gone.ipynb)"), "dead link: gone.ipynb"),
        (page("[x](#Gone)"), "dead anchor: #Gone"),
        (page("![x](gone.png)"), "broken picture: gone.png"),
        (page(code="show.picture(x)", outputs=[picture(png[:40])]), "broken picture"),
        (page(code="print(1)"), "code cell 0 shows nothing"),
    ):
        assert len(bad) == 1 and what in bad[0], bad
