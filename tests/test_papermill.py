"""The main job as its users start it: from their own folder, with papermill."""
import csv
import json
import os
import subprocess

import pytest

from conftest import ROOT, TINY, environment, finished

JOB = dict({k: v for k, v in TINY.items() if k not in ("model", "base_lr", "save_every")}, epochs=2, batch_size=4, nproc=1)


def papermill(cwd, out, **parameters):
    "A started papermill."
    given = [w for k, v in parameters.items() for w in ("-p", k, str(v))]
    env = environment()
    env["PATH"] = f"{cwd / 'tools'}{os.pathsep}{env['PATH']}"
    return subprocess.Popen(["papermill", str(ROOT / "nbs" / "pretrain.ipynb"), out, "-k", "python3", "--no-progress-bar", *given], cwd=cwd, env=env, text=True, encoding="utf-8",
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def outputs(path):
    "All text that a notebook shows, and the number of its pictures."
    book = json.loads(path.read_text(encoding="utf-8"))
    shown = [o for c in book["cells"] for o in c.get("outputs", [])]
    text = "".join("".join(o.get("text", [])) + "".join("".join(v) for k, v in o.get("data", {}).items() if k == "text/plain") + str(o.get("evalue", "")) for o in shown)
    return text, sum("image/png" in o.get("data", {}) for o in shown)


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    "Somebody's folder with a blank and an umlaut: angiograms, an empty folder, and first on PATH a torchrun of another environment."
    from vasomim.data.images import save_image
    from vasomim.data.phantom import phantom
    folder = tmp_path_factory.mktemp("papermill") / "meine Läufe"
    for name in ("frames", "empty", "tools"): (folder / name).mkdir(parents=True)
    for i in range(6): save_image(folder / "frames" / f"{i}.png", phantom(i, size=64).image)
    (folder / "frames" / "5.png").write_bytes((folder / "frames" / "5.png").read_bytes()[:500])
    (folder / "tools" / "torchrun").write_text("#!/bin/sh\nexit 97\n", encoding="utf-8"); (folder / "tools" / "torchrun").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def jobs(caller):
    "Three jobs at once: one that trains, one with a misspelt option, one without data."
    started = dict(trains=papermill(caller, "out.ipynb", **{**JOB, "nproc": 2}, data_dir="frames", run_dir="runs/x"),
                   misspelt=papermill(caller, "misspelt.ipynb", **JOB, epoch=3, run_dir="runs/y"),
                   empty=papermill(caller, "empty.ipynb", **JOB, data_dir="empty", run_dir="runs/z"))
    return {name: finished(process) for name, process in started.items()}


def test_relative_paths_are_the_callers_and_torchrun_is_the_interpreters(jobs, caller):
    code, told = jobs["trains"]
    text, pictures = outputs(caller / "out.ipynb")
    assert code == 0, told
    assert str(caller / "runs" / "x") in text and str(caller / "frames") in text and text.index(str(caller / "frames")) < text.index("step ")
    assert "phantoms packed" not in text and "data:           " + str(caller / "frames") in text
    assert "2 process(es)" in text and "code 97" not in told and pictures >= 5
    run = caller / "runs" / "x"
    rows = list(csv.DictReader(open(run / "metrics.csv", newline="", encoding="utf-8")))
    assert [r["step"] for r in rows] == ["1", "2"] and json.loads((run / "config.json").read_text(encoding="utf-8"))["epochs"] == 2
    assert json.loads((run / "data.json").read_text(encoding="utf-8"))["images"] == 5        # the sixth is cut short
    assert {"losses.png", "guidance.png", "reconstructions.png"} <= {p.name for p in (run / "pictures").iterdir()} and (run / "encoder" / "model.safetensors").is_file()
    assert sorted(p.name for p in caller.iterdir()) == ["data", "empty", "empty.ipynb", "frames", "misspelt.ipynb", "out.ipynb", "runs", "tools"]
    assert len(list((caller / "frames").iterdir())) == 6           # nothing is written beside the data


def test_misspelt_option_stops_the_notebook_and_names_the_nearest(jobs, caller):
    code, told = jobs["misspelt"]
    assert code != 0 and "unknown option 'epoch': did you mean 'epochs'?" in told
    assert not (caller / "runs" / "y").exists()


def test_empty_folder_is_no_reason_to_train_on_phantoms(jobs, caller):
    code, told = jobs["empty"]
    assert code != 0 and told.count("InputError: ") == 1 and "empty: no image inside" in told
    text, _ = outputs(caller / "empty.ipynb")
    assert str(caller / "empty") in text and "step " not in text and "images of" not in text
    assert not (caller / "runs" / "z" / "metrics.csv").exists()
