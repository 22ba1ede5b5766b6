"""What `pytest` collects: notebooks count as slow, benchmarks run only with --benchmark-only."""

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
