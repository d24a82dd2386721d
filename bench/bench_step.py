"""What guidance, consistency and the data side cost.  python bench/bench_step.py [--part step|loop]
step: one VasoMIM step (guidance and consistency included) against the same step with preset="mae", ViT-B/16 at 224.
loop: the whole loop (packed data, crops, guidance, step) against the bare forward + backward + optimiser of the same autoencoder on one fixed batch, ViT-S/16 at 224."""
import argparse
import dataclasses
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch

from vasomim.pretrain import PretrainConfig, prepare_data
from vasomim.training.batches import Batches
from vasomim.training.launch import Place
from vasomim.training.loop import Trainer
from vasomim.training.method import find_method
from vasomim.training.run import MetricsFile, RunFolder
from vasomim.losses import normalize_patches, reconstruction_loss
from vasomim.mae import visible_patches
from vasomim.core import usable_cpus

SIZE = dict(img_size=224, decoder_dim=512, decoder_depth=8, decoder_heads=16, pack_size=256, device="cpu", precision="fp32")


def trainer(folder, data, **changes):
    config = PretrainConfig(**{**SIZE, **changes, "run_dir": str(folder)})
    method = find_method(config.method)(config)
    run = RunFolder(folder); run.prepare(config)
    t = Trainer(method, Batches(data, method.views, config.batch_size), run, dataclasses.replace(config, epochs=1000), Place(0, 1, torch.device("cpu")))
    t.wrapped = t.method.train()
    t.metrics = MetricsFile(Path(folder) / "metrics.csv")
    return t


def bare(t):
    "Forward, backward and optimiser of the trainer's own autoencoder on one fixed batch and mask, nothing else."
    batch = t.batches(0, ahead=False); images = batch.images["image"]
    mask = t.method.sampler(torch.ones(len(images), t.method.mae.grid[0] * t.method.mae.grid[1]), 0.5, None)
    visible, target = visible_patches(mask, t.method.masked), normalize_patches(t.method.mae.target(images))[0]
    def step():
        reconstruction_loss(t.method.mae(images, mask, visible), target, mask).backward()
        t.optimizer.step(); t.optimizer.zero_grad(set_to_none=True)
    return step


def measure(works: dict, rounds: int):
    "Best and median seconds of each, taken in turns."
    times = {name: [] for name in works}
    for work in works.values(): work()      # warm up
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter(); work(); times[name].append(time.perf_counter() - start)
    return {name: (min(t), sorted(t)[len(t) // 2]) for name, t in times.items()}


def table(title, rows, batch):
    (name, base), (other, ours) = rows.items()
    print(f"\n{title}, batch {batch}, {torch.get_num_threads()} thread(s)\n{'':44}{'best s':>9}{'median s':>10}{'images/s':>10}")
    for n, (lo, mid) in rows.items(): print(f"{n:44}{lo:9.3f}{mid:10.3f}{batch / lo:10.2f}")
    print(f"{'ratio':44}{ours[0] / base[0]:9.3f}{ours[1] / base[1]:10.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("step", "loop", "both"), default="both")
    parser.add_argument("--batch", type=int, default=8); parser.add_argument("--rounds", type=int, default=5); parser.add_argument("--threads", type=int, default=usable_cpus())
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    with tempfile.TemporaryDirectory() as d:
        with redirect_stdout(StringIO()): data = prepare_data(PretrainConfig(phantoms=4 * a.batch, pack_size=256, cache_dir=f"{d}/packed"))
        if a.part in ("step", "both"):
            ours, mae = (trainer(f"{d}/{p}", data, preset=p, model="vit_base_patch16_224", batch_size=a.batch) for p in ("vasomim", "mae"))
            table("step, ViT-B/16 at 224", measure({'preset="mae"': mae.train_step, 'preset="vasomim"': ours.train_step}, a.rounds), a.batch)
        if a.part in ("loop", "both"):
            for preset in ("mae", "vasomim"):
                t = trainer(f"{d}/loop-{preset}", data, preset=preset, model="vit_small_patch16_224", batch_size=a.batch)
                table(f"loop, ViT-S/16 at 224, {preset}", measure({"bare autoencoder, one fixed batch": bare(t), f"whole loop, preset={preset}": t.train_step}, a.rounds), a.batch)
