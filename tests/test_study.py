"""Studies as their users run them: killed, started twice, on a full disk, with files that are cut short and settings that changed, from notebooks and on a (local) cluster."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import PurePath

import pandas as pd
import pytest

from conftest import environment
from vasomim.study.store import Store, read_table

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
ARMS = "Arm('scratch'), Arm('mae', dict(preset='mae'))"


def notebook(path, arms=ARMS, runs="(0, 0),"):
    "A figure notebook that only has its study."
    cell = f"from vasomim.study.jobs import Arm, Study\nstudy = Study('s', ({arms},), runs=({runs}))"
    path.write_text(json.dumps(dict(cells=[dict(cell_type="code", id="a", metadata=dict(tags=["study"]), source=cell.splitlines(True), outputs=[], execution_count=None)], metadata={}, nbformat=4, nbformat_minor=5)))
    return path


@pytest.fixture(scope="module")
def cache(work): return work / "study-cache"


def words(book, place, cache, *more, action="run"):
    return [sys.executable, "-m", "vasomim.cli", "study", action, str(book), "--results", str(place), "--cache", str(cache), "--device", "cpu", *map(str, more)]


def study(book, place, cache, *more, action="run", env=None):
    done = subprocess.run(words(book, place, cache, *more, action=action), text=True, capture_output=True, env=env or environment(), timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def numbers(place):
    "The table without what may differ from run to run."
    return read_table(place / "table.csv").drop(columns=["seconds", "hardware", "date"])


@pytest.fixture(scope="module")
def plain(work, cache):
    "The undisturbed study."
    (work / "study").mkdir()
    done = study(notebook(work / "study" / "plain.ipynb"), work / "study" / "plain", cache, "--engine", "inside")
    assert done.returncode == 0, done.stdout + done.stderr
    return work / "study" / "plain"


def test_the_table_is_complete_and_a_second_time_there_is_nothing_to_do(plain, cache):
    table = numbers(plain)
    assert set(table["method"]) == {"scratch", "mae"} and set(table["metric"]) >= {"dice", "cldice", "loss"} and table["job"].nunique() == 3
    before = (plain / "table.csv").read_bytes()
    again = study(plain.with_suffix(".ipynb"), plain, cache)
    assert "3 of 3 jobs done" in again.stdout and "done  " not in again.stdout and (plain / "table.csv").read_bytes() == before
    parquet = pd.read_parquet(plain / "table.parquet")
    assert len(parquet) == len(table) and parquet["value"].sum() == table["value"].sum()
    assert not list(plain.glob("jobs/*/run/checkpoints")) and not list(plain.glob("jobs/*.lock"))


def test_killed_in_the_middle_and_run_again_is_as_if_nothing_had_happened(plain, work, cache):
    book, place = plain.with_suffix(".ipynb"), work / "study" / "killed"
    runner = subprocess.Popen(words(book, place, cache), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store = Store(place)
    finished = lambda: [f.parent.name for f in place.glob("jobs/*/done.json")]
    end = time.time() + 120
    while not finished() and time.time() < end: time.sleep(0.02)
    runner.kill(); runner.wait()
    kept = {i: (place / "jobs" / i / "done.json").stat().st_mtime_ns for i in finished()}
    assert 1 <= len(kept) < 3
    while list(place.glob("jobs/*.lock")) and any(store.state(f.stem) == "running" for f in place.glob("jobs/*.lock")) and time.time() < end: time.sleep(0.1)      # what the runner had started ends by itself
    done = study(book, place, cache, "--engine", "inside")
    assert done.returncode == 0 and "3 of 3 jobs done" in done.stdout, done.stdout
    assert all((place / "jobs" / i / "done.json").stat().st_mtime_ns == when for i, when in kept.items())      # nothing was done twice
    pd.testing.assert_frame_equal(numbers(place), numbers(plain))


@pytest.mark.parametrize("engine", ["here", "inside"])
def test_ctrl_c_stops_the_jobs_and_says_how_to_go_on(plain, work, cache, engine):
    place = work / "study" / f"stopped-{engine}"
    runner = subprocess.Popen(words(plain.with_suffix(".ipynb"), place, cache, "--engine", engine), env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.time() + 120
    while not list(place.glob("jobs/*/log.txt")) and time.time() < end: time.sleep(0.02)
    runner.send_signal(signal.SIGINT)
    out, err = runner.communicate(timeout=60)
    assert runner.returncode == 130 and len(err.strip().splitlines()) == 1 and "run the study again to go on" in err and "Traceback" not in err, err
    assert not [f for f in place.glob("jobs/*.lock") if Store(place).state(f.stem) == "running"] and not list(place.glob("jobs/*/failed.json"))
    assert len(list(place.glob("jobs/*/log.txt"))) == 1      # nothing was begun after it


def test_two_runners_on_one_folder(plain, work, cache):
    place, book = work / "study" / "both", plain.with_suffix(".ipynb")
    runners = [subprocess.Popen(words(book, place, cache), env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    told = [r.communicate(timeout=300) for r in runners]
    assert [r.returncode for r in runners] == [0, 0], told
    assert all("3 of 3 jobs done" in out for out, _ in told)
    pd.testing.assert_frame_equal(numbers(place), numbers(plain))
    assert sum(out.count("done    ") for out, _ in told) == 3, told      # each job by one of them


def test_a_result_that_was_cut_short_is_named_and_made_again(plain, work, cache):
    place = work / "study" / "cut"
    shutil.copytree(plain, place)
    victim = next(place.glob("jobs/finetune-*/done.json"))
    victim.write_text(victim.read_text()[:100])
    done = study(plain.with_suffix(".ipynb"), place, cache, action="status")
    assert f"{victim}: damaged" in done.stdout and "3 of 3" in done.stdout, done.stdout      # the table still has its numbers
    lines = (place / "table.csv").read_text().splitlines(keepends=True)
    last = max(k for k, line in enumerate(lines) if victim.parent.name in line)
    (place / "table.csv").write_text("".join(lines[:last] + lines[last + 1:]))
    done = study(plain.with_suffix(".ipynb"), place, cache, "--engine", "inside")
    assert done.returncode == 0 and "cut short" in done.stdout and f"done    {victim.parent.name}" in done.stdout and done.stdout.count("done    ") == 1, done.stdout
    pd.testing.assert_frame_equal(numbers(place), numbers(plain))


def test_a_study_that_grew_makes_the_encoder_again_where_only_the_table_was_kept(plain, work, cache):
    place = work / "study" / "grown"
    shutil.copytree(plain, place)
    shutil.rmtree(place / "jobs")
    book = notebook(work / "study" / "grown.ipynb", runs="(0, 0), (0, 1)")
    done = study(book, place, cache, "--engine", "inside")
    assert done.returncode == 0 and "it is made again" in done.stdout and "5 of 5 jobs done" in done.stdout, done.stdout
    table = numbers(place)
    pd.testing.assert_frame_equal(table[table["seed"].isna() | (table["seed"] == 0)].drop(columns="commit").reset_index(drop=True), numbers(plain).drop(columns="commit"))      # the encoder is the same to the bit
    assert set(table.loc[table["seed"] == 1, "method"]) == {"scratch", "mae"}


def test_settings_that_changed_never_meet_old_results(plain, work, cache):
    place = work / "study" / "changed"
    shutil.copytree(plain, place)
    book = notebook(work / "study" / "changed.ipynb", "Arm('scratch'), Arm('mae', dict(preset='mae', mask_ratio=0.6))")
    status = study(book, place, cache, action="status")
    assert "1 of 3 jobs done" in status.stdout, status.stdout
    done = study(book, place, cache, "--engine", "inside")
    assert done.returncode == 0 and "settings that their study no longer has" in done.stdout
    old, new = numbers(plain), numbers(place)
    assert set(new.loc[new["method"] == "mae", "job"]).isdisjoint(old["job"]) and set(new.loc[new["method"] == "scratch", "job"]) == set(old.loc[old["method"] == "scratch", "job"])
    assert set(read_table(place / "outdated.csv")["job"]) == set(old.loc[old["method"] == "mae", "job"])


def test_what_fails_is_named_and_not_tried_again_unasked(work, cache):
    book, place = notebook(work / "study" / "fails.ipynb", "Arm('bad', dict(preset='vasomim', segmentor='nowhere.safetensors')), Arm('scratch')"), work / "study" / "fails"
    first = study(book, place, cache)
    assert first.returncode == 2 and "nowhere.safetensors" in first.stdout and "1 of 3 jobs done, 0 running, 1 failed, 1 held up, 0 left" in first.stdout and len(first.stderr.strip().splitlines()) == 1
    log = next(place.glob("jobs/pretrain-*/log.txt"))
    size = log.stat().st_size
    again = study(book, place, cache)
    assert again.returncode == 2 and "nowhere.safetensors" in again.stdout and log.stat().st_size == size
    study(book, place, cache, "--retry")
    assert log.stat().st_size > size


@LINUX
@pytest.mark.skipif(os.geteuid() != 0, reason="needs a disk of its own, which only root may make")
def test_full_disk(work, cache, plain):
    "The results folder on a small disk that is full: one clear line, nothing lost, and with room again it goes on."
    place = work / "study" / "small-disk"
    place.mkdir()
    script = f"""
