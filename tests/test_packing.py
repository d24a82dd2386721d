"""Packed data in the hands of people: jobs that are killed, started twice, shared, out of room; sets that are moved, mounted read-only, damaged, served from afar; and training from all of them."""
import csv
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TINY, environment, program, train
from vasomim.cli_data import PackOptions, pack_folder
from vasomim.core import InputError
from vasomim.data import packing
from vasomim.data.images import save_image
from vasomim.data.packed import PackedDataset, ResidentDataset, join_packed, open_packed
from vasomim.data.packing import pack, slice_from_environment
from vasomim.data.sources.base import Record, Source
from vasomim.data.sources.folder import folder_source
from vasomim.data.sources.phantoms import phantom_source
from vasomim.data.work_folder import WorkFolder
from vasomim.pretrain import PretrainConfig, extractor
from vasomim.training.batches import Batches
from vasomim.training.method import View

LINUX = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
COUNT, JOB = 12, dict(size=24, shard_rows=2, progress=False)      # six shards
FLAGS = dict(size=64, border=4, shard_rows=1)


def picture(i, size):
    "A gray slope with one dark line."
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    line = torch.exp(-(y - size/2 - (i % 7) + size/6*torch.sin((x + 5*i)/size*6))**2/8)
    return (0.5 + 0.2*x/size + 0.01*(i % 9) - 0.4*line).clip(0, 1)[None]


def dark(images): return images < 0.4


def slowly(images):
    time.sleep(0.03)
    return dark(images)


def content(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).iterdir())}


def leftovers(out): return sorted(f.name for f in Path(out).parent.glob(f".{Path(out).name}.*"))


def finished_shards(work): return {f.name.replace("shard", "data").replace("json", "arrow") for f in Path(work).glob("shard-*.json")}


@pytest.fixture(scope="module", autouse=True)
def few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as m:
        m.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), environment()["PYTHONPATH"]]))      # the server of processes loads this module once
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(work):
    (work / "packing").mkdir()
    return work / "packing"


@pytest.fixture(scope="module")
def source(place):
    (place / "frames" / "run").mkdir(parents=True)
    for i in range(COUNT): save_image(place / "frames" / "run" / f"{i}.png", picture(i, 32))
    return folder_source(place / "frames")


@pytest.fixture(scope="module")
def plain(place, source):
    "The set as an undisturbed job makes it."
    return pack(source, place / "plain", extractor=dark, extractor_id="dark", **JOB)


@pytest.fixture(scope="module")
def many(place):
    "40 pictures that take a while, and the set that an undisturbed command makes of them."
    (place / "many").mkdir()
    for i in range(40): save_image(place / "many" / f"{i}.png", picture(i, 192))
    pack_folder(PackOptions(str(place / "many"), str(place / "many-packed"), processes=1, **FLAGS))
    return place / "many"


PROCESSES = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")      # not a fork of this process, whose threads torch minds
if PROCESSES.get_start_method() == "forkserver": PROCESSES.set_forkserver_preload(["test_packing"])


def aside(work, *arguments):
    "`work(*arguments)` in a process of its own that begins now."
    process = PROCESSES.Process(target=work, args=arguments)
    process.start()
    return process


def hears_ctrl_c():
    "Tests that run in the background of a shell have Ctrl-C switched off, and what they start inherits that."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def command(folder, out, *more, head=(), **env):
    "`vasomim data pack` in a process and a group of its own."
    flags = [x for k, v in FLAGS.items() for x in ("--" + k.replace("_", "-"), str(v))]
    return subprocess.Popen([*head, sys.executable, "-m", "vasomim.cli", "data", "pack", str(folder), str(out), *flags, *map(str, more)], cwd=Path(out).parent, env={**environment(), **env},
                            text=True, encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=hears_ctrl_c)


def wait_for(what, process=None, seconds=120):
    end = time.time() + seconds
    while time.time() < end:
        if got := what(): return got
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("waited in vain")


# ---- jobs that are stopped

def test_killed_at_a_random_moment_and_run_again(place, source, plain):
    rng, kept = random.Random(5), 0
    for k in range(4):
        out = place / f"killed-{k}"
        process = aside(partial(pack, source, out, extractor=slowly, extractor_id="dark", **JOB))
        wait_for(lambda: out.with_name(f".{out.name}.packing").is_dir())
        time.sleep(rng.uniform(0, 0.25))
        process.kill(); process.join()
        work = out.with_name(f".{out.name}.packing")
        before = {name: (work / name).stat().st_ino for name in finished_shards(work)} if work.exists() else {}
        kept += len(before)
        assert len(pack(source, out, extractor=dark, extractor_id="dark", **JOB)) == COUNT
        assert all((out / name).stat().st_ino == inode for name, inode in before.items())      # the same files, not made anew
        assert content(out) == content(plain.folders[0])
        assert not leftovers(out)
    assert kept, "no kill came between two shards"


