"""Lessons in a real JupyterLab: every cell runs, and a moved slider changes the picture."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from jupyter_browser import visit

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
LESSONS = [
    "00_tour",
    "01_baseline",
    "02_cosam",
    "03_gltr",
    "04_tkp",
    "05_attributes",
    "06_vrstc",
    "07_related",
    "08_compare",
    "09_prototype",
]
PLANTED = """import io
import ipywidgets
from PIL import Image

def shade(level):
    file = io.BytesIO()
    Image.new("RGB", (120, 60), (level, 80, 160)).save(file, "PNG")
    return file.getvalue()

slider = ipywidgets.IntSlider(value=100, max=255, step=50, description="red")
picture = ipywidgets.Image(value=shade(100), format="png")
if {linked}:
    slider.observe(lambda change: setattr(picture, "value", shade(change["new"])), "value")
ipywidgets.VBox([slider, picture])"""


@pytest.fixture
def screenshots(tmp_path):
    """Where the pictures of the page go: the folder that VREID_SCREENSHOTS names."""
    folder = Path(os.environ.get("VREID_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_in_the_browser(lesson, tmp_path, screenshots, monkeypatch):
    monkeypatch.setenv("VREID_SCALE", "smoke")
    (tmp_path / "notebooks").mkdir()
    notebook = tmp_path / "notebooks" / f"{lesson}.ipynb"
    shutil.copy(NOTEBOOKS / notebook.name, notebook)
    seen = visit(notebook, screenshots, seconds=400)
    assert seen.cell_errors == [] and seen.console_errors == []
    assert seen.pictures[0] != seen.pictures[1], "the slider moved and its picture did not change"


@pytest.mark.slow
def test_the_visitor_sees_what_is_wrong(tmp_path, screenshots):
    """A failing cell and a slider that does nothing are both reported."""
    cells = [PLANTED.format(linked=False), "1 / 0"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "planted.ipynb")
    seen = visit(tmp_path / "planted.ipynb", screenshots, seconds=60, patience=3)
    assert seen.cell_errors == ["ZeroDivisionError: division by zero"]
    assert len(seen.pictures[0]) == 1 and seen.pictures[0] == seen.pictures[1]
