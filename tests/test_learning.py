"""What a training run has to show: losses that fall, masks that follow the vessels, and arithmetic that any device can do."""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import TINY, train
from test_distributed import table


def test_eight_images_are_overfitted(work):
    "Both losses fall, through one optimiser step an epoch."
    run = train(work / "overfit", phantoms=8, cache_dir=str(work / "packed"), epochs=60, warmup_epochs=5.0, base_lr=6e-2, save_every=1000.0, log_every=20)
    at = table(run)
    assert at["loss"][-10:].mean() < 0.85 * at["loss"][:5].mean()
    assert at["reconstruction"][-10:].mean() < 0.9 * at["reconstruction"][:5].mean()
    assert at["consistency"][-10:].mean() < 0.8 * at["consistency"][:5].mean()


@torch.no_grad()
def test_masks_move_from_anywhere_to_the_vessels(work):
    "Weak to strong (Fig. 5a): at the start as if there were no vessels, then more and more of them; not with plain MAE; the other way round when asked."
    from vasomim.pretrain import PretrainConfig, prepare_data
    from vasomim.training.batches import Batches
    from vasomim.training.method import find_method
    data = prepare_data(PretrainConfig(phantoms=8, pack_size=192, border=12, cache_dir=str(work / "packed-larger")))
    config = lambda preset, **options: PretrainConfig(**{**TINY, "preset": preset, "img_size": 160, **options})
    ours, plain = (find_method(preset)(config(preset)) for preset in ("vasomim", "mae"))
    reverse = ours.sampler.__class__(**ours.sampler_options(config("vasomim", beta_start=0.5, beta_end=0.0)))
    batches = Batches(data, ours.views, 8)
    seen = [batches(step, ahead=False) for step in range(2)]
    batches.close()
    vessels = sum(ours.vessel_share(b, torch.ones(8, 100, dtype=torch.bool)).item() for b in seen) / 2      # share of the patches that hold vessel

    def share(method, progress, sampler=None, draws=10):
        masks = [(b, (sampler or method.sampler)(f, progress, torch.Generator().manual_seed(k))) for b, f in zip(seen, known[method]) for k in range(draws)]
        assert all((m.sum(1) == 50).all() for _, m in masks)
        return sum(method.vessel_share(b, m).item() for b, m in masks) / len(masks)

    known = {method: [method.weights(b) for b in seen] for method in (ours, plain)}
    start, middle, end = (share(ours, p) for p in (0.0, 0.5, 1.0))
    assert abs(start - vessels) < 0.03 and start + 0.05 < middle and middle + 0.05 < end
    assert share(ours, 0.0, reverse) == end and share(ours, 1.0, reverse) == start
    assert len({share(plain, p) for p in (0.0, 0.5, 1.0)}) == 1 and abs(share(plain, 1.0) - vessels) < 0.03


class NoDouble(TorchDispatchMode):
    "Every operation that makes a float64 or complex128 tensor is an error, as on Apple's GPUs."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.dtype in (torch.float64, torch.complex128): raise AssertionError(f"{func} made a {x.dtype} tensor of shape {tuple(x.shape)}")
        return out


@pytest.mark.parametrize("preset", ["vasomim", "paper", "mae"])
def test_no_float64_on_the_way_of_a_training_step(work, packed, preset):
    from vasomim.core import derive_seed
    from vasomim.data.packed import open_packed
    from vasomim.pretrain import PretrainConfig, whole_images
    from vasomim.training.batches import Batches
    from vasomim.training.launch import join
    from vasomim.training.loop import Trainer
    from vasomim.training.method import find_method
    from vasomim.training.run import RunFolder
    small = dict(TINY, epochs=2, clip_grad=1.0, log_every=10)
    with NoDouble(), join("cpu", 1) as place:
        with pytest.raises(AssertionError, match="made a torch.float64"): torch.ones(2).double()
        config = PretrainConfig(**{**small, "preset": preset})
        data, method = open_packed(packed), find_method(config.method)(config)
        trainer = Trainer(method, Batches(data, method.views, config.batch_size, config.seed, device=place.device), RunFolder(work / f"double-{preset}"), config, place, config.progress)
        trainer.wrapped = method.train()
        for _ in range(2): trainer.train_step()
        trainer.batches.close()
        place.mean(torch.stack(trainer._tensors))
        if preset != "mae": assert method.pictures(whole_images(data, [0, 1], method), 1.0)
    assert trainer.step == 2 and derive_seed(0, "x") >= 0


def test_no_float64_in_extraction_guidance_samplers_and_crops():
    from vasomim.anatomy.extract import extract_vessels
    from vasomim.anatomy.guidance import co_guidance, patch_distribution
    from vasomim.anatomy.segmentor import load_segmentor
    from vasomim.anatomy.vesselness import frangi, sato
    from vasomim.data.augment import crop_images, crop_masks, random_crops, random_resized_crop
    from vasomim.masking import make_sampler
    images = torch.rand(2, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    with NoDouble(), torch.no_grad():
        for vesselness in (frangi, sato):
            for backend in ("cpu", "torch"): assert vesselness(images, backend=backend).dtype == torch.float32
        for grow in ("components", "seed"): vessels = extract_vessels(images, grow=grow, border=8)
        probability = load_segmentor()(images).sigmoid()
        f = patch_distribution(co_guidance(vessels, probability, 0.5), 16)
        for name in ("random", "block", "guided"): make_sampler(name)(f, 0.7, torch.Generator().manual_seed(0))
        boxes, flips = random_crops(2, 96, 96, generator=torch.Generator().manual_seed(0))
        for pixels in (images, (images * 255).to(torch.uint8)): assert crop_images(pixels, boxes, 64, flips).dtype == torch.float32
        crop_masks(vessels, boxes, 64, flips)
        random_resized_crop(images, vessels, 64)


def test_apple_device_that_is_not_there_is_refused():
    from vasomim.core import InputError, resolve_device
    if torch.backends.mps.is_available(): assert resolve_device("mps").type == "mps"
    else:
        with pytest.raises(InputError, match="device='mps': this machine has none.*use device='cpu'"): resolve_device("mps")
