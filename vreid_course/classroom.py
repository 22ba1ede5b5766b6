"""Assignments: the lessons' exercises handed out and graded, with nbgrader.

A folder holds a class in nbgrader's layout: source/, release/, autograded/, gradebook.db, and
submitted/STUDENT/LESSON/LESSON.ipynb. Any other nbgrader command works on it as well.
"""

import csv
import os
import re
import shutil
import sys
import warnings
from pathlib import Path

from vreid_course import lessons
from vreid_course.files import writable


def release(folder: Path, names: list[str] | None = None) -> list[Path]:
    """Write the student's edition of lessons (default: all): folder/release/LESSON/LESSON.ipynb.

    Solutions and outputs are gone, checks are locked. Raises ValueError for an unknown lesson.
    """
    notebooks = {name: lessons.notebook(name) for name in names or lessons.names()}
    grader, found = _grader(folder), []
    for name, notebook in notebooks.items():
        (folder / "source" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(notebook, folder / "source" / name)
        _succeed(grader.generate_assignment(name), f"{name}: no student's edition")
        found.append(folder / "release" / name / f"{name}.ipynb")
    return found


def grade(folder: Path) -> Path:
    """Run and grade all that lies in folder/submitted; returns folder/grades.csv.

    A row for each exercise: lesson, student, exercise, points, of. The notebooks run at the scale
    that VREID_SCALE names, else "smoke", with the checks of the teacher's edition. Raises
    ValueError if nothing was released or submitted, or, once the others are graded, for what could
    not be graded.
    """
    os.environ.setdefault("VREID_SCALE", "smoke")
    grader, rows, faults = _grader(folder), [], []
    submissions = sorted((folder / "submitted").glob("*/*"))
    if not submissions:
        raise ValueError(f"{folder}/submitted: empty: put STUDENT/LESSON/LESSON.ipynb there")
    for path in submissions:
        try:
            rows += _graded(grader, folder, path)
        except ValueError as error:  # the others are graded nevertheless
            faults.append(error)
    path = folder / "grades.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([("lesson", "student", "exercise", "points", "of"), *rows])
    if faults:
        listed = "; ".join(map(str, faults))
        raise ValueError(f"{path}: without {len(faults)} of the submissions: {listed}")
    return path


def _graded(grader, folder: Path, path: Path) -> list[tuple]:
    """The rows of one submission."""
    student, name = path.parent.name, path.name
    if not (folder / "release" / name).is_dir():
        raise ValueError(f"{path}: {name} was not released into {folder}: run `release` first")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the insides of nbgrader's data base
        _succeed(grader.autograde(name, student), f"{path}: not graded")
    with grader.gradebook as book:
        graded = book.find_submission_notebook(name, name, student).grades
        marks = {g.cell.name: (g.auto_score or 0.0, g.max_score) for g in graded}
    return [(name, student, check, *marks[check]) for check in sorted(marks)]


def _grader(folder: Path):
    """nbgrader's own interface to the class in a folder."""
    try:
        from nbgrader.apps import NbGraderAPI
        from traitlets.config import Config
    except ImportError:
        raise ValueError("nbgrader is missing: pip install -r requirements.txt") from None
    writable(folder, "name another folder, or free some space")
    own = str(Path(sys.executable).parent)  # nbgrader calls `alembic` by name
    if own not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join((own, os.environ["PATH"]))
    config = Config()
    config.CourseDirectory.root = str(folder.resolve())
    config.CourseDirectory.course_id = "vreid"
    config.CourseDirectory.db_url = f"sqlite:///{folder.resolve() / 'gradebook.db'}"
    config.Execute.timeout = 900
    config.ClearSolutions.code_stub = {"python": "raise NotImplementedError  # your answer"}
    return NbGraderAPI(config=config)


def _succeed(result: dict, fault: str) -> None:
    if not result["success"]:
        lines = re.findall(r"^\s*([\w.]*(?:Error|Exception): .*)", result.get("log") or "", re.M)
        cause = lines[-1] if lines else (result.get("error") or "see the log above").strip()
        raise ValueError(f"{fault}: {cause.splitlines()[-1]}")
