"""The explorer in a real browser: JupyterLab, the notebook a user opens, the keyboard."""
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from conftest import ROOT, environment

pytest.importorskip("playwright", reason="playwright is not installed")
pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
from playwright.sync_api import expect, sync_playwright

CHROMIUM = next((p for p in ("/usr/bin/chromium", shutil.which("chromium"), shutil.which("google-chrome")) if p and os.access(p, os.X_OK)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on this machine")
SECONDS = 90_000    # ms: a busy machine needs tens of seconds to import torch


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab of its own, with nobody's settings, on a copy of nbs/explore.ipynb; its address and token."
    root, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    shutil.copy(ROOT / "nbs" / "explore.ipynb", root)
    folders = {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    quiet = Path(folders["JUPYTERLAB_SETTINGS_DIR"], "@jupyterlab", "apputils-extension", "notification.jupyterlab-settings")
    quiet.parent.mkdir(parents=True); quiet.write_text('{"fetchNews": "false"}', encoding="utf-8")
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
               f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    log = open(home / "log.txt", "w", encoding="utf-8")
    server = subprocess.Popen(command, cwd=root, env=environment(**folders), stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(300):
            if server.poll() is not None: break
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=2).close(); break
            except (urllib.error.URLError, OSError): time.sleep(0.2)
        else: raise AssertionError("JupyterLab did not start:\n" + (home / "log.txt").read_text(encoding="utf-8")[-2000:])
        assert server.poll() is None, (home / "log.txt").read_text(encoding="utf-8")[-2000:]
        yield f"http://127.0.0.1:{port}", token
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill(); server.wait()
        log.close()


@pytest.fixture(scope="module")
def page(lab):
    "The notebook, opened, its kernel ready, all cells run."
    address, token = lab
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        page.set_default_timeout(SECONDS); expect.set_options(timeout=SECONDS)
        page.errors = []
        page.on("pageerror", lambda e: page.errors.append(str(e)))
        page.goto(f"{address}/lab/tree/explore.ipynb?token={token}&reset")
        page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext")
        page.evaluate("async () => { const w = window.jupyterapp.shell.currentWidget; await w.context.ready; await w.sessionContext.ready; }")
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        page.wait_for_selector(".panel-mask[src], .panel-mask img[src], .jupyter-widgets-error-widget")
        assert page.locator(".jupyter-widgets-error-widget").count() == 0, "a widget failed in the browser"
        yield page
        browser.close()


def picture(page, name):
    return page.locator(f"img.panel-{name}, .panel-{name} img").first.evaluate("async e => { await e.decode(); const b = new Uint8Array(await (await fetch(e.src)).arrayBuffer()); return b.join(',') }")


def shot(page, path): page.locator(".vasomim-explorer").first.scroll_into_view_if_needed(); page.screenshot(path=path)


def test_slider_by_keyboard_changes_picture_numbers_and_command(page, tmp_path):
    numbers, text = page.locator(".explorer-numbers"), page.locator(".explorer-settings textarea")
    expect(numbers).to_contain_text("98 of 196")
    shot(page, tmp_path / "first.png")
    before = {name: picture(page, name) for name in ("image", "mask", "masked")}
    handle = page.locator(".mask-ratio .noUi-handle")
    handle.focus()
    for _ in range(3): page.keyboard.press("PageUp")
    page.keyboard.press("ArrowRight")
    expect(numbers).to_contain_text("130 of 196")
    expect(text).to_have_value(re.compile(r"-p mask_ratio 0\.66 .*mask_ratio=0\.66,", re.S))
    after = {name: picture(page, name) for name in before}
    assert after["image"] == before["image"] and after["mask"] != before["mask"] and after["masked"] != before["masked"]
    sizes = page.locator("img[class*=panel-]").evaluate_all("e => e.map(i => [i.clientWidth, i.clientHeight, i.naturalWidth, i.naturalHeight])")
    assert len(sizes) == 8 and all(w == h == nw == nh for w, h, nw, nh in sizes), sizes
    shot(page, tmp_path / "moved.png")
    assert page.errors == [] and page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0


def test_pasted_settings_agree_from_the_first_time(page, tmp_path):
    text, message = page.locator(".explorer-settings textarea"), page.locator(".explorer-message")
    for _ in range(2):
        text.fill("eta=0.333, percentile=92.25, progress=0.7000001, gamma=0.55")
        page.locator("button.explorer-load").click()
        expect(message).to_contain_text("progress moved from 0.7000001 to 0.7")
        for name, value in {"eta": "0.333", "percentile": "92.25", "training-progress": "0.70", "mask-ratio": "0.55"}.items():
            expect(page.locator(f".{name} .widget-readout")).to_have_text(value)
        shown = text.input_value()
        assert all(part in shown for part in ("-p eta 0.333 ", "-p percentile 92.25 ", "-p mask_ratio 0.55 ", "progress=0.7,")), shown
        page.locator("button.explorer-load").click()
        expect(message).to_have_text("")
        assert text.input_value() == shown
    shot(page, tmp_path / "pasted.png")
    assert page.errors == []


def test_errors_are_shown_in_the_page(page, tmp_path):
    folder = page.locator(".data-dir input")
    folder.fill("/no/such/folder"); folder.press("Enter")
    expect(page.locator(".explorer-message")).to_contain_text("/no/such/folder: no such folder")
    shot(page, tmp_path / "error.png")
    folder.fill(""); folder.press("Enter")
    expect(page.locator(".explorer-message")).to_have_text("")
    assert page.errors == []
