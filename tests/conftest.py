"""What `pytest` collects: notebooks count as slow, benchmarks run only with --benchmark-only.

And the runs of lessons at the scale smoke, each made once, when a test first asks for it.
"""

import shutil
import sys
from functools import cache, partial

import pytest


def pytest_ignore_collect(collection_path, config):
    if collection_path.is_file():
        inside = collection_path.is_relative_to(config.rootpath / "tests" / "benchmarks")
        if inside != config.getoption("benchmark_only"):
            return True
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish(session):
    """Many small tests are quicker on one thread; the longest is a process beside the others."""
    if len(session.items) < 100 or session.config.option.collectonly:
        return
    import torch

    torch.set_num_threads(1)
    if any(item.name == "test_on_an_accelerator" for item in session.items):
        sys.modules["test_device"].begin("")


@pytest.fixture(scope="session")
def strangers(tmp_path_factory):
    """strangers(seed, out): a copy of a small drawn set without its settings, as if not drawn."""
    from vreid_course.drawing.mini_mars import MiniMars, draw

    @cache
    def drawn(seed):
        config = MiniMars(6, 4, seed=seed, frames=(2, 4))
        return draw(config, tmp_path_factory.mktemp("drawn") / "set", 1)

    def copy(seed, out):
        found = shutil.copytree(drawn(seed), out)
        (found / "settings.json").unlink()
        return found

    return copy


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A folder, and the address of the JupyterLab that shows it."""
    from jupyter_browser import jupyter_lab  # benchmarks need no browser

    folder = tmp_path_factory.mktemp("browser")
    with jupyter_lab(folder) as address:
        yield folder, address


@pytest.fixture(scope="session")
def visited(lab):
    """visited(lesson): what `jupyter_browser.visit` saw of it."""
    from smoke_runs import in_browser

    return cache(partial(in_browser, *lab))


@pytest.fixture(scope="session")
def graded(tmp_path_factory):
    """graded(lesson): what nbgrader made of submissions of it, see `smoke_runs.grade`."""
    from smoke_runs import grade

    return cache(partial(grade, tmp_path_factory.mktemp("class")))
