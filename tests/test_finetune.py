"""Fine-tuning as its users run it: killed and resumed, shared by processes, from notebooks and commands, with files and options that are wrong."""
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT, environment, finished, flags, job, until
from fakes_labelled import CATEGORIES, annotation, coco_image, outlines, put, voc, write
from test_cli import assert_portable, refused
from test_learning import NoDouble
from test_papermill import outputs
from vasomim.core import InputError
from vasomim.data.phantom import phantom

SMALL = dict(encoder="test_vit", size=64, phantom_size=64, epochs=5, batch_size=4, lr=2e-3, device="cpu", threads=1, log_every=1)
MASKS = dict(SMALL, phantoms=12, resplit=1 / 3, drop_path=0.1, options=dict(base_channels=4))          # 8 images to train on: 10 steps
BOXES = dict(MASKS, task="detection", model="vitdet", phantom_size=128, size=128, options=dict(width=16, convs=1, fc=32, candidates=(100, 50), proposals=(50, 20), samples=(32, 16)))
LOOKS = dict(SMALL, task="segments", data="auto", epochs=6, lr=5e-3, select="best", options=dict(base_channels=4))


def person(i, size=64): return phantom(i, size=size, stenoses=2)


def pairs(root, size=64, **counts):
    "A folder of images and masks in pairs, of phantoms: pairs(root, train=4, val=2, test=3)."
    for k, (part, n) in enumerate(counts.items()):
        for i in range(n):
            p = person(100 * k + i, size)
            put(root / part / "img" / f"{i}.png", p.image); put(root / part / "label" / f"{i}.png", p.vessels)
    return root


def arcade(root, keep=lambda part, c: True, size=64, **counts):
    "ARCADE's tree, of phantoms; keep(part, class): whether a segment is drawn."
    for k, (part, n) in enumerate(counts.items()):
        people = {f"{i + 1}.png": person(100 * k + i, size) for i in range(n)}
        drawn = [annotation(7, i, int(c), outlines(p.segments == c)) for i, p in enumerate(people.values(), 1) for c in p.segments.unique() if c and keep(part, int(c))]
        for name, p in people.items(): put(root / "syntax" / part / "images" / name, p.image)
        images = [coco_image(i, name, size, size) for i, name in enumerate(people, 1)]
        write(root / "syntax" / part / "annotations" / f"{part}.json", json.dumps(dict(categories=CATEGORIES, images=images, annotations=drawn)))
    return root


def tuned(run_dir, **options):
    "A run in this process: (its folder, what was said)."
    from vasomim.downstream.config import FinetuneConfig
    from vasomim.finetune import finetune
    said = io.StringIO()
    with redirect_stdout(said): run = finetune(FinetuneConfig(**{**options, "run_dir": str(run_dir)}))
    return run, said.getvalue()


def settings(path, **options):
    "A file for --config."
    from vasomim.downstream.config import FinetuneConfig
    path.write_text(FinetuneConfig(**options).to_json(), encoding="utf-8")
    return path


def rows(path, without=("seconds", "commit")):      # somebody may commit meanwhile
    with open(path, newline="", encoding="utf-8") as f: return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(f)]


def numbers(run, part="test"): return {(int(r["seed"]), r["metric"]): float(r["value"]) for r in rows(run / "results.csv") if r["part"] == part}


