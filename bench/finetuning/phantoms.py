"""All four tasks on phantoms, with the presets that run when nothing is named, against the best answer that does not look at the image.

    python bench/finetuning/phantoms.py --runs runs/phantoms --table figures/finetuning_phantoms.csv
"""
import argparse
from pathlib import Path
from vasomim.downstream.blind import Blind
from vasomim.downstream.config import FinetuneConfig
from vasomim.downstream.evaluate import evaluate
from vasomim.downstream.outcome import read_results, result_rows, write_results
from vasomim.finetune import finetune, read_parts

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("--runs", type=Path, default=Path("runs/phantoms"))
arguments.add_argument("--table", type=Path, default=Path("figures/finetuning_phantoms.csv"))
arguments.add_argument("--seeds", type=int, nargs="+", default=[0])
arguments.add_argument("--threads", type=int, default=0)
arguments.add_argument("--precision", default="auto")
arguments.add_argument("--tasks", nargs="+", default=["segmentation", "segments", "stenosis", "detection"])
given = arguments.parse_args()

rows = []
for task in given.tasks:
    folder = given.runs / task
    config = FinetuneConfig(task=task, seeds=tuple(given.seeds), run_dir=str(folder), cache_dir=str(given.runs / "labelled"), resume=(folder / "config.json").is_file(), threads=given.threads, precision=given.precision)
    rows += read_results(finetune(config) / "results.csv")
    parts = read_parts(config, say=lambda text: None)
    rows += result_rows({"test": evaluate(Blind(parts["train"]), parts["test"])}, method="blind", dataset="phantoms", task=task, fraction=1.0, train_images=len(parts["train"]), size=config.size)
rows += [r for r in read_results(given.table) if r["task"] not in given.tasks]      # of an earlier call
write_results(given.table, rows)
for r in rows: print(f"{r['task']:13} {r['method']:8} {r['metric']:16} {float(r['value']):6.2f}  {r['seconds'] if 'seconds' in r else ''}")
