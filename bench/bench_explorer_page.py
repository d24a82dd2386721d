"""The explorer as it is felt: in headless Chromium, from a moved control to the last picture that changes, measured in the page by a MutationObserver.

    python bench/bench_explorer_page.py [--size 512] [--moves 40] [--csv figures/explorer_latency.csv]

The yardstick, in the same notebook: a bare slider that changes one small picture, nothing computed. Each move is a key on the focused control (a slider's arrow, a list's next entry) or a click; the clock starts at the event and stops when the last picture that changes has been decoded. Then 500 moves in a row: does the
kernel's memory or the page grow? The server is a JupyterLab of its own with a token; nothing else should run on the machine (the load is printed).
"""
import argparse
import csv
import json
import os
import sys
import tempfile
import time
from pathlib import Path
import numpy as np
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from explorer_servers import CHROMIUM, QUIET, jupyter_lab, open_lab, run_cells
from playwright.sync_api import sync_playwright

BARE = {"bare slider": ".bare .noUi-handle"}
CELL = """import io, numpy as np, ipywidgets as w
from PIL import Image
def tile(i):
    with io.BytesIO() as f: Image.fromarray(np.full((16, 16), i, np.uint8)).save(f, "PNG"); return f.getvalue()
slider, shown = w.IntSlider(min=0, max=255).add_class("bare"), w.Image(value=tile(0), width=16, height=16).add_class("panel-bare")
slider.observe(lambda change: setattr(shown, "value", tile(change.new)), "value")
w.HBox([slider, shown])"""
SAMPLING = {"progress e/E": ".training-progress .noUi-handle", "mask ratio γ": ".mask-ratio .noUi-handle", "end β_E": ".beta-end .noUi-handle", "new draw": "button.explorer-redraw"}
OTHERS = {"share η": ".eta .noUi-handle", "threshold α": ".percentile .noUi-handle", "border": ".border .noUi-handle", "largest σ": ".largest .noUi-handle", "patch size": ".patch-size select", "vesselness": ".vesselness select",
          "image file": ".image select", "image side": ".img-size select", "view angle": ".primary-angle .noUi-handle"}
WATCH = """() => { window.moved = {last: 0, count: 0};
  const seen = async e => { try { await e.decode(); } catch {} moved.last = performance.now(); moved.count++; };
  window.watcher = new MutationObserver(list => { for (const m of list) if (m.target.tagName === "IMG") seen(m.target); });
  for (const i of document.querySelectorAll("img[class*=panel-]")) watcher.observe(i, {attributes: true, attributeFilter: ["src"]}); }"""
MOVE = """([selector, step]) => { const e = document.querySelector(selector); moved.last = 0; moved.count = 0; const began = performance.now(); window.began = began;
  if (e.tagName === "BUTTON") e.click();
  else if (e.tagName === "SELECT") { e.selectedIndex = (e.selectedIndex + step + e.options.length) % e.options.length; e.dispatchEvent(new Event("change", {bubbles: true})); }
  else { e.dispatchEvent(new KeyboardEvent("keydown", {key: step > 0 ? "ArrowRight" : "ArrowLeft", bubbles: true, cancelable: true})); } }"""


def settle(page, quiet=250, limit=8000):
    "(milliseconds from the event to the last decoded picture, how many changed) once nothing has changed for `quiet` milliseconds."
    return page.evaluate("""([quiet, limit]) => new Promise(done => { const look = () => { const now = performance.now();
        if ((moved.last && now - moved.last > quiet) || now - began > limit) done([moved.last ? moved.last - began : null, moved.count]); else setTimeout(look, 10); }; look(); })""", [quiet, limit])