mount -t tmpfs -o size=40m tmpfs {place} || exit 77
dd if=/dev/zero of={place}/filler bs=1k count=40000 2>/dev/null
{' '.join(words(plain.with_suffix('.ipynb'), place, cache))} > {work}/study/full.txt 2>&1; echo code $? >> {work}/study/full.txt
rm {place}/filler
{' '.join(words(plain.with_suffix('.ipynb'), place, cache, '--engine', 'inside', '--retry'))} > {work}/study/room.txt 2>&1; echo code $? >> {work}/study/room.txt
cp {place}/table.csv {work}/study/room.csv
"""
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], env=environment(), text=True, capture_output=True, timeout=300)
    if done.returncode == 77 or "unshare" in done.stderr: pytest.skip(f"no disk of one's own here: {done.stderr.strip()[-100:]}")
    full, room = ((work / "study" / f"{n}.txt").read_text() for n in ("full", "room"))
    assert "code 2" in full and "Traceback" not in full and "full" in full.splitlines()[-2], full
    assert "code 0" in room and "3 of 3 jobs done" in room, room
    pd.testing.assert_frame_equal(read_table(work / "study" / "room.csv").drop(columns=["seconds", "hardware", "date"]), numbers(plain))


def test_on_a_local_cluster(plain, work, cache):
    pytest.importorskip("submitit")
    place = work / "study" / "cluster"
    done = study(plain.with_suffix(".ipynb"), place, cache, "--engine", "local", "--workers", 2, "--cluster", "timeout_min", 30, "cpus_per_task", 1)
    assert done.returncode == 0 and "3 of 3 jobs done" in done.stdout, done.stdout + done.stderr
    pd.testing.assert_frame_equal(numbers(place), numbers(plain))


def test_an_option_that_the_cluster_does_not_know_is_one_line(plain, work, cache):
    pytest.importorskip("submitit")
    done = study(plain.with_suffix(".ipynb"), work / "study" / "unknown", cache, "--engine", "local", "--cluster", "minutes", 3)
    assert done.returncode == 2 and "minutes" in done.stderr and len(done.stderr.strip().splitlines()) == 1


@LINUX
@pytest.mark.skipif(not shutil.which("taskset"), reason="needs taskset")
def test_one_core_means_one_thread(plain, work, cache):
    "Threads are the cores that the job may use, divided by the jobs at a time."
    place = work / "study" / "core"
    core = min(os.sched_getaffinity(0))
    book = notebook(work / "study" / "core.ipynb", "Arm('scratch')")
    done = subprocess.run(["taskset", "-c", str(core), *words(book, place, cache)], text=True, capture_output=True, env={k: v for k, v in environment().items() if k != "OMP_NUM_THREADS"}, timeout=120)
    assert done.returncode == 0 and "1 thread(s)" in next(place.glob("jobs/*/log.txt")).read_text(), done.stderr


def test_names_that_every_system_holds(plain):
    for path in (p.relative_to(plain) for p in plain.rglob("*")):
        assert len(str(path)) <= 150 and all(len(part) <= 100 and not set(part) & set('<>:"|?*') and part[-1] not in ". " for part in PurePath(path).parts), path
