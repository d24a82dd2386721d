"""The frames that the encoders of the fine-tuning study are pre-trained on: real angiograms without any test image of a set that the study reports, nor a near copy of one.

python bench/finetuning/pretraining_set.py --data ../shared/data --out data/packed/finetuning-study
"""
import argparse
from pathlib import Path
from vasomim.anatomy.prepare import prepare_source, vessel_extractor
from vasomim.data.overlap import without_copies
from vasomim.data.packing import pack
from vasomim.data.sources.base import join_sources
from vasomim.data.sources.catalog import open_source

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("--data", type=Path, default=Path("../shared/data"))
arguments.add_argument("--out", type=Path, default=Path("data/packed/finetuning-study"))
arguments.add_argument("--size", type=int, default=256)
given = arguments.parse_args()

arcade = given.data / "arcade"
tests = [open_source(given.data / "dca1"), open_source(given.data / "xcad")]     # wholly kept for fine-tuning
tests += [open_source(folder, name).where(lambda r: r.split in ("val", "test")) for folder, name in ((arcade, "arcade"), (arcade, "arcade-stenosis"), (given.data / "danilov", "stenosis"))]
segments = prepare_source(arcade, "arcade", ("train",))
stenosis = without_copies(prepare_source(arcade, "arcade-stenosis", ("train",)), [segments])
runs = prepare_source(given.data / "angiodata", curate=True, cache=given.out.with_name("frame-scores.csv"))
parts = [segments, stenosis, prepare_source(given.data / "danilov", splits=("train",)), runs]
clean = [without_copies(s, tests) for s in parts]
for before, after in zip(parts, clean): print(f"{before.name}: {len(after)} images, {len(before) - len(after)} left out as near copies of test or validation images")
print(f"ARCADE: {len(open_source(arcade, 'arcade-stenosis').where(lambda r: r.split == 'train')) - len(stenosis)} of the stenosis part's training images are in the segment part too")
print(pack(join_sources("finetuning-study", clean), given.out, given.size, vessel_extractor()).describe())
