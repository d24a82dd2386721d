"""What the segmentation networks from scratch cost: parameters, a forward pass, a training step, against `unet` in the same run; and the selective scan alone.

python bench/networks.py [--size 224] [--batch 1] [--device cpu] [--rounds 3] [NAME ...]      # all at their published widths; best of the rounds, taken in turns
"""
import argparse
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from vasomim.downstream.networks.base import find_network
from vasomim.downstream.selective_scan import fused_scan
from vasomim.downstream.selective_scan import selective_scan

NETWORKS = ("unet", "transunet", "vmunet", "rwkvunet")


def works(name: str, a) -> tuple[int, dict]:
    "Parameters, and what is timed."
    net = find_network(name).build(SimpleNamespace(size=a.size, classes=1, checkpoint=None, seed=0, options={})).to(a.device)
    optimizer = torch.optim.AdamW(net.param_groups(), lr=1e-4)
    images = torch.rand(a.batch, 1, a.size, a.size, device=a.device)
    masks = (images > 0.9).float()

    def forward():
        net.eval()
        with torch.inference_mode(): net(images)

    def step():
        net.train()
        F.binary_cross_entropy_with_logits(net(images).float(), masks).backward()
        optimizer.step(); optimizer.zero_grad(set_to_none=True)

    return sum(p.numel() for p in net.parameters()), {"forward": forward, "training step": step}


def one_scan(a) -> dict:
    "The scan of one block of VM-UNet's first stage, forward and backward: ours, and the recurrence step after step under autograd."
    n, length, r = 768, (a.size // 4) ** 2, torch.Generator().manual_seed(0)
    given = [torch.randn(*shape, generator=r).to(a.device).requires_grad_() for shape in ((a.batch, n, length), (a.batch, n, length), (n, 16), (a.batch, 4, 16, length), (a.batch, 4, 16, length), (n,), (n,))]

    def plain(u, delta, A, B, C, D, bias):
        step, wide, h, ys = F.softplus(delta + bias[:, None]), lambda x: x.repeat_interleave(n // 4, 1), 0, []
        for s, x, b, c in zip(step.unbind(2), u.unbind(2), wide(B).unbind(3), wide(C).unbind(3)):
            h = (s[..., None] * A).exp() * h + (s * x)[..., None] * b
            ys.append((h * c).sum(2) + D * x)
        return torch.stack(ys, 2)

    def both(scan):
        def work(): u, delta, A, *rest = given; scan(u, delta, -A.exp(), *rest).sum().backward()
        return work
    return {"selective_scan": both(selective_scan), "step after step": both(plain)}


def measure(work, device) -> float:
    "Seconds; on a CPU those of the one core at work, whatever else the machine does."
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock(); work()
    if device != "cpu": torch.cuda.synchronize()
    return clock() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NAME", default=NETWORKS)
    parser.add_argument("--size", type=int, default=224); parser.add_argument("--batch", type=int, default=1); parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(1)
    names = list(dict.fromkeys(("unet", *a.networks)))
    made = {name: works(name, a) for name in names}
    best = {(name, kind): float("inf") for name in names for kind in ("forward", "training step")}
    for i in range(a.rounds + 1):       # the first warms up
        for name, kind in best:
            seconds = measure(made[name][1][kind], a.device)
            if i: best[name, kind] = min(best[name, kind], seconds)
    scan = "mamba_ssm's kernel" if a.device != "cpu" and fused_scan() else "in PyTorch"
    print(f"{a.size}x{a.size}, batch {a.batch}, {a.device}, one thread, float32; selective scan {scan}\n{'':12}{'parameters':>13}{'forward, ms an image':>26}{'training step, ms an image':>32}")
    for name in names:
        ms = {kind: 1000 * best[name, kind] / a.batch for kind in ("forward", "training step")}
        print(f"{name:12}{made[name][0]:13,}" + "".join(f"{ms[kind]:{width}.0f} ({best[name, kind] / best['unet', kind]:.1f}x)" for kind, width in (("forward", 18), ("training step", 24))))
    if "vmunet" in names:
        scans = {name: min(measure(work, a.device) for _ in range(a.rounds)) for name, work in one_scan(a).items()}
        print("one scan of VM-UNet's first stage, forward and backward: " + ", ".join(f"{name} {1000 * s / a.batch:.0f} ms an image" for name, s in scans.items()))