def measure(page, selector, moves):
    times, none = [], 0
    for i in range(moves):
        page.evaluate(MOVE, [selector, 1 if "select" in selector or (i // 8) % 2 == 0 else -1])
        ms, _ = settle(page)
        if ms is None: none += 1
        else: times.append(ms)
    return times, none


def memory(page): return page.evaluate("async () => { const k = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel; const f = k.requestExecute({code: 'import psutil, gc; gc.collect(); print(psutil.Process().memory_info().rss)' }); let out = ''; f.onIOPub = m => { if (m.content.text) out += m.content.text; }; await f.done; return Number(out); }")


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--size", type=int, default=512); ask.add_argument("--moves", type=int, default=40); ask.add_argument("--changes", type=int, default=500); ask.add_argument("--csv"); ask.add_argument("--only", nargs="*", help="controls to measure; all of them if not given")
    o = ask.parse_args()
    known = [*BARE, *SAMPLING, *OTHERS]
    if unknown := set(o.only or ()) - set(known): ask.error(f"--only: no control {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    rows = []
    began_load = os.getloadavg()[0]
    from vasomim.data.images import save_image
    from vasomim.data.phantom import phantom
    with tempfile.TemporaryDirectory(prefix="explorer-bench-", ignore_cleanup_errors=True) as folder, jupyter_lab((home := Path(folder)) / "root", home / "jupyter", OMP_NUM_THREADS=str(len(os.sched_getaffinity(0)))) as (address, token), sync_playwright() as p:
        (home / "root" / "files").mkdir()
        for i in range(30): save_image(home / "root" / "files" / f"{i}.png", phantom(i, size=512).image)
        book = json.loads((home / "root" / "explore.ipynb").read_text(encoding="utf-8"))
        for cell in book["cells"]: cell["source"] = "".join(cell["source"]).replace("img_size=224", f"img_size={o.size}")
        book["cells"].append(dict(cell_type="code", id="bare", metadata={}, source=CELL, outputs=[], execution_count=None))
        (home / "root" / "explore.ipynb").write_text(json.dumps(book), encoding="utf-8")
        browser = p.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, "--enable-precise-memory-info", "--js-flags=--expose-gc"])
        page = browser.new_page(viewport={"width": 1400, "height": 1100}); page.set_default_timeout(90_000)
        open_lab(page, address, token)
        began = time.perf_counter(); run_cells(page); first = time.perf_counter() - began
        print(f"load before {began_load:.1f}; first pictures {first:.2f} s after running the notebook")
        page.wait_for_timeout(3000); page.evaluate(WATCH)
        for kind, controls in (("nothing computed", BARE), ("sampling only", SAMPLING), ("all others", OTHERS)):
            print(f"{kind:14} {'control':14} {'median ms':>10} {'p95 ms':>8}  moves")
            for name, selector in controls.items():
                if o.only and name not in o.only: continue
                page.evaluate(MOVE, ["button.explorer-reset", 1]); settle(page)        # every control from the same settings
                if name == "image file": page.locator(".data-dir input").fill("files"); page.locator(".data-dir input").press("Enter"); page.wait_for_selector(".image select >> visible=true"); page.wait_for_timeout(1500)
                page.evaluate(MOVE, [selector, 1]); settle(page)        # the first move is not counted
                times, none = measure(page, selector, o.moves if "select" not in selector else o.moves // 2)
                rows.append(dict(kind=kind, control=name, size=o.size, median_ms=round(float(np.median(times)), 1), p95_ms=round(float(np.percentile(times, 95)), 1), moves=len(times), without_change=none, load=round(os.getloadavg()[0], 2)))
                print(f"{'':14} {name:14} {rows[-1]['median_ms']:10.1f} {rows[-1]['p95_ms']:8.1f}  {len(times)}" + (f" ({none} changed nothing)" if none else ""))
        for kind in ("nothing computed", "sampling only", "all others"):
            both = [r for r in rows if r["kind"] == kind]
            if both: print(f"{kind}: worst median {max(r['median_ms'] for r in both)}, worst p95 {max(r['p95_ms'] for r in both)} ms")
        state = lambda: (memory(page) / 1e6, page.evaluate("() => { gc(); return performance.memory.usedJSHeapSize / 1e6 }"), page.evaluate("() => document.querySelectorAll('*').length"))
        selectors, start = [*SAMPLING.values(), ".eta .noUi-handle", ".percentile .noUi-handle"], None
        for i in range(o.changes):
            if i == o.changes // 5: start = state()     # caches are full
            page.evaluate(MOVE, [selectors[i % len(selectors)], 1 if (i // 48) % 2 == 0 else -1]); page.wait_for_timeout(60)
        settle(page, 500); end = state()
        print("over the last four fifths of " + f"{o.changes} changes: kernel {start[0]:.0f} -> {end[0]:.0f} MB, page {start[1]:.1f} -> {end[1]:.1f} MB of JavaScript, {start[2]} -> {end[2]} elements; load {os.getloadavg()[0]:.1f}")
        browser.close()
    if o.csv:
        with open(o.csv, "w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, rows[0]); out.writeheader(); out.writerows(rows)


if __name__ == "__main__": main()
