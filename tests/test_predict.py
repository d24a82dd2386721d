"""`vasomim predict` as its users run it: folders with broken files, again, after a kill, and files of patients."""
import csv
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from conftest import environment
from fakes_labelled import put, write
from test_cli import assert_portable, refused, vasomim
from test_finetune import BOXES, MASKS, person, tuned


@pytest.fixture(scope="module")
def run(work):
    "A run of two seeds on masks."
    return tuned(work / "predict-masks", **dict(MASKS, epochs=1, seeds=(0, 1), cache_dir=str(work / "labelled")))[0]


@pytest.fixture(scope="module")
def detector(work): return tuned(work / "predict-boxes", **dict(BOXES, epochs=1, cache_dir=str(work / "labelled")))[0]


@pytest.fixture
def frames(tmp_path):
    "Three angiograms, one in a folder of its own with a blank and an umlaut, one larger than the network; and one that was cut short."
    folder = tmp_path / "frames"
    put(folder / "a.png", person(0).image); put(folder / "Müller 1" / "b.png", person(1).image); put(folder / "large.png", person(2, 160).image)
    write(folder / "cut.png", (folder / "a.png").read_bytes()[:900])
    return folder


def listed(out, table="summary.csv"):
    with open(out / table, newline="", encoding="utf-8") as f: return list(csv.DictReader(f))


def test_folder_with_a_broken_file_again_and_overwritten(capfd, run, frames, tmp_path):
    out = tmp_path / "out"
    code, said, err = vasomim(capfd, "predict", run, frames, "--out", out, "--device", "cpu")
    assert code == 0 and "3 images predicted, 0 were there already" in said and "1 skipped (skipped.txt says why)" in said and "seed-0" in said, said + err
    assert "cut.png" in (out / "skipped.txt").read_text(encoding="utf-8") and str(tmp_path) not in (out / "skipped.txt").read_text(encoding="utf-8")
    names = sorted(r["name"] for r in listed(out))
    assert names == ["Müller 1/b", "a", "large"] and sorted(p.relative_to(out / "masks").as_posix() for p in (out / "masks").rglob("*.png")) == [f"{n}.png" for n in names]
    assert len(list((out / "overlays").rglob("*.jpg"))) == 3
    for name, size in zip(names, (64, 64, 160)):
        mask = np.asarray(Image.open(out / "masks" / f"{name}.png"))
        assert mask.shape == (size, size) and set(np.unique(mask)) <= {0, 255}
        assert float(next(r["share"] for r in listed(out) if r["name"] == name)) == pytest.approx((mask > 0).mean(), abs=1e-6)
    assert_portable(out)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.rglob("*.png")}
    code, said, _ = vasomim(capfd, "predict", run, frames, "--out", out, "--device", "cpu")
    assert code == 0 and "0 images predicted, 3 were there already" in said and {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.rglob("*.png")} == before
    assert "seed: " not in refused(capfd, "predict", run, frames, "--out", out, "--device", "cpu", "--threshold", 0.4)
    assert "predictions made otherwise" in refused(capfd, "predict", run, frames, "--out", out, "--device", "cpu", "--seed", 1)
    put(frames / "a.png", person(7).image)                       # the file now holds another picture
    code, said, _ = vasomim(capfd, "predict", run, frames, "--out", out, "--device", "cpu")
    assert code == 0 and "1 images predicted, 2 were there already" in said and len(listed(out)) == 3
    assert (out / "masks" / "large.png").read_bytes() == before[out / "masks" / "large.png"][0]
    code, said, _ = vasomim(capfd, "predict", run, frames, "--out", out, "--device", "cpu", "--seed", 1, "--overwrite")
    assert code == 0 and "3 images predicted, 0 were there already" in said and "seed-1" in said and len(listed(out)) == 3


def test_boxes_of_a_folder(capfd, detector, frames, tmp_path):
    out = tmp_path / "out"
    code, said, err = vasomim(capfd, "predict", detector, frames, "--out", out, "--device", "cpu", "--threshold", 0.06)
    assert code == 0 and "3 images predicted" in said, said + err
    sizes, boxes = {r["id"]: (int(r["width"]), int(r["height"])) for r in listed(out)}, listed(out, "boxes.csv")
    for b in boxes:
        (w, h), (x1, y1, x2, y2) = sizes[b["id"]], (float(b[c]) for c in ("x1", "y1", "x2", "y2"))
        assert 0 <= x1 < x2 <= w and 0 <= y1 < y2 <= h and 0.06 <= float(b["score"]) <= 1 and b["label"] == "stenosis"
    coco = json.loads((out / "boxes.json").read_text(encoding="utf-8"))
    assert len(coco["images"]) == 3 and len(coco["annotations"]) == len(boxes) == sum(int(r["boxes"]) for r in listed(out))


