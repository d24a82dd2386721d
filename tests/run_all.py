"All tests, in the order in which they find trouble cheapest; ends with a line that counts them. Each step has a folder for temporary files, gone after it; what it took of the disk is printed."
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path

root = Path(__file__).resolve().parents[1]
bin_dir = Path(sys.executable).parent
NEEDED = 3e9      # bytes; about twice what the hungriest step took


def size_of(folder):
    "Bytes that a folder takes of the disk; what is deleted meanwhile does not count."
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            with suppress(OSError): total += os.lstat(os.path.join(place, file)).st_blocks * 512
    return total


@contextmanager
def largest(folder):
    "A function that says how large a folder was at the most, looked at every second."
    sizes, over = [0], threading.Event()

    def look():
        while not over.wait(1): sizes.append(size_of(folder))

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try: yield lambda: max(sizes)
    finally: over.set(); watch.join()


def call(title, *command, **kwargs):
    print(f"== {title}", flush=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="vasomim-", ignore_cleanup_errors=True) as scratch, largest(scratch) as taken:
        env = dict(os.environ, PATH=f"{bin_dir}{os.pathsep}{os.environ['PATH']}", TMPDIR=scratch, **kwargs)
        result = subprocess.run(command, cwd=root, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(result.stdout.rstrip()[-6000:])
    print(f"   {time.perf_counter() - started:.0f} s, {taken() / 1e9:.1f} GB of temporary files at the most", flush=True)
    if result.returncode: sys.exit(f"FAILED: {title}")
    return result.stdout


def snapshot():
    files = [*root.glob("nbs/**/*.ipynb"), *root.glob("vasomim/**/*.py"), root / "README.md"]
    return {p: p.read_bytes() for p in files if ".ipynb_checkpoints" not in p.parts and "_runs" not in p.parts}


def unchanged(before, what):
    changed = sorted(str(p.relative_to(root)) for p, b in snapshot().items() if before.get(p) != b)
    if changed: sys.exit(f"FAILED: {what}: {', '.join(changed)} changed; commit the result of that command")


free = shutil.disk_usage(tempfile.gettempdir()).free
if free < NEEDED: sys.exit(f"FAILED: {free / 1e9:.1f} GB of disk are free in {tempfile.gettempdir()}, the tests need {NEEDED / 1e9:.0f}; make room, or name another place with TMPDIR")
before = snapshot()
call("notebooks are clean", bin_dir / "nbdev_clean"); unchanged(before, "nbdev_clean")
call("package is exported", bin_dir / "nbdev_export"); unchanged(before, "nbdev_export")
call("README is up to date", sys.executable, "tests/make_readme.py", "--check")
workers = min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
call("notebooks of the library", bin_dir / "nbdev_test", "--n_workers", str(workers), "--timing", OMP_NUM_THREADS="1", MPLBACKEND="Agg")
count = sum("default_exp" in p.read_text(encoding="utf-8") for p in root.glob("nbs/lib/*.ipynb"))
out = call("processes", sys.executable, "-m", "pytest", "-q", "--durations=8", "tests")
passed = re.search(r"(\d+) passed", out)
skipped = re.search(r"(\d+) skipped", out)
print(f"PASSED: {count} library notebooks, {passed[1] if passed else 0} process tests" + (f" ({skipped[1]} skipped)" if skipped else ""))
