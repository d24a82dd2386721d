"""Damaged annotation files and image headers: whatever comes in, the readers answer with a source, or with `InputError`; quickly, and without eating the memory.

    python tests/fuzz_annotations.py --cases 3000 --seed 0
"""
import argparse
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import fakes_labelled as fakes
from vasomim.core import InputError
from vasomim.data.sources.arcade import arcade_source
from vasomim.data.sources.dca1 import dca1_source
from vasomim.data.sources.folder import folder_source
from vasomim.data.sources.paired import paired_source
from vasomim.data.sources.stenosis import stenosis_source
from vasomim.data.sources.xcav import xcav_source

SECONDS, MEGABYTES = 10, 4096      # a case that needs more is a failure
ODD = [None, True, False, 0, -1, 1, 2**31, 2**63, -2**70, 10**400, 1e308, -1e308, float("nan"), float("inf"), "", "1", "\\", "../../x", "é\u0000", "\ud800\x1b[31m", [], [[]], {}, [None], "9" * 5000, [1e9] * 6, [[0, 0] * 3],
       {"size": [96, 96], "counts": "00"}, {"size": [10**6, 10**6], "counts": [10**12]}, {"size": [96, 96], "counts": [9216]}]


def paths_of(value, at=()):
    "Every place in a JSON value."
    yield at
    if isinstance(value, (dict, list)):
        for k, v in value.items() if isinstance(value, dict) else enumerate(value[:12]): yield from paths_of(v, (*at, k))


def mutate_json(data: bytes, rng) -> bytes:
    "One to four values replaced, removed, doubled, or given another key."
    value = json.loads(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.choice(list(paths_of(value)))
        if not place: continue
        holder = value
        for k in place[:-1]: holder = holder[k]
        key, act = place[-1], rng.choice(("replace", "replace", "remove", "double", "nest"))
        if act == "replace": holder[key] = rng.choice(ODD)
        elif act == "remove": del holder[key]
        elif act == "nest": holder[key] = [holder[key]] if rng.random() < 0.5 else {"x": holder[key]}
        elif isinstance(holder, list): holder.insert(key, holder[key])
        else: holder[str(key) + "2"] = holder[key]
    return json.dumps(value).encode("utf-8", "surrogatepass")


def mutate_text(data: bytes, rng) -> bytes:
    "Numbers and tags of an XML, CSV or PGM text exchanged for odd ones."
    words = data.decode("latin-1").replace("<", "\0<").replace(">", ">\0").replace(" ", "\0 ").split("\0")
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(words))
        act = rng.choice(("odd", "drop", "double", "swap", "deep"))
        if act == "odd": words[i] = rng.choice(["nan", "-1", "1e999", "9" * 400, "&a;", "<!DOCTYPE a>", "<a", "]]>", "", "1_0", "0x10", "\u00b2", "<!--", '<?xml version="1.0" encoding="utf-16"?>'])
        elif act == "drop": del words[i:i + rng.randint(1, 3)]
        elif act == "double": words[i:i] = words[i:i + rng.randint(1, 5)]
        elif act == "deep": words[i] = "<a>" * rng.choice((10, 100_000))
        else: j = rng.randrange(len(words)); words[i], words[j] = words[j], words[i]
        if not words: break
    return "".join(words).encode("latin-1", "replace")


