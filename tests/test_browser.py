"""Lessons in a real JupyterLab: every cell runs, and a moved slider changes the picture."""

import nbformat
import pytest
from jupyter_browser import visit
from smoke_runs import LESSONS

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


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_in_the_browser(lesson, visited):
    seen = visited(lesson)
    assert seen.cell_errors == [] and seen.console_errors == []
    assert seen.pictures[0] != seen.pictures[1], "the slider moved and its picture did not change"


@pytest.mark.slow
def test_the_visitor_sees_what_is_wrong(tmp_path):
    """A failing cell and a slider that does nothing are both reported."""
    cells = [PLANTED.format(linked=False), "1 / 0"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "planted.ipynb")
    seen = visit(tmp_path / "planted.ipynb", tmp_path, seconds=60, patience=3)
    assert seen.cell_errors == ["ZeroDivisionError: division by zero"]
    assert len(seen.pictures[0]) == 1 and seen.pictures[0] == seen.pictures[1]
