"A further method is one file: dropped in, it has its preset, its options, its run and its encoder, and nothing else is touched."
import textwrap

import pytest
import timm

from conftest import TINY
from vasomim.core import InputError
from vasomim.figures import draw_run

METHOD = '''
from dataclasses import dataclass
import torch
import torch.nn as nn
from vasomim.mae import create_encoder, patchify
from vasomim.masking import make_sampler
from vasomim.methods.mae import spread
from vasomim.training.method import Method, Recipe, View, method_options


class Filling(Method):
    "Masked patches are painted with a learned gray, the whole image goes through the encoder, a linear head predicts pixels (L1)."
    presets = {"filling": dict(method="filling", mask_ratio=0.6, masking="random")}

    @dataclass(frozen=True)
    class Options:
        smooth: float = 0.5

    def __init__(self, config):
        super().__init__()
        self.options = method_options(Filling, config.options)
        self.backbone = create_encoder(config.model, config.img_size, config.in_chans)
        self.views, self.recipe = (View(size=tuple(self.backbone.patch_embed.img_size), vessels=False),), Recipe(lr=config.lr)
        self.sampler, self.paint = make_sampler(config.masking, mask_ratio=config.mask_ratio), nn.Parameter(torch.zeros(()))
        ph, pw = self.backbone.patch_embed.patch_size
        self.head = nn.Linear(self.backbone.embed_dim, ph * pw)
        self.register_buffer("steps", torch.zeros(()))

    @property
    def encoder(self): return self.backbone
    def after_step(self, progress): self.steps += 1

    def forward(self, batch, progress):
        x, embed = batch.images["image"], self.backbone.patch_embed
        mask = self.sampler(torch.ones(len(x), embed.num_patches), progress, batch.random)
        shown = torch.where(spread(mask, embed.grid_size, embed.img_size), self.paint, x)
        tokens = self.backbone.forward_features(shown.expand(-1, embed.proj.in_channels, -1, -1))[:, self.backbone.num_prefix_tokens:]
        error = nn.functional.smooth_l1_loss(self.head(tokens), patchify(x, embed.patch_size), reduction="none", beta=self.options.smooth).mean(-1)
        return dict(loss=(error * mask).sum() / mask.sum())


METHOD = Filling
'''


@pytest.fixture
def dropped_in(tmp_path, monkeypatch):
    "The file lies in a folder that belongs to the package of methods."
    import sys
    import vasomim.methods
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "filling.py").write_text(textwrap.dedent(METHOD), encoding="utf-8")
    monkeypatch.setattr(vasomim.methods, "__path__", [*vasomim.methods.__path__, str(tmp_path / "more")])
    yield
    sys.modules.pop("vasomim.methods.filling", None)


def test_one_file_is_a_method(dropped_in, tmp_path):
    from vasomim.pretrain import PretrainConfig, pretrain
    small = {k: v for k, v in TINY.items() if k in ("model", "img_size", "pack_size", "border", "threads", "device")}
    config = PretrainConfig.of(preset="filling", smooth=0.25, run_dir=str(tmp_path / "run"), cache_dir=str(tmp_path / "packed"), phantoms=8, epochs=2, batch_size=4, warmup_epochs=1, **small)
    assert (config.method, config.mask_ratio, config.options) == ("filling", 0.6, {"smooth": 0.25})
    run = pretrain(config)
    rows = (run / "metrics.csv").read_text(encoding="utf-8").split()
    assert rows[0] == "step,epoch,progress,lr,loss,grad_norm" and len(rows) == 5
    assert [p.name for p in draw_run(run)] == ["losses.png"]
    timm.create_model(f"local-dir:{run / 'encoder'}", pretrained=True)
    with pytest.raises(InputError, match="did you mean 'smooth'"): PretrainConfig.of(preset="filling", smoth=1)
    with pytest.raises(InputError, match="did you mean 'filling'"): PretrainConfig(preset="fillin")