# ---------------------------------------------------------------------------------------------------------------- killed and resumed
SELF_KILL = """
import os, signal, sys
from vasomim.downstream.training import Finetuning
look, left = Finetuning.after_epoch, [int(sys.argv.pop(1))]
def after_epoch(self, epoch, place):
    scores = look(self, epoch, place)
    left[0] -= 1
    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
    return scores
Finetuning.after_epoch = after_epoch
from vasomim.finetune import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def labelled(work):
    "ARCADE of phantoms, with a validation part."
    return arcade(work / "arcade", train=8, val=4, test=5)


@pytest.fixture(scope="module")
def runs(work, labelled):
    "name -> (options, the uninterrupted run, the same after SIGKILL in the second of two seeds and a resume, what the resume said). All three are killed side by side."
    cache = str(work / "labelled")
    kinds = dict(masks=dict(MASKS, cache_dir=cache, seeds=(0, 1)), boxes=dict(BOXES, cache_dir=cache, seeds=(0, 1)),
                 looks=dict(LOOKS, data_dir=str(labelled), cache_dir=cache, seeds=(0, 1)))
    files = {name: settings(work / f"{name}.json", **options, run_dir=str(work / f"{name}-killed")) for name, options in kinds.items()}
    heads = dict.fromkeys(kinds, (sys.executable, "-m", "vasomim.finetune")) | dict(looks=(sys.executable, "-c", SELF_KILL, 6 + 4))       # after the 4th look of the second seed
    def killed_in_the_middle(name):
        process = job(work, *heads[name], config=files[name])
        if name != "looks": until(process, "seed 1 (2 of 2)"); until(process, "step 5/10 "); os.kill(process.pid, signal.SIGKILL)
        return finished(process)
    with ThreadPoolExecutor(3) as pool:
        ends = {name: pool.submit(killed_in_the_middle, name) for name in kinds}
        whole = {name: tuned(work / f"{name}-whole", **options)[0] for name, options in kinds.items()}
    out = {}
    for name, options in kinds.items():
        code, text = ends[name].result()
        killed = work / f"{name}-killed"
        assert code == -signal.SIGKILL, text
        assert (killed / "seed-0" / "results.csv").is_file() and (killed / "seed-1" / "metrics.csv").is_file() and not (killed / "seed-1" / "results.csv").exists()
        assert {r["seed"] for r in rows(killed / "results.csv")} == {"0"}
        if name == "masks": open(killed / "seed-1" / "metrics.csv", "a", encoding="utf-8").write("7,3,0.5")     # a row that the kill cut short
        out[name] = options, whole[name], *tuned(killed, **options, resume=True)
    return out


@pytest.mark.parametrize("name", ["masks", "boxes", "looks"])
def test_killed_in_the_second_seed_and_resumed_is_as_if_nothing_had_happened(runs, name):
    options, whole, run, said = runs[name]
    steps = 2 * options["epochs"]
    assert "seed 1 (2 of 2)" in said and re.search(r"resumed after step [2-9]", said) and f"step 2/{steps} " not in said      # neither seed begins anew
    assert rows(run / "results.csv") == rows(whole / "results.csv") and {r["seed"] for r in rows(run / "results.csv")} == {"0", "1"}
    for seed in ("seed-0", "seed-1"):
        a, b = run / seed, whole / seed
        for file in ("metrics.csv", "scores.csv", "network/model.safetensors", "network/config.json"): assert (a / file).read_bytes() == (b / file).read_bytes(), (seed, file)
        assert [r["step"] for r in rows(a / "metrics.csv")] == [str(s) for s in range(1, steps + 1)]
        assert json.loads((a / "status.json").read_text(encoding="utf-8"))["state"] == "finished"
        assert {p.name for p in a.rglob("*") if p.is_file()} - {p.name for p in b.rglob("*")} <= {p.name for p in a.glob("tensorboard/*")}
    assert not [p for p in run.rglob("*.tmp")]


def test_best_weights_survive_a_kill_right_after_a_look(runs):
    "The look that was lost is made again; what was best before is still known."
    options, whole, run, _ = runs["looks"]
    for seed in ("seed-0", "seed-1"):
        for file in ("validation.csv", "classes.csv"): assert (run / seed / file).read_bytes() == (whole / seed / file).read_bytes(), (seed, file)
        looks = [float(r["score"]) for r in rows(run / seed / "validation.csv")]
        assert [r["epoch"] for r in rows(run / seed / "validation.csv")] == [str(e) for e in range(6)]
        product, last = load_file(run / seed / "network" / "model.safetensors"), torch.load(run / seed / "checkpoints" / "step-00000012.pt", weights_only=True)["method"]
        assert all(torch.equal(v, last[f"kept.{k}"]) for k, v in product.items()) and float(last["best"]) == pytest.approx(max(looks), abs=1e-4)
        changed = any(not torch.equal(v, last[f"network.{k}"]) for k, v in product.items())
        assert changed == (looks.index(max(looks)) != 5)
        value = next(float(r["value"]) for r in rows(run / seed / "results.csv") if r["part"] == "val" and r["metric"] == "dice")
        assert value == pytest.approx(max(looks), abs=1e-3)         # the numbers are those of the weights that were chosen


def test_finished_run_takes_more_seeds_and_refuses_other_settings(runs, work):
    options, whole, run, _ = runs["masks"]
    before = rows(run / "results.csv", without=())
    for why, changes in (("holds a run already", {}), ("lr: 0.002 -> 0.003", dict(resume=True, lr=3e-3)), ("phantoms: 12 -> 13", dict(resume=True, phantoms=13))):
        with pytest.raises(InputError, match=why): tuned(run, **{**options, **changes})
    assert rows(run / "results.csv", without=()) == before
    tuned(run, **{**options, "resume": True, "seeds": (2,)})
    after = rows(run / "results.csv", without=())
    assert after[:len(before)] == before and [r["seed"] for r in after[len(before):]] == ["2"] * (len(before) // 2)
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["seeds"] == [0, 1, 2]


def test_every_path_of_three_seeds_fits_any_file_system(runs):
    from vasomim.figures_finetune import draw_finetuning
    for name in ("masks", "boxes", "looks"):
        draw_finetuning(runs[name][2])
        assert_portable(runs[name][2])
    assert_portable(Path(runs["masks"][0]["cache_dir"]))


# ---------------------------------------------------------------------------------------------------------------- several processes
TOGETHER = """
import json, os, signal, sys
from pathlib import Path
from vasomim.downstream.config import FinetuneConfig
from vasomim.downstream.evaluate import evaluate
from vasomim.downstream.product import load_network
from vasomim.finetune import finetune, read_parts
from vasomim.training.launch import Place, join
from vasomim.training.loop import Trainer
folder, told, steps = Path(sys.argv[1]), {}, []
fit, train_step = Trainer.fit, Trainer.train_step
Trainer.fit = lambda self: steps.append(fit(self))
config = {name: FinetuneConfig.read(folder / f"{name}.json") for name in ("two", "uneven", "killed", "boxes")}
with join("cpu", 1) as place:
    for name in ("two", "uneven"): finetune(config[name])
    for name, run in (("two", folder / "two"), ("boxes", sys.argv[2])):
        data, (network, _) = read_parts(config[name], lambda *a: None)["test"], load_network(run)
        for p in (place, Place(0, 1, place.device)):
            scores = evaluate(network, data, p, 4)
            told[f"{name}-{p.world}"] = dict(n=len(scores.table), ids=scores.table["id"].tolist(), summary=scores.summary, columns={c: scores.table[c].tolist() for c in scores.table.columns[2:]})
    told = place.gather([dict(told, steps=steps)])
    if place.first: (folder / "together.json").write_text(json.dumps(told), encoding="utf-8")
    place.gather([])
    def step(self):
        train_step(self)
        if self.step == 5: os.kill(os.getpid(), signal.SIGKILL)
    Trainer.train_step = step
    finetune(config["killed"])