def test_what_cannot_be_predicted_is_refused_in_one_line(capfd, run, detector, frames, tmp_path):
    (tmp_path / "empty").mkdir(); write(tmp_path / "bad" / "x.png", (frames / "cut.png").read_bytes()); write(tmp_path / "full" / "note.txt", "mine")
    place = ("--out", tmp_path / "out", "--device", "cpu")
    assert "no image inside" in refused(capfd, "predict", run, tmp_path / "empty", *place)
    assert "x.png" in refused(capfd, "predict", run, tmp_path / "bad", *place)
    assert "no such folder" in refused(capfd, "predict", tmp_path / "nowhere", frames, *place)
    assert "holds no fine-tuned network" in refused(capfd, "predict", tmp_path / "empty", frames, *place)
    assert "has no seed 5; it has 0, 1" in refused(capfd, "predict", run, frames, *place, "--seed", 5)
    assert "lies inside of" in refused(capfd, "predict", run, frames, "--out", frames / "out", "--device", "cpu")
    assert "holds other files (note.txt)" in refused(capfd, "predict", run, frames, "--out", tmp_path / "full", "--device", "cpu")
    assert "a detector sees its image as a whole" in refused(capfd, "predict", detector, frames, *place, "--window", "slide")
    assert sorted(p.relative_to(frames).as_posix() for p in frames.rglob("*.png")) == ["Müller 1/b.png", "a.png", "cut.png", "large.png"]


KILLED = """
import os, signal, sys
import vasomim.predict as predict
finish, left = predict._finish, [3]
def finish_and_die(*a):
    finish(*a); left[0] -= 1
    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
predict._finish = finish_and_die
from vasomim.cli import main
sys.exit(main())
"""


def test_killed_prediction_goes_on_with_the_same_command(capfd, run, tmp_path):
    "Outside of a notebook with its backend inherited, as the command of another program."
    for i in range(6): put(tmp_path / "frames" / f"{i}.png", person(i).image)
    command = ("predict", run, tmp_path / "frames", "--device", "cpu", "--batch-size", "2")
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, command), "--out", str(tmp_path / "killed")], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          env=environment(MPLBACKEND="module://matplotlib_inline.backend_inline"))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(listed(tmp_path / "killed")) == 3
    code, said, err = vasomim(capfd, *command, "--out", tmp_path / "killed")
    assert code == 0 and "3 images predicted, 3 were there already" in said, said + err
    assert vasomim(capfd, *command, "--out", tmp_path / "whole")[0] == 0
    files = lambda out: {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.suffix in (".png", ".jpg")}
    assert files(tmp_path / "killed") == files(tmp_path / "whole") and len(files(tmp_path / "whole")) == 12
    rows = lambda out: sorted(({k: v for k, v in r.items() if k != "seconds"} for r in listed(out)), key=lambda r: r["id"])
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["run", "detector"])
def test_export_of_a_hospital_leaves_nothing_of_a_patient(kind, request, tmp_path_factory, tmp_path):
    import test_dicom_privacy as privacy            # skips where the list of identifying attributes is not installed
    network, markers = request.getfixturevalue(kind), privacy.Markers()
    folder = tmp_path_factory.mktemp("hospital") / "export"
    good = privacy.export(folder, markers)
    done = subprocess.run([sys.executable, "-m", "vasomim.cli", "predict", network, folder, "--out", tmp_path / "out", "--device", "cpu"], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          env=environment(VASOMIM_SALT_FILE=str(tmp_path / "config" / "salt"), HOME=str(tmp_path / "home")))
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(listed(tmp_path / "out")) >= 6 * good and (tmp_path / "out" / "skipped.txt").is_file()
    # the folder is given by the user and may be said to the user; nothing of it may be written down
    said = (done.stdout + done.stderr).replace(str(folder), "")
    assert not privacy.leaks(markers, said, *[p for p in tmp_path.iterdir() if p.name != "config"])
