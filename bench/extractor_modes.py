"""Dice of every mode of the extractor on real angiograms and phantoms -> figures/extractor_modes.csv and .json (how it was made).

    python bench/extractor_modes.py
"""
import csv
import json
import platform
import sys
from pathlib import Path
import cv2
import numpy as np
import skimage
import torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vasomim.anatomy.extract import extract_vessels
from vasomim.core import shared_dir
from vasomim.data.images import load_image
from vasomim.data.images import load_mask
from vasomim.data.phantom import phantom

ROOT = Path(__file__).resolve().parents[1]
PHANTOMS = {"phantom": [(seed, size) for size in (384, 512) for seed in range(100, 120)], "phantom_unseen": [(seed, 512) for seed in range(1000, 1020)]}
SETS = ("dca1", "dca1_more", "xcad", "phantom", "arcade_val", "phantom_unseen")     # the last two were not looked at while the default was chosen
MODES = {
    "published (grow=seed)": {"grow": "seed"},
    "components, plain": {"score": "plain"},
    "components, plain, frangi": {"score": "plain", "method": "frangi"},
    "default": {},
    "default, frangi": {"method": "frangi"},
    "default, percentile 94": {"percentile": 94.0},
}


def pairs(name):
    "(image, expert mask) tensors, both (1, 1, H, W), of one set."
    if name in PHANTOMS:
        for seed, size in PHANTOMS[name]:
            p = phantom(seed, size)
            yield p.image.reshape(1, 1, size, size), p.vessels.reshape(1, 1, size, size)
        return
    if name == "arcade_val": yield from arcade(); return
    folder = shared_dir("data", *{"dca1": ["dca1"], "dca1_more": ["dca1_more"], "xcad": ["xcad", "test"]}[name])
    if name == "xcad": files = [(m.parents[1] / "images" / m.name, m) for m in sorted((folder / "masks").iterdir())]
    else: files = [(m.with_name(m.name.replace("_gt", "")), m) for m in sorted(folder.rglob("*_gt.*"))]
    for image, mask in files: yield load_image(image)[None], load_mask(mask)[None]


def arcade():
    "Every other image of ARCADE's syntax validation set, enlarged from 256 to 512 pixels, with the union of its segments' polygons."
    folder = shared_dir("data", "arcade", "syntax", "val")
    book = json.loads(next((folder / "annotations").glob("*.json")).read_text(encoding="utf-8"))
    for entry in sorted(book["images"], key=lambda e: int(Path(e["file_name"]).stem))[::2]:
        image = cv2.resize(load_image(folder / "images" / entry["file_name"])[0].numpy(), (512, 512), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        mask, scale = np.zeros((512, 512), np.uint8), 512 / entry["width"]
        outlines = [np.rint(np.reshape(p, (-1, 2)) * scale).astype(np.int32) for a in book["annotations"] if a["image_id"] == entry["id"] for p in a["segmentation"]]
        for outline in outlines: cv2.fillPoly(mask, [outline], 1)
        yield torch.from_numpy(image)[None, None], torch.from_numpy(mask > 0)[None, None]


def dice(a, b): return 2 * float((a & b).sum()) / max(1.0, float(a.sum() + b.sum()))


def main():
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows, counts = [{"mode": m} for m in MODES], {}
    for name in SETS:
        if name not in PHANTOMS and shared_dir("data", name.split("_val")[0]) is None: sys.exit(f"the pictures of {name} are not here")
        scores = np.array([[dice(extract_vessels(image, **kw), mask) for kw in MODES.values()] for image, mask in pairs(name)])
        counts[name] = len(scores)
        for row, value in zip(rows, 100 * scores.mean(0)): row[name] = f"{value:.2f}"
    for row in rows: print(row)
    with open(ROOT / "figures" / "extractor_modes.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    how = {"command": "python bench/extractor_modes.py", "value": "mean Dice in %", "pictures": counts,
           "phantom": "seeds 100-119 at 384 and at 512 pixels", "phantom_unseen": "seeds 1000-1019 at 512 pixels",
           "arcade_val": "every other image of ARCADE syntax val, enlarged from 256 to 512 pixels; only main segments are labelled there", "modes": MODES,
           "versions": {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__, "numpy": np.__version__, "scikit-image": skimage.__version__}}
    (ROOT / "figures" / "extractor_modes.json").write_text(json.dumps(how, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
