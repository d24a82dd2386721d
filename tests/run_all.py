"All tests, in the order in which they find trouble cheapest; ends with a line that counts them."
import os
import re
import subprocess
import sys
import time
from pathlib import Path

root = Path(__file__).resolve().parents[1]
bin_dir = Path(sys.executable).parent


def call(title, *command, **kwargs):
    print(f"== {title}", flush=True)
    started = time.perf_counter()
    env = dict(os.environ, PATH=f"{bin_dir}{os.pathsep}{os.environ['PATH']}", **kwargs)
    result = subprocess.run(command, cwd=root, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(result.stdout.rstrip()[-6000:])
    print(f"   {time.perf_counter() - started:.0f} s", flush=True)
    if result.returncode: sys.exit(f"FAILED: {title}")
    return result.stdout


def snapshot():
    files = [*root.glob("nbs/**/*.ipynb"), *root.glob("vasomim/**/*.py"), root / "README.md"]
    return {p: p.read_bytes() for p in files if ".ipynb_checkpoints" not in p.parts and "_runs" not in p.parts}


def unchanged(before, what):
    changed = sorted(str(p.relative_to(root)) for p, b in snapshot().items() if before.get(p) != b)
    if changed: sys.exit(f"FAILED: {what}: {', '.join(changed)} changed; commit the result of that command")


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
