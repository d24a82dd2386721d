"""Two processes compute what one computes, whoever starts them and wherever they take over."""
import csv
import io
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest

from conftest import STEPS, TINY, as_after, board_steps, finished, flags, job, train, weights

CLOSE = dict(rtol=1e-5, atol=1e-5)


def table(run):
    "Columns of metrics.csv."
    rows = list(csv.DictReader(open(run / "metrics.csv", newline="", encoding="utf-8")))
    return {name: np.array([float(r[name]) for r in rows]) for name in rows[0]}


def assert_equal_runs(run, other, last=STEPS):
    "The same steps, learning rates and losses, the same weights at the end."
    a, b = table(run), table(other)
    assert a.keys() == b.keys()
    for name in ("step", "epoch", "progress", "lr", "vessel_share"): np.testing.assert_allclose(a[name], b[name], rtol=1e-6, err_msg=name)
    for name in ("loss", "reconstruction", "consistency"): np.testing.assert_allclose(a[name], b[name], **CLOSE, err_msg=name)
    np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-3)       # AdamW hides a wrong scale of the gradients, this does not
    one, two = weights(run, last), weights(other, last)
    assert one.keys() == two.keys()
    worst = max((one[k].float() - two[k].float()).abs().max().item() for k in one)
    assert worst < 1e-5, f"weights differ by {worst:.2e}"


@pytest.fixture(scope="module")
def jobs(work, packed, whole):
    "Three jobs of two processes each, started in the same second: from the beginning, taking over from one process, and with 5 images for batches of 4."
    halfway = as_after(whole, 6, work / "one-two")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "vasomim.pretrain")
    started = dict(two=job(work, *torchrun, **TINY, data_dir=packed, run_dir=work / "two", keep=STEPS),
                   one_two=job(work, *torchrun, **TINY, data_dir=packed, run_dir=halfway, resume=True))
    told = io.StringIO()
    with redirect_stdout(told): train(work / "five", batch_size=4, epochs=2, phantoms=5, cache_dir=str(work / "packed-five"), nproc=2)      # starts its processes itself
    return dict({name: finished(process) for name, process in started.items()}, five=(0, told.getvalue()))


def test_two_processes_equal_one(jobs, work, whole):
    code, told = jobs["two"]
    assert code == 0, told
    assert "2 process(es)" in told and "1 thread(s) each" in told and told.count("step 3/12 ") == 1      # only the first process speaks
    assert_equal_runs(work / "two", whole)
    assert board_steps(work / "two") == list(range(1, STEPS + 1))


def test_accumulation_equals_one_large_batch(work, packed, whole):
    assert_equal_runs(train(work / "accumulated", data_dir=str(packed), accumulate=2), whole)


def test_resume_from_two_processes_to_one(jobs, work, packed, whole, capsys):
    run = as_after(work / "two", 6, work / "two-one")
    train(run, data_dir=str(packed), resume=True)
    assert "resumed after step 6" in capsys.readouterr().out
    assert_equal_runs(run, work / "two")


def test_resume_from_one_process_to_two(jobs, work, whole):
    code, told = jobs["one_two"]
    assert code == 0 and "resumed after step 6" in told and "2 process(es)" in told, told
    assert_equal_runs(work / "one-two", whole)


def test_five_images_for_two_processes_and_batches_of_four(jobs, work):
    code, told = jobs["five"]
    assert code == 0, told
    assert "1 of 5 images sit out each epoch" in told and "2 steps of 4 images" in told
    assert table(work / "five")["step"].tolist() == [1, 2] and (work / "five" / "encoder" / "model.safetensors").is_file()


def test_fewer_images_than_a_batch_are_refused(work, capfd):
    from vasomim.pretrain import main
    options = dict(TINY, batch_size=8, phantoms=3, cache_dir=work / "packed-three", run_dir=work / "three")
    assert main(flags(**options)) == 2
    lines = [l for l in capfd.readouterr().err.splitlines() if l.startswith("error:")]
    assert len(lines) == 1 and "batch_size=8 is larger than the 3 images" in lines[0]
    assert not (work / "three" / "metrics.csv").exists()


def test_no_two_of_32_masks_and_crops_are_equal(work):
    "16 copies of one picture, 2 processes, batches of 8, 2 epochs."
    from vasomim.data.packing import pack
    from vasomim.data.phantom import phantom
    from vasomim.data.sources.base import Record, Source, fingerprint
    from vasomim.anatomy.extract import extract_vessels
    from vasomim.anatomy.guidance import co_guidance, patch_distribution
    from vasomim.masking import GuidedSampler
    from vasomim.training.batches import Batches
    from vasomim.training.method import View
    picture = phantom(0, size=256).image
    source = Source("copies", tuple(Record("copies", "", f"{i:02d}", patient="1", read=lambda record: picture) for i in range(16)), fingerprint("copies"))
    data = pack(source, work / "copies", 256, lambda x: extract_vessels(x, border=8), extractor_id="test")
    sampler = GuidedSampler(0.5, 0.0, 0.5)

    def drawn(world, seed=0):
        ranks = [Batches(data, (View(size=(224, 224)),), 8, seed, world, rank) for rank in range(world)]
        out = {}
        for step in range(4):
            for batches in ranks:
                batch = batches(step)
                f = patch_distribution(co_guidance(batch.vessels["image"], eta=1.0), 16)
                mask = sampler(f, (step // 2 + 1) / 2, batch.random)
                for i, m, box, flip in zip(batch.index.tolist(), mask, batch.boxes["image"], batch.flips["image"]):
                    out[step // 2, i] = tuple(m.tolist()), (*box.tolist(), bool(flip))
        for batches in ranks: batches.close()
        return out

    two = drawn(2)
    assert len(two) == 32 and {i for _, i in two} == set(range(16))           # each image once an epoch
    assert len({m for m, _ in two.values()}) == 32 and len({b for _, b in two.values()}) == 32
    assert drawn(1) == two == drawn(2)
    assert drawn(2, seed=1) != two
