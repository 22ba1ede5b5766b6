"""Opens notebooks in a real JupyterLab in headless Chromium, runs them and moves their widgets."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from playwright.sync_api import Page, sync_playwright

FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync""".split()
NOTEBOOK_OPENED = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady"
RUN_ALL = """() => {
    window.cellsRun = false;
    jupyterapp.commands.execute("notebook:run-all-cells").then(() => { window.cellsRun = true; });
}"""
IDLE = """() => window.cellsRun &&
    jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === "idle" """
SHUTDOWN = "() => jupyterapp.shell.currentWidget.sessionContext.shutdown()"
NOTEBOOK = "() => JSON.stringify(jupyterapp.shell.currentWidget.content.model.toJSON())"
PICTURES = """cell => Array.from(cell.querySelectorAll("img, canvas")).map(picture => {
    const copy = document.createElement("canvas");
    copy.width = picture.naturalWidth ?? picture.width;
    copy.height = picture.naturalHeight ?? picture.height;
    copy.getContext("2d").drawImage(picture, 0, 0);
    return copy.toDataURL();
})"""

CONTROLS = ".jp-OutputArea .noUi-handle, .jp-OutputArea .widget-dropdown select"
LABEL = "control => control.closest('.jupyter-widgets').querySelector('label')?.textContent"


@dataclass
class Visit:
    """What a visit of a notebook left behind."""

    notebook: nbformat.NotebookNode | None = None  # with its outputs
    cell_errors: list[str] = field(default_factory=list)
    console_errors: list[str] = field(default_factory=list)
    moved: dict[str, bool] = field(default_factory=dict)  # by control: did a picture change?


@contextmanager
def jupyter_lab(folder: Path) -> Iterator[str]:
    """Run JupyterLab on the notebooks in `folder`, at the scale smoke; gives its address."""
    settings = folder / ".jupyter" / "lab" / "user-settings" / "@jupyterlab"
    for name, text in (  # draw all cells, also those out of sight; ask no question about news
        ("notebook-extension/tracker", '{"windowingMode": "none"}'),
        ("apputils-extension/notification", '{"fetchNews": "false", "checkForUpdates": false}'),
    ):
        (settings / name).parent.mkdir(parents=True, exist_ok=True)
        (settings / f"{name}.jupyterlab-settings").write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--expose-app-in-browser", "--IdentityProvider.token=", f"--ServerApp.port={port}"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={folder}"]
    own = {f"JUPYTER_{name}_DIR": str(folder / ".jupyter") for name in ("CONFIG", "RUNTIME")}
    own["VREID_SCALE"] = "smoke"
    with (folder / "jupyter.log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
    try:
        _wait_for(port, server, folder / "jupyter.log")
        yield f"http://127.0.0.1:{port}/lab"
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(port: int, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert server.poll() is None, f"JupyterLab ended: {log.read_text()[-2000:]}"
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"JupyterLab does not answer after 90 s: {log.read_text()[-2000:]}")


def chromium() -> str:
    """Path of the installed Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "no Chromium for the browser tests: apt-get install chromium"
    return path


def visit(
    address: str, notebook: Path, screenshots: Path, seconds: float = 400, patience: float = 20
) -> Visit:
    """Open, run all cells, move every slider and list, and save pictures of the page on the way.

    `address` is that of `jupyter_lab` on the notebook's folder, where Chromium keeps its profile:
    JupyterLab's own files are read once. The cells have `seconds`, the picture beside a control
    has `patience` seconds to change.
    """
    seen, size = Visit(), {"width": 1400, "height": 1000}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            notebook.parent / ".chromium", executable_path=chromium(), args=FLAGS, viewport=size
        )
        page = browser.new_page()
        page.on("pageerror", lambda error: seen.console_errors.append(str(error)))
        page.on("console", lambda m: m.type == "error" and seen.console_errors.append(m.text))
        page.goto(f"{address}/tree/{notebook.name}?reset")  # without the tabs of the last visit
        page.wait_for_function(NOTEBOOK_OPENED, timeout=60_000)
        page.evaluate(RUN_ALL)
        page.wait_for_function(IDLE, timeout=1000 * seconds)
        seen.notebook = nbformat.reads(page.evaluate(NOTEBOOK), as_version=4)
        seen.cell_errors = [f"{e.ename}: {e.evalue}" for e in errors(seen.notebook)]
        page.screenshot(path=screenshots / f"{notebook.stem}_run.png")
        seen.moved = _move_controls(page, patience)
        page.screenshot(path=screenshots / f"{notebook.stem}_moved.png")
        page.evaluate(SHUTDOWN)
        browser.close()
    return seen


def errors(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The error outputs of a notebook."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return [o for o in outputs if o.output_type == "error"]


def _move_controls(page: Page, patience: float) -> dict[str, bool]:
    """Move every slider and list, up to six steps each; says which changed a picture beside it."""
    page.locator(CONTROLS).first.wait_for(timeout=30_000)
    moved = {}
    for n in range(page.locator(CONTROLS).count()):
        control = page.locator(CONTROLS).nth(n)
        cell = control.locator("xpath=ancestor::*[contains(@class, 'jp-CodeCell')][1]")
        cell.scroll_into_view_if_needed()
        cell.locator("img, canvas").first.wait_for(timeout=30_000)
        before, changed = cell.evaluate(PICTURES), False
        for step in range(1, 7):
            if control.evaluate("control => control.tagName") == "SELECT":
                control.select_option(index=step)
            else:
                control.press("ArrowRight")
            deadline = time.monotonic() + patience / 6
            while not changed and time.monotonic() < deadline:
                page.wait_for_timeout(100)
                changed = cell.evaluate(PICTURES) != before
            if changed:
                break
        moved[f"{n}: {control.evaluate(LABEL)}"] = changed
    page.wait_for_timeout(200)  # a picture may be blank for a moment while it changes
    return moved
