"""Assignments: the lessons' exercises handed out and graded, with nbgrader.

A folder holds a class in nbgrader's layout: source/, release/, autograded/, gradebook.db, and
submitted/STUDENT/LESSON/LESSON.ipynb. Any other nbgrader command works on it as well.
"""

import csv
import json
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
    submissions = sorted((folder / "submitted").glob("[!.]*/[!.]*"))
    submissions = [p for p in submissions if p.is_dir() or p.suffix == ".ipynb"]  # no litter
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
    _check_submission(folder, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the insides of nbgrader's data base
        _succeed(grader.autograde(name, student), f"{path}: not graded")
    with grader.gradebook as book:
        graded = book.find_submission_notebook(name, name, student).grades
        marks = {g.cell.name: (g.auto_score or 0.0, g.max_score) for g in graded}
    return [(name, student, check, *marks[check]) for check in sorted(marks)]


def _check_submission(folder: Path, path: Path) -> None:
    """ValueError, with the cure, for what nbgrader would grade 0 or refuse without saying why."""
    name = path.name
    if path.is_file():
        raise ValueError(f"{path}: not in a folder: rename it to {path.stem}/{name}")
    edition = folder / "release" / name / f"{name}.ipynb"
    if not edition.is_file():
        known = ", ".join(sorted(p.name for p in (folder / "release").glob("[!.]*"))) or "nothing"
        cure = f"rename the folder if it is one of these ({known}), else run `release` first"
        raise ValueError(f"{path}: {name} was not released into {folder}: {cure}")
    file = path / f"{name}.ipynb"
    if not file.is_file():
        others = sorted(p.name for p in path.glob("[!.]*.ipynb"))
        found = f"rename {others[0]} to {file.name}" if others else "ask for the notebook"
        raise ValueError(f"{path}: not graded, no {file.name}: {found}")
    wanted, there = _marked_cells(edition), _marked_cells(file)
    lost = [cell for cell in wanted if cell not in there]
    double = sorted({cell for cell in there if there.count(cell) > 1})
    if lost or double:
        fault = f"cell {', '.join(lost)} is missing" if lost else f"{double[0]} stands twice"
        raise ValueError(f"{file}: not graded, {fault}: mend it by hand, from {edition}")


def _marked_cells(path: Path) -> list[str]:
    """The names that nbgrader knows cells by: answers and checks."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8-sig"))["cells"]
        marks = [cell.get("metadata", {}).get("nbgrader", {}) for cell in cells]
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise ValueError(f"{path}: not graded, no notebook: ask for it again") from None
    return [mark["grade_id"] for mark in marks if mark.get("grade") or mark.get("solution")]


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
