"""Small runs that the tests of processes share: one packed set of phantoms, one uninterrupted run, and helpers to start, watch and compare runs."""
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
STEPS = 12          # of the uninterrupted run: 18 images, batches of 8, 6 epochs (2 images sit out each epoch)
TINY = dict(model="test_vit", pack_size=64, img_size=48, border=4, epochs=6, batch_size=8, warmup_epochs=1.0, decoder_dim=32, decoder_depth=1, decoder_heads=4,
            base_lr=3e-3, device="cpu", threads=1, log_every=1, save_every=1.0)


def environment(**more):
    "The environment of started programs: this interpreter's programs first, one thread, nothing of a surrounding torchrun."
    env = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    paths = [str(ROOT), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    return {**env, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}", "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1", "COLUMNS": "200", **more}


def flags(**options):
    "Options as command-line flags."
    out = []
    for name, value in options.items():
        if value is not None: out += ["--" + name.replace("_", "-"), *map(str, value if isinstance(value, tuple) else (value,))]
    return out


def program(*command, cwd, **env):
    "A finished program: exit code, stdout, stderr."
    return subprocess.run([str(c) for c in command], cwd=cwd, env=environment(**env), text=True, encoding="utf-8", errors="replace", capture_output=True, timeout=300)


def job(cwd, *head, **options):
    "A training job in a process of its own; its output comes line by line."
    head = head or (sys.executable, "-m", "vasomim.pretrain")
    return subprocess.Popen([*map(str, head), *flags(**options)], cwd=cwd, env=environment(), text=True, encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finished(process, seconds=300):
    "(exit code, output) of a started job; a job that hangs is ended and fails the test."
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try: text = process.stdout.read(); return process.wait(), text
    finally: timer.cancel()


def until(process, text, seconds=120):
    "Reads the job's output up to the line that holds `text`; what was read."
    timer, read = threading.Timer(seconds, process.kill), []
    timer.start()
    for line in process.stdout:
        read.append(line)
        if text in line: timer.cancel(); return "".join(read)
    timer.cancel()
    raise AssertionError(f"the job ended with code {process.wait()} before {text!r}:\n" + "".join(read))


def train(run_dir, **options):
    "A run in this process; its folder. One that goes on with another begins in a later second: TensorBoard orders its files by that."
    from vasomim.pretrain import PretrainConfig, pretrain
    begun = [int(p.name.split(".")[3]) for p in Path(run_dir).glob("tensorboard/events.*")] if options.get("resume") else []
    while begun and time.time() < max(begun) + 1: time.sleep(0.05)
    return pretrain(PretrainConfig(**{**TINY, "run_dir": str(run_dir), **options}))


def weights(run, step=STEPS):
    return torch.load(Path(run) / "checkpoints" / f"step-{step:08d}.pt", weights_only=True)["method"]


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def as_after(run, step, to):
    "A copy of a finished run as a kill after `step` would leave it: later checkpoints and what is written at the end are gone, the metrics run ahead."
    shutil.copytree(run, to)
    for f in (to / "checkpoints").glob("*.pt"):
        if f.name > f"step-{step:08d}.pt": f.unlink()
    shutil.rmtree(to / "encoder", ignore_errors=True); (to / "status.json").unlink()
    assert (to / "checkpoints" / f"step-{step:08d}.pt").is_file()
    return to


def board_steps(run, tag="loss"):
    "The steps that TensorBoard shows."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(Path(run) / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [e.step for e in events.Scalars(tag)]


@pytest.fixture(scope="session")
def work():
    "A folder that is gone after the tests."
    with tempfile.TemporaryDirectory(prefix="vasomim-tests-", ignore_cleanup_errors=True) as folder: yield Path(folder)


@pytest.fixture(scope="module", autouse=True)
def tidy(work):
    "What the tests of one file leave in `work` is gone after them: with the folders of pytest, all files together took more than 4.8 GB."
    yield
    for place in work.iterdir():
        if place.name in ("packed", "whole"): continue       # of the two fixtures below
        if place.is_dir() and not place.is_symlink(): shutil.rmtree(place, ignore_errors=True)
        else: place.unlink()


@pytest.fixture(scope="session")
def packed(work):
    "18 packed phantoms of 64 x 64 pixels."
    from vasomim.pretrain import PretrainConfig, prepare_data
    return prepare_data(PretrainConfig(**TINY, phantoms=18, cache_dir=str(work / "packed"))).folders[0]


@pytest.fixture(scope="session")
def whole(work, packed):
    "The uninterrupted run, all of its checkpoints kept."
    return train(work / "whole", data_dir=str(packed), keep=STEPS)


@pytest.fixture
def fast_compile(monkeypatch):
    "torch.compile without its slow part: modules are wrapped as ever, and then run as they are."
    real, used = torch.nn.Module.compile, []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: (used.append(type(self).__name__), real(self, **options))[1])
    with torch.compiler.set_stance("force_eager"): yield used