"""
TWO = dict(MASKS, phantoms=29, resplit=21 / 29, drop_path=0.0, lr=2e-4)      # 8 images to train on, 21 to test on; drop path is drawn by each process for itself


@pytest.fixture(scope="module")
def together(work, runs):
    "(told by both processes, output, options, one process's run) of a torchrun that trains, trains on 5 images, evaluates 21, and is killed in another training."
    folder, cache = work / "together", str(work / "labelled")
    folder.mkdir()
    two = dict(TWO, cache_dir=cache)
    for name, options in dict(two=two, killed=two, uneven=dict(two, phantoms=8, resplit=3 / 8, epochs=2), boxes=dict(BOXES, phantoms=29, resplit=21 / 29, cache_dir=cache)).items():
        settings(folder / f"{name}.json", **options, run_dir=str(folder / name))
    write(folder / "script.py", TOGETHER)
    process = job(work, sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", folder / "script.py", folder, runs["boxes"][1])
    one, _ = tuned(folder / "one", **two)
    code, said = finished(process)
    assert code != 0 and (folder / "together.json").is_file(), said
    return json.loads((folder / "together.json").read_text(encoding="utf-8")), said, folder, two


def same_training(run, other):
    """Losses and gradients to 1e-5, weights to 3e-5: AdamW divides small gradients by themselves, so that a change of all weights by 1e-7 in one process
    makes 1.5e-5 of it in ten steps at a rate of 2e-4.
    Biases in front of a batch norm have no gradient but rounding, and the norm takes them away again: they, and the running means that follow them, are looked at through the logits only."""
    from vasomim.downstream.product import load_network
    a, b = rows(run / "seed-0" / "metrics.csv"), rows(other / "seed-0" / "metrics.csv")
    assert [(r["step"], r["epoch"], r["lr"]) for r in a] == [(r["step"], r["epoch"], r["lr"]) for r in b]
    for name in ("loss", "dice_loss", "cross_entropy", "grad_norm"): np.testing.assert_allclose([float(r[name]) for r in a], [float(r[name]) for r in b], rtol=1e-5, err_msg=name)
    (x, _), (y, _) = load_network(run), load_network(other)
    own, theirs = x.state_dict(), y.state_dict()
    norms = [k.removesuffix(".running_mean") for k in own if k.endswith("running_mean")]
    free = {f"{n.rpartition('.')[0]}.{int(n.rpartition('.')[2]) - 1}.bias" for n in norms} | {f"{n}.running_mean" for n in norms}
    worst = {k: float((v.float() - theirs[k].float()).abs().max()) for k, v in own.items() if k not in free}
    assert len(worst) > 80 and max(worst.values()) < 3e-5, sorted(worst.items(), key=lambda kv: -kv[1])[:5]
    images = torch.stack([person(i).image for i in range(4)])
    with torch.no_grad(): assert x(images).std() > 0.1 and (x(images) - y(images)).abs().max() < 2e-3
    x.train(), y.train()          # norms of the batch: the same without their memory
    with torch.no_grad(): assert (x(images) - y(images)).abs().max() < 2e-4


def test_two_processes_train_as_one(together):
    _, said, folder, _ = together
    assert "2 process(es), cpu, 1 thread(s) each" in said and said.count("step 3/10 ") == 2       # of the run and of the killed one: only the first process speaks
    same_training(folder / "two", folder / "one")


@pytest.mark.parametrize("name", ["two", "boxes"])
def test_21_images_are_judged_once_each(together, name):
    told = together[0]
    assert told[0][f"{name}-2"] == told[1][f"{name}-2"]           # both processes have all scores
    both, alone = told[0][f"{name}-2"], told[0][f"{name}-1"]
    assert both["n"] == alone["n"] == 21 and both["ids"] == alone["ids"] and len(set(both["ids"])) == 21
    for key, value in alone["summary"].items(): assert both["summary"][key] == pytest.approx(value, abs=1e-6, nan_ok=True)
    for key, values in alone["columns"].items(): assert both["columns"][key] == pytest.approx(values, abs=1e-6, nan_ok=True)
    if name == "two": assert all(r["images"] == "21" for r in rows(together[2] / "two" / "results.csv"))


def test_uneven_images_end_with_the_same_steps_in_both_processes(together):
    told, said, folder, _ = together
    assert told[0]["steps"] == told[1]["steps"] == [10, 2]
    assert "5 images, 2 steps of 4 images (1 of 5 images sit out each epoch" in said
    assert rows(folder / "uneven" / "results.csv")[0]["train_images"] == "5"


def test_killed_on_two_processes_and_resumed_on_one(together):
    _, said, folder, two = together
    assert not (folder / "killed" / "results.csv").exists() and [p.name for p in sorted((folder / "killed" / "seed-0" / "checkpoints").iterdir())] == ["step-00000002.pt", "step-00000004.pt"]
    run, said = tuned(folder / "killed", **two, resume=True)
    assert "resumed after step 4" in said and "1 process(es)" in said
    same_training(run, folder / "two")


# ---------------------------------------------------------------------------------------------------------------- checkpoints
def test_every_file_of_weights_loads_without_pickled_code(runs):
    for name in ("masks", "boxes", "looks"):
        files = [f for f in runs[name][2].rglob("*") if f.suffix in (".pt", ".safetensors")]
        assert sum(f.name.startswith("step-") for f in files) >= 4 and len(files) > sum(f.name.startswith("step-") for f in files)
        for f in files:
            state = load_file(f) if f.suffix == ".safetensors" else torch.load(f, weights_only=True)
            assert all(isinstance(v, torch.Tensor) for v in (state["method"] if f.name.startswith("step-") else state).values()), f


def test_prefixed_encoder_is_taken_whole_and_another_one_is_refused(work):
    import timm
    make = lambda name, **options: timm.create_model(name, img_size=64, num_classes=0, **options)
    vit, options = make("test_vit"), dict(MASKS, cache_dir=str(work / "labelled"), epochs=1, lr=1e-9)
    torch.save({"epoch": 3, "model": {f"module._orig_mod.{k}": v for k, v in vit.state_dict().items()}}, work / "wrapped.pt")
    run, said = tuned(work / "wrapped", **options, checkpoint=str(work / "wrapped.pt"))
    count = len(vit.state_dict())
    assert f"weights: {count} of {count} tensors of test_vit from" in said and f"{count} of {count} tensors" in json.loads((run / "seed-0" / "data.json").read_text(encoding="utf-8"))["weights"]
    product = load_file(run / "seed-0" / "network" / "model.safetensors")
    for k, v in vit.state_dict().items():
        if not k.startswith("norm."): torch.testing.assert_close(product[f"encoder.{k}"], v, rtol=0, atol=1e-6)
    assert {r["checkpoint"] for r in rows(run / "results.csv")} == {str(work / "wrapped.pt")}
    for name, state, why in (("wider.pt", make("vit_tiny_patch16_224").state_dict(), "wider.pt: holds a ViT of width 192, depth 12.*test_vit has width 64"),
                             ("finer.pt", make("test_vit", patch_size=8).state_dict(), "finer.pt: holds a ViT of .*patch 8x8.*but test_vit has .*patch 16x16"),
                             ("resnet.pt", timm.create_model("resnet10t").state_dict(), "resnet.pt: no vision transformer in it"),
                             ("nan.pt", {k: v * float("nan") for k, v in vit.state_dict().items()}, "nan.pt: .* hold NaN")):
        torch.save(state, work / name)
        with pytest.raises(InputError, match=why): tuned(work / "refused", **options, checkpoint=str(work / name))
    assert not (work / "refused").exists()          # before anything is read or written


def test_unet_begins_with_what_model_genesis_left(work):
    "Pre-trained, fine-tuned by the notebook's names, compared with the same from scratch; what does not fit is refused before anything is read."
    import timm
    from vasomim.downstream.config import FinetuneConfig
    from vasomim.pretrain import PretrainConfig, pretrain
    tiny = dict(phantoms=8, pack_size=64, img_size=64, border=4, epochs=2, batch_size=4, device="cpu", threads=1)
    with redirect_stdout(io.StringIO()): left = pretrain(PretrainConfig.of(**tiny, preset="modelgenesis", base_channels=2, shuffle_windows=500, run_dir=str(work / "genesis"), cache_dir=str(work / "packed")))
    given = dict(data="phantoms", phantoms=12, phantom_size=64, resplit=1 / 3, size=64, epochs=1, batch_size=4, lr=1e-9, device="cpu", threads=1, model="unet", backbone="resnet18", base_channels=2, cache_dir=str(work / "labelled"))
    begin = lambda name, **more: tuned(work / name, **{k: v for k, v in vars(FinetuneConfig.of(**given | more)).items() if k != "run_dir"})
    (run, said), (scratch, plain) = begin("of-genesis", checkpoint=str(left)), begin("of-nothing")
    before, after, random = (load_file(p) for p in (left / "encoder" / "model.safetensors", *(r / "seed-0" / "network" / "model.safetensors" for r in (run, scratch))))
    assert f"weights: {len(before) - 2} of {len(before)} tensors of a unet (resnet18) from {left}; the last layer (2 tensors) is new" in said and "weights: random (seed 0)" in plain
    learned = lambda k: not k.split(".")[-1].startswith(("running", "num_batches"))      # a step of 1e-9 leaves weights, not statistics, as they were
    for k, v in before.items():
        if not learned(k): continue
        if k.startswith("segmentation_head"): torch.testing.assert_close(after[f"unet.{k}"], random[f"unet.{k}"], rtol=0, atol=1e-6)
        else: torch.testing.assert_close(after[f"unet.{k}"], v, rtol=0, atol=1e-6)
    assert {r["method"] for r in rows(run / "results.csv")} == {"modelgenesis"} and {r["method"] for r in rows(scratch / "results.csv")} == {"unet"}
    assert {r["checkpoint"] for r in rows(run / "results.csv")} == {str(left)} and len({r["config"] for r in (*rows(run / "results.csv"), *rows(scratch / "results.csv"))}) == 2
    for more, why in ((dict(backbone="mobilenet_v2"), "of a unet with backbone='mobilenet_v2'.*trained with backbone='resnet18' and base_channels=2"), (dict(model="unet_adapter", backbone=None), "holds a UNet, not a vision transformer")):
        with pytest.raises(InputError, match=why): begin("refused", checkpoint=str(left), **more)
    torch.save({"model": timm.create_model("test_vit", img_size=64, num_classes=0).state_dict()}, work / "vit.pt")
    with pytest.raises(InputError, match="holds a vision transformer, not a UNet"): begin("refused", checkpoint=str(work / "vit.pt"))
    assert not (work / "refused").exists()


# ---------------------------------------------------------------------------------------------------------------- notebook
BOOK = {k: v for k, v in SMALL.items() if k not in ("epochs", "batch_size")} | dict(epochs=2, batch_size=2, base_channels=4)


def papermill(cwd, out, yaml="", **parameters):
    "A started papermill of the notebook."
    given = [w for k, v in parameters.items() for w in ("-p", k, str(v))] + (["-y", yaml] if yaml else [])
    return subprocess.Popen(["papermill", str(ROOT / "nbs" / "finetune.ipynb"), out, "-k", "python3", "--no-progress-bar", *given], cwd=cwd, env=environment(), text=True, encoding="utf-8",
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    "Five notebooks from a folder with a blank and an umlaut, two at a time: masks of files by two processes, boxes of phantoms; and three that must fail."
    caller = tmp_path_factory.mktemp("finetune") / "meine Läufe"
    pairs(caller / "angios", train=4, test=3); (caller / "empty").mkdir()
    small = {k: v for k, v in BOOK.items() if k != "base_channels"} | dict(width=16, convs=1, fc=32, size=128, phantom_size=128)
    pile = [dict(masks=dict(BOOK, data_dir="angios", run_dir="runs/masks", nproc=2, yaml="seeds: [0, 1]"),
                 boxes=dict(small, task="detection", model="vitdet", phantoms=6, resplit=0.5, run_dir="runs/boxes", yaml="{candidates: [100, 50], proposals: [50, 20]}")),
            dict(misspelt=dict(BOOK, epoch=3, run_dir="runs/misspelt"),
                 empty=dict(BOOK, data_dir="empty", run_dir="runs/empty"), contrary=dict(BOOK, data="phantoms", data_dir="angios", run_dir="runs/contrary"))]
    told = {}
    for pair in pile:
        started = {name: papermill(caller, f"{name}.ipynb", **options) for name, options in pair.items()}
        told |= {name: finished(process) for name, process in started.items()}
    return caller, told


def test_notebook_of_masks_from_another_folder(books):
    caller, told = books
    code, said = told["masks"]
    assert code == 0, said[-3000:]
    text, pictures = outputs(caller / "masks.ipynb")
    run = caller / "runs" / "masks"
    assert f"run folder:     {run}" in text and f"data:           {caller / 'angios'}" in text and text.index(str(run)) < text.index("step ")
    assert not re.search(r"\d phantoms", text) and "2 process(es)" in text and "seed 1 (2 of 2)" in text and "{'train': 4, 'test': 3}" in text
    assert re.search(r"seed 0 +seed 1 +mean +sd +text", text) and re.search(r"\ncldice +[\d.]+ +[\d.]+ ", text) and pictures >= 4
    assert {"training.png", "scores.png", "examples.png"} <= {p.name for p in (run / "pictures").iterdir()}
    assert {r["seed"] for r in rows(run / "results.csv")} == {"0", "1"} and {r["images"] for r in rows(run / "results.csv")} == {"3"}
    assert sorted(p.name for p in (caller / "angios").iterdir()) == ["test", "train"] and len([p for p in (caller / "angios").rglob("*") if p.is_file()]) == 14     # nothing beside the data
    assert sorted(p.name for p in caller.iterdir()) == ["angios", "boxes.ipynb", "contrary.ipynb", "data", "empty", "empty.ipynb", "masks.ipynb", "misspelt.ipynb", "runs"]
    assert sorted(p.name for p in (caller / "runs").iterdir()) == ["boxes", "masks"]


def test_notebook_of_boxes_on_phantoms(books):
    caller, told = books
    code, said = told["boxes"]
    assert code == 0, said[-3000:]
    text, pictures = outputs(caller / "boxes.ipynb")
    assert "6 phantoms" in text and "mAP50" in text and "one class, no picture of classes" in text and pictures >= 4
    config = json.loads((caller / "runs" / "boxes" / "config.json").read_text(encoding="utf-8"))
    assert config["options"] == dict(config["options"], width=16, fc=32, convs=1, candidates=[100, 50], proposals=[50, 20])
    assert text.index("anchors: ") < text.index("step 1/") and {r["metric"] for r in rows(caller / "runs" / "boxes" / "results.csv")} >= {"mAP", "mAP50", "mAP75", "mAP_small"}


@pytest.mark.parametrize("name, why", [("misspelt", "unknown option 'epoch': did you mean 'epochs'?"), ("empty", "empty: no image inside"), ("contrary", "data='phantoms' needs no data_dir (angios)")])
def test_notebook_that_cannot_work_says_why_once(books, name, why):
    caller, told = books
    code, said = told[name]
    assert code != 0 and why in said and said.count("InputError: ") == 1
    text, _ = outputs(caller / f"{name}.ipynb")
    assert "step " not in text and not (caller / "runs" / name).exists()


# ---------------------------------------------------------------------------------------------------------------- command line
def test_command_on_one_core_with_the_backend_of_a_notebook(work):
    "MPLBACKEND names a module that is not there; one core of the machine means one thread."
    tools = write(work / "tools" / "matplotlib_inline" / "__init__.py", "raise ImportError('no notebook tools here')\n").parents[1]
    env = environment(MPLBACKEND="module://matplotlib_inline.backend_inline", PYTHONPATH=f"{tools}{os.pathsep}{environment()['PYTHONPATH']}")
    env.pop("OMP_NUM_THREADS")
    options = {k: v for k, v in MASKS.items() if k not in ("options", "threads")} | dict(epochs=1, seeds=(0, 1, 2), run_dir="runs/three", cache_dir=str(work / "labelled"))
    pin = ("taskset", "-c", str(min(os.sched_getaffinity(0)))) if hasattr(os, "sched_getaffinity") else ()
    done = subprocess.run([*pin, sys.executable, "-m", "vasomim.cli", "finetune", *flags(**options)], cwd=work, env=env, text=True, encoding="utf-8", capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    run = work / "runs" / "three"
    assert "backend" not in done.stderr and {"training.png", "scores.png", "examples.png"} <= {p.name for p in (run / "pictures").iterdir()}
    assert not pin or done.stdout.count("1 process(es), cpu, 1 thread(s) each") == 3
    assert "seed 2 (3 of 3)" in done.stdout and re.search(r"dice +[\d.]+ +[\d.]+", done.stdout) and "cpu, 1 thread(s)" in {r["hardware"] for r in rows(run / "results.csv")}
    assert_portable(work / "runs")


def test_command_refuses_in_one_line(capfd, work, tmp_path):
    (tmp_path / "empty").mkdir()
    place = dict(run_dir=tmp_path / "run", cache_dir=tmp_path / "cache", device="cpu")
    assert "did you mean 'arcade-v'" in refused(capfd, "finetune", *flags(data="arcade-w", data_dir=tmp_path, **place))
    assert "did you mean 'detection'" in refused(capfd, "finetune", *flags(task="detecton", **place))
    assert "needs data_dir" in refused(capfd, "finetune", *flags(data="dca1", **place))
    assert "data='phantoms' needs no data_dir" in refused(capfd, "finetune", *flags(data="phantoms", data_dir=tmp_path, **place))
    assert "no image inside" in refused(capfd, "finetune", *flags(data_dir=tmp_path / "empty", **place))
    assert "nowhere" in refused(capfd, "finetune", *flags(data_dir=tmp_path / "nowhere", **place))
    assert "is for task='segmentation'" in refused(capfd, "finetune", *flags(data="dca1", task="detection", data_dir=tmp_path, **place))
    assert "does detection" in refused(capfd, "finetune", *flags(model="vitdet", **place))
    assert "starts from random weights" in refused(capfd, "finetune", *flags(task="detection", model="fasterrcnn", checkpoint="x", **place))
    assert "checkpoint=x: no such file or folder" in refused(capfd, "finetune", *flags(model="unet", checkpoint="x", **place))
    assert "no such file or folder" in refused(capfd, "finetune", *flags(checkpoint=tmp_path / "gone", **place))
    assert "size 65x65 is not divisible" in refused(capfd, "finetune", *flags(size=65, **place))
    assert "label_fraction=0" in refused(capfd, "finetune", *flags(label_fraction=0.0, **place))
    assert "need a validation part" in refused(capfd, "finetune", *flags(data_dir=pairs(tmp_path / "data", train=1, test=1), select="best", encoder="test_vit", size=64, **place))
    if not torch.backends.mps.is_available(): assert "device='mps': this machine has none" in refused(capfd, "finetune", *flags(**{**place, "device": "mps"}))
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------------- devices without doubles
@pytest.mark.parametrize("kind", [MASKS, dict(MASKS, task="segments"), BOXES], ids=["mask", "map", "boxes"])
def test_no_float64_in_training_and_evaluation(work, kind):
    from vasomim.downstream.config import FinetuneConfig
    from vasomim.downstream.evaluate import evaluate, to_labels
    from vasomim.downstream.training import Finetuning, LabelledBatches
    from vasomim.finetune import build_network, read_parts
    from vasomim.training.launch import join
    from vasomim.training.loop import Trainer
    from vasomim.training.run import RunFolder
    config = FinetuneConfig(**{**kind, "cache_dir": str(work / "labelled"), "epochs": 1, "clip_grad": 1.0, "layer_decay": 0.7, "augment": dict(noise=0.05)})
    data = read_parts(config, lambda *a: None)
    with NoDouble(), join("cpu", 1) as place:
        network = build_network(config)
        method = Finetuning(network, config.recipe, config.layer_decay)
        trainer = Trainer(method, LabelledBatches(data["train"], config.augmentation, 4, 0), RunFolder(work / f"double-{config.task}"), config, place)
        trainer.wrapped = method.train()
        for _ in range(2): trainer.train_step()
        trainer.batches.close()
        place.mean(torch.stack(trainer._tensors))
        images = data["test"].images(range(2)).float() / 255
        method.eval()
        with torch.no_grad(): out = network(images)
        if config.task != "detection": to_labels(out, 0.5, (50, 70)), to_labels(out)
        scores = evaluate(network, data["test"], place, 4)
    assert trainer.step == 2 and len(scores.table) == 4


# ---------------------------------------------------------------------------------------------------------------- bad input
@pytest.fixture
def tried(work, tmp_path):
    "tried(folder, **options) -> (run, what was said) of one epoch on a folder."
    plain = dict(SMALL, data="auto", epochs=1, batch_size=2, cache_dir=str(tmp_path / "cache"), options=dict(base_channels=4))
    return lambda folder, **options: tuned(tmp_path / f"run-{folder.name}", **{**plain, "data_dir": str(folder), **options})


def left_out(run): return " ".join(json.loads((run / "seed-0" / "data.json").read_text(encoding="utf-8"))["left_out"])


def test_images_without_a_usable_mask_are_left_out_and_told(tried, tmp_path):
    "A mask of another size, none at all, one that is cut short, and an angiogram in a mask's place; of a mask with soft edges, gray values count from the half."
    folder = pairs(tmp_path / "odd", train=6, test=2)
    put(folder / "train" / "label" / "1.png", torch.eye(40) > 0)
    (folder / "train" / "label" / "2.png").unlink()
    whole = (folder / "train" / "label" / "3.png").read_bytes(); (folder / "train" / "label" / "3.png").write_bytes(whole[:len(whole) // 2])
    put(folder / "train" / "label" / "4.png", person(4).image)
    put(folder / "train" / "label" / "5.png", torch.where(torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.1, 0.4, person(5).vessels.float()))
    run, said = tried(folder)
    assert "2 images to train on, 2 to test on" in said and "odd: without a vessel_mask, and left out: 2 train" in said, said
    assert re.search(r"2 training images are left out \(first \S*3.png: cannot be decoded", said), said
    assert "3.png" in left_out(run) and json.loads((run / "seed-0" / "data.json").read_text(encoding="utf-8"))["images"] == 2
    assert "4.png" in left_out(run) and "is no mask: more than a quarter of it is gray" in left_out(run)


def test_which_images_have_no_usable_mask_is_told(tried, tmp_path):
    "Their number is not enough for somebody who has to mend them."
    folder = pairs(tmp_path / "named", train=4, test=2)
    put(folder / "train" / "label" / "1.png", torch.eye(40) > 0)
    run, said = tried(folder)
    assert "train/label/1.png" in said + left_out(run) or "train/img/1.png" in said + left_out(run), said


def test_run_tells_nothing_of_the_folder_that_its_data_were_in(tried, tmp_path):
    "Also of a mask that cannot be decoded; and the run goes on when the data were moved."
    folder = pairs(tmp_path / "here", train=4, test=2)
    label = folder / "train" / "label" / "2.png"; label.write_bytes(label.read_bytes()[:150])
    run, _ = tried(folder)
    (tmp_path / "there").mkdir(); moved = folder.rename(tmp_path / "there" / "here")
    (run / "seed-0" / "results.csv").unlink()
    assert "2.png" in left_out(run) and str(tmp_path) not in left_out(run)
    tried(moved, resume=True, cache_dir=str(tmp_path / "another cache"))


def test_labels_with_unexpected_values_are_left_out_and_told(tried, tmp_path, monkeypatch):
    from vasomim.data.sources.base import Record, Source
    def record(i, split, label): return Record("lab", split, f"{i}.png", patient=str(i), labels=dict(segment_map=label), read=lambda r: person(i).image)
    good = person(0).segments.reshape(1, 64, 64).to(torch.uint8)
    odd = dict(high=torch.where(good > 0, 26, 0).to(torch.uint8), negative=-good.int(), soft=good.float(), other=good[:, :40])
    source = Source("lab", tuple([record(i, "train", good) for i in range(2)] + [record(i, "train", label) for i, label in enumerate(odd.values(), 10)] + [record(20, "test", good)]), "f")
    monkeypatch.setattr("vasomim.finetune.open_source", lambda *a: source)
    run, said = tried(tmp_path / "lab", task="segments")
    assert "2 images to train on, 1 to test on" in said, said
    assert "4 training images are left out (first lab/train/10.png: its segment_map holds torch.uint8 values 0 to 26; wanted are whole numbers from 0 to 25)" in said, said
    text = left_out(run)
    assert "11.png: its segment_map holds torch.int32 values -" in text and "12.png: its segment_map holds torch.float32" in text
    assert "13.png: its segment_map has 40x64 pixels, the image 64x64" in text


def test_patient_in_both_parts_is_refused_by_name(tried, tmp_path, monkeypatch):
    from vasomim.data.sources.base import Record, Source
    records = tuple(Record("lab", split, f"{i}.png", patient=patient, labels=dict(vessel_mask=lambda r: person(0).vessels), read=lambda r: person(0).image)
                    for i, (split, patient) in enumerate((("train", "anna"), ("train", "bert"), ("test", "bert"))))
    monkeypatch.setattr("vasomim.finetune.open_source", lambda *a: Source("lab", records, "f"))
    with pytest.raises(InputError, match="lab/bert is in the splits 'train' and 'test'"): tried(tmp_path / "lab")
    assert not (tmp_path / "run-lab").exists()
    run, said = tried(tmp_path / "lab", resplit=0.5)           # dealt out anew, by patient
    assert "2 images to train on, 1 to test on" in said or "1 images to train on, 2 to test on" in said


def test_empty_parts_are_refused(tried, tmp_path):
    with pytest.raises(InputError, match="no image is in the split 'train' .*resplit"): tried(pairs(tmp_path / "no-train", test=2))
    with pytest.raises(InputError, match="no image is in the split 'test' .*resplit"): tried(pairs(tmp_path / "no-test", train=2))
    bare = pairs(tmp_path / "bare", train=2, test=2)
    for f in (bare / "train" / "label").iterdir(): f.unlink()
    with pytest.raises(InputError, match="no image is in the split 'train'"): tried(bare)
    broken = pairs(tmp_path / "broken", train=2, test=2)
    for f in (broken / "train" / "img").iterdir(): f.write_bytes(f.read_bytes()[:900])
    with pytest.raises(InputError, match="none of its 2 labelled images can be used, first .*img/0.png"): tried(broken)
    with pytest.raises(InputError, match=r"none of its \d images has a segment_map, which the task 'segments' needs; they have vessel_mask"):
        tried(pairs(tmp_path / "other", train=2, test=2), task="segments")


def test_fewer_images_than_a_batch_are_told_and_trained_on(tried, tmp_path):
    run, said = tried(pairs(tmp_path / "few", train=3, test=2), batch_size=8, epochs=2)
    assert "batches of 3 instead of 8: there are 3 training images" in said and "2 steps of 3 images" in said
    assert json.loads((run / "seed-0" / "data.json").read_text(encoding="utf-8"))["batch"] == 3 and len(rows(run / "seed-0" / "metrics.csv")) == 2
    with pytest.raises(InputError, match="3 training images cannot be shared by 1 processes x 4 accumulation steps"): tried(tmp_path / "few", batch_size=8, accumulate=4, overwrite=True)
    tried(tmp_path / "few", batch_size=8)              # an attempt that computed nothing is in nobody's way


def test_classes_that_never_occur_or_are_tested_only_are_told(tried, tmp_path):
    from vasomim.data.coronary import SEGMENT_NAMES
    seen = {int(c) for k in (0, 100) for i in range(3) for c in person(k + i).segments.unique() if c}
    both = [c for c in sorted(seen) if any((person(100 + i).segments == c).any() for i in range(3)) and any((person(i).segments == c).any() for i in range(3))]
    gone, tested = both[0], both[1]
    folder = arcade(tmp_path / "classes", lambda part, c: c != gone and not (c == tested and part == "train"), train=3, test=3)
    run, said = tried(folder, task="segments")
    line = lambda text: next(l for l in said.splitlines() if l.startswith(text))
    names = lambda l: re.split(r", ", l)
    assert re.search(rf"no training image has .*\b{SEGMENT_NAMES[gone]}\b.*they cannot be learned", said) and re.search(rf"no test image has .*\b{SEGMENT_NAMES[gone]}\b.*cannot be judged", said)
    assert SEGMENT_NAMES[tested] in names(line("in the test images only: ").removeprefix("in the test images only: ").split(";")[0])
    table = {r["class"]: r for r in rows(run / "seed-0" / "classes.csv")}
    assert float(table[SEGMENT_NAMES[tested]]["dice_present"]) == 0 and table[SEGMENT_NAMES[gone]]["dice_truth"] in ("", "nan")
    assert all(np.isfinite(float(r["value"])) for r in rows(run / "results.csv"))


def test_boxes_outside_or_without_area_are_told(tried, tmp_path):
    from vasomim.data.images import save_image
    folder = tmp_path / "boxes"
    boxes = {("001", 1): [(10, 20, 30, 40)], ("001", 2): [(-5, -5, 20, 20), (200, 200, 220, 220)], ("002", 1): [(10, 10, 10, 40), (50, 50, 70, 70)],
             ("003", 1): [(20, 20, 60, 60)], ("003", 2): [(300, 10, 320, 30)]}
    folder.mkdir()
    for (patient, frame), given in boxes.items():
        stem = f"14_{patient}_1_{frame:04d}"
        save_image(folder / f"{stem}.bmp", person(frame, 128).image)
        write(folder / f"{stem}.xml", voc(*given, size=(128, 128)))
    run, said = tried(folder, **{k: BOXES[k] for k in ("task", "model", "size", "options")}, resplit=0.4)
    lost = sum(int(n) for n in re.findall(r"(\d+) boxes of the \w+ images lie outside of their image or have no area and are left out", said))
    assert lost >= 2, said                # two outside; the one without area is told here, or by the reader of the files
    assert "have an empty label" in said
    assert all(np.isfinite(float(r["loss"])) for r in rows(run / "seed-0" / "metrics.csv"))


@pytest.mark.parametrize("kind", [dict(MASKS, log_every=1), dict(BOXES, log_every=10)], ids=["masks", "boxes-read-late"])
def test_loss_that_is_not_a_number_stops_with_step_and_file(work, tmp_path, kind):
    options = dict(kind, cache_dir=str(work / "labelled"), lr=1e30, drop_path=0.0)
    why = r"the loss of step \d+ \(epoch \d\) is (nan|inf); its images are in nonfinite-step-0000\d+\.npz \(first: phantoms.*Lower the learning rate"
    with pytest.raises(InputError, match=why): tuned(tmp_path / "nan", **options)
    seed = tmp_path / "nan" / "seed-0"
    saved, = seed.glob("nonfinite-step-*.npz")
    with np.load(saved) as z: assert z["image"].shape[0] == 4 and np.isfinite(z["image"]).all() and len(z["index"]) == 4
    status = json.loads((seed / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "failed" and status["reason"] == "loss is not finite" and not (seed / "results.csv").exists() and not (seed / "network").exists()


def test_update_that_destroys_the_weights_is_no_result(work, tmp_path):
    "The loss of the only step is fine, what it does to the weights is not: nothing is scored, as a mask of NaN is empty and often right."
    options = dict(MASKS, task="stenosis", cache_dir=str(work / "labelled"), epochs=1, batch_size=8, drop_path=0.0, lr=1e38)
    with pytest.raises(InputError, match=r"weights are not finite|answers are not finite"): tuned(tmp_path / "astray", **options)
    assert not (tmp_path / "astray" / "seed-0" / "results.csv").exists() and not (tmp_path / "astray" / "seed-0" / "network").exists()


def test_disk_that_is_full_at_the_end_costs_nothing(runs, work, tmp_path, monkeypatch):
    import errno
    import vasomim.finetune as job
    options, whole, _, _ = runs["masks"]
    for k, (error, why) in enumerate(((OSError(errno.ENOSPC, "No space left on device"), "results cannot be written .No space left.*resume=True"),
                                      (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "seed-0: the disk is full .*resume=True"))):    # as safetensors says it
        def full(*a, **k): raise error
        with monkeypatch.context() as m:
            m.setattr(job, "save_network", full)
            with pytest.raises(InputError, match=why): tuned(tmp_path / "full", **{**options, "seeds": (0,), "resume": bool(k)})
    run, said = tuned(tmp_path / "full", **{**options, "seeds": (0,), "resume": True})
    assert "resumed after step 10" in said
    assert [r for r in rows(whole / "results.csv") if r["seed"] == "0"] == rows(run / "results.csv")


def test_resume_is_refused_where_it_would_be_another_run(runs, work, tmp_path):
    "Another number of processes (drop path draws in each), another checkpoint under the same name, other images in the folder."
    import timm
    options, _, run, _ = runs["masks"]
    file = settings(tmp_path / "two.json", **{**options, "run_dir": str(run), "resume": True, "seeds": (0, 1, 3), "nproc": 2})
    code, said = finished(job(tmp_path, sys.executable, "-m", "vasomim.finetune", config=file))
    assert code and re.search(r"processes: 1 -> 2", said), said
    folder, cache = pairs(tmp_path / "data", train=4, val=1, test=2), dict(cache_dir=str(tmp_path / "labelled"))
    own = dict(MASKS, **cache, data="auto", data_dir=str(folder), resplit=0.0, epochs=1, drop_path=0.0, checkpoint=str(tmp_path / "encoder.pt"))
    own.pop("phantoms")
    save = lambda seed: (torch.manual_seed(seed), torch.save(timm.create_model("test_vit", img_size=64, num_classes=0).state_dict(), tmp_path / "encoder.pt"))
    save(0); tuned(tmp_path / "run", **own)
    save(1)
    with pytest.raises(InputError, match="checkpoint: '[0-9a-f]{10}' -> '[0-9a-f]{10}'"): tuned(tmp_path / "run", **own, resume=True, seeds=(0, 1))
    save(0); tuned(tmp_path / "run", **own, resume=True, seeds=(0, 1))
    put(folder / "train" / "img" / "0.png", person(77).image)
    with pytest.raises(InputError, match="train: "): tuned(tmp_path / "run", **own, resume=True, seeds=(0, 1, 2))


def test_compiled_run_is_the_plain_one(runs, work, fast_compile):
    options, whole, _, _ = runs["looks"]
    run, _ = tuned(work / "compiled", **{**options, "seeds": (0,), "compile": True})
    assert fast_compile == ["UNetAdapter"]
    compiled, plain = (load_file(r / "seed-0" / "network" / "model.safetensors") for r in (run, whole))
    assert compiled.keys() == plain.keys()
    for k, v in plain.items(): torch.testing.assert_close(compiled[k].float(), v.float(), rtol=1e-4, atol=1e-4)
    checkpoints = [torch.load(r / "seed-0" / "checkpoints" / "step-00000012.pt", weights_only=True)["method"].keys() for r in (run, whole)]
    assert checkpoints[0] == checkpoints[1]


def test_detection_without_any_box_finishes_and_says_so(tried, tmp_path):
    from vasomim.data.images import save_image
    from vasomim.downstream.blind import Blind
    from vasomim.downstream.labelled import find_task, read_labelled
    from vasomim.data.sources.catalog import open_source
    folder = tmp_path / "healthy"; folder.mkdir()
    for patient in range(1, 5):
        stem = f"14_{patient:03d}_1_0001"
        save_image(folder / f"{stem}.bmp", person(patient, 128).image); write(folder / f"{stem}.xml", voc((200, 200, 220, 220), size=(128, 128)))
    run, said = tried(folder, **{k: BOXES[k] for k in ("task", "model", "size", "options")}, resplit=0.5)
    assert "no training image has stenosis: they cannot be learned" in said and "no test image has stenosis: they cannot be judged" in said
    assert "anchors" not in said
    assert all(np.isfinite(float(r["loss"])) for r in rows(run / "seed-0" / "metrics.csv"))
    data = read_labelled(open_source(folder, "stenosis"), find_task("detection"), 64, tmp_path / "again")
    assert Blind(data)(torch.zeros(2, 1, 64, 64))[0]["boxes"].shape == (0, 4)


def test_label_fraction_is_told_in_whole_patients(tried, tmp_path):
    from vasomim.data.images import save_image
    folder = tmp_path / "patients"; folder.mkdir()
    for patient in range(1, 6):
        for frame in (1, 2):
            stem = f"14_{patient:03d}_1_{frame:04d}"
            save_image(folder / f"{stem}.bmp", person(10 * patient + frame, 128).image); write(folder / f"{stem}.xml", voc((10, 20, 40, 50), size=(128, 128)))
    run, said = tried(folder, **{k: BOXES[k] for k in ("task", "model", "size", "options")}, resplit=0.2, label_fraction=0.1)
    assert "2 of 8 training images: label_fraction=0.1 became 0.25, as patients are not torn apart" in said and {r["train_images"] for r in rows(run / "results.csv")} == {"2"}
