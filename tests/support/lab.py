"""JupyterLab and voila as users meet them: real servers, real chromium, without a network and without leaving traces.

What the browser tests and `python -m tests.screenshots` share.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = REPOSITORY / "notebooks"
START_SECONDS, CELL_SECONDS = 120, 300

# --no-sandbox: tests run as root in containers; only our own pages are opened.
CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--force-color-profile=srgb",
]  # fmt: skip

# Lines of the browser's console that are not ours to fix: what JupyterLab and its extensions say about themselves.
FOREIGN = re.compile(
    r"favicon|Failed to load resource|fetch failed for|react|deprecat|ERR_INTERNET|ResizeObserver loop|jupyterlab-lsp"
    r"|Lsp|language server|No provider for|Error while fetching (news|announcements)|service worker|manifest",
    re.IGNORECASE,
)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def missing() -> str:
    """Why there can be no browser test here; "" if there can."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: pip install playwright (the extra `browser`); no browser is downloaded"
    return "" if CHROMIUM else "chromium is not on the PATH: apt-get install -y chromium"


def _environment(folder: Path, extra: dict[str, str]) -> dict[str, str]:
    """A user without settings: nothing of this machine's Jupyter is read, nothing is written into it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **extra}
    for name in (
        "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_WORKSPACES_DIR",
        "JUPYTERLAB_SETTINGS_DIR",
    ):  # fmt: skip
        environment[name] = str(folder / name.lower())
        Path(environment[name]).mkdir(parents=True, exist_ok=True)
    news = Path(environment["JUPYTERLAB_SETTINGS_DIR"], "@jupyterlab", "apputils-extension")
    news.mkdir(parents=True, exist_ok=True)
    (news / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), environment.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return environment


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(command: list[str], url: str, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Run a web server until the block ends; waits until it answers, and shows the end of its log if it does not."""
    log = folder / "server.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, cwd=folder,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command}: no answer at {url}\n{log.read_text()[-3000:]}") from None
                time.sleep(0.3)
        yield url
    finally:
        # The whole session: a server's kernels are its children, and an app's server is one.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def jupyter_lab(root: Path, folder: Path, **extra: str) -> Iterator[str]:
    """JupyterLab on a folder of notebooks: its address. `folder` takes settings and logs."""
    port = free_port()
    command = [
        sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        f"--ServerApp.root_dir={root}", "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True",
        "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=",
    ]  # fmt: skip
    with server(command, f"http://127.0.0.1:{port}/api", folder, _environment(folder, extra)):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def app(folder: Path, *arguments: str, **extra: str) -> Iterator[str]:
    """What `make app` serves: its address with the token, as it prints it."""
    port = free_port()
    command = [sys.executable, "-m", "rio.widgets.app", "--no-browser", f"--port={port}", *arguments]
    with server(command, f"http://127.0.0.1:{port}/login", folder, _environment(folder, extra)):
        printed = re.search(r"http://\S+token=\w+", (folder / "server.log").read_text())
        if printed is None:
            raise RuntimeError(f"{command}: expected an address with a token in its output")
        yield printed[0]


@contextlib.contextmanager
def browser_page(width: int = 1360, height: int = 900, scale: float = 1.0) -> Iterator[Any]:
    """A playwright page of headless chromium; ``page.problems`` collects what goes wrong in it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        context = chromium.new_context(viewport={"width": width, "height": height}, device_scale_factor=scale)
        page = context.new_page()
        page.set_default_timeout(START_SECONDS * 1000)
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(f"page error: {error}"))
        page.on("console", lambda message: _note(page, message))
        try:
            yield page
        finally:
            context.close()
            chromium.close()


def _note(page: Any, message: Any) -> None:
    if message.type == "error" and not FOREIGN.search(message.text):
        page.problems.append(f"console: {message.text[:500]}")


def copy_with(folder: Path, name: str, **parameters: Any) -> Path:
    """A copy of a notebook with other values behind its `parameters` cell, as papermill and nbmake inject them."""
    notebook = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))
    place = next(i for i, cell in enumerate(notebook["cells"]) if "parameters" in cell["metadata"].get("tags", []))
    injected = {
        "cell_type": "code", "execution_count": None, "id": "injected", "outputs": [],
        "metadata": {"tags": ["injected-parameters"]},
        "source": "\n".join(f"{k} = {v!r}" for k, v in parameters.items()),
    }  # fmt: skip
    notebook["cells"].insert(place + 1, injected)
    target = folder / name
    target.write_text(json.dumps(notebook), encoding="utf-8")
    return target


RUN_ALL = """async () => {
    const app = window.jupyterapp;
    await app.restored;
    const panel = app.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    await panel.sessionContext.session.kernel.info;
    await app.commands.execute('notebook:run-all-cells');
    return true;
}"""
ERRORS = """() => {
    const kinds = ['application/vnd.jupyter.stderr', 'application/vnd.jupyter.error'];
    const outputs = [...document.querySelectorAll('[data-mime-type]')];
    return outputs.filter((node) => kinds.includes(node.dataset.mimeType)).map((node) => node.textContent);
}"""


def run_notebook(page: Any, address: str, name: str) -> list[str]:
    """Open a notebook in JupyterLab and run all its cells; returns what they wrote as errors."""
    page.goto(f"{address}/lab/tree/{name}?reset")
    page.wait_for_selector(".jp-Notebook", timeout=START_SECONDS * 1000)
    page.set_default_timeout(CELL_SECONDS * 1000)
    page.evaluate(RUN_ALL)
    return page.evaluate(ERRORS)
