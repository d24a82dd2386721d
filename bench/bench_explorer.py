"""One move of a control, from the changed state to the bytes of the pictures that change: without a browser, which adds about 40 ms of its own.

    python bench/bench_explorer.py
"""
import sys
import time
from dataclasses import replace
from pathlib import Path
import cv2
import numpy as np
import torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vasomim.explorer import Explorer, ExplorerState, explore, open_image, render

MOVES = {"progress": lambda s, i: dict(progress=i / 100), "draw": lambda s, i: dict(draw=i), "mask ratio": lambda s, i: dict(mask_ratio=0.3 + i / 100), "eta": lambda s, i: dict(eta=i / 100),
         "percentile": lambda s, i: dict(percentile=90 + i / 10), "scales": lambda s, i: dict(sigmas=(1, 2, 3, 4 + i / 10)), "phantom": lambda s, i: dict(phantom=i)}


def main():
    torch.set_num_threads(1); cv2.setNumThreads(1)
    print(f"{'picture':>8} {'network':>8} {'panel':>6}  {'move':14} {'median ms':>10} {'p95 ms':>8}")
    for pack, size, panel in ((256, 160, 232), (512, 224, 232), (512, 512, 512)):
        start = ExplorerState(pack_size=pack, img_size=size, progress=0.5)
        explorer = Explorer(size=panel, pack_size=pack, img_size=size, progress=0.5)
        for name, change in MOVES.items():
            explorer.show(start)
            times = []
            for i in range(1, 6 if name == "phantom" else 21):
                began = time.perf_counter(); explorer.show(replace(start, **change(start, i))); times.append(1e3 * (time.perf_counter() - began))
            print(f"{pack:8} {size:8} {panel:6}  {name:14} {np.median(times):10.1f} {np.percentile(times, 95):8.1f}")
        panels = explore(open_image(start), start)
        times = []
        for _ in range(10): began = time.perf_counter(); render(panels, panel); times.append(1e3 * (time.perf_counter() - began))
        print(f"{pack:8} {size:8} {panel:6}  {'contact sheet':14} {np.median(times):10.1f} {np.percentile(times, 95):8.1f}")


if __name__ == "__main__": main()
