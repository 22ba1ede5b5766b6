"""Lessons in a real JupyterLab: every cell runs, every control changes a picture."""

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

picture = ipywidgets.Image(value=shade(100), format="png")
red, green = (ipywidgets.IntSlider(100, max=255, step=50, description=x) for x in ("red", "green"))
green.observe(lambda change: setattr(picture, "value", shade(change["new"])), "value")
ipywidgets.VBox([red, green, picture])"""


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_in_the_browser(lesson, visited):
    seen = visited(lesson)
    assert seen.cell_errors == [] and seen.console_errors == []
    assert seen.moved and all(seen.moved.values()), "a control was moved and no picture changed"


@pytest.mark.slow
def test_the_visitor_sees_what_is_wrong(lab, tmp_path):
    """A failing cell and a slider that does nothing are both reported."""
    cells = [PLANTED, "1 / 0"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    folder, address = lab
    nbformat.write(notebook, folder / "planted.ipynb")
    seen = visit(address, folder / "planted.ipynb", tmp_path, seconds=60, patience=3)
    assert seen.cell_errors == ["ZeroDivisionError: division by zero"]
    assert seen.moved == {"0: red": False, "1: green": True}
