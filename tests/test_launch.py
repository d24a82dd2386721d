"""Starting processes from a notebook or a command: reasons come through, signals too, and nobody else's programs are used."""
import signal
import subprocess
import sys
import time

import pytest

from conftest import environment, finished, until

SAYS_WHY = '''
import sys
print("error: batch_size=8 is larger than the 3 images", flush=True)
print("error: batch_size=8 is larger than the 3 images", flush=True)
for i in range(60): print(f"  line {i} of the report of another program")
sys.exit(2)
'''

WAITS = '''
import signal, sys, time, pathlib
def stop(number, frame): pathlib.Path(sys.argv[1]).write_text("saved", encoding="utf-8"); sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
for _ in range(600): time.sleep(0.1)
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    "Makes modules that started processes find."
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name, text: (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")


def test_reason_of_a_failure_is_not_lost_in_a_long_report(module):
    from vasomim.core import InputError
    from vasomim.training.launch import launch
    module("says_why", SAYS_WHY)
    shown = []
    with pytest.raises(InputError) as caught: launch("says_why", [], show=shown.append)
    assert str(caught.value) == "batch_size=8 is larger than the 3 images" and len(shown) == 62


def test_terminated_launcher_passes_the_signal_on_and_waits(module, tmp_path):
    "A cluster ends the process it started; those that it started must save and end too."
    module("waits", WAITS)
    code = "import sys\nfrom vasomim.training.job import run_job\nfrom vasomim.training.launch import launch\nsys.exit(run_job(lambda: launch('waits', [sys.argv[1]])))"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "mark")], env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until(process, "ready")
    process.send_signal(signal.SIGTERM)
    for _ in range(100):
        if process.poll() is not None: break
        time.sleep(0.1)
    assert (tmp_path / "mark").exists(), f"the launcher ended with {process.poll()}, its job goes on alone"
    code, told = finished(process)
    assert code == 128 + signal.SIGTERM and "Traceback" not in told, told


def test_command_uses_the_running_interpreter_and_a_safe_environment(monkeypatch):
    from vasomim.training.launch import child_environment, command
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    assert command("m", ["--x", 1], 2)[:3] == [sys.executable, "-m", "torch.distributed.run"] and command("m", [], 1) == [sys.executable, "-m", "m"]
    env = child_environment(2, 3)
    assert env["MPLBACKEND"] == "Agg" and env["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert child_environment(1)["OMP_NUM_THREADS"] == "1"
