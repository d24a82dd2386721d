"Every registered method keeps the contract with the trainer; a new file is tested the moment it exists."
import dataclasses
import sys

import pandas as pd
import pytest
import torch

from conftest import ROOT, program
from contract import SIZE, Waits, built, exact, loss_and_gradients, presets, step_without_values

METHODS = presets()
each = pytest.mark.parametrize("name", METHODS)


@each
def test_step_says_scalars_and_learns_something(name):
    method, parts, gradients = loss_and_gradients(METHODS[name])
    assert "loss" in parts and all(v.ndim == 0 and torch.isfinite(v) for v in parts.values()), parts
    assert gradients and all(torch.isfinite(g).all() for g in gradients.values())
    assert sum(float(g.abs().sum()) for g in gradients.values()) > 0
    in_groups = {id(p) for g in method.param_groups() for p in g["params"]}
    assert in_groups == {id(p) for p in method.parameters() if p.requires_grad}      # nothing is forgotten, nothing frozen is moved
    mean, std = method.pixel_statistics()
    assert len(mean) == len(std) and all(s > 0 for s in std)


@each
def test_step_is_the_same_when_repeated(name):
    one, two = (loss_and_gradients(METHODS[name]) for _ in range(2))
    assert all(torch.equal(v, two[1][k]) for k, v in one[1].items())
    assert one[2].keys() == two[2].keys() and all(torch.equal(v, two[2][k]) for k, v in one[2].items())
    other = loss_and_gradients(METHODS[name], step=0)
    assert not torch.equal(one[1]["loss"], other[1]["loss"])


@each
def test_bf16_agrees_with_float32(name):
    _, full, _ = loss_and_gradients(METHODS[name])
    _, half, gradients = loss_and_gradients(METHODS[name], precision=torch.bfloat16)
    assert half["loss"].dtype == torch.float32 and abs(float(half["loss"] - full["loss"])) < 0.03 * max(0.1, abs(float(full["loss"])))
    assert all(torch.isfinite(g).all() for g in gradients.values())


@each
def test_step_never_waits_for_the_device(name): assert set(step_without_values(METHODS[name]).values()) == {"cuda"}


def test_a_step_that_waits_is_seen(monkeypatch):
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
    from vasomim.methods.mae import MAE
    for looks in (lambda self, batch, mask: torch.as_tensor(mask.sum().item()), lambda self, batch, mask: mask[mask].float().mean(), lambda self, batch, mask: torch.zeros(()) if mask.any() else mask.float().mean(),
                  lambda self, batch, mask: torch.tensor([0.5], device=mask.device).mean()):
        monkeypatch.setattr(MAE, "vessel_share", looks)
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException, Waits)): step_without_values("mae")


@each
def test_resumed_run_ends_the_same(name, tmp_path, capsys):
    from vasomim.pretrain import PretrainConfig, pretrain
    config = PretrainConfig.of(**{**SIZE, "preset": METHODS[name], "epochs": 6, "phantoms": 16, "keep": 9, "save_every": 1, "log_every": 1, "run_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "packed")})
    run = pretrain(config)
    last = sorted((run / "checkpoints").iterdir())
    whole = torch.load(last[-1], weights_only=True)["method"]
    for f in last[1:]: f.unlink()                                # back to the end of the first epoch
    pretrain(dataclasses.replace(config, resume=True))
    again = torch.load(last[-1], weights_only=True)["method"]
    assert whole.keys() == again.keys()
    assert not [k for k, v in whole.items() if not torch.equal(v, again[k])]
    assert "resumed after step 2" in capsys.readouterr().out and len(pd.read_csv(run / "metrics.csv")) == 12


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    "Loss and gradients of every method, computed by two processes."
    out = tmp_path_factory.mktemp("ranks") / "out.pt"
    done = program(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "tests" / "contract.py", out, cwd=ROOT)
    assert out.is_file(), done.stdout + done.stderr
    return torch.load(out, weights_only=True)


@each
def test_two_processes_agree_with_one(name, shared):
    method, parts, gradients = loss_and_gradients(METHODS[name], **exact(METHODS[name]))
    two = shared[name]
    assert isinstance(two, dict), two
    torch.testing.assert_close(two["parts"]["loss"], parts["loss"], rtol=1e-5, atol=1e-6)
    assert two["gradients"].keys() == gradients.keys()
    total = float(torch.stack([g.norm() for g in gradients.values()]).norm())
    for k, g in gradients.items():        # batch norm of a few rows amplifies rounding
        away, size = float((two["gradients"][k] - g).norm()), float(g.norm())
        assert away <= 5e-3 * size + 1e-5 * total, f"{k}: {away:.2e} of {size:.2e}"


@each
def test_parts_of_a_batch_are_the_batch_or_a_resume_keeps_them(name):
    "Two halves, accumulated, have the gradients of the whole; where they have not, a run resumed with other parts is refused."
    _, whole, gradients = loss_and_gradients(METHODS[name], **exact(METHODS[name]))
    method, parts, halves = loss_and_gradients(METHODS[name], accumulate=2, **exact(METHODS[name]))
    total = float(torch.stack([g.norm() for g in gradients.values()]).norm())
    away = max(float((halves[k] - g).norm()) for k, g in gradients.items()) / total
    assert (away > 1e-3) == ("accumulate" in method.depends_on(1, 2)) and (away < 1e-5 or away > 1e-3), f"{away:.1e} {method.depends_on(1, 2)}"
    if away < 1e-5: torch.testing.assert_close(parts["loss"], whole["loss"], rtol=1e-5, atol=1e-6)


@each
def test_facts_are_told(name):
    about = built(METHODS[name])[0].about
    assert about.title and about.source and about.licence and about.cost > 0
