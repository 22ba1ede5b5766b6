"""Whether two runs of a notebook gave the same results."""

import base64
import re
from io import BytesIO

import nbformat
import numpy as np
from clean_notebook import clean
from PIL import Image

ADDRESS = re.compile(r"0x[0-9a-f]{6,}")  # where an object lies in memory
NUMBER = r"[-+]?\d[\d,]*\.?\d*"
MEASURED = re.compile(rf" *{NUMBER} ?(ms|s|seconds|MiB|MB|frames a second)\b")
HEADING = re.compile(r"\b(ms|milliseconds|seconds|MiB|MB)\b")


def differences(first: nbformat.NotebookNode, second: nbformat.NotebookNode) -> list[str]:
    """One line for each code cell whose printed text or figures differ between two runs.

    Progress bars, widgets and messages (stderr) are no results. Cells with the tag `times` print
    or draw what was measured: their text is compared without it, their figures are not.
    """
    runs = [nbformat.from_dict(notebook) for notebook in (first, second)]
    for notebook in runs:
        clean(notebook)
    found = []
    for old, new in zip(*(notebook.cells for notebook in runs), strict=True):
        if old.cell_type == "code" and (text := texts(old)) != (other := texts(new)):
            found.append(f"{old.id}: {text!r} is now {other!r}")
        elif old.cell_type == "code" and not is_timed(old) and not same_figures(old, new):
            found.append(f"{old.id}: another figure")
    return found


def is_timed(cell: nbformat.NotebookNode) -> bool:
    return "times" in cell.metadata.get("tags", [])


def texts(cell: nbformat.NotebookNode) -> str:
    """All that a cell printed and showed as text; of a timed cell without what was measured.

    That is every number with a unit after it, and every number at all if a heading has a unit.
    """
    parts = [o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout"]
    shown = [o.data for o in cell.outputs if "data" in o]
    parts += [data.get(kind, "") for data in shown for kind in ("text/plain", "text/html")]
    text = ADDRESS.sub("0x", "\n".join(parts))
    if is_timed(cell):
        text = MEASURED.sub("#", text)
        text = re.sub(f" *{NUMBER}", "#", text) if HEADING.search(text) else text
    return text


def same_figures(old: nbformat.NotebookNode, new: nbformat.NotebookNode) -> bool:
    """Whether two cells show the same figures, pixel by pixel."""
    runs = [
        [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
        for cell in (old, new)
    ]
    pairs = zip(*([pixels(png) for png in figures] for figures in runs), strict=False)
    return len(runs[0]) == len(runs[1]) and all(np.array_equal(a, b) for a, b in pairs)


def pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(png))).convert("RGBA"))
