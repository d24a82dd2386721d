"""The command line: what it says, what it refuses, what it leaves behind."""
import dataclasses
import os
import re
import subprocess
import sys

import pytest

from conftest import ROOT, TINY, environment, flags, program, train

NOTEBOOK_TOOLS = ("matplotlib", "ipywidgets", "IPython", "nbdev", "papermill", "fastcore", "seaborn", "jupyter", "jupyter_core", "jupyter_client", "jupyterlab", "notebook", "ipykernel", "sklearn")


def vasomim(capfd, *arguments):
    "The command in this process: exit code, stdout, stderr."
    from vasomim.cli import main
    capfd.readouterr()
    try: code = main([str(a) for a in arguments])
    except SystemExit as end: code = end.code
    return (code or 0, *capfd.readouterr())


def refused(capfd, *arguments):
    "The one line that says why."
    code, out, err = vasomim(capfd, *arguments)
    lines = [l for l in err.splitlines() if l.strip()]
    assert code == 2 and "Traceback" not in out + err and len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


@pytest.fixture
def angiograms(tmp_path):
    "Two good images, one of them in a sub-folder, and one that was cut short."
    from vasomim.data.images import save_image
    from vasomim.data.phantom import phantom
    (tmp_path / "frames" / "run").mkdir(parents=True)
    save_image(tmp_path / "frames" / "a.png", phantom(0, size=64).image)
    save_image(tmp_path / "frames" / "run" / "b.png", phantom(1, size=64).image)
    (tmp_path / "frames" / "cut.png").write_bytes((tmp_path / "frames" / "a.png").read_bytes()[:600])
    return tmp_path / "frames"


def test_help_shows_every_option_with_unit_and_default(capfd, monkeypatch):
    from vasomim.pretrain import PretrainConfig
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = vasomim(capfd, "--help")
    assert code == 0 and all(f"\n  {c}" in out for c in ("pretrain", "extract", "phantom"))
    code, out, err = vasomim(capfd, "pretrain", "--help")
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", out).split())
    assert code == 0
    for f in dataclasses.fields(PretrainConfig):
        if f.name != "options": assert f"--{f.name.replace('_', '-')} " in text, f.name
    for piece in ("--border INT pixels", "--sigmas", "scales, pixels (default: 1 2 3 4)", "(default: 92.0)", "epochs between checkpoints", "share of the filter's mask in the guidance"): assert piece in text, piece
    code, out, err = vasomim(capfd, "pretrain", "--preset", "published", "--help")
    assert code == 0 and "passes over the data (default: 800)" in " ".join(out.split())
    for command in ("extract", "phantom"):
        code, out, err = vasomim(capfd, command, "--help")
        assert code == 0 and "pixels" in out and "default:" in out


def test_bad_input_is_refused_in_one_line(capfd, tmp_path, angiograms):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir(); (tmp_path / "bad" / "x.png").write_bytes((angiograms / "cut.png").read_bytes())
    assert "empty" in refused(capfd, "extract", tmp_path / "empty", "--out", tmp_path / "m")
    assert "nowhere" in refused(capfd, "extract", tmp_path / "nowhere", "--out", tmp_path / "m")
    assert "a.png" in refused(capfd, "extract", angiograms / "a.png", "--out", tmp_path / "m")
    assert "x.png" in refused(capfd, "extract", tmp_path / "bad", "--out", tmp_path / "m")
    assert "did you mean 'sato'" in refused(capfd, "extract", angiograms, "--vesselness", "satto", "--out", tmp_path / "n")
    assert "did you mean 'pretrain'" in refused(capfd, "pretrian")
    assert "count=0" in refused(capfd, "phantom", "--count", 0)
    run = dict(TINY, run_dir=tmp_path / "run", cache_dir=tmp_path / "packed")
    assert "nowhere" in refused(capfd, "pretrain", *flags(**run, data_dir=tmp_path / "nowhere"))
    assert "did you mean 'vasomim'" in refused(capfd, "pretrain", "--preset", "vasomin")
    assert "mask_ratio=1.5" in refused(capfd, "pretrain", *flags(**run, mask_ratio=1.5))
    assert "none.json" in refused(capfd, "pretrain", "--config", tmp_path / "none.json")
    assert not (tmp_path / "run" / "metrics.csv").exists() and not (tmp_path / "n").exists()


@pytest.mark.parametrize("command, flag, meant", [("pretrain", "--epoch", "--epochs"), ("extract", "--persentile", "--percentile"), ("phantom", "--sise", "--size")])
def test_unknown_flag_is_refused_and_the_nearest_is_named(capfd, tmp_path, command, flag, meant):
    code, out, err = vasomim(capfd, command, *([tmp_path] if command == "extract" else []), flag, 3)
    assert code == 2 and flag in out + err and meant in out + err and "Traceback" not in out + err


def test_extract_skips_and_lists_a_truncated_image(capfd, angiograms, tmp_path):
    from vasomim.data.images import load_mask
    code, out, err = vasomim(capfd, "extract", angiograms, "--out", tmp_path / "masks", "--border", 4)
    assert code == 0 and "2 masks" in out and "1 images skipped" in out
    assert sorted(p.relative_to(tmp_path / "masks").as_posix() for p in (tmp_path / "masks").rglob("*") if p.is_file()) == ["a.png", "run/b.png", "skipped.txt"]
    assert "cut.png" in (tmp_path / "masks" / "skipped.txt").read_text(encoding="utf-8")
    mask = load_mask(tmp_path / "masks" / "a.png")
    assert mask.shape == (1, 64, 64) and 0 < mask.float().mean() < 0.1


