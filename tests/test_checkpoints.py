"""Files that others can load: plain keys in every mode, nothing but tensors and numbers inside."""
import json

import pytest
import timm
import torch
import torch.nn as nn
from safetensors.torch import load_file

from conftest import STEPS, TINY, as_after, same_weights, train, weights

MODEL = "vit_tiny_patch16_224"


@pytest.fixture
def fast_compile(monkeypatch):
    "torch.compile without its slow part: modules are wrapped as ever, and then run as they are."
    real, used = nn.Module.compile, []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: (used.append(type(self).__name__), real(self, **options))[1])
    with torch.compiler.set_stance("force_eager"): yield used


def close(a, b):
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=1e-5, atol=1e-6)


def test_compiled_and_plain_runs_resume_each_other(work, packed, whole, fast_compile):
    short = dict(data_dir=str(packed), epochs=2, keep=4)
    compiled = train(work / "compiled", compile=True, **short)
    assert fast_compile == ["MaskedAutoencoder"]
    assert not any("_orig_mod" in k or k.startswith("module.") for k in weights(compiled, 4))
    # compiled, then plain
    mixed = as_after(compiled, 2, work / "compiled-plain")
    train(mixed, resume=True, **short)
    close(weights(mixed, 4), weights(compiled, 4))
    # plain, then compiled
    back = as_after(whole, 10, work / "plain-compiled")
    train(back, data_dir=str(packed), compile=True, resume=True)
    assert len(fast_compile) == 2
    close(weights(back), weights(whole))
    # the product has timm's keys in every mode
    keys = set(timm.create_model(MODEL, img_size=TINY["img_size"], num_classes=0).state_dict())
    for run in (compiled, mixed, back, whole): assert set(load_file(run / "encoder" / "model.safetensors")) == keys


def test_every_checkpoint_loads_with_weights_only(whole):
    files = sorted((whole / "checkpoints").iterdir())
    assert [f.name for f in files] == [f"step-{s:08d}.pt" for s in range(2, STEPS + 1, 2)]
    for f in files:
        state = torch.load(f, weights_only=True)
        assert state["step"] == int(f.stem.split("-")[1]) and type(state["step"]) is int
        assert {"method", "optimizer"} <= state.keys() and all(isinstance(v, torch.Tensor) for v in state["method"].values())


def test_timm_loads_the_encoder_and_it_is_the_trained_one(whole):
    config = json.loads((whole / "encoder" / "config.json").read_text(encoding="utf-8"))
    assert config["architecture"] == MODEL
    encoder = timm.create_model(f"local-dir:{whole / 'encoder'}", pretrained=True)
    trained = {k.removeprefix("mae.encoder."): v for k, v in weights(whole).items() if k.startswith("mae.encoder.")}
    assert same_weights(encoder.state_dict(), trained)


def test_kept_checkpoints_and_foreign_weights(work, packed):
    "Saved at every step, two are kept; the prefixed weights of other codes start a run, all of their tensors or none."
    from vasomim.core import InputError
    run = train(work / "kept", data_dir=str(packed), epochs=2, save_every=0.5, keep=2)
    assert sorted(f.name for f in (run / "checkpoints").iterdir()) == ["step-00000003.pt", "step-00000004.pt"]
    state = weights(run, 4)
    torch.save({"model": {f"backbone.{k}": v for k, v in state.items()}}, work / "foreign.pt")
    from vasomim.pretrain import PretrainConfig
    from vasomim.training.loop import initialise
    from vasomim.training.method import find_method
    method = find_method("vasomim")(PretrainConfig(**TINY))
    fresh = {k: v.clone() for k, v in method.state_dict().items()}
    with pytest.raises(InputError, match=rf"foreign.pt: 0 of the model's {len(method.encoder.state_dict())} tensors"): initialise(method, work / "foreign.pt")
    assert same_weights(fresh, method.state_dict())
    torch.save({"epoch": 3, "model": {f"module._orig_mod.{k}": v for k, v in method.encoder.state_dict().items()}}, work / "encoder.pt")
    with torch.no_grad(): method.encoder.cls_token.add_(1)
    assert initialise(method, work / "encoder.pt") == len(method.encoder.state_dict()) and same_weights(fresh, method.state_dict())
    assert initialise(method, run / "checkpoints" / "step-00000004.pt") == len(state) and same_weights(state, method.state_dict())
