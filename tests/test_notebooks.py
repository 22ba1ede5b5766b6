"""Notebooks: hygiene of the committed ones, and proof that wrong ones turn the run red."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import nbformat
import pytest
from clean_notebook import WIDGET, clean
from nbclient import NotebookClient
from notebook_names import rebound
from notebook_rules import LARGEST, problems

from vreid_course.drawing.mini_mars import MiniMars, draw

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LESSONS = [path for path in NOTEBOOKS if not path.name.startswith("_")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_hygiene(path):
    assert not problems(path), "\n".join(problems(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_cells_can_run_again_in_any_order(path):
    """What one cell takes from another is bound in one cell only."""
    cells = nbformat.read(path, as_version=4).cells
    found = rebound([cell.source for cell in cells if cell.cell_type == "code"])
    assert found == {}, "names that several cells bind, with the numbers of those"


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (["x = 1", "print(x)", "x = 2"], {"x": [0, 2]}),
        (["x = 1", "x = x + 1"], {"x": [0, 1]}),
        (["x = 1", "x += 1"], {"x": [0, 1]}),
        (["x, _ = 1, 2", "_, y = 1, 2", "z = [0]\nz[0] += 1"], {}),
        (["for x in range(3):\n    y = x", "print(y)", "x, y = 1, 2"], {"y": [0, 2]}),
        (["x = 1\ndef f():\n    return x", "x = 2"], {"x": [0, 1]}),
        (["def f():\n    return x", "x = 1", "from y import x"], {"x": [1, 2]}),
        (["x = 1", "class A:\n    def f(self):\n        return x", "x = 2"], {"x": [0, 2]}),
        (["x = 1", "print([x for y in range(3) if (lambda z: x)(y)])", "x = 2"], {"x": [0, 2]}),
        (["x = 1", "f(x=3, y={'x': [x for x in range(3)]})", "x = 2"], {}),
        (["x = 1\nprint(x)", "x = 2\nprint(x)", "f = lambda x: x\n"], {}),
        (["x = 1", "def f(x, y=x):\n    z = x\n    return z", "z = 2", "z = 3"], {}),
        (["x = 1", "print(x)", "if other_data:\n    x = 2\n    print(x)"], {}),
    ],
)
def test_names_that_cells_share_are_seen(cells, found):
    assert rebound(cells) == found


def clean_notebook():
    """Two executed code cells, the first of them an export cell, and a text with a link."""
    code = nbformat.v4.new_code_cell
    export = 'import math\n\nSIZE = 3\n"""A text."""\n\n\ndef double(x):\n    return 2 * x'
    text = nbformat.v4.new_output("stream", name="stdout", text="6\nnotebooks/00_tour.ipynb\n")
    return nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("See https://arxiv.org/abs/1703.07737 and data/cache/."),
            code(export, metadata={"tags": ["export"]}, execution_count=1),
            code("print(double(SIZE))  # https://example.org", outputs=[text], execution_count=2),
            code(""),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )


def check(notebook, folder):
    (folder / "planted.ipynb").write_text(json.dumps(notebook))
    return problems(folder / "planted.ipynb")


def test_a_clean_notebook_has_no_problem(tmp_path):
    assert check(clean_notebook(), tmp_path) == []


def show(**data):
    kinds = {kind.replace("_", "/").replace("1", "+"): value for kind, value in data.items()}
    return lambda nb: nb.cells[2].outputs.append(
        nbformat.v4.new_output("display_data", data={"text/plain": "<Figure>"} | kinds)
    )


def say(text):
    output = nbformat.v4.new_output("stream", name="stderr", text=text)
    return lambda nb: nb.cells[2].outputs.append(output)


def put(index, key, value):
    return lambda nb: nb.cells[index].update({key: value})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (put(2, "execution_count", 5), r"not executed in one go, from the top: \[1, 5\]"),
        (put(2, "execution_count", None), "not executed"),
        (put(2, "id", "x" * 80), "not valid"),
        (lambda nb: nb.cells[2].update(id=nb.cells[1].id), "stands 2 times"),
        (lambda nb: nb.metadata.update(widgets={}), "widget state"),
        (lambda nb: nb.metadata.kernelspec.update(name="mine"), "kernel is not python3"),
        (put(2, "source", "x = 1\n" * 21), "21 lines of code"),
        (put(2, "source", "!pip install torch"), "uses the network: pip install"),
        (put(2, "source", "urlopen('https://example.org')"), "uses the network"),
        (put(1, "source", "model = 3"), "exports 'model = 3'"),
        (put(1, "source", "print(3)"), "exports"),
        (put(1, "source", "for X in range(3):\n    Y = X"), "exports"),
        (put(1, "source", "%matplotlib inline"), "not plain Python"),
        (show(**{"image_svg1xml": "<svg/>"}), "no PNG: image/svg"),
        (show(image_jpeg="AAAA"), "no PNG: image/jpeg"),
        (say("/home/someone/course/x.py:3: UserWarning"), "names a place: /home/someone"),
        (say("in /tmp/ipykernel_12/34.py"), "names a place: /tmp/ipykernel_12"),
        (say("C:\\Users\\someone"), "names a place: C:"),
        (put(0, "source", "Look in /mnt/data."), "names a place: /mnt/data"),
        (put(0, "source", "Take it from https://pypi.org/simple."), "names a place: pypi."),
        (show(text_html="x" * LARGEST), "bytes, more than"),
        (
            lambda nb: nb.cells[2].outputs.append(
                nbformat.v4.new_output("error", ename="KeyError", evalue="'x'", traceback=[])
            ),
            "failed: KeyError",
        ),
    ],
)
def test_each_rule_sees_what_breaks_it(spoil, message, tmp_path):
    notebook = clean_notebook()
    spoil(notebook)
    found = check(notebook, tmp_path)
    assert any(re.search(message, line) for line in found), found


def test_cleaning_keeps_results_and_drops_progress(tmp_path):
    notebook = clean_notebook()
    bar = {
        "text/plain": " 10%|#         | 4/40 [00:03<00:27, 1.3step/s]",
        WIDGET: {"model_id": "a"},
    }
    view = {"text/plain": "VBox(children=(IntSlider(value=0),))", WIDGET: {"model_id": "b"}}
    for data in (bar, view):
        notebook.cells[2].outputs.append(nbformat.v4.new_output("display_data", data=data))
    say(" 5%|5  | 1/20\r100%|## | 20/20\n")(notebook)
    notebook.metadata.widgets = {"state": {}}
    clean(notebook)
    left = notebook.cells[2].outputs
    assert [o.get("text") for o in left] == ["6\nnotebooks/00_tour.ipynb\n", None]
    assert left[1].data == {"text/plain": view["text/plain"]}
    assert check(notebook, tmp_path) == []


@pytest.mark.slow
def test_a_wrong_output_and_a_wrong_answer_turn_the_run_red(tmp_path):
    compared = {"tags": ["nbval-check-output"]}
    two = nbformat.v4.new_output("stream", name="stdout", text="2\n")
    here = f"import sys\n\nassert sys.prefix == {sys.prefix!r}"
    for name, shown, answer in (("right", "1 + 1", 4), ("output", "1 + 2", 4), ("answer", "2", 5)):
        code = partial(nbformat.v4.new_code_cell, execution_count=1)
        cells = [code(here), code(f"print({shown})", metadata=compared, outputs=[two])]
        cells += [code("print(7)", outputs=[two]), code(f"assert 2 + 2 == {answer}")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-v", "-rN"]
    command += ["-p", "no:cacheprovider", "--color=no", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    outcomes = re.findall(r"(\w+)\.ipynb::Cell (\d) (PASSED|FAILED)", done.stdout)
    failed = [(name, cell) for name, cell, outcome in outcomes if outcome == "FAILED"]
    assert len(outcomes) == 12 and failed == [("answer", "3"), ("output", "1")], done.stdout
    assert done.returncode == 1


@pytest.fixture(scope="module")
def strange_data(tmp_path_factory):
    """A set in MARS layout of other people than the course's own, without any truth beside it."""
    folder = tmp_path_factory.mktemp("data") / "strange"
    draw(MiniMars(train_ids=12, test_ids=8, seed=77, frames=(2, 16)), folder)
    for file in folder.iterdir():
        if file.is_file():
            file.unlink()
    return folder


@pytest.fixture(scope="module")
def pretending(tmp_path_factory):
    """Settings of kernels that start on the pretend accelerator, with nothing kept from before."""
    folder = tmp_path_factory.mktemp("pretending")
    startup = folder / "profile_default" / "startup"
    startup.mkdir(parents=True)
    lines = f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n"
    lines += "import pretend_accelerator\npretend_accelerator.register()\nsys.path.pop(0)\n"
    (startup / "00_pretend.py").write_text(lines)
    return {"IPYTHONDIR": str(folder), "VREID_CACHE": str(folder), "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_on_other_data_and_another_device(path, strange_data, pretending, monkeypatch):
    """A few steps of every lesson: a drawn set stands for real MARS, the CPU for a GPU."""
    monkeypatch.setenv("VREID_SCALE", "smoke")
    monkeypatch.setenv("VREID_DATA", str(strange_data))
    for name, value in pretending.items():
        monkeypatch.setenv(name, value)
    notebook, place = nbformat.read(path, as_version=4), {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=200, kernel_name="python3", resources=place).execute()
