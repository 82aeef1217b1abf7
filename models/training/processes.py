"""Several processes that train one network: each computes a part of every batch, and what they found is added.

Started by `torchrun`; a single process passes through here untouched. Gradients are added by hand, not by
`DistributedDataParallel`, whose reducer waits in vain for parameters that a loss does not reach. Batch statistics are
those of the whole batch, so that any number of processes trains the same network up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as distributed
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def build_fabric(*, device: str, precision: str) -> Fabric:
    """Fabric for this process, and for those that `torchrun` started beside it.

    `auto` precision takes bf16 where the processor computes in it.
    """
    # Four seconds, which those who only check parameters would wait for, too.
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    accelerator = device
    if device == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16-mixed" if accelerator == "cpu" and _computes_in_bf16() else "32-true"
        if accelerator == "cuda" and torch.cuda.is_bf16_supported():
            precision = "bf16-mixed"
    if process_count() == 1:
        return Fabric(accelerator=accelerator, devices=1, precision=precision)
    if os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost"):
        # Gloo would look up the machine's name and open its sockets to the network.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", process_count()))
    fabric = Fabric(
        accelerator=accelerator,
        devices=here,
        num_nodes=process_count() // here,
        strategy=DDPStrategy(forward_sync_buffers=False),
        precision=precision,
    )
    fabric.launch()
    return fabric


def process_count() -> int:
    """Processes that train together, as `torchrun` told them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _computes_in_bf16() -> bool:
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


def add_gradients(parameters: list[nn.Parameter], numbers: Tensor) -> Tensor:
    """Add the gradients of all processes in place, and give the sum of `numbers` (N,).

    One message carries it all. A parameter that no process has a gradient for keeps none, so that weight decay treats
    it as in a single process.
    """
    present = numbers.new_tensor([float(parameter.grad is not None) for parameter in parameters])
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    pieces = [numbers, present, *(gradient.float().flatten() for gradient in gradients)]
    flat = torch.cat(pieces)
    distributed.all_reduce(flat)
    total, present, *summed = flat.split([len(piece) for piece in pieces])
    for parameter, gradient, count, value in zip(parameters, gradients, present.tolist(), summed, strict=True):
        gradient.copy_(value.view_as(gradient))
        if not count:
            parameter.grad = None
    return total


def from_first(fabric: Fabric, found: dict[str, float] | None) -> dict[str, float]:
    """What the first process measured, in all of them, so that all decide alike."""
    if fabric.world_size > 1:
        found = fabric.broadcast(found)
    assert found is not None
    return found


class _Sum(torch.autograd.Function):
    """The sum over all processes; each process's loss depends on the values of all."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the parts of a batch that all processes hold.

    Unlike PyTorch's it also runs on the processor, and parts may differ in size.
    """

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """In evaluation the running statistics, as always."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        local = values.new_tensor([values.numel() / values.shape[1]])
        sums: Tensor = _Sum.apply(torch.cat([values.sum((0, 2, 3)), local]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean[:, None, None]
        # In two passes: the difference of large squares would lose what a single process keeps.
        squares: Tensor = _Sum.apply(centred.square().sum((0, 2, 3)))
        variance = squares / count
        if self.running_mean is not None and self.running_var is not None:
            share = self.momentum if self.momentum is not None else 0.1
            with torch.no_grad():
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(squares / (count - 1.0).clamp_min(1.0), share)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        result = centred * scale[:, None, None]
        if self.bias is not None:
            result = result + self.bias[:, None, None]
        return result.to(input.dtype)


@contextmanager
def synchronized_batch_norm(network: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Inside the block, layers of batch normalisation see the batches of all processes."""
    layers = [module for module in network.modules() if enabled and type(module) is nn.BatchNorm2d]
    # Changing the class keeps parameters, buffers and names, so that optimisers and checkpoints notice nothing.
    for layer in layers:
        layer.__class__ = SynchronizedBatchNorm
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.BatchNorm2d


def portions(counts: Mapping[str, int], *, rank: int, processes: int, accumulate: int) -> list[dict[str, slice]]:
    """For each pass of one process, which part of every source's faces it computes.

    Every pass gets its share of each source, and passes differ by one face at most.
    Raises: ValueError if a pass would be left without a face.
    """
    places = processes * accumulate
    if sum(counts.values()) < places:
        raise ValueError(
            f"batch_size is {sum(counts.values())}, expected at least one face for each of {places} parts "
            f"({processes} processes, accumulate {accumulate}); enlarge the batch or use fewer parts"
        )
    passes: list[dict[str, slice]] = [{} for _ in range(places)]
    turn = 0
    for name, count in counts.items():
        start = 0
        for place in range(places):
            # What does not divide evenly goes to the places in turn, so that none is left out by every source.
            extra = (place - turn) % places < count % places
            passes[place][name] = slice(start, start + count // places + int(extra))
            start = passes[place][name].stop
        turn += count % places
    return passes[rank * accumulate : (rank + 1) * accumulate]


def gather_rows(rows: Float[Tensor, "N K"]) -> Float[Tensor, "M K"]:
    """The rows of all processes, those of the first first; they may differ in number."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    sizes = [int(size) for size in counts]
    # A message has one length for all, so the shorter ones are filled up.
    filled = rows.new_zeros(max(sizes), rows.shape[1])
    filled[: len(rows)] = rows
    pieces = [torch.zeros_like(filled) for _ in sizes]
    distributed.all_gather(pieces, filled)
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])
