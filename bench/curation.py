"""How well frames with contrast agent are told from empty ones, on real runs labelled by eye and on phantoms; how many are near-duplicates; and how fast.

    python bench/curation.py [--sheets FOLDER]      # FOLDER: contact sheets of the real runs, wrong frames marked

Labels: bench/curation_labels.csv, one range of frames a line (`first` to `last` by natural order of the files, from 0). empty: no contrast agent in the arteries beyond the
catheter's tip; partial: it is arriving or has mostly left; filled: it fills the main arteries of the view. The kind of score was chosen after a first look at
all patients; the constants were set with patients 1 to 3 (the floor with phantoms too), 4 to 7 are held out from that.
"""
import argparse
import csv
import sys
import time
from collections import defaultdict
from pathlib import Path
import cv2
import numpy as np
import torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vasomim.core import shared_dir
from vasomim.core import usable_cpus
from vasomim.data import curate
from vasomim.data.images import load_image
from vasomim.data.images import natural_key
from vasomim.data.phantom import phantom_sequence
from vasomim.data.sources.base import Record
from vasomim.data.sources.base import Source

DEVELOPED_ON = ("Patient_1", "Patient_2", "Patient_3")
KINDS = ("empty", "partial", "filled")


def labels():
    "Sequence -> (T,) array of kinds."
    found = defaultdict(list)
    with open(Path(__file__).with_name("curation_labels.csv"), encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert int(row["first"]) == len(found[row["sequence"]]), row
            found[row["sequence"]] += [row["filling"]] * (int(row["last"]) - int(row["first"]) + 1)
    return {s: np.array(kinds) for s, kinds in found.items()}


def scores_of(small): return curate.frame_scores(torch.from_numpy(small)[:, None])


def files_of(root, sequence): return sorted(Path(root, sequence).glob("*.jpg"), key=lambda f: natural_key(f.name))


def shares(kept, kinds):
    "'kept/all' of each kind."
    return [f"{int((kept & (kinds == k)).sum())}/{int((kinds == k).sum())}" for k in KINDS]


def percent(kept, kinds, kind): return 100 * float((kept == (kind == "filled"))[kinds == kind].mean()) if (kinds == kind).any() else float("nan")


def line(name, kept, kinds):
    counts = shares(kept, kinds)
    print(f"{name:34s} empty kept {counts[0]:>7s} (rejected {percent(kept, kinds, 'empty'):5.1f} %)   partial kept {counts[1]:>7s}   filled kept {counts[2]:>7s} ({percent(kept, kinds, 'filled'):5.1f} %)")


def per_patient(kept, kinds):
    "The table; `kept` and `kinds`: sequence -> (T,)."
    groups = defaultdict(list)
    for s in kinds:
        patient = s.split("/")[0]
        for g in (patient, f"patients {'1-3 (developed on)' if patient in DEVELOPED_ON else '4-7 (held out)'}", "all"): groups[g].append(s)
    for g in sorted(groups, key=lambda g: (g == "all", g.startswith("patients"), g)): line(g, *(np.concatenate([x[s] for s in groups[g]]) for x in (kept, kinds)))


def constants(scores, kinds):
    "What other constants would do; shows how little hangs on them."
    print("\nother constants (held-out patients)")
    held = [s for s in kinds if not s.startswith(DEVELOPED_ON)]
    for share in (0.2, 0.25, 0.3, 0.35, 0.4):
        for floor in (0.0025, 0.005, 0.01):
            kept = np.concatenate([curate.is_filled(scores[s].filling, share, floor) for s in held])
            line(f"share {share} floor {floor}", kept, np.concatenate([kinds[s] for s in held]))


def cut_runs(small, kinds):
    "Runs that lack their empty frames, or have nothing else, and runs with every second or third frame."
    print("\nparts of the real runs, all patients")
    parts = {"without its empty frames": lambda k: np.flatnonzero(k != "empty"), "filled frames only": lambda k: np.flatnonzero(k == "filled"), "first 12 filled frames": lambda k: np.flatnonzero(k == "filled")[:12],
             "first 6 filled frames": lambda k: np.flatnonzero(k == "filled")[:6], "leading empty frames only (>= 4)": lambda k: np.arange(np.argmax(k != "empty")),
             "every second frame": lambda k: np.arange(0, len(k), 2), "every third frame": lambda k: np.arange(0, len(k), 3)}
    for name, pick in parts.items():
        chosen = [(s, i) for s in kinds if len(i := pick(kinds[s])) >= 4]
        line(name, np.concatenate([curate.is_filled(scores_of(small[s][i]).filling) for s, i in chosen]), np.concatenate([kinds[s][i] for s, i in chosen]))


def disturbed(small, kinds):
    "The real runs made harder; moving them moves collimator and shadows too, which is worse than a patient who moves."
    print("\ndisturbed real runs, all patients")
    rng = np.random.default_rng(0)
    def moved(x, step): return np.stack([np.roll(f, step(i), 0) for i, f in enumerate(x)])
    ways = {"swaying by 4 of 256 pixels": lambda x: moved(x, lambda i: round(4 * np.sin(i / 4))), "swaying by 12 of 256 pixels": lambda x: moved(x, lambda i: round(12 * np.sin(i / 4))),
            "table moving, 2 pixels a frame": lambda x: moved(x, lambda i: 2 * i), "first frame subtracted": lambda x: np.clip(0.7 + x - x[:1], 0, 1),
            "noise of 1 % of white at 256 px": lambda x: np.clip(x + rng.normal(0, 0.01, x.shape), 0, 1).astype(np.float32),
            "noise of 2 % of white at 256 px": lambda x: np.clip(x + rng.normal(0, 0.02, x.shape), 0, 1).astype(np.float32), "a third as bright": lambda x: x / 3, "gamma 0.5": lambda x: x ** 0.5,
            "collimated to the left half": lambda x: np.where(np.arange(x.shape[2]) < 128, x, 0.02).astype(np.float32)}
    for name, change in ways.items(): line(name, np.concatenate([curate.is_filled(scores_of(change(small[s])).filling) for s in kinds]), np.concatenate(list(kinds.values())))


def phantoms(count=20):
    "The same table for simulated runs; the opacification is known there."
    kept, kinds = [], []
    for seed in range(count):
        run = phantom_sequence(seed, 24, 256)
        kept.append(curate.select_frames(run.images)); kinds.append(np.where(run.filling < 0.02, "empty", np.where(run.filling > 0.8, "filled", "partial")))
    print()
    line(f"{count} phantom runs", np.concatenate(kept), np.concatenate(kinds))


def duplicates(scores, kept):
    "Share of frames that stay, against the threshold."
    print("\nnear-duplicates: share of the frames that stay, of all and of the filled ones\nthreshold (1 - r)   all     filled")
    for t in (0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5):
        novelty, filled = np.concatenate([x.novelty for x in scores.values()]), np.concatenate(list(kept.values()))
        print(f"{t:17}  {(novelty >= t).mean():6.1%}  {(novelty[filled] >= t).mean():6.1%}")


def speed(root, kinds):
    "Frames a second from files to decisions; and without reading them."
    records = [Record("angiodata", "", f"{s}/{f.name}", patient=s.split("/")[0], sequence=s, frame=i, root=root) for s in kinds for i, f in enumerate(files_of(root, s))]
    source, usable = Source("angiodata", tuple(records), "-"), curate.usable_cpus
    print()
    for threads in sorted({1, usable_cpus()}):
        curate.usable_cpus = lambda: threads
        cv2.setNumThreads(threads); torch.set_num_threads(threads)
        start = time.perf_counter(); good = curate.curate_source(source, duplicates=0.05, progress=False); took = time.perf_counter() - start
        print(f"{threads} thread(s): {len(source)/took:.0f} frames/s, {1000*took/len(source):.1f} ms a frame with reading ({good.notices[-1]})")
    curate.usable_cpus = usable


def sheets(folder, root, kinds, kept, columns=8, size=170):
    "One PNG per run: frames with number and label; red frame: left out; white bar: not as labelled."
    Path(folder).mkdir(parents=True, exist_ok=True)
    for s in kinds:
        tiles = []
        for i, file in enumerate(files_of(root, s)):
            tile = cv2.cvtColor(cv2.resize(cv2.imread(str(file), 0), (size, size), interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR)
            if not kept[s][i]: cv2.rectangle(tile, (1, 1), (size - 2, size - 2), (0, 0, 255), 3)
            if (kinds[s][i] == "empty") == kept[s][i] and kinds[s][i] != "partial": cv2.rectangle(tile, (8, size - 14), (size - 8, size - 8), (255, 255, 255), -1)
            cv2.putText(tile, f"{i} {kinds[s][i]}", (6, 18), 0, 0.5, (255, 255, 255), 1)
            tiles.append(tile)
        tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
        cv2.imwrite(str(Path(folder, s.replace("/", "_") + ".png")), np.vstack([np.hstack(tiles[i:i + columns]) for i in range(0, len(tiles), columns)]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sheets", help="folder for contact sheets")
    options = parser.parse_args()
    root = shared_dir("data", "angiodata")
    if root is None: print("the real runs (shared/data/angiodata) are not here"); return phantoms()
    kinds = labels()
    small = {s: np.stack([curate.shrink(load_image(f)) for f in files_of(root, s)]) for s in kinds}
    scores = {s: scores_of(x) for s, x in small.items()}
    kept = {s: curate.is_filled(x.filling) for s, x in scores.items()}
    per_patient(kept, kinds)
    wrong = [f"{s}:{i} ({kinds[s][i]})" for s in kinds for i in np.flatnonzero(((kinds[s] == "empty") & kept[s]) | ((kinds[s] == "filled") & ~kept[s]))]
    print("wrong:", ", ".join(wrong) or "none")
    constants(scores, kinds)
    cut_runs(small, kinds)
    disturbed(small, kinds)
    phantoms()
    duplicates(scores, kept)
    speed(root, kinds)
    if options.sheets: sheets(options.sheets, root, kinds, kept)


if __name__ == "__main__": main()
