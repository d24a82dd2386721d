"""A sign of life of every method: pre-trained for a moment on the same real frames, fine-tuned on DCA1 (40 training images), one row each. One seed and one epoch compare nothing.

    python bench/methods_life.py --frames ../shared/data/danilov --data ../shared/data --runs runs/life --table figures/methods.csv

ViT-Ti/16 at 128 pixels, the small presets, one epoch of the frames that --frames names (a folder of angiograms or a packed set); then 150 steps of fine-tuning with the same settings for all. It can be stopped at any time; the same command goes on, and leaves out what the table has."""
import argparse
import csv
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vasomim.cli_methods import method_table
from vasomim.core import InputError
from vasomim.downstream.outcome import read_results

PRETRAIN = dict(epochs=1, warmup_epochs=0.2, batch_size=32, precision="bf16", threads=1, device="cpu", seed=0, save_every=5, keep=1, log_every=20)
OWN = {"amt": dict(epochs=2, plain_epochs=0, refresh_epochs=1)}      # in a single epoch attention would drive nothing
FINETUNE = dict(data="dca1", size=128, batch_size=8, lr=1e-3, epochs=30, drop_path=0.0, threads=1, device="cpu", precision="bf16", seeds=[0], save_every=20, keep=1, log_every=50)
NETWORKS = {"unet": dict(model="unet", options=dict(backbone="resnet18")), "vit": dict(model="unet_adapter", options=dict(base_channels=8))}
COLUMNS = ("preset", "images", "first_loss", "last_loss", "dice", "cldice", "network", "seed", "commit", "data", "hardware")


def work(module: str, config: dict, log: Path):
    "One job in a process of its own; goes on where it was."
    folder = Path(config["run_dir"])
    config = dict(config, resume=(folder / "config.json").is_file())
    file = folder.with_name(folder.name + ".json")
    file.write_text(json.dumps(config), encoding="utf-8")
    with open(log, "a", encoding="utf-8") as out:
        return subprocess.run([sys.executable, "-m", module, "--config", file], stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def live(preset: str | None, frames: Path, data: Path, runs: Path, network: str) -> dict:
    "The row of one method; None: from scratch. Raises `InputError` where a job failed."
    name, row = preset or f"scratch-{network}", {}
    if preset:
        from vasomim.pretrain import PretrainConfig
        config = json.loads(PretrainConfig.of(preset=preset, **{**PRETRAIN, **OWN.get(preset, {})}, data_dir=str(frames), cache_dir=str(runs / "packed"), run_dir=str(runs / f"pre-{preset}")).to_json())
        if work("vasomim.pretrain", config, runs / f"{name}.log"): raise InputError(f"{name}: pre-training failed, see {runs / f'{name}.log'}")
        with open(runs / f"pre-{preset}" / "metrics.csv", encoding="utf-8") as f: losses = [float(r["loss"]) for r in csv.DictReader(f)]
        row = dict(images=PRETRAIN["batch_size"] * len(losses), first_loss=sum(losses[:10]) / 10, last_loss=sum(losses[-10:]) / 10)
    from vasomim.downstream.config import FinetuneConfig
    config = FinetuneConfig(**{**FINETUNE, **NETWORKS[network], "seeds": tuple(FINETUNE["seeds"])}, name=name, checkpoint=str(runs / f"pre-{preset}") if preset else None, data_dir=str(data / "dca1"),
                            run_dir=str(runs / f"dca1-{name}"), cache_dir=str(runs / "labelled"))
    if work("vasomim.finetune", json.loads(config.to_json()), runs / f"{name}.log"): raise InputError(f"{name}: fine-tuning failed, see {runs / f'{name}.log'}")
    scores = read_results(runs / f"dca1-{name}" / "results.csv")
    value = lambda metric: next(float(r["value"]) for r in scores if r["metric"] == metric)
    return dict(row, preset=name, dice=value("dice"), cldice=value("cldice"), network=network, seed=0, commit=scores[0]["commit"], data=scores[0]["data_fingerprint"], hardware=scores[0]["hardware"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path, required=True); parser.add_argument("--data", type=Path, default=Path("../shared/data")); parser.add_argument("--runs", type=Path, default=Path("runs/life"))
    parser.add_argument("--table", type=Path, default=Path("figures/methods.csv")); parser.add_argument("--workers", type=int, default=2, help="jobs at the same time, one thread each"); parser.add_argument("--only", nargs="*", default=[], help="presets")
    a = parser.parse_args()
    a.runs.mkdir(parents=True, exist_ok=True); a.table.parent.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader(open(a.table, encoding="utf-8"))) if a.table.is_file() else []
    networks = {None: ("vit", "unet"), **{m["preset"]: (m["network"],) for m in sorted(method_table(), key=lambda m: m["cost"])}}
    todo = [(p, n) for p, ns in networks.items() for n in ns if (p or f"scratch-{n}") not in {r["preset"] for r in rows} and (not a.only or p in a.only)]
    writing = threading.Lock()
    def one(job):
        try: row = live(job[0], a.frames.resolve(), a.data.resolve(), a.runs.resolve(), job[1])
        except InputError as e: print(e, flush=True); return
        with writing: rows.append(row); keep(rows)
        print(f"{row['preset']:18} loss {row.get('first_loss', float('nan')):.4f} -> {row.get('last_loss', float('nan')):.4f}  Dice {row['dice']:.1f}  clDice {row['cldice']:.1f}", flush=True)
    def keep(rows):
        part = a.table.with_name(a.table.name + ".part")
        with open(part, "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, COLUMNS); writer.writeheader(); writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)
        part.replace(a.table)
    with ThreadPoolExecutor(a.workers) as pool: list(pool.map(one, todo))


if __name__ == "__main__": main()
