"""Assignments with the real nbgrader: what students get, and what their answers are worth.

And whether a lesson gives the same results twice: the teacher's run is compared with the browser's.
"""

import csv
import shutil

import nbformat
import pytest
import torch
from jupyter_browser import errors
from nbclient import NotebookClient
from repeats import differences
from smoke_runs import LESSONS, mark

from vreid_course import __main__ as cli
from vreid_course import classroom

EVERY = pytest.mark.parametrize("lesson", LESSONS)
SOLUTION = "def twice(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"


def cell(source, id="", **marks):
    made = nbformat.v4.new_code_cell(source, **({"id": id} if id else {}))
    if marks:
        marks = {"schema_version": 3, "task": False, "locked": False} | marks
        made.metadata["nbgrader"] = {"grade": False, "solution": False} | marks
    return made


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A lesson of three cells: a text output, an exercise, its check."""
    shown = cell("print(1 + 1)")
    shown.outputs, shown.execution_count = [nbformat.v4.new_output("stream", text="2\n")], 1
    check = {"grade_id": "twice-check", "grade": True, "locked": True, "points": 2}
    cells = [shown, cell(SOLUTION, grade_id="twice", solution=True)]
    cells += [cell("assert twice(3) == 6", **check)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "90_toy.ipynb")
    monkeypatch.setenv("VREID_NOTEBOOKS", str(tmp_path / "notebooks"))
    return tmp_path / "a class"


def submit(folder, student, source, answer=None):
    target = folder / "submitted" / student / "90_toy" / "90_toy.ipynb"
    target.parent.mkdir(parents=True)
    shutil.copy(source, target)
    if answer:
        notebook = nbformat.read(target, as_version=4)
        notebook.cells[1].source = answer
        nbformat.write(notebook, target)


@pytest.mark.slow
def test_full_marks_for_the_teacher_none_for_an_empty_or_a_wrong_answer(toy, capsys):
    assert cli.main(["release", str(toy)]) == 0
    (student,) = toy.glob("release/*/*.ipynb")
    edition = nbformat.read(student, as_version=4)
    assert "2 * x" not in edition.cells[1].source and "SOLUTION" not in edition.cells[1].source
    assert "raise NotImplementedError" in edition.cells[1].source
    assert not any(c.outputs for c in edition.cells), "a student sees results before running"
    submit(toy, "teacher", toy / "source" / "90_toy" / "90_toy.ipynb")
    submit(toy, "empty", student)
    submit(toy, "wrong", student, "def twice(x):\n    return x**2")
    submit(toy, "right", student, "def twice(x):\n    return x + x")
    submit(toy, "cheat", student, "def twice(x):\n    return 1")
    cheat = toy / "submitted" / "cheat" / "90_toy" / "90_toy.ipynb"
    cheat.write_text(cheat.read_text().replace("assert twice(3) == 6", "assert True"))
    assert cli.main(["grade", str(toy)]) == 0
    with (toy / "grades.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {(r["lesson"], r["exercise"], r["of"]) for r in rows} == {
        ("90_toy", "twice-check", "2.0")
    }
    points = {row["student"]: float(row["points"]) for row in rows}
    assert points == {"teacher": 2, "empty": 0, "wrong": 0, "right": 2, "cheat": 0}


@pytest.mark.slow
def test_what_is_missing_is_said(toy):
    with pytest.raises(ValueError, match="no lesson '91_none'"):
        classroom.release(toy, ["91_none"])
    with pytest.raises(ValueError, match="submitted: empty"):
        classroom.grade(toy)
    (toy / "submitted" / "ann" / "90_toy").mkdir(parents=True)
    with pytest.raises(ValueError, match="was not released"):
        classroom.grade(toy)
    classroom.release(toy)
    submit(toy, "bob", toy / "source" / "90_toy" / "90_toy.ipynb")
    with pytest.raises(ValueError, match="without 1 of the submissions: .*ann.90_toy: not graded"):
        classroom.grade(toy)
    assert "90_toy,bob,twice-check,2.0,2.0" in (toy / "grades.csv").read_text().splitlines()


def without(cell):
    def change(notebook):
        del notebook.cells[cell]

    return change


SPOILED = {  # what students do to a notebook, and what the teacher reads
    "check deleted": (without(2), "cell twice-check is missing: mend it"),
    "answer deleted": (without(1), "cell twice is missing"),
    "check copied": (lambda nb: nb.cells.append(nb.cells[2]), "twice-check stands twice"),
    "answer copied": (lambda nb: nb.cells.insert(0, nb.cells[1]), "twice stands twice"),
}


@pytest.mark.slow
def test_what_cannot_be_graded_is_named_and_litter_is_skipped(toy):
    (edition,) = classroom.release(toy)
    for student, (change, _) in SPOILED.items():
        submit(toy, student, edition)
        path = toy / "submitted" / student / "90_toy" / "90_toy.ipynb"
        notebook = nbformat.read(path, as_version=4)
        change(notebook)
        nbformat.write(notebook, path)
    submit(toy, "renamed", edition)
    path = toy / "submitted" / "renamed" / "90_toy" / "90_toy.ipynb"
    path.rename(path.with_name("90_toy (1).ipynb"))
    submit(toy, "text", edition)
    (toy / "submitted" / "text" / "90_toy" / "90_toy.ipynb").write_text("no notebook")
    (toy / "submitted" / "flat").mkdir()
    shutil.copy(edition, toy / "submitted" / "flat" / "90_toy.ipynb")
    submit(toy, "folder", edition)
    path = toy / "submitted" / "folder" / "90_toy"
    path.rename(path.with_name("90_toy (2)"))
    submit(toy, "good", toy / "source" / "90_toy" / "90_toy.ipynb")
    for litter in (".DS_Store", "good/.DS_Store", "good/notes.txt", "good/90_toy/._90_toy.ipynb"):
        (toy / "submitted" / litter).write_bytes(b"\0\5")
    (toy / "submitted" / ".git" / "objects").mkdir(parents=True)
    with pytest.raises(ValueError) as error:
        classroom.grade(toy)
    lines = str(error.value).split("; ")
    wanted = {student: text for student, (_, text) in SPOILED.items()}
    wanted |= {"renamed": "rename 90_toy (1).ipynb to 90_toy.ipynb", "text": "no notebook"}
    wanted |= {"flat": "rename it to 90_toy/90_toy.ipynb", "folder": "rename the folder"}
    assert len(lines) == len(wanted) and "without 8 of the submissions" in lines[0]
    for student, text in wanted.items():
        (line,) = [line for line in lines if f"submitted/{student}/" in line]
        assert text in line, line
    assert (toy / "grades.csv").read_text().splitlines()[1:] == ["90_toy,good,twice-check,2.0,2.0"]


@pytest.mark.slow
@EVERY
def test_a_lesson_as_an_assignment(lesson, graded):
    found = graded(lesson)
    full = {name: of for name, (_, of) in found.marks["teacher"].items()}
    assert full and all(full.values())
    scores = {who: {name: x for name, (x, _) in m.items()} for who, m in found.marks.items()}
    assert scores["teacher"] == full
    assert scores["untouched"] == dict.fromkeys(full, 0)
    assert scores["wrong"] == full | {found.planted: 0}
    raised = {who: failing(notebook) for who, notebook in found.notebooks.items()}
    assert raised == {"teacher": set(), "untouched": set(full), "wrong": {found.planted}}


def failing(notebook):
    """The names of the checks, and the ids of other cells, that raised an error."""
    cells = [c for c in notebook.cells if errors(nbformat.v4.new_notebook(cells=[c]))]
    return {mark(c, "grade_id") or c.id for c in cells}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU repeats its sums in another order")
@EVERY
def test_a_lesson_repeats(lesson, visited, graded):
    found = differences(visited(lesson).notebook, graded(lesson).notebooks["teacher"])
    advice = "seed what is drawn at random; cells that show measured times have the tag `times`"
    assert not found, "\n".join([advice, *found])


@pytest.mark.slow
def test_what_does_not_repeat_is_seen():
    timed = "print(4, 'clips in', time.perf_counter(), 's')"
    draw = "figure = plt.figure(figsize=(1, 1)); plt.imshow({}); plt.show()"
    cells = [
        cell("import time, torch, matplotlib.pyplot as plt", id="imports"),
        cell(draw.format("torch.arange(4.0).view(2, 2)"), id="drawn"),
        cell("print(torch.rand(1))", id="unseeded"),
        cell(draw.format("torch.rand(2, 2)"), id="unseeded-drawn"),
        cell("torch.manual_seed(0); print(torch.rand(1))", id="seeded"),
        cell(timed, id="no-tag"),
        cell(timed, id="timed"),
        cell("print('ms of two:', time.perf_counter(), 1e3 * time.time())", id="heading"),
        cell("torch.seed(); print(torch.rand(1).item(), time.perf_counter(), 's')", id="both"),
    ]
    for one in cells[-3:]:
        one.metadata["tags"] = ["times"]
    runs = [nbformat.v4.new_notebook(cells=cells) for _ in range(2)]
    runs = [NotebookClient(nbformat.from_dict(x), kernel_name="python3").execute() for x in runs]
    found = [line.split(":")[0] for line in differences(*runs)]
    assert found == ["unseeded", "unseeded-drawn", "no-tag", "both"]
