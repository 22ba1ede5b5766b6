"""Whether two runs of a notebook gave the same results."""

import base64
import re
from io import BytesIO

import nbformat
from PIL import Image

ADDRESS = re.compile(r"0x[0-9a-f]{6,}")  # where an object lies in memory
NUMBER = r" *-?\d[\d,.]*(?:e[-+]\d+)?"
MEASURED = re.compile(rf"{NUMBER} ?(ms|s|seconds|MiB|MB|frames a second)\b")
HEADING = re.compile(r"\b(ms|MB|MiB)\b")


def differences(first: nbformat.NotebookNode, second: nbformat.NotebookNode) -> list[str]:
    """One line for each code cell whose results differ between two runs."""
    sources = [[cell.source for cell in notebook.cells] for notebook in (first, second)]
    if sources[0] != sources[1]:
        return ["two different notebooks: was it edited between the runs?"]
    found = []
    for cells in zip(first.cells, second.cells, strict=True):
        if cells[0].cell_type == "code":
            (text, figures), (other_text, other_figures) = map(results, cells)
            if text != other_text:
                found.append(f"{cells[0].id}: {text!r} is now {other_text!r}")
            elif figures != other_figures:
                found.append(f"{cells[0].id}: another figure")
    return found


def results(cell: nbformat.NotebookNode) -> tuple[str, list]:
    """The text and the figures of a cell; progress bars and messages (stderr) are no results.

    A cell with the tag `times` shows what was measured. From it goes every number before a unit;
    and if a heading has the unit, every number and figure.
    """
    text = "".join(o.text for o in cell.outputs if o.get("name") == "stdout")
    shown = [o.data for o in cell.outputs if "data" in o]
    shown = [data for data in shown if "%|" not in data.get("text/plain", "")]
    text += "\n".join(data.get(kind, "") for data in shown for kind in ("text/plain", "text/html"))
    text = ADDRESS.sub("0x", text)
    figures = [pixels(data["image/png"]) for data in shown if "image/png" in data]
    if "times" in cell.metadata.get("tags", []):
        text = MEASURED.sub("#", text)
        if HEADING.search(text):
            text, figures = re.sub(NUMBER, "#", text), []
    return text, figures


def pixels(png: str) -> tuple[tuple[int, int], bytes]:
    picture = Image.open(BytesIO(base64.b64decode(png))).convert("RGBA")
    return picture.size, picture.tobytes()