def test_killed_in_its_last_moment(place, source, plain, monkeypatch):
    out = place / "last-moment"
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr("vasomim.data.work_folder.sweep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))      # the set has taken its place, the job's own files are still in it
        pack(source, out, extractor=dark, extractor_id="dark", **JOB)
    assert (out / "job.json").is_file() and (out / "shard-00000.json").is_file()
    pack(source, out, extractor=dark, extractor_id="dark", **JOB)
    assert content(out) == content(plain.folders[0]) and not leftovers(out)


@LINUX
def test_ctrl_c_ends_with_130_and_one_line(place, many):
    out = place / "interrupted"
    process = command(many, out, "--processes", 2)
    wait_for(lambda: finished_shards(place / ".interrupted.packing"), process)
    os.killpg(process.pid, signal.SIGINT)      # as a terminal does: all processes of the job
    told, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and len(errors.strip().splitlines()) == 1 and "goes on" in errors, errors
    assert "Traceback" not in told and not out.exists() and finished_shards(place / ".interrupted.packing")
    pack_folder(PackOptions(str(many), str(out), processes=1, **FLAGS))
    assert content(out) == content(place / "many-packed") and not leftovers(out)


@LINUX
def test_helpers_of_a_killed_job_end_with_it(place, many):
    out = place / "orphans"
    process = command(many, out, "--processes", 2)
    wait_for(lambda: finished_shards(place / ".orphans.packing"), process)
    family = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], text=True, capture_output=True).stdout.split()
    assert len(family) >= 2
    process.kill(); process.wait()      # not communicate(): helpers that live on hold the pipe
    def alive(p):
        try: return Path("/proc", p, "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError: return False
    try: wait_for(lambda: not any(map(alive, family)), seconds=20)
    finally:
        for p in filter(alive, family): os.kill(int(p), signal.SIGKILL)
    pack_folder(PackOptions(str(many), str(out), processes=1, **FLAGS))
    assert content(out) == content(place / "many-packed") and not leftovers(out)


def test_a_finished_shard_that_was_damaged_is_packed_again(place, source, plain, monkeypatch):
    out, work = place / "power", place / ".power.packing"
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(packing, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        pack(source, out, extractor=dark, extractor_id="dark", **JOB)
    file = work / "data-00003.arrow"
    file.write_bytes(file.read_bytes()[:64])      # a power cut after the rename, before the pages were on the disk
    pack(source, out, extractor=dark, extractor_id="dark", **JOB)
    assert content(out) == content(plain.folders[0])


def test_joining_the_shards_needs_no_room_for_packing_them(place, source, plain, monkeypatch):
    out = place / "no-room"
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(packing, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        pack(source, out, extractor=dark, extractor_id="dark", **JOB)
    free = shutil.disk_usage(place)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    pack(source, out, extractor=dark, extractor_id="dark", **JOB)
    assert content(out) == content(plain.folders[0])


def test_a_set_that_cannot_be_put_in_place_keeps_its_shards(place, source, plain, monkeypatch):
    out, rename, made = place / "stuck", Path.rename, []
    def refuse(self, target):
        if self.name == ".stuck.packing": raise OSError(16, "Device or resource busy")
        return rename(self, target)
    with monkeypatch.context() as m, pytest.raises((OSError, InputError)):
        m.setattr(Path, "rename", refuse)
        pack(source, out, extractor=dark, extractor_id="dark", **JOB)
    monkeypatch.setattr(packing, "pack_shard", lambda *a, **k: made.append(a))
    pack(source, out, extractor=dark, extractor_id="dark", **JOB)
    assert not made and content(out) == content(plain.folders[0])


# ---- jobs that are started more than once

def attempt(source, out, slice, start, report):
    "Packs when `start` opens and writes what came of it."
    start.wait()
    try: done = pack(source, out, extractor=slowly, extractor_id="dark", slice=slice, **JOB); report.write_text(f"set {len(done)}" if done else "part", encoding="utf-8")
    except InputError as error: report.write_text(f"refused: {error}", encoding="utf-8")


def at_once(source, out, slices):
    "What each of the packers said, all started at the same moment."
    start, reports = PROCESSES.Barrier(len(slices)), [out.with_name(f"{out.name}-{i}.txt") for i in range(len(slices))]
    processes = [aside(attempt, source, out, s, start, r) for s, r in zip(slices, reports)]
    for p in processes: p.join(60); assert p.exitcode == 0
    return sorted(r.read_text(encoding="utf-8") for r in reports)


def test_two_packers_in_the_same_second(place, source, plain):
    told = at_once(source, place / "twice", [(0, 1), (0, 1)])
    assert told[0].startswith("refused: ") and "another process is at it" in told[0] and told[1] == f"set {COUNT}"
    assert content(place / "twice") == content(plain.folders[0]) and not leftovers(place / "twice")


def test_two_slices_in_the_same_second(place, source, plain):
    for k in range(3):
        told = at_once(source, place / f"slices-{k}", [(0, 2), (1, 2)])
        assert told in (["part", f"set {COUNT}"], [f"set {COUNT}"]*2)
        assert content(place / f"slices-{k}") == content(plain.folders[0]) and not leftovers(place / f"slices-{k}")


def test_a_slice_that_comes_late_leaves_nothing_behind(place, source, plain, monkeypatch, capsys):
    claim = WorkFolder.claimed
    def late(self):      # the other rank does the whole job between this one's look at the folder and its claim
        monkeypatch.setattr(WorkFolder, "claimed", claim)
        pack(source, place / "late", extractor=dark, extractor_id="dark", slice=(0, 2), **{**JOB, "shard_rows": COUNT})
        return claim(self)
    monkeypatch.setattr(WorkFolder, "claimed", late)
    data = pack(source, place / "late", extractor=dark, extractor_id="dark", slice=(1, 2), **{**JOB, "shard_rows": COUNT})
    assert data is not None and len(data) == COUNT and not leftovers(place / "late") and "are not" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def shared_job(place, many):
    "`torchrun` with two processes, started once."
    flags = [x for k, v in FLAGS.items() for x in ("--" + k.replace("_", "-"), str(v))]
    return program(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", "vasomim.cli", "data", "pack", many, place / "torchrun", *flags, cwd=place)


def test_torchrun_shares_the_work(place, many, shared_job):
    assert shared_job.returncode == 0, shared_job.stderr
    assert "slice 0 of 2" in shared_job.stdout and "slice 1 of 2" in shared_job.stdout and "Traceback" not in shared_job.stderr
    assert content(place / "torchrun") == content(place / "many-packed") and not leftovers(place / "torchrun")


@pytest.mark.parametrize("variables", [({"SLURM_ARRAY_TASK_ID": str(i), "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "4"} for i in (5, 6, 4)),
                                       ({"SLURM_PROCID": str(i), "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"} for i in (1, 0))])
def test_slurm_shares_the_work(place, source, monkeypatch, variables):
    options, results = PackOptions(str(place / "frames"), str(place / "slurm"), masks="none", processes=1, size=24, shard_rows=2), []
    whole = pack_folder(replace(options, out=str(place / "slurm-whole")))
    for environment in variables:
        for name, value in environment.items(): monkeypatch.setenv(name, value)
        results.append(pack_folder(options))
    assert [r is None for r in results] == [True]*(len(results) - 1) + [False] and content(place / "slurm") == content(whole.folders[0])
    assert all(pack_folder(options) is not None for _ in range(2))      # tasks that begin when all is done
    shutil.rmtree(place / "slurm"); shutil.rmtree(place / "slurm-whole")
    assert not leftovers(place / "slurm")


def test_variables_that_make_no_sense_are_refused():
    for bad in ({"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1", "WORLD_SIZE": "2"}, {"RANK": "", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "0"}, {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}):
        with pytest.raises(InputError, match="must be numbers with"): slice_from_environment(bad)


@LINUX
@pytest.mark.skipif(not shutil.which("taskset"), reason="needs taskset")
def test_one_core_means_one_worker_and_one_thread(place, many):
    core = min(os.sched_getaffinity(0))
    env = {k: v for k, v in environment().items() if k != "OMP_NUM_THREADS"}
    flags = [x for k, v in FLAGS.items() for x in ("--" + k.replace("_", "-"), str(v))]
    process = subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-m", "vasomim.cli", "data", "pack", str(many), str(place / "core"), *flags], cwd=place, env=env, text=True, encoding="utf-8", stdout=subprocess.PIPE)
    ticks = lambda folder: sum(map(int, (folder / "stat").read_text().rsplit(")", 1)[1].split()[11:13]))      # clock ticks of a thread or process
    children, names = {}, {}
    while process.poll() is None:
        for task in Path("/proc", str(process.pid), "task").glob("*"):
            try:
                names[task.name] = ticks(task)
                for child in (task / "children").read_text().split(): children[child] = ticks(Path("/proc", child))
            except OSError: pass
        time.sleep(0.02)
    told = process.stdout.read()
    assert process.returncode == 0, told
    workers, busy = [c for c in children if children[c] >= 25], [t for t in names if t != str(process.pid) and names[t] >= 25]
    assert not workers and len(busy) <= 1, (children, names)      # a library that asks the loader for a name as it is imported starts a child of a few milliseconds
    assert re.search(r"1 process\b.*1 thread\b", told), told      # says what it uses
    assert content(place / "core") == content(place / "many-packed")


# ---- no room

def full_disk(disk):
    "On a small disk of its own: full before the job, full in the middle of it, room again."
    frames = Source("s", tuple(Record("s", "", f"{i}", read=partial(draw, 256)) for i in range(24)), "x")
    job, filler = dict(shard_rows=4, progress=False, extractor_id="dark"), disk / "filler"
    def fill():
        with open(filler, "wb", buffering=0) as f:
            try:
                while True: f.write(bytes(4096))
            except OSError: pass
    old = pack(frames, disk / "set", 32, dark, **job).info["fingerprint"]
    fill()
    with pytest.raises(InputError, match="full|needed"): pack(frames, disk / "set", 256, dark, **job)
    filler.unlink()
    calls = []
    def filling(images):
        calls.append(1)
        if len(calls) == 4: fill()
        return dark(images)
    with pytest.raises(InputError, match="disk is full .* run the same command again"): pack(frames, disk / "set", 256, filling, **job)
    assert open_packed(disk / "set").info["fingerprint"] == old and len(finished_shards(disk / ".set.packing")) >= 2
    filler.unlink(); calls.clear()
    count = lambda images: calls.append(len(images)) or dark(images)
    assert len(pack(frames, disk / "set", 256, count, **job)) == 24 and sum(calls) <= 16 and leftovers(disk / "set") == []
    shutil.rmtree(disk / "set"); pack(frames, disk / "set", 256, dark, **{**job, "extractor_id": "anew"}); print("full disk: fine")


def draw(size, record): return picture(int(record.path), size)


def read_only(folder, run):
    "One epoch from a set that nobody can write to, nor to its folder."
    with pytest.raises(OSError): (folder / "x").write_text("x")
    with pytest.raises(OSError): (folder.parent / "x").write_text("x")
    train(run, data_dir=str(folder), epochs=1, warmup_epochs=0.5)
    print("read-only: fine")


def in_private_mounts(mounts, call, cwd):
    "A Python statement in a process that has mounts of its own; skips where that is not permitted."
    if not shutil.which("unshare") or program("unshare", "-m", "true", cwd=cwd).returncode: pytest.skip("this user may not mount")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path; import test_packing as t; t.{call}"
    done = program("unshare", "-m", "sh", "-c", f'{mounts} || exit 77; exec "$0" -c "$1"', sys.executable, code, cwd=cwd)
    if done.returncode == 77: pytest.skip("this user may not mount")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_disk_full_for_real(place):
    (place / "disk").mkdir()
    assert "full disk: fine" in in_private_mounts(f"mount -t tmpfs -o size=6m none '{place}/disk'", f"full_disk(Path({str(place / 'disk')!r}))", place)


def test_a_mounted_folder_holds_a_set_or_says_why_not(place, source):
    "As in a container whose output is a volume: filled, or refused in one line before anything is packed."
    (place / "volume").mkdir()
    assert "volume: fine" in in_private_mounts(f"mount -t tmpfs -o size=6m none '{place}/volume'", f"to_volume(Path({str(place / 'frames')!r}), Path({str(place / 'volume')!r}))", place)
    assert not leftovers(place / "volume")


def to_volume(frames, out):
    def counted(images): calls.append(len(images)); return dark(images)
    calls = []
    try: assert len(pack(folder_source(frames), out, 24, counted, "dark", progress=False)) == len(open_packed(out)) == COUNT
    except InputError as error: assert "mounted" in str(error) and not calls, (calls, error)
    print("volume: fine")


def test_read_only_share(place, packed):
    share = place / "share"
    shutil.copytree(packed, share / "set")
    before = sorted(f for f in share.rglob("*"))
    said = in_private_mounts(f"mount --bind '{share}' '{share}' && mount -o remount,bind,ro '{share}'", f"read_only(Path({str(share / 'set')!r}), Path({str(place / 'run-read-only')!r}))", place)
    assert "read-only: fine" in said and sorted(share.rglob("*")) == before


# ---- sets that were moved, damaged, or are read by several

def halves(source, place, k=5, **job):
    parts = [replace(source, records=source.records[:k], fingerprint=f"{source.fingerprint}-a"), replace(source, records=source.records[k:], fingerprint=f"{source.fingerprint}-b")]
    return [pack(p, place / name, **job).folders[0] for p, name in zip(parts, "ab")]


def test_moved_folders(place, source, plain):
    home = place / "home with blank ü"
    job = dict(JOB, extractor=dark, extractor_id="dark")
    halves(source, home, **job)
    four = [pack(replace(source, name=f"s{i}", records=tuple(replace(r, source=f"s{i}") for r in source.records[:2]), fingerprint=f"{i}"), home / f"s{i}", **job).folders[0] for i in range(4)]
    both, all_four = join_packed(home / "both", [home / "a", home / "b"]), join_packed(home / "four", four)
    want = plain.images(range(COUNT))
    assert torch.equal(both.images(range(COUNT)), want)
    shutil.move(home, place / "new home"); home = place / "new home"
    assert torch.equal(open_packed(home / "both").images(range(COUNT)), want) and len(open_packed(home / "four")) == 8      # all together
    shutil.move(home / "s2", place / "s2 elsewhere")
    with pytest.raises(InputError, match=r"its member \.\./s2 cannot be opened.*Put it back there, or join the sets again.*vasomim data join"): open_packed(home / "four")
    again = join_packed(home / "four", [home / "s0", home / "s1", place / "s2 elsewhere", home / "s3"])
    assert torch.equal(again.images(range(8)), all_four.images(range(8)))


def test_a_set_joined_with_itself_is_refused_and_unharmed(place, source):
    a, b = halves(source, place / "self", extractor=None, **JOB)
    join_packed(place / "self" / "j", [a])
    before = (place / "self" / "j" / "packed.json").read_bytes()
    try: assert len(join_packed(place / "self" / "j", [place / "self" / "j", b])) == COUNT      # either it grows
    except InputError: assert (place / "self" / "j" / "packed.json").read_bytes() == before      # or it stays
    assert len(open_packed(place / "self" / "j")) in (5, COUNT)


def test_a_set_in_a_repository_is_not_replaced_without_asking(place, source):
    out = place / "clone"
    pack(source, out, **JOB)
    (out / ".git").mkdir(); (out / ".git" / "HEAD").write_text("ref: refs/heads/main", encoding="utf-8")
    with pytest.raises(InputError, match="holds other files"): pack(source, out, **{**JOB, "size": 16})
    assert (out / ".git" / "HEAD").is_file() and open_packed(out).size == (24, 24)


def test_packing_to_a_link_fills_its_target(place, source):
    (place / "other disk").mkdir(); (place / "link").symlink_to(place / "other disk")
    for size in (24, 16):
        pack(source, place / "link", size, shard_rows=5, progress=False)
        assert (place / "link").is_symlink() and (place / "other disk" / "packed.json").is_file() and open_packed(place / "link").size == (size, size)
    assert not leftovers(place / "link") and not leftovers(place / "other disk")


def test_a_joined_set_below_a_link(place, source):
    a, b = halves(source, place / "links", extractor=None, **JOB)
    (place / "links" / "deep" / "er").mkdir(parents=True); (place / "short").symlink_to(place / "links" / "deep" / "er")
    assert len(join_packed(place / "short" / "joined", [a, b])) == COUNT




class Rows(torch.utils.data.Dataset):
    "What a DataLoader asks a worker for: the sum of a row, and the worker's own memory."
    def __init__(self, data): self.data = data
    def __len__(self): return len(self.data)
    def __getitem__(self, i):
        value = self.data.images([i]).sum().item(), self.data.vessels([i]).sum().item()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
        return *value, os.getpid(), int(status["RssAnon"].split()[0])/1024


@LINUX
def test_spawned_workers_read_the_same_rows_with_flat_memory(place):
    data = pack(Source("s", tuple(Record("s", "", f"{i}", read=partial(draw, 256)) for i in range(512)), "x"), place / "larger", 256, dark, "dark", shard_rows=64, progress=False)
    assert len(pickle.dumps(data)) < 1 << 20 and len(pickle.dumps(Rows(data))) < 1 << 20
    rows = list(torch.utils.data.DataLoader(Rows(data), batch_size=None, num_workers=2, multiprocessing_context="spawn", timeout=120))
    images, vessels = data.images(range(512)), data.vessels(range(512))
    assert [r[0] for r in rows] == images.sum((1, 2, 3)).tolist() and [r[1] for r in rows] == vessels.sum((1, 2, 3)).tolist()
    for worker in {r[2] for r in rows}:
        memory = [r[3] for r in rows if r[2] == worker]
        assert len(memory) > 100 and max(memory) - memory[0] < 12, memory[::64]      # MB; all rows together are 36
    assert len({r[2] for r in rows}) == 2
    shutil.rmtree(place / "larger")


def test_datasets_opens_it(plain, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"): monkeypatch.setenv(name, "1")      # here only: other tests speak to a stand-in of the hub
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_from_disk(str(plain.folders[0]))
    assert len(rows) == COUNT and rows["id"][:] == list(plain.provenance.id)
    for i in (0, 7, COUNT - 1):
        assert np.array_equal(np.frombuffer(rows[i]["image"], np.uint8).reshape(24, 24), plain.images([i])[0, 0].numpy())
        assert np.array_equal(np.unpackbits(np.frombuffer(rows[i]["vessels"], np.uint8), count=576).reshape(24, 24), plain.vessels([i])[0, 0].numpy())


def edited(text, rng):
    "packed.json with one thing wrong: bytes, or a value, or a key that is gone."
    if rng.random() < 0.4:
        data = bytearray(text)
        for _ in range(rng.randint(1, 4)): data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data[:rng.randrange(len(data))] if rng.random() < 0.2 else data)
    info = json.loads(text)
    at, key = rng.choice([(d, k) for d in (info, info.get("source"), *(info.get("shards") or ()), *(info.get("members") or ()), *(info.get("bad") or ())) if isinstance(d, dict) for k in d])
    if rng.random() < 0.3: del at[key]
    else: at[key] = rng.choice([None, "", "x", -1, 0, 1, 2**70, 1e300, float("nan"), [], {}, [1], [{}], [None], {"a": 1}, True, "../../..", "data-00000.arrow", ".", "\0"])
    return json.dumps(info).encode()


def use(folder):
    "Everything that a reader does."
    data = open_packed(folder)
    ids = range(min(len(data), 4))
    data.images(ids), data.vessels(ids), data.provenance, data.describe(), repr(data), data.order(np.random.default_rng(0))


def damage(folder, joined, report, count):
    "Many sets with one thing wrong each; what did not end well is written to `report`."
    rng, wrong, sound = random.Random(20), [], 0
    where = [(folder / "packed.json", edited)]*3 + [(joined / "packed.json", edited)] + [(folder / "data-00000.arrow", None)]*4
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("hangs")))
    for k in range(count):
        file, edit = rng.choice(where)
        whole = file.read_bytes()
        if edit: new = edit(whole, rng)
        else:
            new = bytearray(whole)
            for _ in range(rng.randint(1, 3)): new[rng.randrange(min(len(new), 4096))] = rng.randrange(256)
            if rng.random() < 0.1: del new[rng.randrange(len(new)):]
        file.write_bytes(new); report.with_suffix(".last").write_bytes(new)
        signal.alarm(20)
        try: use(joined if file.parent == joined else folder); sound += 1
        except InputError: pass
        except BaseException as error: wrong.append(f"{k} {file.name}: {type(error).__name__}: {error}"[:200])
        signal.alarm(0)
        file.unlink(); file.write_bytes(whole)      # a new file: the old one may still be mapped
    report.write_text("\n".join(wrong) + f"\n{sound} of {count} still open", encoding="utf-8")


def test_damaged_sets_are_refused(place, source):
    fuzz = place / "fuzz"
    a, b = halves(source, fuzz, extractor=dark, extractor_id="dark", **{**JOB, "shard_rows": 5})
    join_packed(fuzz / "both", [a, b])
    process = aside(damage, fuzz / "a", fuzz / "both", fuzz / "report.txt", 400)
    process.join(120)
    assert process.exitcode == 0, f"ended with {process.exitcode} while reading {fuzz / 'report.last'}"
    *wrong, sound = (fuzz / "report.txt").read_text(encoding="utf-8").splitlines()
    assert not [w for w in wrong if w], "\n".join([f"{len(wrong)} ended otherwise than with an InputError ({sound}):", *wrong[:20]])


def test_images_of_a_test_split_are_left_out(source, monkeypatch, capsys):
    from vasomim.anatomy import prepare
    split = replace(source, records=tuple(replace(r, split="test" if i < 4 else "train") for i, r in enumerate(source)))
    monkeypatch.setattr(prepare, "open_source", lambda *_, **__: split)
    assert len(prepare.prepare_source("anywhere")) == COUNT - 4 and "4 images of the test split are left out" in capsys.readouterr().out
    assert len(prepare.prepare_source("anywhere", tests=True)) == COUNT and len(prepare.prepare_source("anywhere", splits=("test",))) == 4
    with pytest.raises(InputError, match="no split 'validation'"): prepare.prepare_source("anywhere", splits=("validation",))


@pytest.mark.parametrize("name", ["a b", "ünï ★", "br[1]", "st*r", "q?x", "ha#sh", "per%20cent", "a::b", "c:d"])
def test_any_name_will_do(place, source, name):
    out = place / "names" / name
    if os.name == "nt" and set(name) & set('*?:'): pytest.skip("no such name here")
    assert len(pack(source, out, **JOB)) == len(open_packed(str(out) + "/")) == len(join_packed(place / "joined names" / name, [out])) == COUNT


def test_what_cannot_be_is_refused_in_words(place, source):
    (place / "file").write_text("x", encoding="utf-8")
    for size in ("16", 16.0, (16, 24, 3), 0, None):
        with pytest.raises(InputError, match="size="): pack(source, place / "wrong", size)
    for out in (place / "file", place / "file" / "below"):
        with pytest.raises(InputError, match="file"): pack(source, out, 16)
    pack(source, place / "right", np.int64(16), shard_rows=5, progress=False)
    for out in (place / "file", place / "file" / "below"):
        with pytest.raises(InputError, match="file"): join_packed(out, [place / "right"])
    (place / "right" / "packed.json").write_text("["*100_000, encoding="utf-8")
    with pytest.raises(InputError, match="damaged"): open_packed(place / "right")
    assert not (place / "wrong").exists() and (place / "file").read_text(encoding="utf-8") == "x"


def test_a_disk_that_goes_away_does_not_make_a_small_set(place):
    gone = place / "gone"
    gone.mkdir()
    for i in range(COUNT): save_image(gone / f"{i}.png", picture(i, 32))
    frames, calls = folder_source(gone), []
    def pulled(images):
        calls.append(1)
        if len(calls) == 3: gone.rename(place / "unplugged")
        return dark(images)
    with pytest.raises(InputError, match="gone"): pack(frames, place / "part", extractor=pulled, extractor_id="dark", **{**JOB, "processes": 1})
    assert not (place / "part").exists()
    (place / "unplugged").rename(gone)
    assert len(pack(frames, place / "part", extractor=dark, extractor_id="dark", **JOB)) == COUNT


def test_a_mask_of_another_size_is_reported(place, source, capsys):
    masks = [torch.ones(1, 32, 32, dtype=torch.bool)]*(COUNT - 2) + [torch.ones(1, 32, 31, dtype=torch.bool), np.ones((32, 32), bool)]
    records = tuple(replace(r, labels={"pseudo_mask": m}) for r, m in zip(source, masks))
    data = pack(replace(source, records=records, fingerprint="masks"), place / "labels", masks="pseudo_mask", **JOB)
    assert len(data) == COUNT - 2 and data.vessels(range(COUNT - 2)).all() and "2 left out" in capsys.readouterr().out
    assert [b["reason"] for b in data.info["bad"]] == [f"no vessel mask: pseudo_mask is {shape}, the image (1, 32, 32)" for shape in ("(1, 32, 31)", "(32, 32)")]


# ---- from afar

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_): pass


@contextmanager
def serve(folder):
    "The address of a folder, over HTTP; as file:// where this environment cannot read HTTP."
    try: import aiohttp      # noqa: F401
    except ImportError: yield folder.as_uri(); return
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def address(work):
    with serve(work) as url: yield url


def view(): return (View("crop", 16, vessels=True),)


def test_streaming_gives_the_batches_of_the_local_folder(place, plain, address):
    far, near = open_packed(f"{address}/packing/plain"), open_packed(plain.folders[0])
    assert near.info == far.info and list(near.provenance.id) == list(far.provenance.id)
    near.order = far.order      # what lies far away is taken a few shards at a time
    one, other = Batches(far, view(), 4, seed=3), Batches(near, view(), 4, seed=3)
    run = [one(step) for step in range(7)]      # two epochs and the beginning of a third
    for step, batch in enumerate(run):
        want = other(step)
        assert torch.equal(batch.index, want.index) and torch.equal(batch.images["crop"], want.images["crop"]) and torch.equal(batch.vessels["crop"], want.vessels["crop"])
    for step in (1, 4, 5):      # in the middle of an epoch, in a new process's state
        anew = Batches(pickle.loads(pickle.dumps(far)), view(), 4, seed=3)(step)
        assert torch.equal(anew.index, run[step].index) and torch.equal(anew.images["crop"], run[step].images["crop"])
    for epoch in (run[:3], run[3:6]): assert sorted(torch.cat([b.index for b in epoch]).tolist()) == list(range(COUNT))


def where_shards_lie(data, row, answer):
    data.images([row]); answer.put(str(data._rows.folder))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_workers_keep_their_own_shards(place, plain, address):
    answers = PROCESSES.Queue()      # the workers are forked by a process without threads, as a loader's are by a program that has not trained yet
    process = aside(forked_readers, f"{address}/packing/plain", answers)
    folders = answers.get(timeout=120); process.join(60)
    assert process.exitcode == 0 and len(set(folders)) == 3, "two processes write to one file that the other has mapped"
    assert os.name == "nt" or not [f for folder in folders for f in Path(folder).glob("*")], "ended workers leave shards behind"


def forked_readers(address, answers):
    far, context = open_packed(address), multiprocessing.get_context("fork")
    want, queue, folders = far.images([0, 11]), context.Queue(), [str(far._rows.folder)]
    for row in (0, 5):
        process = context.Process(target=where_shards_lie, args=(far, row, queue)); process.start()
        folders.append(queue.get(timeout=60)); process.join(60)
        assert process.exitcode == 0
    assert Path(far._rows.folder).is_dir() and torch.equal(far.images([0, 11]), want)
    answers.put(folders)


def test_a_missing_table_is_named(place, plain, address):
    shutil.copytree(plain.folders[0], place / "bare"); (place / "bare" / "provenance.parquet").unlink()
    with pytest.raises(InputError, match="provenance.parquet"): open_packed(f"{address}/packing/bare").provenance
    with pytest.raises(InputError, match="no packed.json"): open_packed(f"{address}/packing/nothing")


# ---- training

SHORT = dict(epochs=2, warmup_epochs=0.5)


def losses(run):
    rows = list(csv.DictReader(open(Path(run) / "metrics.csv", newline="", encoding="utf-8")))
    assert len(rows) == 4
    return np.array([[float(r[k]) for k in ("loss", "reconstruction", "consistency", "grad_norm", "vessel_share")] for r in rows])


@pytest.fixture(scope="module")
def trained(work, packed): return losses(train(work / "packing" / "run-plain", data_dir=str(packed), **SHORT))


@pytest.fixture(scope="module")
def joined(place, packed):
    "The images of `packed` from two sets that were joined."
    config = PretrainConfig(**TINY, phantoms=18)
    halves(phantom_source(18, size=64, seed=config.seed), place / "phantoms", 10, size=64, extractor=extractor(config), shard_rows=4, progress=False)
    data = join_packed(place / "phantoms" / "both", [place / "phantoms" / "a", place / "phantoms" / "b"])
    assert torch.equal(data.images(range(18)), open_packed(packed).images(range(18)))
    return data


def test_training_from_a_joined_set(place, joined, trained):
    np.testing.assert_allclose(losses(train(place / "run-joined", data_dir=str(joined.given[0]), **SHORT)), trained, rtol=1e-5)


def test_training_from_memory_of_the_device(place, packed, trained):
    assert np.array_equal(losses(train(place / "run-resident", data_dir=str(packed), resident="yes", **SHORT)), trained)


def test_training_from_an_address(place, joined, address, monkeypatch):
    far = f"{address}/packing/phantoms/both"
    streamed = losses(train(place / "run-far", data_dir=far, **SHORT))
    order = open_packed(far).order
    monkeypatch.setattr(PackedDataset, "order", lambda self, rng: order(rng))
    assert np.array_equal(streamed, losses(train(place / "run-near", data_dir=str(joined.given[0]), **SHORT)))
    assert np.array_equal(streamed, losses(train(place / "run-far-resident", data_dir=far, resident="yes", **SHORT)))
    assert torch.equal(ResidentDataset(open_packed(far), "cpu").images([17, 0]), joined.images([17, 0]))