def test_extract_never_writes_two_masks_to_one_file(capfd, angiograms, tmp_path):
    from vasomim.data.images import load_image, save_image
    save_image(angiograms / "a.bmp", 1 - load_image(angiograms / "a.png"))
    code, out, err = vasomim(capfd, "extract", angiograms, "--out", tmp_path / "masks", "--border", 4)
    if code == 0: assert len(list((tmp_path / "masks").rglob("a*.png"))) == 2
    else: assert code == 2 and "a.bmp" in err


@pytest.mark.parametrize("inside", [".", "masks"])
def test_extract_neither_overwrites_nor_reads_back(capfd, angiograms, inside):
    "Masks beside the angiograms would replace them, or be taken for angiograms the next time."
    before = {p: p.read_bytes() for p in angiograms.rglob("*") if p.is_file()}
    for _ in range(2): code, out, err = vasomim(capfd, "extract", angiograms, "--out", angiograms / inside, "--border", 4)
    assert {p: p.read_bytes() for p in before} == before
    assert code == 2 or "2 masks" in out


def test_pretraining_skips_and_lists_a_truncated_image(capfd, angiograms, tmp_path):
    from vasomim.pretrain import PretrainConfig, prepare_data
    data = prepare_data(PretrainConfig(**TINY, data_dir=str(angiograms), cache_dir=str(tmp_path / "packed")))
    assert len(data) == 2 and [b["id"].rsplit("/")[-1] for b in data.info["bad"]] == ["cut.png"]
    assert "cut.png" in (data.folders[0] / "packed.json").read_text(encoding="utf-8")


def test_a_run_says_which_images_were_left_out(capfd, angiograms, tmp_path):
    "The run folder tells it, without the data."
    run = train(tmp_path / "run", data_dir=str(angiograms), cache_dir=str(tmp_path / "packed"), epochs=2, batch_size=2)
    out = capfd.readouterr().out
    told = "".join(p.read_text(encoding="utf-8") for p in run.glob("*") if p.suffix in (".json", ".txt", ".csv"))
    assert "cut.png" in told and "1 left out" in out and "cut.png" in out


ONE_PROCESS = """
import sys
import vasomim
print("LIGHT", sorted({"torch", "numpy", "timm"} & set(sys.modules)))
import vasomim.pretrain
print("CLEAN", sorted(set(%r) & {m.split(".")[0] for m in sys.modules}))
from vasomim.cli import main
print("CODES", [main(a.split()) for a in ("phantom --out p --count 3 --size 64", "extract p --out m --border 4", sys.argv[1])])
"""


def test_commands_outside_of_a_notebook_with_its_backend_inherited(tmp_path, packed):
    """MPLBACKEND names a module that is not there: phantoms, masks and a run with pictures all the same. On the way: imports are light,
    one core means one thread, and the run's paths fit any file system."""
    (tmp_path / "tools" / "matplotlib_inline").mkdir(parents=True)
    (tmp_path / "tools" / "matplotlib_inline" / "__init__.py").write_text("raise ImportError('no notebook tools here')\n", encoding="utf-8")
    run = "pretrain " + " ".join(flags(**{**TINY, "epochs": 2, "warmup_epochs": 0.0, "threads": 0}, data_dir=packed))
    from conftest import environment
    place = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONPATH": f"{tmp_path / 'tools'}:{environment()['PYTHONPATH']}", "SLURM_CPUS_PER_TASK": "1"}
    done = program(sys.executable, "-c", ONE_PROCESS % (NOTEBOOK_TOOLS,), run, cwd=tmp_path, **place)
    assert done.returncode == 0, done.stderr
    assert "LIGHT []" in done.stdout and "CLEAN []" in done.stdout and "CODES [0, 0, 0]" in done.stdout, done.stdout + done.stderr
    assert "1 process(es), cpu, 1 thread(s) each" in done.stdout and "backend" not in done.stderr
    assert len(list((tmp_path / "p").glob("*.png"))) == 9 and len(list((tmp_path / "m").glob("*.png"))) == 9
    made = [p for p in (tmp_path / "runs").iterdir()]
    assert len(made) == 1 and {"losses.png", "vessel_share.png", "guidance.png", "reconstructions.png"} <= {p.name for p in (made[0] / "pictures").iterdir()}
    assert_portable(tmp_path / "runs"); assert_portable(made[0])


def assert_portable(root):
    paths = [p.relative_to(root) for p in root.rglob("*")]
    assert len(paths) > 5
    for path in paths:
        assert len(path.as_posix()) <= 150, path
        for part in path.parts:
            assert not re.search(r'[<>:"|?*\\\x00-\x1f]', part) and part == part.rstrip(". ") and len(part) <= 100, part
            assert part.split(".")[0].lower() not in {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(1, 10))}, part
    assert len({p.as_posix().lower() for p in paths}) == len(paths)


def test_paths_of_runs_and_packed_sets_fit_any_file_system(whole, packed):
    assert_portable(whole); assert_portable(packed.parent.parent)


def test_installed_command():
    done = program("vasomim", "--version", cwd=ROOT)
    import vasomim
    assert done.returncode == 0 and done.stdout.strip() == vasomim.__version__


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is another thing there")
@pytest.mark.parametrize("arguments", [("methods",), ("pretrain", "--help"), ("nothing",)])
def test_reader_who_leaves_early_sees_no_traceback(tmp_path, arguments):
    "As in `vasomim methods | head -0`: quiet, with the code that a shell gives to a broken pipe; what has nothing to print is as ever."
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        done = subprocess.run([sys.executable, "-m", "vasomim.cli", *arguments], cwd=tmp_path, env=environment(), stdout=gone, stderr=subprocess.PIPE, text=True, timeout=120)
    if arguments == ("nothing",): assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    else: assert done.returncode == 128 + 13 and done.stderr == "", done.stderr
