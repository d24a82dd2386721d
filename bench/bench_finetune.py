"""Fine-tuning against named alternatives, in the same run: clDice, augmentation, batches, the whole loop.

python bench/bench_finetune.py [cldice] [augment] [loop]      # one thread each, best of several
"""
import sys
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
import cv2
import numpy as np
import torch
from skimage.morphology import skeletonize
from torchvision import tv_tensors
from torchvision.transforms import v2
from vasomim.core import RowRandom
from vasomim.data.phantom import phantom
from vasomim.data.sources.phantoms import phantom_source
from vasomim.downstream.augment import Augment, augment_masks
from vasomim.downstream.labelled import find_task, read_labelled
from vasomim.downstream.losses import segmentation_loss
from vasomim.downstream.metrics import cldice
from vasomim.downstream.networks.base import find_network
from vasomim.downstream.training import Finetuning, LabelledBatches
from vasomim.training.config import TrainingConfig
from vasomim.training.launch import join
from vasomim.training.loop import Trainer
from vasomim.training.method import Recipe
from vasomim.training.run import RunFolder

torch.set_num_threads(1); cv2.setNumThreads(1)


def best(work, repeats: int = 5) -> float:
    times = []
    for _ in range(repeats): began = time.perf_counter(); work(); times.append(time.perf_counter() - began)
    return min(times)


def bench_cldice():
    masks = np.stack([phantom(i, 512).vessels.numpy() for i in range(4)])
    many = np.concatenate([np.rot90(masks, k, (2, 3)) for k in range(4)] * 4)[:60]
    other = np.roll(many, 2, -1)
    def published(p, t):      # the published definition, each mask as a whole
        sp, st = skeletonize(p), skeletonize(t)
        a, b = (sp & t).sum() / sp.sum(), (st & p).sum() / st.sum()
        return 2 * a * b / (a + b)
    ours, theirs = best(lambda: cldice(many, other), 2), best(lambda: [published(p[0], t[0]) for p, t in zip(many, other)], 2)
    print(f"clDice, 512x512, one core: {1000 * ours / 60:.1f} ms a pair, 300 pairs in {5 * ours:.1f} s; the definition on whole masks with scikit-image {1000 * theirs / 60:.1f} ms ({theirs / ours:.2f}x)")


def bench_augment():
    made = [phantom(i, 224) for i in range(16)]
    images, labels = torch.stack([(p.image.view(1, 224, 224) * 255).byte() for p in made]), torch.stack([p.vessels.view(1, 224, 224).byte() for p in made])
    alike = v2.Compose([v2.RandomHorizontalFlip(0.5), v2.RandomAffine(15, (0.06, 0.06), (0.8, 1.25), interpolation=v2.InterpolationMode.BILINEAR), v2.ColorJitter(0.1, 0.3), v2.ToDtype(torch.float32, scale=True)])
    ours = best(lambda: augment_masks(images, labels, Augment(share=1.0), RowRandom(0, 16)))
    theirs = best(lambda: [alike(tv_tensors.Image(i), tv_tensors.Mask(m)) for i, m in zip(images, labels)])
    print(f"augmentation, 16 images and masks at 224 px, one core: {16 / ours:.0f} images/s; a loop over torchvision v2 (flip, affine, jitter, without gamma) {16 / theirs:.0f} ({theirs / ours:.1f}x)")


def bench_loop():
    with tempfile.TemporaryDirectory() as d:
        data = read_labelled(phantom_source(32, size=128), find_task("segmentation"), 128, d)
        network = find_network("unet_adapter").build(SimpleNamespace(size=128, classes=1, checkpoint=None, encoder="vit_tiny_patch16_224", drop_path=0.0, seed=0, options=dict(base_channels=8)))
        x, y = data.images(range(8)).float() / 255, data.labels(range(8))
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
        def bare():
            for _ in range(16): segmentation_loss(network(x), y)["loss"].backward(); optimizer.step(); optimizer.zero_grad()
        config = TrainingConfig(run_dir=f"{d}/run", epochs=4, batch_size=8, device="cpu", threads=1, save_every=10)
        def whole():
            run = RunFolder(Path(d) / str(time.perf_counter_ns())); run.prepare(config)
            with join("cpu", 1) as place, redirect_stdout(StringIO()): Trainer(Finetuning(network, Recipe(lr=1e-3)), LabelledBatches(data, Augment(), 8), run, config, place).fit()
        bare()
        ours, floor = best(whole, 3), best(bare, 3)
        print(f"the whole loop, ViT-Ti with UNet decoder at 128 px, 16 steps of 8, one core: {ours:.2f} s; forward, backward and optimiser alone on one fixed batch {floor:.2f} s ({ours / floor:.2f} times the time)")


for name in sys.argv[1:] or ("cldice", "augment", "loop"): {"cldice": bench_cldice, "augment": bench_augment, "loop": bench_loop}[name]()
