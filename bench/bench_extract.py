"""One 512x512 angiogram on one core: extract_vessels against scikit-image's Sato filter, numpy's percentile and a Python flood fill.

    python bench/bench_extract.py
"""
import sys
import time
from pathlib import Path
import cv2
import numpy as np
import torch
from skimage.filters import sato as skimage_sato
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vasomim.anatomy.extract import extract_vessels
from vasomim.core import shared_dir
from vasomim.data.images import load_image
from vasomim.data.phantom import phantom


def flood(value):
    "The straightforward region growing: a stack of neighbours, from the largest value over non-zero pixels."
    height, width = value.shape
    grown = np.zeros(value.shape, bool)
    stack = [divmod(int(value.argmax()), width)] if value.any() else []
    while stack:
        r, c = stack.pop()
        if 0 <= r < height and 0 <= c < width and value[r, c] and not grown[r, c]:
            grown[r, c] = True
            stack += [(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)]
    return grown


def plain(image):
    "The published steps with ordinary tools."
    value = skimage_sato(image, sigmas=(1, 2, 3, 4), black_ridges=True, mode="reflect").astype(np.uint8)
    value[:20] = value[-20:] = value[:, :20] = value[:, -20:] = 0
    return flood(np.where(value >= np.percentile(value, 92), value, 0))


def seconds(call, repeats):
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pictures = {"phantom": phantom(0, 512).image.reshape(1, 1, 512, 512)}
    real = shared_dir("data", "angiodata", "Patient_5", "Coro_4", "frame_00016.jpg")
    if real: pictures["angiogram"] = load_image(real)[None]
    print(f"{'picture':10} {'what':42} {'ms':>8} {'times faster':>13} {'same mask':>10}")
    for name, images in pictures.items():
        grey = np.rint(images[0, 0].numpy() * 255).astype(np.uint8)
        right, base = plain(grey), seconds(lambda: plain(grey), 3)
        print(f"{name:10} {'scikit-image + numpy + Python flood fill':42} {base * 1e3:8.1f} {'':>13} {'':>10}")
        for what, options in {"extract_vessels(images)": {}, "extract_vessels(images, score='plain')": {"score": "plain"}, "extract_vessels(images, grow='seed')": {"grow": "seed"}}.items():
            took = seconds(lambda: extract_vessels(images, **options), 10)
            same = "" if options.get("grow") != "seed" else str(np.array_equal(extract_vessels(images, **options)[0, 0].numpy(), right))
            print(f"{name:10} {what:42} {took * 1e3:8.1f} {base / took:13.1f} {same:>10}")


if __name__ == "__main__": main()
