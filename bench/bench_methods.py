"""What each pre-training method costs: images/s and memory of a training step against MAE (75 % masked) in the same run, beside arithmetic.

    python bench/bench_methods.py --out figures/method_costs.csv            two CPU cores: ViT-Ti/16 at 128 pixels, the small presets
    python bench/bench_methods.py --base --device cuda --batch 64           ViT-B/16 at 224 pixels, the published recipes

Every method runs in a process of its own, on the same packed phantoms, whole steps of the trainer (crops, masks, forward, backward, optimiser, teacher). GFLOPs per image are counted by torch (two per multiply-add; forward and backward) at the size that runs;
`time / arithmetic` above 1.5 says that a method takes longer than its multiply-adds explain."""
import argparse
import csv
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vasomim.cli_methods import method_table
from vasomim.core import usable_cpus
from vasomim.pretrain import PretrainConfig, prepare_data
from vasomim.training.batches import Batches
from vasomim.training.launch import Place
from vasomim.training.loop import Trainer
from vasomim.training.method import find_method
from vasomim.training.run import MetricsFile, RunFolder


def one(preset: str, packed: str, batch: int, rounds: int, device: str, threads: int, precision: str, koleo_group: int | None = None) -> dict:
    "Seconds of a step (best and median), peak memory and counted GFLOPs of one method."
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        own = {"mask_ratio": 0.75} if preset == "mae" else {"koleo_group": koleo_group} if koleo_group and preset.startswith("dinov3") else {}
        config = PretrainConfig.of(preset=preset, batch_size=batch, epochs=100, warmup_epochs=1.0, device=device, precision=precision, threads=threads, phantoms=4 * batch, cache_dir=packed, run_dir=folder, **own)
        data = prepare_data(config)
        torch.manual_seed(0)
        method, run, place = find_method(config.method)(config), RunFolder(Path(folder)), Place(0, 1, torch.device(device))
        run.prepare(config)
        t = Trainer(method, Batches(data, method.views, batch, device=place.device), run, dataclasses.replace(config, epochs=1000), place)
        t.wrapped, t.metrics = t.method.train(), MetricsFile(Path(folder) / "metrics.csv")
        t.method.before_epoch(0, t.batches)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        if device == "cuda": torch.cuda.reset_peak_memory_stats()
        t.train_step(); t.train_step(); wait()
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter(); t.train_step(); wait(); seconds.append(time.perf_counter() - start)
        memory = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH): t.train_step()      # the counter does not know a CPU's fused attention
        parameters = sum(p.numel() for p in method.parameters() if p.requires_grad)
    return dict(preset=preset, seconds=min(seconds), median=sorted(seconds)[len(seconds) // 2], memory=memory, gflops=counter.get_total_flops() / batch / 1e9, parameters=parameters / 1e6)


def hardware(device: str, threads: int) -> str: return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads} thread(s)"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16); parser.add_argument("--rounds", type=int, default=5); parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=usable_cpus()); parser.add_argument("--precision", default="fp32"); parser.add_argument("--base", action="store_true", help="published recipes at their size")
    parser.add_argument("--koleo-group", type=int, help="of DINOv3, whose default of 16 must divide the batch")
    parser.add_argument("--only", nargs="*", default=[], help="presets; mae is always measured"); parser.add_argument("--out", type=Path, help="CSV"); parser.add_argument("--one", help=argparse.SUPPRESS); parser.add_argument("--packed", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one: print(json.dumps(one(a.one, a.packed, a.batch, a.rounds, a.device, a.threads, a.precision, a.koleo_group))); sys.exit()
    methods, rows = method_table(), []
    if a.only: methods = [m for m in methods if m["preset"] in (*a.only, "mae")]
    methods.sort(key=lambda m: (m["preset"] != "mae", m["cost"]))
    with tempfile.TemporaryDirectory() as packed:
        for m in methods:
            preset = next((p for p in m["presets"] if p.endswith("_base")), m["preset"]) if a.base else m["preset"]
            done = subprocess.run([sys.executable, __file__, "--one", preset, "--packed", packed, *(f"--{k}={getattr(a, k)}" for k in ("batch", "rounds", "device", "threads", "precision")), *([f"--koleo-group={a.koleo_group}"] if a.koleo_group else [])], text=True, capture_output=True)
            if done.returncode: print(f"{preset}: failed\n{done.stderr[-600:]}", file=sys.stderr); continue
            row = json.loads(done.stdout.splitlines()[-1])
            rows.append(dict(row, images_per_s=a.batch / row["seconds"], cost_published=m["cost"]))
            base = rows[0]
            rows[-1].update(time_x=row["seconds"] / base["seconds"], flops_x=row["gflops"] / base["gflops"], memory_x=row["memory"] / base["memory"])
            rows[-1]["time_over_flops"] = rows[-1]["time_x"] / rows[-1]["flops_x"]
            if len(rows) == 1: print(f"{hardware(a.device, a.threads)}, batch {a.batch}, {a.precision}\n{'':18}{'images/s':>9}{'MiB':>7}{'GFLOPs':>8}{'M param':>8}{'time x':>8}{'FLOPs x':>8}{'mem x':>7}{'time/FLOPs':>11}{'ViT-B x':>9}")
            r = rows[-1]
            print(f"{preset:18}{r['images_per_s']:9.1f}{r['memory']:7.0f}{r['gflops']:8.2f}{r['parameters']:8.1f}{r['time_x']:8.2f}{r['flops_x']:8.2f}{r['memory_x']:7.2f}{r['time_over_flops']:11.2f}{r['cost_published']:9.2f}", flush=True)
    if a.out and rows:
        with open(a.out, "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, ["preset", *[k for k in rows[0] if k != "preset"], "hardware", "batch", "precision"])
            writer.writeheader(); writer.writerows(dict({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()}, hardware=hardware(a.device, a.threads), batch=a.batch, precision=a.precision) for r in rows)
