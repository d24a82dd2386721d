"""Files that others can load: plain keys in every mode, nothing but tensors and numbers inside."""
import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from conftest import STEPS, TINY, as_after, same_weights, train, weights

MODEL = TINY["model"]


def close(a, b):
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=1e-5, atol=1e-6)


def test_compiled_and_plain_runs_resume_each_other(work, packed, whole, fast_compile):
    "Plain, then compiled, then plain again; saved at every step, the two newest are kept."
    compiled = as_after(whole, 8, work / "plain-compiled")
    train(compiled, data_dir=str(packed), resume=True, compile=True, save_every=0.5, keep=2)
    assert fast_compile == ["MaskedAutoencoder"]
    assert sorted(f.name for f in (compiled / "checkpoints").iterdir()) == ["step-00000011.pt", "step-00000012.pt"]
    close(weights(compiled), weights(whole))
    plain = as_after(compiled, 11, work / "compiled-plain")
    train(plain, data_dir=str(packed), resume=True)
    assert len(fast_compile) == 1
    close(weights(plain), weights(whole))
    keys = set(timm.create_model(MODEL, img_size=TINY["img_size"], num_classes=0).state_dict())       # the product has timm's keys in every mode
    for run in (compiled, plain, whole): assert set(load_file(run / "encoder" / "model.safetensors")) == keys


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


def test_weights_of_other_codes_are_taken_whole_or_refused(work, whole):
    "Prefixes of wrappers are known; of foreign names none is taken, and the network stays as it was."
    from vasomim.core import InputError
    from vasomim.pretrain import PretrainConfig
    from vasomim.training.loop import initialise
    from vasomim.training.method import find_method
    method = find_method("vasomim")(PretrainConfig(**TINY))
    fresh, count, trained = {k: v.clone() for k, v in method.state_dict().items()}, len(method.encoder.state_dict()), load_file(whole / "encoder" / "model.safetensors")
    torch.save({"model": {f"backbone.{k}": v for k, v in trained.items()}}, work / "foreign.pt")
    with pytest.raises(InputError, match=f"foreign.pt: 0 of the model's {count} tensors"): initialise(method, work / "foreign.pt")
    assert same_weights(fresh, method.state_dict())
    torch.save({"epoch": 3, "model": {f"module._orig_mod.{k}": v for k, v in trained.items()}}, work / "prefixed.pt")
    assert initialise(method, work / "prefixed.pt") == count and same_weights(method.encoder.state_dict(), trained)
    state = weights(whole)
    assert initialise(method, whole / "checkpoints" / f"step-{STEPS:08d}.pt") == len(state) and same_weights(state, method.state_dict())
