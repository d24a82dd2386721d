"""Every figure's notebook, at the smallest scale from an empty results folder, then drawn again: the same bytes, and in seconds."""
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import ROOT, environment


def cell(path, tag):
    "The source of the cell with a tag, or nothing."
    book = json.loads(path.read_text(encoding="utf-8"))
    return "".join(next(("".join(c["source"]) for c in book["cells"] if tag in c["metadata"].get("tags", [])), ""))


BOOKS = sorted(p for p in (ROOT / "nbs" / "figures").glob("*.ipynb") if "scale =" in cell(p, "parameters"))
STUDIES = [p for p in BOOKS if cell(p, "study")]


def draw(book, place, results, **more):
    "papermill, in a folder of its own; the time that the kernel took is in the notebook."
    (place / book.stem).mkdir(parents=True, exist_ok=True)
    given = {**dict(scale="smoke", results=str(results), out_dir=str(place / book.stem), run=book in STUDIES, workers=0, cache=str(results.parent / "cache")), **more}
    given = {k: v for k, v in given.items() if f"{k} =" in cell(book, "parameters")}
    words = [w for k, v in given.items() for w in ("-p", k, str(v))]
    return subprocess.run([os.path.join(os.path.dirname(sys.executable), "papermill"), str(book), str(place / f"{book.stem}.ipynb"), "-k", "python3", "--no-progress-bar", *words], cwd=place, env=environment(), text=True, capture_output=True, timeout=600)


@pytest.fixture(scope="module")
def drawn(work):
    "name -> (first run, files, second run from what is there, files): two notebooks side by side on one results folder."
    home = work / "figures"
    home.mkdir()
    files = lambda place: {f.name: f.read_bytes() for f in sorted(place.iterdir())}
    with ThreadPoolExecutor(2) as pool:
        both = lambda books, **more: dict(zip(books, pool.map(lambda b: draw(b, home / "drawn", home / "results", **more), books)))
        first = {**both(STUDIES), **both([b for b in BOOKS if b not in STUDIES])}      # some of these draw what the studies measured
        once = {b: files(home / "drawn" / b.stem) for b in BOOKS}
        second = both(BOOKS, run=False)
    return {b.stem: (first[b], once[b], second[b], files(home / "drawn" / b.stem)) for b in BOOKS}


@pytest.mark.parametrize("name", [b.stem for b in BOOKS])
def test_from_nothing_and_again(drawn, name):
    first, files, second, again = drawn[name]
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-3000:]
    assert second.returncode == 0, second.stdout[-2000:] + second.stderr[-3000:]
    kinds = {f.rsplit(".", 1)[1] for f in files}
    assert {"csv", "json", "md"} <= kinds and ({"png", "svg"} <= kinds or name.startswith("tab")), sorted(files)
    assert again == files, [f for f in files if again.get(f) != files[f]]
    for f, content in files.items():
        if f.endswith(".json"): told = json.loads(content); assert told["command"] and {"commit", "commits"} & set(told), told
        if f.endswith(".md"): assert len(content.decode().strip()) > 80, f
    assert sum(map(len, files.values())) < 4_000_000
