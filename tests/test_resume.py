"""A run that was stopped in any way ends as if nothing had happened."""
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import warnings

import pytest
import torch

from conftest import STEPS, TINY, as_after, board_steps, environment, finished, flags, job, same_weights, train, until, weights


def assert_as_whole(run, whole):
    "Weights bit for bit, metrics byte for byte, each step once in TensorBoard."
    assert same_weights(weights(run), weights(whole))
    assert (run / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert board_steps(run) == list(range(1, STEPS + 1))
    assert json.loads((run / "status.json").read_text(encoding="utf-8"))["state"] == "finished"
    assert (run / "encoder" / "model.safetensors").read_bytes() == (whole / "encoder" / "model.safetensors").read_bytes()
    assert not list(run.rglob("*.tmp"))


def checkpoint_names(run): return sorted(f.name for f in (run / "checkpoints").iterdir() if f.suffix == ".pt")


def test_uninterrupted_run_is_complete(whole):
    rows = (whole / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0].startswith("step,epoch,progress,lr,loss,") and [int(r.split(",")[0]) for r in rows[1:]] == list(range(1, STEPS + 1))
    assert board_steps(whole) == list(range(1, STEPS + 1))


def test_killed_run_goes_on_exactly(work, packed, whole):
    run, step = work / "killed", random.Random(20251125).randint(3, STEPS - 3)
    process = job(work, **TINY, run_dir=run, data_dir=packed)
    until(process, f"step {step}/{STEPS} ")
    os.kill(process.pid, signal.SIGKILL)
    assert finished(process)[0] == -signal.SIGKILL
    assert not (run / "status.json").exists() and len(checkpoint_names(run)) >= 1
    with open(run / "metrics.csv", "a", encoding="utf-8") as f: f.write(f"{step + 2},1,0.3")       # a row that the kill cut short
    train(run, data_dir=str(packed), resume=True)
    assert_as_whole(run, whole)


def test_sigterm_saves_and_leaves(work, packed, whole):
    run = as_after(whole, 4, work / "terminated")
    process = job(work, **TINY, run_dir=run, data_dir=packed, resume=True)
    told = until(process, f"step 7/{STEPS} ")
    os.kill(process.pid, signal.SIGTERM)
    code, rest = finished(process)
    assert code == 128 + signal.SIGTERM, rest
    assert "resumed after step 4" in told and "step 4/" not in told and "Traceback" not in rest and "resume=True goes on" in rest
    status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "interrupted" and 7 <= status["step"] < STEPS
    assert checkpoint_names(run)[-1] == f"step-{status['step']:08d}.pt"        # also between two regular checkpoints
    train(run, data_dir=str(packed), resume=True)
    assert_as_whole(run, whole)


class PowerCut(BaseException):
    "Not an error that anything may catch."


def test_crash_or_full_disk_while_saving_leaves_the_previous_checkpoint(work, packed, whole, monkeypatch):
    run, real, calls = work / "cut", torch.save, []

    def save(state, file):
        calls.append(state["step"])
        if state["step"] in (6, 10):
            file.write(b"PK\x03\x04 half a file"); file.flush()
            raise OSError(28, "No space left on device") if state["step"] == 6 else PowerCut
        real(state, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.warns(UserWarning, match="checkpoint of step 6 could not be written .*No space left.*training goes on"), pytest.raises(PowerCut):
        train(run, data_dir=str(packed))
    monkeypatch.setattr(torch, "save", real)
    assert calls == [2, 4, 6, 8, 10]
    assert checkpoint_names(run) == ["step-00000004.pt", "step-00000008.pt"]
    assert same_weights(weights(run, 8), weights(whole, 8))
    train(run, data_dir=str(packed), resume=True)
    assert_as_whole(run, whole)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("unshare"), reason="needs a disk of its own, which only root may make")
@pytest.mark.parametrize("left", [0, 300], ids=["full", "room_for_metrics_only"])      # kB
def test_disk_that_fills_is_one_line_and_costs_nothing(work, packed, whole, left):
    "The disk is full when the run goes on after step 6: an error that says what to do, and with room again it ends as if nothing had happened."
    begun, place, out = as_after(whole, 6, work / f"before-{left}"), work / f"disk-{left}", work / f"disk-{left}-out"
    place.mkdir(); out.mkdir()
    words = shlex.join(map(str, (sys.executable, "-m", "vasomim.pretrain", *flags(**TINY, run_dir=place / "run", data_dir=packed, keep=STEPS, resume=True))))
    script = f"""
mount -t tmpfs -o size=48m tmpfs {place} || exit 77
cp -r {begun} {place}/run
dd if=/dev/zero of={place}/filler bs=1k count=60000 2>/dev/null; truncate -s -{left}k {place}/filler
{words} > {out}/full.txt 2>&1; echo code $? >> {out}/full.txt
rm {place}/filler
{words} > {out}/room.txt 2>&1; echo code $? >> {out}/room.txt
cp -r {place}/run {out}/run
"""
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], env=environment(), text=True, capture_output=True, timeout=300)
    if done.returncode == 77 or "unshare" in done.stderr: pytest.skip(f"no disk of one's own here: {done.stderr.strip()[-100:]}")
    full, room = ((out / f"{n}.txt").read_text() for n in ("full", "room"))
    assert "code 2" in full and "Traceback" not in full and "the disk is full" in full.splitlines()[-2] and "make room, then resume=True" in full.splitlines()[-2], full
    assert ("could not be written" in full) == (left > 0), full       # with room for the metrics, it goes on without checkpoints as long as it can
    assert "code 0" in room and "resumed after step 6" in room, room
    assert_as_whole(out / "run", whole)


def test_resume_names_damaged_checkpoints_and_takes_the_newest_whole_one(work, packed, whole, capsys):
    run = as_after(whole, 10, work / "damaged")
    (run / "checkpoints" / "step-00000010.pt").write_bytes(b"")
    half = run / "checkpoints" / "step-00000008.pt"
    half.write_bytes(half.read_bytes()[:half.stat().st_size // 2])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train(run, data_dir=str(packed), resume=True)
    said = [str(w.message) for w in said if "damaged checkpoint" in str(w.message)]
    assert len(said) == 2 and "step-00000010.pt" in said[0] and "step-00000008.pt" in said[1]
    assert "resumed after step 6" in capsys.readouterr().out
    assert_as_whole(run, whole)


def test_resume_refuses_what_would_change_the_run(work, packed, whole):
    from vasomim.core import InputError
    from vasomim.pretrain import PretrainConfig, prepare_data, pretrain
    run = as_after(whole, 4, work / "refused")
    before = (run / "metrics.csv").read_bytes()
    for why, changes in (("batch_size: 8 -> 4", dict(batch_size=4)), ("holds a run already", dict(resume=False)), ("eta: 0.5 -> 0.6", dict(eta=0.6))):
        with pytest.raises(InputError, match=why): pretrain(PretrainConfig(**{**TINY, "run_dir": str(run), "data_dir": str(packed), "resume": True, **changes}))
    other = prepare_data(PretrainConfig(**TINY, phantoms=19, cache_dir=str(work / "packed"))).folders[0]
    with pytest.raises(InputError, match="other data .*images: 18 -> 19"): train(run, data_dir=str(other), resume=True)
    assert (run / "metrics.csv").read_bytes() == before
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["data_dir"] == str(packed)     # `--config RUN` still finds the data of the run
