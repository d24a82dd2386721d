"""The page of `make explore`: served to this machine only, behind a token, without a request to any other host, and with its kernel gone when it is closed."""
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
pytest.importorskip("voila", reason="voila is not installed: pip install -e '.[explore]'")
from playwright.sync_api import expect, sync_playwright

from explorer_servers import CHROMIUM, QUIET, voila_page
from test_explorer_browser import PATIENT, SECONDS, dicom, image_bytes, picture, upload

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on this machine: apt-get install chromium")


def test_page_works_offline_behind_its_token_and_ends_its_kernel(tmp_path):
    import numpy as np
    with voila_page(tmp_path / "home", "IDLE=20", "CULL=2") as (address, token, _), sync_playwright() as p:
        assert ask(f"{address}/") == 302 and "Explore the masks" not in body(f"{address}/")      # who has no token is led to a door, not to the page
        assert ask(f"{address}/api/kernels/{'0' * 8}-{'0' * 4}-{'0' * 4}-{'0' * 4}-{'0' * 12}") == 403
        browser = p.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        context = browser.new_context(viewport={"width": 1400, "height": 1100})
        asked, errors = [], []
        context.on("request", lambda r: asked.append(r.url))
        page = context.new_page()
        page.set_default_timeout(SECONDS); expect.set_options(timeout=SECONDS)
        page.on("websocket", lambda w: asked.append(w.url))
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("console", lambda m: m.type == "error" and errors.append(m.text))
        page.on("response", lambda r: r.status >= 400 and errors.append(f"{r.status} {r.url}"))
        page.goto(f"{address}/?token={token}")
        page.wait_for_selector("img.panel-mask[src]"); page.wait_for_selector(".mask-ratio .noUi-handle[aria-label]")
        numbers, whole = page.locator(".explorer-numbers"), page.locator(".vasomim-explorer")
        expect(numbers).to_contain_text("98 of 196")
        before = picture(page, "mask")
        page.locator(".mask-ratio .noUi-handle").focus(); page.keyboard.press("PageUp")
        expect(numbers).not_to_contain_text("98 of 196"); assert picture(page, "mask") != before
        page.locator(".explorer-compare input").check(); expect(page.locator("img.explorer-heat")).to_have_count(4)
        assert page.locator(".jp-InputArea-editor:visible").count() == 0 and page.locator("img[alt^='The explorer:']").count() == 0       # no code, and not the picture for readers
        upload(page, "Mustermann.dcm", dicom(45)); expect(whole).to_contain_text("frame 1 of 45")                   # 11.3 MiB: above Jupyter's own limit
        upload(page, "large.tif", image_bytes(np.random.default_rng(0).integers(0, 255, (4500, 4500), np.uint8), "TIFF")); expect(whole).to_contain_text("from 4500 × 4500 px")
        assert PATIENT not in page.content() and "Mustermann" not in page.content()
        page.screenshot(path=tmp_path / "voila.png")
        assert errors == []
        page.goto(f"{address}/nothing-here?token={token}"); page.wait_for_timeout(300)               # the page of an error asks nobody either
        kernels = {u.split("/kernels/")[1].split("/")[0] for u in asked if "/kernels/" in u}
        assert kernels
        page.close(); browser.close()
        assert all(u.startswith((f"{address}/", address.replace("http", "ws", 1) + "/", "data:", "blob:")) for u in asked), [u for u in asked if not u.startswith(address)][:5]
        for _ in range(100):
            left = [k for k in kernels if ask(f"{address}/api/kernels/{k}?token={token}") == 200]
            if not left: break
            time.sleep(0.5)
        assert not left, "a closed page's kernel is still there"


def ask(address):
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_): return None
    try: return urllib.request.build_opener(Stay).open(address, timeout=10).status
    except urllib.error.HTTPError as error: return error.code


def body(address): return urllib.request.urlopen(address, timeout=10).read().decode()