def mutate_bytes(data: bytes, rng) -> bytes:
    "Bytes of the beginning changed, a piece cut off or doubled, the rest lost."
    b = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        if not b: break
        i = rng.randrange(min(len(b), 200))
        act = rng.choice(("byte", "byte", "big", "cut", "end", "double"))
        if act == "byte": b[i] = rng.randrange(256)
        elif act == "big": b[i:i + 4] = rng.choice((b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff", b"9999"))
        elif act == "cut": del b[i:i + rng.randint(1, 20)]
        elif act == "end": del b[rng.randrange(len(b)):]
        else: b[i:i] = b[:rng.randint(1, 50)]
    return bytes(b)


def targets(root: Path) -> dict:
    "Name -> (reader, folder, files to damage), on small fake copies."
    def files(folder, *ends): return sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p.name.lower().endswith(ends) and not p.name.startswith("._"))
    arcade, danilov = fakes.arcade(root/"arcade"), fakes.stenosis(root/"danilov")/"Stenosis detection/dataset"
    xcav, dca1, paired = fakes.xcav(root/"xcav"), fakes.dca1(root/"dca1"), fakes.paired(root/"paired")
    plain = fakes.turned(root/"plain")
    return {"arcade": (arcade_source, arcade, files(arcade/"syntax", ".json") * 4 + files(arcade/"syntax", ".png")),
            "arcade-stenosis": (lambda r: arcade_source(r, task="stenosis"), arcade, files(arcade/"stenosis", ".json")),
            "stenosis": (stenosis_source, danilov, files(danilov, ".xml") * 3 + files(danilov.parent, ".csv") * 5 + files(danilov, ".bmp")),
            "xcav": (xcav_source, xcav, files(xcav, ".png")), "dca1": (dca1_source, dca1, files(dca1, ".pgm")), "paired": (paired_source, paired, files(paired, ".png", ".jpg")),
            "folder": (folder_source, plain, files(plain, ".png", ".jpg"))}


def damage(file: Path, data: bytes, rng) -> bytes:
    "A damaged version of a file, by what kind of file it is."
    kind = file.suffix.lower()
    if kind == ".json" and rng.random() < 0.8: return mutate_json(data, rng)
    if kind in (".xml", ".csv") and rng.random() < 0.8 or data[:2] == b"P2": return mutate_text(data, rng)
    return mutate_bytes(data, rng)


def use(source, near: str):
    "Load the pictures and labels of the records that the damaged file can concern."
    for r in [r for r in source if near in r.path][:2] or source.records[:2]:
        for read in (r.load, *(lambda k=k: r.label(k) for k in r.labels)):
            try: read()
            except InputError: pass


def said(source) -> list[str]:
    "The problems and notices of a source, as text."
    return [*map(str, source.problems), *source.notices]


def fuzz(cases: int, seed: int = 0, progress: bool = False) -> Counter:
    "Answers counted; raises `AssertionError` with the damaged bytes' folder for a case with any other."
    count, rng = Counter(), random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="vasomim-fuzz-"))
    made = targets(folder)
    before = {name: said(read(root)) for name, (read, root, _) in made.items()}
    for case, (name, (read, root, files)) in zip(range(cases), _rounds(made)):
        file = rng.choice(files)
        whole, start = file.read_bytes(), time.monotonic()
        file.write_bytes(damage(file, whole, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                source = read(root)
                pick = file.stem.removesuffix("_gt")
                use(source, pick if file.suffix not in (".json", ".csv") else "1.png")
                for text in said(source): text.encode(); assert "\x1b" not in text      # can be printed
            count[f"{name}: {'problems named' if said(source) != before[name] else 'no difference'}"] += 1
        except InputError: count[f"{name}: InputError"] += 1
        except BaseException as error:
            raise AssertionError(f"case {case} of seed {seed}, {name}: {file} gave {type(error).__name__}; the folder is kept\n{traceback.format_exc()}") from None
        took = time.monotonic() - start
        assert took < SECONDS, f"case {case} of seed {seed}, {name}: {file} took {took:.1f} s; the folder is kept"
        file.write_bytes(whole)
        if progress and case % 500 == 499: print(f"{case + 1} cases", flush=True)
    shutil.rmtree(folder)
    return count


def _rounds(made: dict):
    "The targets in turn, for ever."
    while True: yield from made.items()


def limit_memory():
    "MemoryError instead of a machine that swaps, where the system can say so."
    try:
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES * 2**20,) * 2)
    except (ImportError, ValueError): print("no memory limit on this system")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    limit_memory()
    start = time.monotonic()
    for answer, n in sorted(fuzz(options.cases, options.seed, progress=True).items()): print(f"{n:6d}  {answer}")
    print(f"{options.cases} cases in {time.monotonic() - start:.0f} s")
    sys.exit(0)
