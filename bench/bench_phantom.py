"""Phantoms per second on one thread: python bench/bench_phantom.py [count]"""
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
import sys
import time

import cv2
import torch

from vasomim.data.phantom import phantom
from vasomim.data.phantom import phantom_sequence


def rate(make, count: int) -> tuple[float, float]:
    "Things made per second of wall time and of processor time (the latter does not care who else uses the machine)."
    make(0)
    wall, cpu = time.perf_counter(), time.process_time()
    for seed in range(1, count + 1):
        make(seed)
    return count / (time.perf_counter() - wall), count / (time.process_time() - cpu)


def main(count: int = 30) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(f"{'what':28s}{'per second':>12s}{'per core second':>18s}")
    for size in (224, 256, 512, 1024):
        print("{:28s}{:12.1f}{:18.1f}".format(f"phantom {size} x {size}", *rate(lambda seed: phantom(seed, size), count)))
    print("{:28s}{:12.1f}{:18.1f}".format("frames of a 512 x 512 run", *(8 * r for r in rate(lambda seed: phantom_sequence(seed, 8, 512), max(count // 8, 2)))))


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
