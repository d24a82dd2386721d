"""What every pre-training method owes the trainer, as programs and tools for `test_methods.py`: one batch, made without files, on this machine or on a device that is not there.

    torchrun --standalone --nproc_per_node=2 tests/contract.py OUT    loss and gradients of every method, averaged over the processes, as OUT
"""
import importlib
import pkgutil
import sys
from contextlib import contextmanager
from dataclasses import fields
from types import SimpleNamespace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

import vasomim.methods
from vasomim.core import RowRandom
from vasomim.masking_multiblock import Blocks, MultiBlock
from vasomim.pretrain import PretrainConfig
from vasomim.proof import InMemory
from vasomim.training.batches import Batches
from vasomim.training.method import Batch

IMAGES, BATCH = 16, 8
SIZE = dict(model="test_vit", patch_size=8, img_size=64, pack_size=96, decoder_dim=32, decoder_depth=1, decoder_heads=2, batch_size=BATCH, epochs=6, warmup_epochs=1.0, device="cpu", threads=1, precision="fp32", border=6, sigmas=(1, 2))


def presets() -> dict[str, str]:
    "Every registered method -> the first of its presets."
    names = [m.name for m in pkgutil.iter_modules(vasomim.methods.__path__)]
    return {n: next(iter(importlib.import_module(f"vasomim.methods.{n}").METHOD.presets)) for n in names}


def built(preset: str, **changes):
    "A method with seeded weights, and its configuration."
    config = PretrainConfig.of(**{**SIZE, "preset": preset, **changes})
    torch.manual_seed(0)
    return importlib.import_module(f"vasomim.methods.{config.method}").METHOD(config).train(), config


def batches_of(method, world: int = 1, rank: int = 0, accumulate: int = 1) -> Batches: return Batches(InMemory(IMAGES, 96), method.views, BATCH, 0, world, rank, accumulate)


EXACT = dict(drop_path=0.0, koleo_group=2)      # which blocks are dropped, each process draws for itself; groups of neighbours that half a batch holds whole

def exact(preset: str) -> dict:
    "Options that make a method independent of the number of processes."
    Options = importlib.import_module(f"vasomim.methods.{PretrainConfig(preset=preset).method}").METHOD.Options
    return {f.name: EXACT[f.name] for f in fields(Options) if f.name in EXACT} if Options else {}


def loss_and_gradients(preset: str, world: int = 1, rank: int = 0, precision=torch.float32, step: int = 1, accumulate: int = 1, **changes):
    "(method, parts, name -> gradient) of one step."
    method, config = built(preset, **changes)
    batches = batches_of(method, world, rank, accumulate)
    method.before_epoch(0, batches)
    torch.manual_seed(1)
    parts = {}
    for k in range(accumulate):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16): out = method(batches(step, k, ahead=False), 0.5)
        (out["loss"] / accumulate).backward()
        for name, value in out.items(): parts[name] = parts.get(name, 0) + value.detach() / accumulate
    batches.close()
    return method, parts, {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


class Elsewhere(RowRandom):
    "Random numbers of a device that is not there."
    def __init__(self, rows: int): self.total, self.start, self.rows, self.generator = rows, 0, rows, SimpleNamespace(device=torch.device("cuda"), initial_seed=lambda: 0)
    def rand(self, *shape): return torch.empty((self.rows, *shape), device="cuda")


def move(module: nn.Module):
    "Parameters and buffers become those of a GPU, without values. To be called within a FakeTensorMode."
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None: part._parameters[name] = nn.Parameter(torch.empty_like(p, device="cuda"), requires_grad=p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None: part._buffers[name] = torch.empty_like(b, device="cuda")


class Waits(AssertionError): pass


class NoWaitingCopies(TorchDispatchMode):
    "A copy between host and device that is not `non_blocking` waits for the stream."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") is not None and not kwargs.get("non_blocking") and args[0].device.type != torch.device(kwargs["device"]).type: raise Waits(f"{args[0].device} -> {kwargs['device']}")
        return func(*args, **kwargs)


@contextmanager
def drawn_on_the_host():
    "Block places are drawn on the CPU on purpose, from the step's seed: with values, and only then put on the device."
    original = MultiBlock.__call__
    def real(self, random, **options):
        with unset_fake_temporarily(): blocks = original(self, RowRandom(0, random.total, random.start, random.rows), **options)
        return Blocks(*(torch.empty(tuple(x.shape), dtype=x.dtype, device="cuda") for x in (blocks.context, blocks.targets)), blocks.size)
    MultiBlock.__call__ = real
    try: yield
    finally: MultiBlock.__call__ = original


def step_without_values(preset: str):
    "Forward and the hooks of a step on a GPU of which only shapes are known: whatever asks for a value (`.item()`, a branch, an index by mask) or copies without `non_blocking` raises."
    method, config = built(preset)
    batches = batches_of(method)
    method.before_epoch(0, batches)
    batch = batches(0, ahead=False)
    batches.close()
    with FakeTensorMode(allow_non_fake_inputs=True), NoWaitingCopies(), drawn_on_the_host():
        move(method)
        there = lambda tensors: {k: torch.empty_like(v, device="cuda") for k, v in tensors.items()}
        batch = Batch(*map(there, (batch.images, batch.vessels, batch.boxes, batch.flips)), torch.empty_like(batch.index, device="cuda"), Elsewhere(BATCH))
        out = method(batch, 0.5)
        for p in method.parameters():      # the backward pass is torch's, and needs a real device
            if p.requires_grad: p.grad = torch.empty_like(p)
        method.before_step(0.5)
        method.after_step(0.5)
        return {k: v.device.type for k, v in out.items()}


def main(out: str):
    import torch.distributed as dist
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    world, results = dist.get_world_size(), {}
    for name, preset in presets().items():
        try: _, parts, gradients = loss_and_gradients(preset, world, dist.get_rank(), **exact(preset))
        except Exception as e: results[name] = f"{type(e).__name__}: {e}"; continue
        for v in (*parts.values(), *gradients.values()): dist.all_reduce(v); v /= world
        results[name] = dict(parts=parts, gradients=gradients)
    if dist.get_rank() == 0: torch.save(results, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__": main(sys.argv[1])
