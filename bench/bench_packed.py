"""The way of the data, measured: packing, batches, opening.

    python bench/bench_packed.py [packing] [batches] [opening] [rows]

packing  512x512 PNG files to a packed set with vessel masks, against the published preparation (Pillow, scikit-image's Sato filter, percentile, a Python flood fill, a PNG mask)
batches  random-resized-crop batches of images and masks from a packed set, against a DataLoader with two workers that decodes PNG image and mask and crops with torchvision
opening  a packed set of 100,000 images: seconds and memory
rows     random rows copied out of a packed set, against decoding the same PNG files, one thread
"""
import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench_extract import plain
from vasomim.anatomy.prepare import vessel_extractor
from vasomim.core import usable_cpus
from vasomim.data.images import load_image, load_mask, save_image
from vasomim.data.packing import pack, write_json
from vasomim.data.phantom import phantom
from vasomim.data.shards import FORMAT, NUMBER_COLUMNS, SHARD_BYTES, TEXT_COLUMNS, ShardWriter
from vasomim.data.sources.folder import folder_source
from vasomim.training.batches import Batches
from vasomim.training.method import View


def quietly(work):
    with redirect_stdout(StringIO()): return work()


def files(folder, count, distinct=12):
    "`count` PNG angiograms of 512 x 512: phantoms, mirrored and shifted so that no two files are equal."
    drawn = [phantom(i, size=512).image for i in range(min(distinct, count))]
    (folder / "images").mkdir(parents=True)
    for i in range(count):
        x = drawn[i % len(drawn)].roll(i // len(drawn), -1)
        save_image(folder / "images" / f"{i:05d}.png", x.flip(-1) if i // len(drawn) % 2 else x)
    return folder / "images"


def published_preparation(paths, out):
    "Image by image, as the published script works."
    out.mkdir()
    for path in paths:
        grey = np.asarray(Image.open(path).convert("L"))
        Image.fromarray((plain(grey) * 255).astype(np.uint8)).save(out / path.name)


def packing(count):
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp); folder = files(tmp, count)
        paths = sorted(folder.iterdir())[:max(6, count // 20)]
        start = time.perf_counter(); published_preparation(paths, tmp / "masks"); base = len(paths) / (time.perf_counter() - start)
        print(f"packing {count} PNG files of 512 x 512, {usable_cpus()} cores\n{'what':52} {'images/s':>9} {'times':>6}")
        print(f"{'Pillow + scikit-image + Python flood fill + PNG':52} {base:9.2f}")
        for what, options in (("pack, threads", dict(processes=1)), (f"pack, {usable_cpus()} processes (3 s to start them)", dict(processes=usable_cpus(), shard_rows=max(1, count // 8))),
                              ("pack, threads, grow='seed' (the published masks)", dict(processes=1, seed=True)), ("pack, no masks", dict(processes=1, masks="none"))):
            extractor = vessel_extractor(grow="seed" if options.pop("seed", False) else "components")
            start = time.perf_counter(); quietly(lambda: pack(folder_source(folder), tmp / "out", 512, extractor, extractor_id=what, progress=False, **options)); rate = count / (time.perf_counter() - start)
            print(f"{what:52} {rate:9.1f} {rate / base:6.1f}")


class Files(torch.utils.data.Dataset):
    "The usual way: decode image and mask, crop both with torchvision."
    def __init__(self, images, masks): self.images, self.masks = images, masks
    def __len__(self): return len(self.images)
    def __getitem__(self, i):
        from torchvision.transforms import InterpolationMode, RandomResizedCrop
        from torchvision.transforms.functional import hflip, pil_to_tensor, resized_crop
        image, mask = Image.open(self.images[i]).convert("L"), Image.open(self.masks[i]).convert("L")
        box = RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3))
        image, mask = resized_crop(image, *box, [224, 224], InterpolationMode.BICUBIC), resized_crop(mask, *box, [224, 224], InterpolationMode.NEAREST)
        if torch.rand(()) < 0.5: image, mask = hflip(image), hflip(mask)
        return pil_to_tensor(image).float() / 255, pil_to_tensor(mask) > 127


def batches(count, batch=64, steps=12):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp); folder = files(tmp, count)
        packed = quietly(lambda: pack(folder_source(folder), tmp / "packed", 512, vessel_extractor(), progress=False))
        (tmp / "masks").mkdir()
        for i in range(count): save_image(tmp / "masks" / f"{i:05d}.png", packed.vessels([i])[0])
        images, masks = sorted(folder.iterdir()), sorted((tmp / "masks").iterdir())
        loader = torch.utils.data.DataLoader(Files(images, masks), batch, sampler=torch.utils.data.RandomSampler(range(count), replacement=True, num_samples=(steps + 2) * batch), num_workers=2)
        it = iter(loader); next(it); next(it)
        start = time.perf_counter(); n = sum(len(x) for x, _ in it); base = n / (time.perf_counter() - start)
        ours = Batches(packed, (View(size=(224, 224)),), batch, device=device)
        ours(0); start = time.perf_counter()
        for s in range(1, steps + 1): last = ours(s)
        if device.type == "cuda": torch.cuda.synchronize()
        rate = steps * len(last.images["image"]) / (time.perf_counter() - start)
        print(f"batches of {batch}, 224 x 224 crops of 512 x 512 images with masks, {usable_cpus()} cores, {device}\n{'what':52} {'images/s':>9} {'times':>6}")
        print(f"{'DataLoader, 2 workers, PNG, torchvision':52} {base:9.1f}\n{'packed set, Batches':52} {rate:9.1f} {rate / base:6.1f}")


CHILD = """
import resource, sys, time
import vasomim.data.packed as p
def memory(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS'))/1024
before = memory(); start = time.perf_counter(); d = p.open_packed(sys.argv[1]); took = time.perf_counter() - start
print(f'{len(d):,} images of {d.size[0]} x {d.size[1]}: opened in {took:.3f} s, memory grows by {memory() - before:.1f} MB')
start = time.perf_counter(); d.images(range(0, len(d), len(d)//256)); print(f'256 rows spread over it: {time.perf_counter() - start:.3f} s')
"""


def opening(count=100_000, size=128):
    with tempfile.TemporaryDirectory() as tmp:
        folder, shards, rng = Path(tmp, "set"), [], np.random.default_rng(0)
        folder.mkdir()
        pictures, bits, rows = rng.integers(0, 256, (64, size * size), dtype=np.uint8), rng.integers(0, 256, (64, size * size // 8), dtype=np.uint8), SHARD_BYTES // size ** 2
        for k in range(0, count, rows):
            with ShardWriter(folder / f"data-{len(shards):05d}.arrow", size, size) as w:
                for i in range(k, min(count, k + rows)):
                    w.add({"image": pictures[i % 64], "vessels": bits[i % 64], "id": f"repeated/{i:06d}", **dict.fromkeys(TEXT_COLUMNS[1:], "x"), **dict.fromkeys(NUMBER_COLUMNS), "height": size, "width": size, "empty_mask": False, "constant": False})
            shards.append({k: w.summary[k] for k in ("file", "rows")})
        write_json(folder / "packed.json", {"format": "vasomim-packed", "version": FORMAT, "height": size, "width": size, "fingerprint": "x", "extractor": "x", "count": count, "mean": 0.5, "std": 0.3,
                                            "shards": shards, "bad": [], "notices": [], "problems": []})
        print(f"opening ({len(shards)} shards)", flush=True)
        subprocess.run([sys.executable, "-c", CHILD, str(folder)], check=True)


def rows(count, repeats=20):
    def rate(read, n, batch):
        rng, best = np.random.default_rng(0), float("inf")
        for _ in range(repeats + 1):
            ids = rng.integers(0, n, batch)
            start = time.perf_counter(); read(ids); best = min(best, time.perf_counter() - start)     # other jobs on the machine only ever slow it
        return batch / best
    torch.set_num_threads(1)
    print(f"random rows, one thread, page cache warm, rows/s (image and mask; best of {repeats})\n{'size':>5} {'batch':>6} {'packed':>8} {'images only':>12} {'PNG files':>10} {'times':>6}")
    for size in (256, 512):
        with tempfile.TemporaryDirectory() as tmp:
            tmp = Path(tmp); folder = files(tmp, count)
            packed = quietly(lambda: pack(folder_source(folder), tmp / "packed", size, lambda x: x < 0.3, extractor_id="dark", progress=False))
            (tmp / "images2").mkdir(); (tmp / "masks").mkdir()
            for i in range(count): save_image(tmp / "images2" / f"{i}.png", packed.images([i])[0] / 255); save_image(tmp / "masks" / f"{i}.png", packed.vessels([i])[0])
            def png(ids): return [torch.stack(x) for x in zip(*((load_image(tmp / "images2" / f"{i}.png"), load_mask(tmp / "masks" / f"{i}.png")) for i in ids))]
            slow = rate(png, count, 32)
            for batch in (64, 256):
                both = rate(lambda ids: (packed.images(ids), packed.vessels(ids)), count, batch)
                print(f"{size:5d} {batch:6d} {both:8.0f} {rate(packed.images, count, batch):12.0f} {slow:10.0f} {both / slow:6.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[[], "packing", "batches", "opening", "rows"][1:] + [[]], default=[])
    parser.add_argument("--count", type=int, default=200, help="PNG files")
    args = parser.parse_args()
    torch.set_num_threads(usable_cpus())
    for name in args.what or ("packing", "batches", "opening", "rows"):
        {"packing": packing, "batches": batches, "rows": rows}[name](args.count) if name != "opening" else opening()
        print()


if __name__ == "__main__": main()
