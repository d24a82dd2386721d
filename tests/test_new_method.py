"A further method is one file, made from the template: dropped in, it has its preset, its options, its place in the table, its run and its encoder, and nothing else is touched."
import sys

import nbformat
import pytest
import timm
from nbdev.export import nb_export

from conftest import ROOT, TINY
from vasomim.core import InputError
from vasomim.figures import draw_run

TEMPLATE = ROOT / "nbs" / "_templates" / "method.ipynb"


@pytest.fixture(scope="module")
def dropped_in(tmp_path_factory):
    "What the template exports lies in a folder that belongs to the package of methods."
    import vasomim.methods
    more = tmp_path_factory.mktemp("more")
    (more / "methods").mkdir()
    nb_export(TEMPLATE, lib_path=more)
    before = vasomim.methods.__path__
    vasomim.methods.__path__ = [*before, str(more / "methods")]
    yield more / "methods" / "filling.py"
    vasomim.methods.__path__ = before
    sys.modules.pop("vasomim.methods.filling", None)


def test_one_file_is_a_method(dropped_in, tmp_path, capsys):
    from vasomim.cli_methods import MethodsOptions, methods_command
    from vasomim.pretrain import PretrainConfig, pretrain
    small = {k: v for k, v in TINY.items() if k in ("model", "img_size", "pack_size", "border", "threads", "device")}
    config = PretrainConfig.of(preset="filling", beta=0.25, run_dir=str(tmp_path / "run"), cache_dir=str(tmp_path / "packed"), phantoms=8, epochs=2, batch_size=4, warmup_epochs=1, **small)
    assert (config.method, config.mask_ratio, config.options) == ("filling", 0.6, {"beta": 0.25})
    run = pretrain(config)
    rows = (run / "metrics.csv").read_text(encoding="utf-8").split()
    assert rows[0] == "step,epoch,progress,lr,loss,grad_norm" and len(rows) == 5
    assert [p.name for p in draw_run(run)] == ["losses.png"]
    timm.create_model(f"local-dir:{run / 'encoder'}", pretrained=True)
    with pytest.raises(InputError, match="did you mean 'beta'"): PretrainConfig.of(preset="filling", betta=1)
    with pytest.raises(InputError, match="did you mean 'filling'"): PretrainConfig(preset="fillin")
    methods_command(MethodsOptions("filling"))
    assert "random, 60 %" in capsys.readouterr().out


def test_template_passes_its_own_tests_and_the_contract(dropped_in, monkeypatch):
    from contract import loss_and_gradients, presets, step_without_values
    assert presets()["filling"] == "filling"
    assert loss_and_gradients("filling")[2] and set(step_without_values("filling").values()) == {"cuda"}
    monkeypatch.chdir(ROOT)
    names = {}
    for cell in nbformat.read(TEMPLATE, 4).cells:
        if cell.cell_type == "code" and "nbdev_export" not in cell.source: exec(compile(cell.source, str(TEMPLATE), "exec"), names)
    assert names["proof"].tensors > 0
