"""What every committed notebook keeps to, as a list of the places where one does not."""

import ast
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nbformat

LARGEST = 800_000  # bytes of a notebook
LONGEST = 20  # lines of a code cell
PATHS = re.compile(r"""(?<![\w.:/~-])/(home|Users|root|work|tmp|mnt|opt|srv|usr|var)/\S+""")
WINDOWS_PATHS = re.compile(r"\b[A-Za-z]:\\+\w+")
HOSTS = re.compile(
    r"(pypi\.|pythonhosted|conda\.(io|org)|download\.pytorch|artifactory|nexus\.|localhost|127\.0)"
)
NETWORK = re.compile(
    r"(pip install|conda install|requests\.get|urlopen|urlretrieve|wget |curl |https?://)"
)
PICTURES = {"image/svg+xml", "image/jpeg", "image/gif", "application/pdf"}


def problems(path: Path) -> list[str]:
    """One line for each rule that the notebook breaks; none means that it is clean."""
    notebook = nbformat.reader.reads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = list(_form(path, notebook, code))
    for cell in code:
        found += [f"{cell.get('id')}: {line}" for line in (*_source(cell), *_outputs(cell))]
    found += [f"{cell.get('id')}: {line}" for cell in notebook.cells for line in _places(cell)]
    return found


def _form(path: Path, notebook, code: list) -> Iterator[str]:
    ids = Counter(cell.get("id") for cell in notebook.cells)
    if repeated := [f"cell id {key} stands {n} times" for key, n in ids.items() if n > 1]:
        yield from repeated
    else:
        try:
            nbformat.validate(notebook)
        except nbformat.ValidationError as error:
            yield f"not valid: {str(error).splitlines()[0]}"
    if path.stat().st_size > LARGEST:
        yield f"{path.stat().st_size} bytes, more than {LARGEST}"
    counts = [cell.execution_count for cell in code if cell.source.strip()]
    if counts != list(range(1, len(counts) + 1)):
        yield f"not executed in one go, from the top: {counts}"
    if "widgets" in notebook.metadata:
        yield "widget state is saved"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"


def _source(cell) -> Iterator[str]:
    lines = cell.source.strip().splitlines()
    if len(lines) > LONGEST:
        yield f"{len(lines)} lines of code, more than {LONGEST}"
    if hit := NETWORK.search("\n".join(line.split("#")[0] for line in lines)):
        yield f"uses the network: {hit[0]}"
    if "export" in cell.metadata.get("tags", []):
        try:
            body = ast.parse(cell.source).body
        except SyntaxError as error:
            yield f"an export cell that is not plain Python: {error}"
            return
        yield from (f"exports {ast.unparse(n)[:60]!r}" for n in body if not _may_be_exported(n))


def _may_be_exported(node: ast.stmt) -> bool:
    """Imports, functions, classes, texts and constants in CAPITALS."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return all(isinstance(target, ast.Name) and target.id.isupper() for target in targets)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)


def _outputs(cell) -> Iterator[str]:
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"failed: {output.ename}: {output.evalue}"
        for kind in PICTURES & set(output.get("data", {})):
            yield f"a picture that is no PNG: {kind}"


def _places(cell) -> Iterator[str]:
    """Paths, machines and hosts in the text of a cell and of its outputs."""
    outputs = [dict(output) for output in cell.get("outputs", [])]
    for output in outputs:
        output["data"] = {k: v for k, v in output.get("data", {}).items() if k != "image/png"}
    text = cell.source + "\n" + json.dumps(outputs, ensure_ascii=False).replace("\\n", "\n")
    for pattern in (PATHS, WINDOWS_PATHS, HOSTS):
        yield from (f"names a place: {hit[0][:80]}" for hit in pattern.finditer(text))
    if len(socket.gethostname()) > 3 and re.search(rf"\b{re.escape(socket.gethostname())}\b", text):
        yield f"names the machine: {socket.gethostname()}"
