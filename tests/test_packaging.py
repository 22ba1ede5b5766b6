"""What is installed, tested and asked for: the lists agree, and GitHub takes its files."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import mutations
import nbformat
import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

import vreid_course.files
from vreid_course.files import CourseError, cache_path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DISTRIBUTIONS = {
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "cv2": "opencv-python-headless",
    "skimage": "scikit-image",
}
DISTRIBUTIONS |= {"IPython": "ipywidgets", "traitlets": "nbgrader"}  # which need them themselves


def listed(name: str) -> dict[str, Requirement]:
    """The packages of a list of requirements, without the course itself."""
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text("utf-8").splitlines())
    wanted = (Requirement(line) for line in lines if line and not line.startswith("-e"))
    return {r.name: r for r in wanted if not r.url}


def declared(*groups: str) -> dict[str, Requirement]:
    """The packages that the project declares, with those of some groups of it."""
    extra = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for group in groups for line in extra[group])]
    return {r.name: r for r in map(Requirement, lines)}


def imported(source: str) -> set[str]:
    """First names of what a source imports."""
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    return {name.split(".")[0] for name in names}


def test_the_package_declares_what_requirements_txt_installs():
    everything = declared("notebooks", "tests", "index")
    wanted = listed("requirements.txt")
    assert {k: str(r) for k, r in everything.items()} == {k: str(r) for k, r in wanted.items()}


def test_what_is_imported_is_declared():
    sources = [path.read_text("utf-8") for path in (ROOT / "vreid_course").rglob("*.py")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        sources += [c.source for c in cells if "export" in c.metadata.get("tags", [])]
    names = set().union(*map(imported, sources)) - set(sys.stdlib_module_names) - {"vreid_course"}
    found = {DISTRIBUTIONS.get(name, name) for name in names}
    asked_for = {"nbgrader", "faiss-cpu"}  # by name, where they are missing
    assert found - asked_for <= set(declared()), "installed with the package"
    assert asked_for <= set(declared("notebooks", "index"))


def test_tested_versions_are_all_listed_and_allowed():
    wanted, tested = listed("requirements.txt"), listed("constraints.txt")
    assert set(wanted) - set(tested) == set() and len(tested) >= 20
    for name, requirement in tested.items():
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        if name in wanted:
            assert wanted[name].specifier.contains(pin.version), name


def test_one_version_everywhere():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)[1]
    changes = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert PROJECT["version"] == cited == changes[0]


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("vendor.github-workflows", ".github/workflows/tests.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/fault.yml"),
    ],
)
def test_github_takes_its_files(schema, file):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, ROOT / file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_tests_the_oldest_versions_that_are_allowed():
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8")
    oldest = re.findall(
        r'python: "([\d.]+)", torch: "torch==([\d.]+)\.\* torchvision==([\d.]+)\.\*', text
    )
    floors = [PROJECT["requires-python"].removeprefix(">=")]
    for name in ("torch", "torchvision"):
        floors += [s.version for s in declared()[name].specifier if s.operator == ">="]
    assert oldest == [tuple(floors)]
    assert {"ubuntu-latest", "macos-latest", "windows-latest"} <= set(
        re.findall(r"[\w-]+-latest", text)
    )
    assert 'pytest -m "not slow"' in text


def test_the_dev_container_installs_the_course():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    python = re.search(r"python:(\d+\.\d+)", container["image"])[1]
    assert Version(python) in Requirement(f"x{PROJECT['requires-python']}").specifier
    assert "pip install -r requirements.txt" in container["postCreateCommand"]


def test_links_of_the_texts_lead_somewhere():
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text("utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (ROOT / target).exists(), f"{name}: {target}"
        for script in re.findall(r"python (tests/\w+\.py)", text):
            assert (ROOT / script).exists(), f"{name}: {script}"


def test_outside_of_its_folder_the_package_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("VREID_CACHE", raising=False)
    monkeypatch.setattr(vreid_course.files, "DATA", tmp_path / "site-packages" / "data")
    with pytest.raises(CourseError, match=r"data: no such folder: .*pip install -e \.") as info:
        cache_path()
    assert "\n" not in str(info.value)
    monkeypatch.setenv("VREID_CACHE", str(tmp_path))
    assert cache_path() == tmp_path


def test_planted_faults_stand_where_the_list_says():
    wrong = [f"{m.file}: {m.old!r}" for m in mutations.MUTATIONS if mutations.count(m) != 1]
    assert not wrong and len(mutations.MUTATIONS) >= 32


def test_the_report_of_a_gpu_is_a_table_that_hides_no_gap(tmp_path):
    import gpu_report

    text = f"# T\n\n{gpu_report.MARKS[0]}\nold\n{gpu_report.MARKS[1]}\n\nrest\n"
    (tmp_path / "README.md").write_text(text)
    speed = {"pictures a second": 812.4, "plain pictures a second": 300.0, "waiting": 0.02}
    known = {
        "03_gltr": {"passed": True, "said": "9 passed", "seconds": 41.2, "MiB": 2048},
        "04_tkp": {"passed": False, "said": "1 failed", "seconds": 9.0, "MiB": None},
        "speed-mean": speed | {"training MiB": 900.0, "ms": 3.2},
    }
    gpu_report.write(tmp_path / "README.md", known)
    found = (tmp_path / "README.md").read_text()
    assert "| 03_gltr | 41 s | 2.0 |" in found and "| 04_tkp | 1 failed |" in found
    assert "| 02_cosam | not measured | not measured |" in found and "old" not in found
    assert "| mean | 812 | 300 | 0.02 | 900 | 3.2 |" in found
    assert found.startswith("# T\n") and found.endswith("\n\nrest\n")
    assert found.count("not measured") == 2 * (len(gpu_report.lessons.names()) - 2) + 5 * (
        len(gpu_report.METHODS) - 1
    )
    assert torch.__version__ in found
