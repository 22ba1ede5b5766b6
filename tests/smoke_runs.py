"""Lessons run at the scale smoke, in the browser and by nbgrader; conftest.py shares the runs."""

import csv
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest
from jupyter_browser import Visit, visit
from wrong_answers import WRONG_ANSWERS

from vreid_course import classroom, lessons

LESSONS = lessons.names()


@dataclass
class Graded:
    """What nbgrader made of three submissions of a lesson: "teacher", "untouched" and "wrong"."""

    planted: str  # the exercise that "wrong" has a wrong answer to
    marks: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    notebooks: dict[str, nbformat.NotebookNode] = field(default_factory=dict)


def in_browser(folder: Path, address: str, lesson: str) -> Visit:
    """Run a copy of a lesson in JupyterLab; VREID_SCREENSHOTS names a place for the pictures."""
    shutil.copy(lessons.notebook(lesson), folder)
    screenshots = Path(os.environ.get("VREID_SCREENSHOTS", folder))
    screenshots.mkdir(parents=True, exist_ok=True)
    return visit(address, folder / f"{lesson}.ipynb", screenshots)


def grade(folder: Path, lesson: str) -> Graded:
    """Release a lesson and have nbgrader grade three submissions of it.

    Only the teacher's is run to its end: the others stop after the last exercise.
    """
    folder = folder / lesson
    (student,) = classroom.release(folder, [lesson])
    teacher = nbformat.read(folder / "source" / lesson / student.name, as_version=4)
    untouched = nbformat.read(student, as_version=4)
    key = next(key for key in WRONG_ANSWERS if key[0] == lesson)
    wrong = plant(teacher, key[1], WRONG_ANSWERS[key][0])
    editions = {"teacher": teacher, "untouched": cut(untouched), "wrong": cut(wrong)}
    for name, edition in editions.items():
        target = folder / "submitted" / name / lesson / student.name
        target.parent.mkdir(parents=True)
        nbformat.write(edition, target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VREID_SCALE", "smoke")
        with classroom.grade(folder).open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    found = Graded(f"{key[1]}-check")
    for name in editions:
        found.marks[name] = {
            row["exercise"]: (float(row["points"]), float(row["of"]))
            for row in rows
            if row["student"] == name
        }
        path = folder / "autograded" / name / lesson / student.name
        found.notebooks[name] = nbformat.read(path, as_version=4)
    return found


def mark(cell: nbformat.NotebookNode, key: str):
    """A value of the nbgrader marks of a cell, None where it has none."""
    return cell.metadata.get("nbgrader", {}).get(key)


def plant(notebook: nbformat.NotebookNode, exercise: str, answer: str) -> nbformat.NotebookNode:
    """A copy of a notebook with an answer of one's own to an exercise."""
    notebook = nbformat.from_dict(notebook)
    (cell,) = [cell for cell in notebook.cells if mark(cell, "grade_id") == exercise]
    cell.source = answer
    return notebook


def cut(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy of a notebook without what follows its last check."""
    last = max(i for i, cell in enumerate(notebook.cells) if mark(cell, "grade"))
    return nbformat.from_dict(notebook | {"cells": notebook.cells[: last + 1]})
