"""Exercises: the teacher's solution passes its check, every planted wrong answer fails it.

A check cell runs here with the notebook's imports and its own solution cell, and nothing else: so
it needs no data, no model and no other exercise.
"""

import ast
import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from wrong_answers import WRONG_ANSWERS

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))
BLOCK = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Exercise:
    """One exercise of a notebook: where it stands, and the sources of its two cells."""

    key: tuple[str, str]
    imports: str
    solution: nbformat.NotebookNode
    check: nbformat.NotebookNode
    later: str


def imports_of(cells: list) -> str:
    """The import statements at the top level of code cells, as one source."""
    nodes = [node for cell in cells for node in ast.parse(cell.source).body]
    return "\n".join(ast.unparse(n) for n in nodes if isinstance(n, ast.Import | ast.ImportFrom))


def exercises_of(path: Path) -> list[Exercise]:
    """All exercises of a notebook: a solution cell and, behind it, the check of that name."""
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    marks = [cell.metadata.get("nbgrader", {}) for cell in cells]
    found = []
    for i, mark in enumerate(marks):
        if mark.get("solution"):
            name = mark["grade_id"]
            checks = [j for j, m in enumerate(marks) if m.get("grade_id") == f"{name}-check"]
            assert len(checks) == 1 and checks[0] > i, f"{path.name}: {name} needs one check cell"
            later = "\n".join(cell.source for cell in cells[checks[0] + 1 :])
            key, check = (path.stem, name), cells[checks[0]]
            found.append(Exercise(key, imports_of(cells), cells[i], check, later))
    return found


EXERCISES = [exercise for path in NOTEBOOKS for exercise in exercises_of(path)]
EVERY = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: "-".join(e.key))


def passes(exercise: Exercise, answer: str) -> bool:
    """Whether the check accepts an answer; wrong answers may also raise what they like."""
    names: dict = {}
    exec(exercise.imports, names)
    try:
        exec(answer, names)
        with contextlib.redirect_stdout(io.StringIO()):
            exec(exercise.check.source, names)
    except Exception:
        return False
    return True


def without_solution(source: str) -> str:
    """What the student gets: `pass` in the place of the solution."""
    assert BLOCK.search(source), "no solution between the delimiters"
    return BLOCK.sub(r"\1pass", source)


@EVERY
def test_the_solution_passes_and_an_empty_cell_does_not(exercise):
    assert passes(exercise, exercise.solution.source), "the teacher's solution fails its check"
    assert not passes(exercise, without_solution(exercise.solution.source))


WRONG = [(e, n, answer) for e in EXERCISES for n, answer in enumerate(WRONG_ANSWERS.get(e.key, []))]


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [pytest.param(e, answer, id=f"{'-'.join(e.key)}-{n}") for e, n, answer in WRONG],
)
def test_a_wrong_answer_fails(exercise, answer):
    assert not passes(exercise, answer), f"accepted:\n{answer}"


def test_every_exercise_has_wrong_answers_and_each_of_them_an_exercise():
    keys = {exercise.key for exercise in EXERCISES}
    assert keys == set(WRONG_ANSWERS)
    assert all(len(answers) >= 3 for answers in WRONG_ANSWERS.values())


@EVERY
def test_wrong_answers_are_valid_and_answer_this_exercise(exercise):
    """A typing error would fail the check for the wrong reason."""
    names = defined(exercise.solution.source)
    for answer in WRONG_ANSWERS.get(exercise.key, []):
        assert defined(answer) >= names, answer


@EVERY
def test_no_later_cell_needs_an_answer(exercise):
    """A student's wrong answer must not break the rest of the lesson, nor another lesson."""
    used = {n.id for n in ast.walk(ast.parse(exercise.later)) if isinstance(n, ast.Name)}
    assert not used & defined(exercise.solution.source)
    for cell in (exercise.solution, exercise.check):
        assert "export" not in cell.metadata.get("tags", [])


@EVERY
def test_the_cells_are_marked_for_nbgrader(exercise):
    solution, check = exercise.solution.metadata, exercise.check.metadata
    assert solution["jupyter"]["source_hidden"] and not solution.nbgrader["locked"]
    assert check.nbgrader["grade"] and check.nbgrader["locked"] and check.nbgrader["points"] > 0
    assert {solution.nbgrader["schema_version"], check.nbgrader["schema_version"]} == {3}


def defined(source: str) -> set[str]:
    """Names of the functions and classes that a source defines at its top level."""
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name for node in ast.parse(source).body if isinstance(node, kinds)}


def test_the_harness_tells_good_from_bad():
    code = nbformat.v4.new_code_cell
    solution = "def twice(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"
    check = code("assert twice(np.int64(3)) == 6")
    exercise = Exercise(("90_toy", "twice"), "import numpy as np", code(solution), check, "")
    assert passes(exercise, solution) and not passes(exercise, without_solution(solution))
    assert not passes(exercise, "def twice(x):\n    return x**2")
    assert not passes(exercise, "def twice(x): return 1 / 0")
    assert without_solution(solution) == "def twice(x):\n    pass"
