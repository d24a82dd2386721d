"""How the size of what a network sees changes its masks: whole images against sliding windows, mean Dice in %, with the shipped segmentor at 224 px.

python bench/windows.py --data ../shared/data        # dca1/test, and the first 30 labelled images of xcad and of arcade's test part; the default zoom was chosen on these very images
"""
import argparse
from pathlib import Path
import pandas as pd
import torch
from vasomim.anatomy.segmentor import load_segmentor
from vasomim.data.sources.catalog import open_source
from vasomim.downstream.metrics import cldice, dice
from vasomim.downstream.windows import network_input, resize_logits, sliding_windows

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("--data", type=Path, default=Path("../shared/data"))
given = arguments.parse_args()
segmentor = load_segmentor()
SETS = {"dca1": ("dca1", "auto", None), "xcad": ("xcad", "auto", 30), "arcade-v": ("arcade", "arcade", 30)}
WAYS = {"whole": dict(window="whole"), **{f"slide, zoom {z:g}": dict(window="slide", zoom=z) for z in (1.0, 1.25, 1.5, 2.0)}, "slide, native pixels": dict(window="slide", zoom=None)}

rows = []
with torch.inference_mode():
    for name, (folder, dataset, count) in SETS.items():
        records = [r for r in open_source(given.data / folder, dataset) if r.split == "test" and "vessel_mask" in r.labels][:count]
        pairs = [(r.load(), r.label("vessel_mask")) for r in records]
        for way, how in WAYS.items():
            masks = []
            for x, _ in pairs:
                native = min(x.shape[1:]) / 224
                seen = network_input(x, 224, **{**how, **({"zoom": native} if how.get("zoom", 1) is None else {})})
                masks.append(resize_logits(sliding_windows(segmentor, seen, 224), *x.shape[1:]) > 0)
            scores = [(float(dice(m[None], t[None])[0]), float(cldice(m[None], t[None])[0])) for m, (_, t) in zip(masks, pairs)]
            rows.append(dict(data=name, images=len(pairs), way=way, dice=100 * sum(s[0] for s in scores) / len(scores), cldice=100 * sum(s[1] for s in scores) / len(scores)))
            print({k: round(v, 1) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
print(pd.DataFrame(rows).pivot(index="way", columns="data", values="dice").round(1).to_string())
