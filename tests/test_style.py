"""Lint and format of everything, notebooks included, and the size of what a reader has to read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "vreid_course").rglob("*.py"))
EXEMPT = {"rerank"}  # one algorithm that is clearer in one piece, at most 40 lines


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff(command):
    command = [sys.executable, "-m", "ruff", *command, "--no-cache", "--quiet", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def code_lines(path: Path) -> int:
    """Lines that are neither blank nor comment nor docstring."""
    text = path.read_text(encoding="utf-8")
    prose = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            prose |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(x.strip()) and x.strip()[0] != "#" and n not in prose for n, x in lines)


def test_the_package_can_be_read_in_an_evening():
    """What lessons build on; apart from it what none teaches: drawing, studies, reading of data."""
    wings = {"drawing": 0, "studies": 0, "data": 0, "": 0}
    for path in MODULES:
        folder = path.parent.name
        wings[folder if folder in wings else ""] += code_lines(path)
    assert wings["drawing"] <= 1150
    assert wings["data"] <= 1400
    assert wings[""] <= 1900


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short_and_public_ones_documented(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        documented = ast.get_docstring(node) is not None
        if node.col_offset == 0:
            assert documented or node.name.startswith("_"), f"{node.name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            text = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
            length = node.end_lineno - node.lineno + 1 - text
            assert length <= (40 if node.name in EXEMPT else 30), f"{node.name}: {length} lines"
