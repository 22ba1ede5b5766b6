"""Drops from executed notebooks what is not committed: progress bars, widget state, cell times.

python tests/clean_notebook.py notebooks/01_baseline.ipynb ...
"""

import sys
from pathlib import Path

import nbformat

WIDGET = "application/vnd.jupyter.widget-view+json"


def clean(notebook: nbformat.NotebookNode) -> None:
    """Clean a notebook in place."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _kept(output)]


def _kept(output: nbformat.NotebookNode) -> bool:
    """Clean an output in place; False where nothing is left of it."""
    if output.output_type == "stream":
        lines = [line.split("\r")[-1] for line in output.text.split("\n")]
        output.text = "\n".join(line for line in lines if "%|" not in line)
        return bool(output.text.strip())
    data = output.get("data", {})
    is_bar = WIDGET in data and "%|" in data.get("text/plain", "")
    data.pop(WIDGET, None)
    return not is_bar


if __name__ == "__main__":
    for name in map(Path, sys.argv[1:]):
        executed = nbformat.read(name, as_version=4)
        clean(executed)
        nbformat.write(executed, name)
