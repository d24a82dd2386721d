"""The fine-tuning study on real expert labels: UNet and ViT from scratch against the same ViT pre-trained as MAE and as VasoMIM, three seeds each, as one table.

    python bench/finetuning/pretraining_set.py --data ../shared/data --out data/packed/finetuning-study
    for preset in mae vasomim; do python -m vasomim.pretrain --preset $preset --data-dir data/packed/finetuning-study --run-dir runs/study/pre-$preset \\
        --decoder-dim 192 --decoder-depth 2 --batch-size 32 --epochs 64 --warmup-epochs 4 --precision bf16 --threads 1 --seed 0; done
    python bench/finetuning/study.py --data ../shared/data --runs runs/study --table figures/finetuning.csv

Small enough for two processor cores with bfloat16: ViT-Ti/16, 128 pixels, 400 to 620 optimiser steps of 8 images (1,476 for boxes, at 256 pixels). It can be stopped at any time; the same command goes on, and leaves out what the table has already. --list shows what is done.
"""
import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from vasomim.downstream.config import FinetuneConfig
from vasomim.downstream.outcome import read_results, write_results

SEEDS = (0, 1, 2)
COMMON = dict(size=128, batch_size=8, lr=1e-3, drop_path=0.0, seeds=SEEDS, threads=1, device="cpu", precision="bf16", log_every=100, save_every=20, keep=1)
VIT, UNET = dict(model="unet_adapter", options=dict(base_channels=8)), dict(model="unet", options=dict(backbone="resnet18", base_channels=8))
VITDET = dict(model="vitdet", options=dict(width=64, convs=1, fc=128, samples=(64, 64), proposals=(200, 100), anchors=((8, 12, 16), (20, 24, 32), (40, 48, 64), (80, 100, 128), (160, 190, 256))))      # boxes are 14 pixels wide at 256: 96 % are within reach
SETS = {    # name -> folder, settings; epochs make 400 to 620 steps, 1,476 for boxes
    "dca1": ("dca1", dict(data="dca1", epochs=80)),
    "xcad": ("xcad", dict(data="xcad", resplit=0.5, epochs=133)),
    "arcade-v": ("arcade", dict(data="arcade-v", label_fraction=0.2, epochs=16)),
    "dca1-25": ("dca1", dict(data="dca1", label_fraction=0.25, epochs=400)),      # ten images, the same number of steps
    "arcade-vs": ("arcade", dict(data="arcade-vs", label_fraction=0.4, epochs=12)),
    "arcade-s": ("arcade", dict(data="arcade-s", epochs=12)),
    "stenosis": ("danilov", dict(data="stenosis", size=256, epochs=12, lr=2e-4, weight_decay=0.05, augment=dict(jitter=(0.8, 1.25)))),
}
FIRST = ("dca1", "xcad", "arcade-v", "dca1-25")      # all methods and seeds; the others only a ViT from scratch and a pre-trained one, once
DECAY = {"scratch-decay": ("scratch", dict(layer_decay=0.75)), "vasomim-flat": ("vasomim", dict(layer_decay=1.0))}      # on dca1: the presets train these two differently


def jobs(data: Path, runs: Path) -> dict[str, FinetuneConfig]:
    "name -> configuration: vessels first, those that need no checkpoint before the others."
    out = {}
    def add(name, method, label, **more):
        folder, settings = SETS[name]
        network = VITDET if settings["data"] == "stenosis" else UNET if method == "unet" else VIT
        checkpoint = str(runs / f"pre-{method}") if method in ("mae", "vasomim") else None
        out[f"{name}-{label}"] = FinetuneConfig(**{**COMMON, **network, **settings, **more}, name=label, checkpoint=checkpoint, data_dir=str(data / folder), run_dir=str(runs / f"{name}-{label}"),
                                                cache_dir=str(runs / "labelled"))
    for method in ("unet", "scratch", "mae", "vasomim"):
        for name in FIRST: add(name, method, method)
    for label, (method, more) in DECAY.items(): add("dca1", method, label, **more)
    for name in SETS:
        if name not in FIRST:
            for method in ("scratch", "vasomim"): add(name, method, method, seeds=SEEDS[:1])      # a look, no comparison
    return out


IDENTITY = ("method", "dataset", "task", "fraction", "size", "epochs", "seed")

def identity(row: dict) -> tuple: return tuple(row[k] if k in ("method", "dataset", "task") else float(row[k]) for k in IDENTITY)


def finished(config: FinetuneConfig, rows: list[dict]) -> set[int]:
    "Seeds of a job that have rows."
    mine = dict(method=config.name, dataset=config.data, task=config.task, fraction=config.label_fraction, size=config.size, epochs=config.epochs)
    return {s for s in config.all_seeds if identity(dict(mine, seed=s)) in {identity(r) for r in rows}}


def state(config: FinetuneConfig, rows: list[dict]) -> str:
    done = finished(config, rows + read_results(Path(config.run_dir) / "results.csv"))
    ready = config.checkpoint is None or (Path(config.checkpoint) / "encoder" / "model.safetensors").is_file()
    return "done" if len(done) == len(config.all_seeds) else f"{len(done)} of {len(config.all_seeds)} seeds" if ready else "waits for its encoder"


def run(name: str, config: FinetuneConfig) -> str:
    "Goes on with a job in a process of its own; its log is beside the run folder."
    folder = Path(config.run_dir)
    values = dict(json.loads(config.to_json()), resume=(folder / "config.json").is_file())
    file = folder.with_name(f"{name}.json")
    file.write_text(json.dumps(values), encoding="utf-8")
    with open(folder.with_name(f"{name}.log"), "a", encoding="utf-8") as log:
        code = subprocess.run([sys.executable, "-m", "vasomim.finetune", "--config", file], stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
    return f"{name}: {state(config, [])}" + (f", ended with code {code}, see {name}.log" if code else "")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments.add_argument("--runs", type=Path, default=Path("runs/study"))
    arguments.add_argument("--table", type=Path, default=Path("figures/finetuning.csv"))
    arguments.add_argument("--workers", type=int, default=2, help="jobs at the same time, one thread each")
    arguments.add_argument("--only", default="", help="jobs whose name contains this")
    arguments.add_argument("--again", action="store_true", help="without regard to what the table has (a row counts as done by method, data, fraction, size, epochs and seed)")
    arguments.add_argument("--list", action="store_true", help="say what is done and leave")
    given = arguments.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    everything = jobs(given.data.resolve(), given.runs.resolve())
    wanted = {n: c for n, c in everything.items() if given.only in n}
    before = [] if given.again else read_results(given.table)
    if not given.list:
        waiting = {n: c for n, c in wanted.items() if "seeds" in state(c, before)}
        with ThreadPoolExecutor(given.workers) as pool:
            for line in pool.map(lambda item: run(*item), waiting.items()): print(line, flush=True)
    for name, config in wanted.items(): print(f"{name:20} {state(config, before)}")
    rows = [dict(r, checkpoint=Path(r["checkpoint"]).name) for c in everything.values() for r in read_results(Path(c.run_dir) / "results.csv")]
    new = {identity(r) for r in rows}
    rows += [r for r in read_results(given.table) if identity(r) not in new]      # of another machine or day
    given.table.parent.mkdir(parents=True, exist_ok=True)
    write_results(given.table, rows)
    print(f"{len(rows)} rows in {given.table}")


if __name__ == "__main__": main()
