"""A lesson is a module: `load("02_cosam")` runs the notebook's cells that are tagged `export`.

What it returns is an ordinary module, vreid_course.lessons.02_cosam: its classes can be pickled,
and a process that unpickles one finds it, because importing this file installs the import hook.
"""

import importlib.abc
import importlib.util
import json
import linecache
import os
import sys
from pathlib import Path
from types import ModuleType

__path__: list[str] = []  # makes the lessons submodules of this one


def load(name: str) -> ModuleType:
    """The module of a lesson, such as "02_cosam": imports, functions, classes and constants.

    Raises ValueError for an unknown name and ImportError, with notebook and cell, for a cell that
    fails. Cells are numbered as Jupyter does when it runs them all.
    """
    notebook(name)
    return importlib.import_module(f"{__name__}.{name}")


def notebook(name: str) -> Path:
    """The notebook of a lesson; ValueError for an unknown name."""
    if name not in names():
        raise ValueError(f"no lesson {name!r} in {folder()}: there are {', '.join(names())}")
    return folder() / f"{name}.ipynb"


def names() -> list[str]:
    """Names of all lessons, in order; a notebook whose name starts with _ is none."""
    return sorted(p.stem for p in folder().glob("*.ipynb") if not p.name.startswith(("_", ".")))


def folder() -> Path:
    """The folder of the notebooks: VREID_NOTEBOOKS, or the one beside the package."""
    path = Path(os.environ.get("VREID_NOTEBOOKS", Path(__file__).parents[1] / "notebooks"))
    path = path.expanduser()
    if not path.is_dir():
        raise FileNotFoundError(
            f"no notebooks in {path}: install the course with `pip install -e .` from its own "
            "folder, or let VREID_NOTEBOOKS name its notebooks folder"
        )
    return path


class _LessonLoader(importlib.abc.InspectLoader):
    """Runs export cells one by one, each under a file name of its own for the sake of tracebacks.

    All cells share one text (`get_source`) and its line numbers, so `inspect` finds classes too.
    """

    def __init__(self, path: Path):
        self.origin = f"{path.parent.name}/{path.name} export cells"  # becomes __file__
        self.cells, line = [], 1  # (file name, first line, source)
        for number, source in _export_cells(path):
            self.cells.append((f"{path.parent.name}/{path.name} cell [{number}]", line, source))
            line += source.count("\n") + 3

    def get_source(self, fullname: str) -> str:
        return "".join(f"{source}\n\n\n" for _, _, source in self.cells)

    def exec_module(self, module: ModuleType) -> None:
        for filename, line, source in self.cells:
            linecache.cache.pop(filename, None)
            try:
                code = compile("\n" * (line - 1) + source, filename, "exec", dont_inherit=True)
                exec(code, module.__dict__)
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                raise ImportError(f"{filename} does not run on its own: {what}") from error
        linecache.cache.pop(self.origin, None)


def _export_cells(path: Path) -> list[tuple[int, str]]:
    """Number and source of the cells tagged `export`, counting code cells that are not empty."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError) as error:
        raise ImportError(f"{path} is not a notebook: restore it from git") from error
    code = [c for c in cells if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    tagged = [
        (number, "".join(cell["source"]))
        for number, cell in enumerate(code, 1)
        if "export" in cell["metadata"].get("tags", [])
    ]
    if not tagged:
        raise ImportError(f"{path.name} has no cell tagged `export`: it shares nothing")
    return tagged


class _LessonFinder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path=None, target=None):
        parent, _, name = fullname.rpartition(".")
        if parent != __name__ or not (folder() / f"{name}.ipynb").exists():
            return None
        loader = _LessonLoader(folder() / f"{name}.ipynb")
        spec = importlib.util.spec_from_loader(fullname, loader, origin=loader.origin)
        spec.has_location = True  # so that __file__ is set, which `inspect` asks for
        return spec


if not any(type(finder).__name__ == "_LessonFinder" for finder in sys.meta_path):
    sys.meta_path.append(_LessonFinder())
