"""Every preset of every method through both notebooks, on phantoms and on real frames: some minutes each, so not part of `make test`.

    python -m pytest -q tests/slow_methods_papermill.py
"""
import json
import subprocess

import pytest

from conftest import ROOT, environment
from contract import SIZE, presets
from vasomim.core import shared_dir
from vasomim.pretrain import PretrainConfig
from vasomim.training.method import find_method

SMALL = {k: v for k, v in SIZE.items() if k not in ("precision", "border", "sigmas")} | dict(nproc=1)      # six epochs, of which AMT needs five; patches of 8 pixels, so that blocks have room
FRAMES = shared_dir("data", "dca1")
PRESETS = [*presets().values(), "vasomim_v1"]      # the only method of the paper that is a preset of another's file


def papermill(cwd, notebook, out, **parameters):
    given = [w for k, v in parameters.items() for w in (("-y", f"{k}: {json.dumps(v)}") if isinstance(v, (dict, list)) else ("-p", k, str(v)))]
    done = subprocess.run(["papermill", str(ROOT / "nbs" / notebook), out, "-k", "python3", "--no-progress-bar", *given], cwd=cwd, env=environment(), text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("preset", PRESETS)
def test_phantoms_to_a_fine_tuned_network(preset, tmp_path):
    papermill(tmp_path, "pretrain.ipynb", "pretrain.ipynb", preset=preset, phantoms=8, run_dir="run", cache_dir="packed", **SMALL)
    assert (tmp_path / "run" / "encoder" / "model.safetensors").is_file()
    model = dict(model="unet") if find_method(PretrainConfig(preset=preset).method).about.network == "unet" else dict(model="unet_adapter", options=dict(base_channels=4))
    papermill(tmp_path, "finetune.ipynb", "finetune.ipynb", checkpoint="run", phantoms=12, phantom_size=64, size=64, epochs=1, batch_size=4, run_dir="tuned", cache_dir="labelled", threads=1, device="cpu", **model)
    assert "dice" in (tmp_path / "tuned" / "results.csv").read_text()


@pytest.mark.skipif(FRAMES is None, reason="no real frames beside this repository")
@pytest.mark.parametrize("preset", PRESETS)
def test_real_frames(preset, tmp_path):
    papermill(tmp_path, "pretrain.ipynb", "pretrain.ipynb", preset=preset, data_dir=FRAMES, run_dir="run", cache_dir=tmp_path.parent / "packed", **SMALL)
    assert (tmp_path / "run" / "encoder" / "model.safetensors").is_file()
