"""`vasomim probe` as its users run it: on phantoms, refused what it cannot use, found again, from a file of options, beside a run that was killed."""
import csv
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from conftest import environment, flags, program, until
from test_cli import refused, vasomim

QUICK = dict(encoder="test_vit", size=96, images=16, neighbours=10, points=400, device="cpu", threads=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory): return tmp_path_factory.mktemp("probe")


@pytest.fixture(scope="module")
def looked(place):
    "The command in a process of its own: its folder and what it said."
    done = program(sys.executable, "-m", "vasomim.probe", *flags(**QUICK, run_dir="out"), cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "out", done.stdout


def rows(run):
    with open(run / "results.csv", newline="", encoding="utf-8") as f: return list(csv.DictReader(f))


def test_folder_explains_itself(looked, place):
    from vasomim.downstream.outcome import COLUMNS
    run, said = looked
    table = rows(run)
    assert tuple(table[0]) == COLUMNS and {r["task"] for r in table} == {"probe"} and {r["part"] for r in table} == {"test"} and {r["dataset"] for r in table} == {"phantoms"}
    values = {r["metric"]: float(r["value"]) for r in table}
    assert {"probe_auc", "knn_balanced_low", "probe_auc_pixels", "silhouette_map", "calinski_harabasz_high", "davies_bouldin"} <= set(values) and all(np.isfinite(v) for v in values.values())
    assert all(0 <= values[k] <= 1 for k in ("probe_auc", "probe_ap", "knn_auc", "vessel_share")) and -1 <= values["silhouette"] <= 1
    facts = json.loads((run / "data.json").read_text(encoding="utf-8"))
    assert facts["images"] == 16 and facts["points"] == 400 and facts["weights"].startswith("random") and any("400 points" in n for n in facts["notes"])
    with np.load(run / "map.npz") as z: assert z["xy"].shape == (400, 2) and len(z["label"]) == len(z["image"]) == 400
    assert (run / "pictures" / "representation.png").stat().st_size > 5000 and "random (seed 0)" in said and "probe_auc" in said
    assert sorted(p.name for p in place.iterdir()) == ["data", "out"]
    for text in (run / "data.json", run / "environment.json"): assert str(place) not in text.read_text(encoding="utf-8")


def test_same_again_is_found_and_other_settings_are_refused(capfd, looked, monkeypatch):
    run, _ = looked
    monkeypatch.chdir(run.parent)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    code, said, err = vasomim(capfd, "probe", *flags(**QUICK, run_dir="out"))
    assert code == 0 and "was there already" in said, err
    code, said, err = vasomim(capfd, "probe", "--config", run)                    # a run folder is a file of options
    assert code == 0 and "was there already" in said, err
    assert "seed: 0 -> 1" in refused(capfd, "probe", *flags(**{**QUICK, "seed": 1}, run_dir="out"))
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_bad_input_is_one_line(capfd, looked, monkeypatch, tmp_path):
    monkeypatch.chdir(looked[0].parent)
    (tmp_path / "cut.safetensors").write_bytes(b"no weights")
    (tmp_path / "mine").mkdir(); (tmp_path / "mine" / "letter.txt").write_text("x", encoding="utf-8")
    quick = flags(**QUICK)
    assert "not a readable weights file" in refused(capfd, "probe", tmp_path / "cut.safetensors", *quick)
    assert "no such file or folder" in refused(capfd, "probe", tmp_path / "nothing", *quick)
    assert "is not a run of this package" in refused(capfd, "probe", *quick, "--run-dir", tmp_path / "mine")
    assert "did you mean 'tsne'" in refused(capfd, "probe", "--projection", "tsn")
    assert "layer=9" in refused(capfd, "probe", *quick, "--layer", 9)
    assert "needs data_dir" in refused(capfd, "probe", "--data", "dca1")
    assert "256 pixels" in refused(capfd, "probe", *quick, "--min-pixels", 300)
    assert (tmp_path / "mine" / "letter.txt").is_file() and not any(p.name.startswith("probe-") and (p / "results.csv").exists() for p in (looked[0].parent / "runs").glob("*"))


def test_without_scikit_learn_it_says_what_to_install(looked):
    hide = "import sys; sys.modules['sklearn'] = sys.modules['openTSNE'] = None; from vasomim.probe import main; sys.exit(main())"
    done = program(sys.executable, "-c", hide, *flags(**QUICK, run_dir="bare"), cwd=looked[0].parent)
    assert done.returncode == 2 and "pip install 'vasomim[probe]'" in done.stderr and "Traceback" not in done.stderr


def test_killed_job_leaves_nothing_that_passes_for_a_result(looked):
    cwd = looked[0].parent
    process = subprocess.Popen([sys.executable, "-m", "vasomim.probe", *flags(**QUICK, run_dir="killed")], cwd=cwd, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until(process, "16 images"); os.kill(process.pid, signal.SIGKILL); process.wait()
    assert not (cwd / "killed" / "results.csv").exists()
    done = program(sys.executable, "-m", "vasomim.probe", *flags(**QUICK, run_dir="killed"), cwd=cwd)
    assert done.returncode == 0, done.stderr
    value = lambda run: [(r["metric"], r["value"]) for r in rows(run)]
    assert value(cwd / "killed") == value(looked[0])
