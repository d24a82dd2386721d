"""Screenshots of the explorer for README and notebook: the page of `make explore` in headless Chromium, wide and light, narrow and dark; a phantom, half-way through the training.

    python bench/bench_explorer_pictures.py     # figures/explorer.png, figures/explorer_narrow.png
"""
import io
import json
import sys
import tempfile
from pathlib import Path
from PIL import Image
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from explorer_servers import CHROMIUM, QUIET, voila_page
from playwright.sync_api import sync_playwright
from vasomim.figures_style import origin_here


def keep(data: bytes, name: str):
    Image.open(io.BytesIO(data)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(ROOT / "figures" / f"{name}.png", optimize=True)
    (ROOT / "figures" / f"{name}.json").write_text(json.dumps(origin_here("python bench/bench_explorer_pictures.py", data="one phantom", seeds=[0]), indent=2) + "\n", encoding="utf-8")


def main():
    for name, width, theme in (("explorer", 1020, "light"), ("explorer_narrow", 560, "dark")):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, voila_page(Path(folder), f"CULL=30 --VoilaConfiguration.theme={theme}") as (address, token, _), sync_playwright() as p:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=QUIET)
            page = browser.new_page(viewport={"width": width, "height": 3200}); page.set_default_timeout(90_000)
            page.goto(f"{address}/?token={token}"); page.wait_for_selector("img.panel-mask[src]"); page.wait_for_selector(".mask-ratio .noUi-handle[aria-label]")
            if name == "explorer": page.locator(".explorer-compare input").check(); page.wait_for_selector("img.explorer-heat")
            page.wait_for_timeout(500)
            keep(page.locator(".vasomim-explorer").screenshot(), name)
            browser.close()


if __name__ == "__main__": main()
