"""Batched crops on the device against a loop over images with torchvision, in the same run: python bench/bench_augment.py [cpu|cuda]"""
import argparse
import time

import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as TF

from vasomim.core import resolve_device
from vasomim.data.augment import random_resized_crop


def looped(images, masks, size):
    "What a data loader does: one image after the other, torchvision's own functions."
    views, cut = [], []
    for x, m in zip(images, masks):
        t, l, h, w = RandomResizedCrop.get_params(x, (0.2, 1.0), (3/4, 4/3))
        x = TF.resized_crop(x.float()/255, t, l, h, w, [size, size], InterpolationMode.BICUBIC, antialias=True)
        m = TF.resized_crop(m, t, l, h, w, [size, size], InterpolationMode.NEAREST)
        if torch.rand(()) < 0.5: x, m = x.flip(-1), m.flip(-1)
        views.append(x); cut.append(m)
    return torch.stack(views).clamp(0, 1), torch.stack(cut)


def measure(functions, rounds, device):
    "Best milliseconds of each function, alternating: other jobs on the machine only ever add."
    times = [[] for _ in functions]
    for k in range(rounds + 1):
        for f, spent in zip(functions, times):
            start = time.perf_counter(); f()
            if device.type == "cuda": torch.cuda.synchronize()
            if k: spent.append(1e3*(time.perf_counter() - start))
    return [min(s) for s in times]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("device", nargs="?", default="auto")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    device = resolve_device(args.device)
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads; image and mask, milliseconds per batch (best of {args.rounds})")
    print(f"{'batch':>6} {'from':>5} {'to':>4} {'batched':>9} {'looped':>9} {'ratio':>6} {'images/s':>9}")
    for batch, source, size in ((64, 256, 160), (64, 256, 224), (64, 512, 224)):
        images = torch.randint(0, 256, (batch, 1, source, source), dtype=torch.uint8, device=device)
        masks = images > 230
        ours, theirs = measure([lambda: random_resized_crop(images, masks, size), lambda: looped(images, masks, size)], args.rounds, device)
        print(f"{batch:6d} {source:5d} {size:4d} {ours:9.1f} {theirs:9.1f} {theirs/ours:6.1f} {1e3*batch/ours:9.0f}")


if __name__ == "__main__": main()
