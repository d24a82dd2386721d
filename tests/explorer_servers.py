"""Servers of the explorer for tests and benchmarks: JupyterLab on a copy of nbs/explore.ipynb, and the page of `make explore`; with nobody's settings, and gone afterwards."""
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from conftest import ROOT, environment

CHROMIUM = next((p for p in ("/usr/bin/chromium", shutil.which("chromium"), shutil.which("google-chrome")) if p and os.access(p, os.X_OK)), None)
QUIET = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking"]


def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


@contextmanager
def served(command, home, address, cwd, **env):
    "A started server that answers at `address`; it and all that it started are ended by their group."
    home.mkdir(parents=True, exist_ok=True)
    folders = {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    quiet = Path(folders["JUPYTERLAB_SETTINGS_DIR"], "@jupyterlab", "apputils-extension", "notification.jupyterlab-settings")
    quiet.parent.mkdir(parents=True); quiet.write_text('{"fetchNews": "false"}', encoding="utf-8")
    log = open(home / "log.txt", "w", encoding="utf-8")
    told = lambda: (home / "log.txt").read_text(encoding="utf-8")[-2000:]
    server = subprocess.Popen(command, cwd=cwd, env=environment(**folders, **env), stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        for _ in range(300):
            if server.poll() is not None: break
            try: urllib.request.urlopen(address, timeout=2).close(); break
            except urllib.error.HTTPError: break
            except (urllib.error.URLError, OSError): time.sleep(0.2)
        else: raise AssertionError("the server did not start:\n" + told())
        assert server.poll() is None, told()
        yield server
    finally:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try: os.killpg(server.pid, kind); server.wait(20); break
            except subprocess.TimeoutExpired: continue
            except ProcessLookupError: break
        log.close()


@contextmanager
def jupyter_lab(root, home, **env):
    "(address, token) of a JupyterLab whose folder `root` holds a copy of the notebook; started as `make lab` does it."
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "nbs" / "explore.ipynb", root)
    port, token = free_port(), secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}",
               "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    if env.get("VASOMIM_UPLOAD_MB"): command.append(f"--ServerApp.tornado_settings={{'websocket_max_message_size': {env['VASOMIM_UPLOAD_MB']}000000}}")
    with served(command, home, f"http://127.0.0.1:{port}/api/status?token={token}", root, **env): yield f"http://127.0.0.1:{port}", token


@contextmanager
def voila_page(home, *variables):
    "(address, token, server) of the page, started by `make explore` itself, without its installation."
    port, token = free_port(), secrets.token_hex(16)
    command = ["make", "-s", "-C", str(ROOT), "-o", ".venv/.ready", "explore", f"BIN={Path(sys.executable).parent}", f"EXPLORE=--no-browser --port={port} --Voila.port_retries=0 --Voila.token={token}", *variables]
    with served(command, home, f"http://localhost:{port}/", ROOT) as server: yield f"http://localhost:{port}", token, server


def open_lab(page, address, token):
    "Opens the notebook and waits for its kernel."
    page.goto(f"{address}/lab/tree/explore.ipynb?token={token}&reset")
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext")
    page.evaluate("async () => { const w = window.jupyterapp.shell.currentWidget; await w.context.ready; await w.sessionContext.ready; }")


def run_cells(page):
    "Runs all cells, and waits for the last of the eight pictures."
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    page.wait_for_selector("img.panel-mask[src], .panel-mask img[src], .jupyter-widgets-error-widget")
    assert page.locator(".jupyter-widgets-error-widget").count() == 0, "a widget failed in the browser"
