"""Lessons as modules: names, sources, tracebacks, other processes and clear errors."""

import importlib
import inspect
import multiprocessing
import re
import subprocess
import sys
import time
import traceback

import nbformat
import pytest

from vreid_course import lessons

FIRST = '''"""A toy lesson."""
import math


def area(radius: float) -> float:
    """Area of a circle."""
    return math.pi * radius**2'''
SECOND = '''class Scale:
    """Multiplies by a factor."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, value):
        return self.factor / value'''


def write(folder, name, *cells):
    """Write a notebook of (source, tag or None) code cells, None standing for a text cell."""
    made = [
        nbformat.v4.new_code_cell(cell[0], metadata={"tags": [cell[1]] if cell[1] else []})
        if cell
        else nbformat.v4.new_markdown_cell("text")
        for cell in cells
    ]
    folder.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=made), folder / f"{name}.ipynb")


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """An empty notebooks folder in use; afterwards the modules that came from it are forgotten."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("VREID_NOTEBOOKS", str(tmp_path / "notebooks"))
    before = set(sys.modules)
    yield tmp_path / "notebooks"
    for name in set(sys.modules) - before:
        if name.startswith("vreid_course.lessons."):
            del sys.modules[name]
            vars(lessons).pop(name.rpartition(".")[2], None)


@pytest.fixture
def toy(notebooks):
    write(
        notebooks,
        "90_toy",
        None,
        ("raise SystemExit('a cell without the tag was run')", None),
        ("", None),
        (FIRST, "export"),
        None,
        (SECOND, "export"),
    )
    return lessons.load("90_toy")


def test_only_export_cells_are_run(toy):
    assert toy.area(2) == pytest.approx(12.566, abs=1e-3) and toy.Scale(6)(3) == 2
    assert toy.__doc__ == "A toy lesson." and toy.__name__ == "vreid_course.lessons.90_toy"
    assert lessons.load("90_toy") is toy


def test_sources_are_found(toy):
    assert inspect.getsource(toy.area) == FIRST[FIRST.index("def") :] + "\n"
    assert inspect.getsource(toy.Scale) == SECOND + "\n"
    assert inspect.getsource(toy.Scale.__call__).strip() == SECOND[SECOND.index("def __call") :]
    assert inspect.getsource(toy).startswith(FIRST) and SECOND in inspect.getsource(toy)


def test_tracebacks_name_notebook_cell_and_line(toy):
    with pytest.raises(ZeroDivisionError) as caught:
        toy.Scale(1)(0)
    text = "".join(traceback.format_exception(caught.value))
    assert 'File "notebooks/90_toy.ipynb cell [3]"' in text
    assert "return self.factor / value" in text and "in __call__" in text


def test_a_reloaded_lesson_shows_its_new_source(toy, notebooks):
    inspect.getsource(toy.area)
    write(notebooks, "90_toy", ("def area(side):\n    return side**2", "export"))
    toy = importlib.reload(toy)
    assert toy.area(3) == 9 and "side**2" in inspect.getsource(toy.area)


def test_names_are_sorted_and_leave_out_the_template(notebooks):
    for name in ("02_b", "_template", "01_a"):
        write(notebooks, name, ("x = 1", "export"))
    assert lessons.names() == ["01_a", "02_b"]
    with pytest.raises(ValueError, match=r"no lesson '03_c' in .*: there are 01_a, 02_b"):
        lessons.load("03_c")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", r"notebooks/91_bad.ipynb cell \[2\] does not run on its own: ZeroDivisionError"),
        ("print(undefined)", r"cell \[2\].*NameError: name 'undefined'"),
        ("%matplotlib inline", r"cell \[2\].*SyntaxError"),
    ],
)
def test_a_failing_cell_is_named(notebooks, source, message):
    write(notebooks, "91_bad", ("y = 1", None), (source, "export"))
    with pytest.raises(ImportError, match=message):
        lessons.load("91_bad")
    assert "vreid_course.lessons.91_bad" not in sys.modules


def test_a_notebook_without_exports_or_broken_is_named(notebooks):
    write(notebooks, "92_none", ("y = 1", None))
    with pytest.raises(ImportError, match=r"92_none.ipynb has no cell tagged `export`"):
        lessons.load("92_none")
    (notebooks / "93_torn.ipynb").write_text('{"cells": [')
    with pytest.raises(ImportError, match=r"93_torn.ipynb is not a notebook"):
        lessons.load("93_torn")


def test_a_missing_notebooks_folder_names_the_cure(monkeypatch, tmp_path):
    monkeypatch.setenv("VREID_NOTEBOOKS", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere: install .*pip install -e .*VREID_NOTE"):
        lessons.load("01_a")


def test_the_default_folder_is_beside_the_package(monkeypatch):
    monkeypatch.delenv("VREID_NOTEBOOKS", raising=False)
    assert (lessons.folder().parent / "vreid_course" / "lessons.py").exists()


def _apply(scale):
    return scale(4.0)


@pytest.mark.slow
def test_objects_travel_to_spawned_processes(toy):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_apply, [toy.Scale(8.0)]) == [2.0]


@pytest.mark.slow
def test_lessons_load_under_torchrun(toy, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from vreid_course.lessons import load\nprint('area', load('90_toy').area(1), flush=True)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, script], capture_output=True, text=True, timeout=120)
    assert done.stdout.count(" 3.14159") == 2, done.stderr


def test_every_lesson_loads_quickly_and_quietly(monkeypatch, capsys):
    monkeypatch.delenv("VREID_NOTEBOOKS", raising=False)
    importlib.import_module("vreid_course.study")  # the libraries, which every lesson needs
    for name in sorted({*lessons.names()} - {"00_tour", "08_compare"}):  # they build nothing
        sys.modules.pop(f"vreid_course.lessons.{name}", None)
        start = time.perf_counter()
        module = lessons.load(name)
        assert time.perf_counter() - start < 3, f"{name} takes too long: does it train on load?"
        assert capsys.readouterr().out == "", f"{name}: an export cell prints"
        wanted = ("build", "loss", "embed", "recipe")
        assert all(callable(getattr(module, x)) for x in wanted), name
        for value in vars(module).values():
            if getattr(value, "__module__", None) == module.__name__:
                assert inspect.getsource(value)


@pytest.mark.parametrize("name", lessons.names())
def test_the_syllabus_says_what_the_lesson_says(name):
    """Minutes of reading and of exercises, and points, in the teachers' table."""
    cells = nbformat.read(lessons.notebook(name), as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    reading = re.search(r"Time to read\W+(\d+) minutes", text)[1]
    exercises = sum(map(int, re.findall(r"\*\*Exercise \d+\*\* \((\d+) minutes", text)))
    points = sum(cell.metadata.get("nbgrader", {}).get("points", 0) for cell in cells)
    syllabus = (lessons.notebook(name).parent / "README.md").read_text("utf-8")
    (row,) = [line.split("|") for line in syllabus.splitlines() if f"]({name}.ipynb)" in line]
    found = [row[column].strip() for column in (3, 4, 5)]
    assert found == [f"{reading} min", f"{exercises} min", str(points)]
