"""Random batches from a packed set against decoding the same PNG files from disk: python bench/bench_packed.py"""
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from vasomim.data.images import load_image, load_mask, save_image
from vasomim.data.packed import pack
from vasomim.data.sources.folder import folder_source


def pictures(folder, count, size):
    "Smooth noise with film grain, as PNG, and a mask for each."
    g = torch.Generator().manual_seed(0)
    for kind in ("images", "masks"): (folder/kind).mkdir()
    for i in range(count):
        coarse = torch.nn.functional.interpolate(torch.rand(1, 1, 9, 9, generator=g), size=(size, size), mode="bicubic")[0]
        save_image(folder/"images"/f"{i:05d}.png", (0.2 + 0.6*coarse + 0.01*torch.randn(1, size, size, generator=g)).clamp(0, 1))
        save_image(folder/"masks"/f"{i:05d}.png", coarse < 0.3)


def rate(read, count, batch, rounds):
    "Rows per second of `read(ids)` on random batches; the best of `rounds` batches, since other jobs on the machine only ever slow it."
    rng, best = np.random.default_rng(0), float("inf")
    for _ in range(rounds + 1):
        ids = rng.integers(0, count, batch)
        start = time.perf_counter(); read(ids); best = min(best, time.perf_counter() - start)
    return batch/best


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{args.count} images, one thread, page cache warm, rows/s (image and mask as tensors; best of {args.rounds} batches)")
    print(f"{'size':>5} {'batch':>6} {'packed':>8} {'images only':>12} {'PNG files':>10} {'ratio':>6} {'packing':>9}")
    for size in (256, 512):
        with tempfile.TemporaryDirectory() as tmp:
            tmp = Path(tmp); pictures(tmp, args.count, size)
            start = time.perf_counter()
            packed = pack(folder_source(tmp/"images"), tmp/"packed", size, extractor=lambda x: x < 0.3, extractor_id="below 0.3", progress=False)
            speed = args.count/(time.perf_counter() - start)
            files = [(tmp/"images"/f"{i:05d}.png", tmp/"masks"/f"{i:05d}.png") for i in range(args.count)]
            for batch in (64, 256):
                both = rate(lambda ids: (packed.images(ids), packed.vessels(ids)), args.count, batch, args.rounds)
                images = rate(packed.images, args.count, batch, args.rounds)
                png = rate(lambda ids: [torch.stack(x) for x in zip(*((load_image(a), load_mask(b)) for a, b in (files[i] for i in ids)))], args.count, min(batch, 32), args.rounds)
                print(f"{size:5d} {batch:6d} {both:8.0f} {images:12.0f} {png:10.0f} {both/png:6.0f} {speed:7.0f}/s")


if __name__ == "__main__": main()
