"Writes README.md from nbs/index.ipynb and data/README.md from the catalog of data sets (or, with --check, says whether they are up to date)."
import sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root))

DATA = """# data

Datasets land here; git ignores everything but this file, which `make readme` writes from the catalog in `vasomim/data/sources`.

Nothing has to be downloaded to begin: without `data_dir` every job makes its own phantoms. With `data_dir`, a job takes any of the data sets below as its publisher packs it, a folder of DICOM files, or any
folder of images; it is recognised by its layout. Everything is decoded once into `data/packed` and found again.

```
vasomim data list                                    # what is known, what is on disk, what it would cost
vasomim data fetch cadica                            # into data/raw/cadica: download, check, unpack, go on where it was interrupted
vasomim data show data/raw/cadica                    # what a folder holds: images, patients, labels, problems
vasomim data pack data/raw/cadica data/packed/cadica-512 --curate
vasomim data join data/packed/all data/packed/cadica-512 data/packed/xcad-512
papermill nbs/pretrain.ipynb out.ipynb -p data_dir data/packed/all
```

A packed set holds 8-bit pixels of one size, a vessel mask per image, where each image comes from (paths relative to the folder you gave) and what was left out and why. It opens with
`vasomim.data.packed.open_packed` and with Hugging Face `datasets.load_from_disk`. `torchrun --nproc_per_node 8 -m vasomim.cli data pack ...`, `srun` and SLURM arrays share the work of packing.

**Patients.** From DICOM files only pixels, geometry and timing are taken, through a list of what is allowed. Patient, study, series and file names become keyed hashes (the key stays in your own configuration
folder), so that splits by patient still work; `vasomim data locate HASH FOLDER` tells you, and only you, which file a report speaks of. Files that declare burned-in text are left out unless you ask for
them. Pixels themselves are not altered: look at what you share.

**Splits.** Test images stay out of pre-training unless asked for (`splits`). No patient is ever on two sides; where a set hides its patients, that is said below and on every load.

**Your own set** is one file: a notebook like `nbs/lib/06_data.sources.folder.ipynb` that ends in `DATASETS = (Dataset(...),)`.

"""


def readme() -> str:
    book = nbformat.read(root / "nbs" / "index.ipynb", as_version=4)
    book.metadata["language_info"] = {"name": "python"}
    text = MarkdownExporter().from_notebook_node(book)[0].strip() + "\n"
    return text.replace("](../", "](")


def data_readme() -> str:
    from vasomim.data.sources.catalog import all_datasets, describe_dataset
    known = all_datasets().values()
    parts = [("## Data sets", [d for d in known if not d.generic]), ("## Any other folder", [d for d in known if d.generic])]
    return DATA + "\n".join(f"{title}\n\n" + "\n".join(map(describe_dataset, group)) for title, group in parts)


if __name__ == "__main__":
    pages = {root / "README.md": readme, root / "data" / "README.md": data_readme}
    for file, text in pages.items():
        if "--check" not in sys.argv: file.write_text(text(), encoding="utf-8")
        elif file.read_text(encoding="utf-8") != text(): sys.exit(f"{file.relative_to(root)} is out of date: make readme")
