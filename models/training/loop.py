"""One training loop for every network, on Lightning Fabric: reads top to bottom, resumes after a kill.

Every step draws its randomness from a generator seeded by (seed, step), so that a resumed run takes exactly the steps
of an undisturbed one without any generator state to keep.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from rich.progress import Progress
from torch import Generator, Tensor, nn

from models.training.averaging import WeightAverage
from models.training.loading import BatchLoader, Load, seeded
from models.training.orthogonal import Muon
from models.training.processes import add_gradients, build_fabric, from_first, synchronized_batch_norm
from models.training.progress import forget_progress, read_progress, write_progress
from models.training.schedule import Schedule, parameter_groups, rate_share

__all__ = ["LoopResult", "LoopSettings", "StepLoss", "Validate", "build_fabric", "seeded", "train"]

StepLoss = Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]
"""(network, portion of a batch) -> loss to minimise, and named numbers for the log; those of all portions are added.

Without a `load` of its own a step is one portion: its generator.
"""

Validate = Callable[[nn.Module], dict[str, float]]
"""network in evaluation mode -> named numbers, among them the `score`."""


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "muon": Muon}

MAX_OVERFLOWS = 20
"""Steps in a row that half precision may skip because its scaled gradients overflow, before that counts as an error."""


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast to train."""

    steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    validate_every: int
    patience: int
    """Validations without a better score before training stops."""
    seed: int
    freeze_batch_norm: bool = False
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    """Learning rate of the parameters whose name starts so, relative to the others; 0 freezes them."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    schedule: Schedule = "cosine"
    decay_at: float = 0.5
    """Share of the steps after which the schedule `step` lowers the rate."""
    ema_decay: float = 0.0
    """Of the moving average of the weights, which is then what is validated and kept; 0 does without."""


@dataclass(frozen=True)
class LoopResult:
    """What training left behind beside the weights."""

    best_step: int
    best: dict[str, float]
    """Validation numbers of the best step."""
    steps: int
    seconds: float
    curve: list[dict[str, Any]] = field(repr=False)
    """Rows step, split, name, value."""
    steps_taken: int = 0
    """By this process; fewer than `steps` if it went on with the work of another."""
    step_seconds: float = 0.0
    """Spent in those steps, without validation."""
    waiting_seconds: float = 0.0
    """Of which the loop waited for data."""


def train(
    fabric: Fabric,
    network: nn.Module,
    *,
    settings: LoopSettings,
    loss: StepLoss,
    validate: Validate,
    progress_folder: Path,
    fingerprint: str,
    name: str,
    load: Load | None = None,
    settle: Callable[[], None] | None = None,
    keep_progress: bool = False,
) -> LoopResult:
    """Minimise `loss`, keep the weights with the lowest validation `score`, load them into `network` at the end.

    State goes to `progress_folder` at every validation and is used again if its `fingerprint` (whatever identifies the
    run) agrees; a finished run removes it, unless its caller, with `keep_progress`, does so when the result is safe.
    With several processes each calls this with the same arguments and `load` gives each its portions; the first one
    alone validates and writes. `settle` is called after every step, in every process: buffers of the network that the
    losses take notes for change there.
    """
    optimizer: torch.optim.Optimizer = OPTIMIZERS[settings.optimizer](
        parameter_groups(network, settings.rate_factors), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    wrapped, optimizer = fabric.setup(network, optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    average = WeightAverage(network, decay=settings.ema_decay) if settings.ema_decay else None
    state: dict[str, Any] = {"step": 0, "best_step": 0, "best": {}, "best_weights": None, "curve": [], "stale": 0}
    resumed = read_progress(progress_folder, fingerprint)
    if resumed:
        network.load_state_dict(resumed.pop("weights"))
        optimizer.load_state_dict(resumed.pop("optimizer"))
        fabric.strategy.precision.load_state_dict(resumed.pop("precision"))
        averaged = resumed.pop("average")
        if average:
            average.weights = {key: value.to(fabric.device) for key, value in averaged.items()}
        state = resumed
        fabric.print(f"{name}: resumes at step {state['step']}")
    started, first_step, overflows = time.monotonic(), state["step"], 0
    validating = 0.0
    several = fabric.world_size > 1
    loader = BatchLoader(load or _generator_alone, seed=settings.seed, start=state["step"], stop=settings.steps)
    with (
        closing(loader),
        synchronized_batch_norm(network, enabled=several and not settings.freeze_batch_norm),
        Progress(disable=not fabric.is_global_zero or not os.isatty(2), transient=True) as progress,
    ):
        task = progress.add_task(name, total=settings.steps, completed=state["step"])
        if not resumed:
            validating += _validate_and_keep(fabric, wrapped, network, validate, state, average)
        while state["step"] < settings.steps and state["stale"] < settings.patience:
            step = state["step"]
            wrapped.train()
            if settings.freeze_batch_norm:
                _freeze_batch_norm(network)
            _set_rates(optimizer, settings, step)
            value, named = _backward(fabric, wrapped, optimizer, loss, next(loader))
            if several:
                numbers = add_gradients(parameters, torch.stack([value, *named.values()]).detach().float())
                value, named = numbers[0], dict(zip(named, numbers[1:], strict=True))
            norm = fabric.clip_gradients(wrapped, optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False)
            sound = norm is None or bool(torch.isfinite(norm))
            overflows = 0 if sound or not _scaled(fabric) else overflows + 1
            if not torch.isfinite(value) or (not sound and not 0 < overflows < MAX_OVERFLOWS):
                raise FloatingPointError(
                    f"{name}: the loss is {float(value)} with gradient norm {norm} at step {step}, expected "
                    "finite numbers; lower the learning rate or use precision 32-true"
                )
            optimizer.step()
            if settle:
                settle()
            if average:
                average.update(network, step=step)
            state["step"] = step + 1
            progress.update(task, completed=step + 1)
            if step % 10 == 0:
                row = {"loss": float(value), **{key: float(item) for key, item in named.items()}}
                state["curve"] += [_row(step, "train", key, item) for key, item in row.items()]
            if (step + 1) % settings.validate_every == 0 or step + 1 == settings.steps:
                validating += _validate_and_keep(fabric, wrapped, network, validate, state, average)
                if fabric.is_global_zero:
                    content: dict[str, Any] = {"weights": network.state_dict(), "optimizer": optimizer.state_dict()}
                    content |= {"precision": fabric.strategy.precision.state_dict()}
                    content |= {"average": average.weights if average else None}
                    write_progress(progress_folder, fingerprint, {**content, **state})
    network.load_state_dict(state["best_weights"])
    network.eval()
    if fabric.is_global_zero and not keep_progress:
        forget_progress(progress_folder)
    seconds = time.monotonic() - started
    return LoopResult(
        best_step=state["best_step"],
        best=state["best"],
        steps=state["step"],
        seconds=seconds,
        curve=state["curve"],
        steps_taken=state["step"] - first_step,
        step_seconds=seconds - validating,
        waiting_seconds=loader.waiting_seconds,
    )


def _generator_alone(generator: Generator) -> list[Generator]:
    return [generator]


def _set_rates(optimizer: Any, settings: LoopSettings, step: int) -> None:
    share = rate_share(
        step,
        steps=settings.steps,
        warmup_steps=settings.warmup_steps,
        schedule=settings.schedule,
        decay_at=settings.decay_at,
    )
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * share * group["factor"]


def _backward(
    fabric: Fabric, wrapped: Any, optimizer: Any, loss: StepLoss, batch: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of all portions, added; and the sums of their losses and numbers."""
    total: Tensor | None = None
    sums: dict[str, Tensor] = {}
    for portion in batch:
        with fabric.no_backward_sync(wrapped):
            value, named = loss(wrapped, portion)
            if total is None:
                optimizer.zero_grad()
            fabric.backward(value)
        total = value.detach() if total is None else total + value.detach()
        for key, item in named.items():
            sums[key] = sums[key] + item.detach() if key in sums else item.detach()
    assert total is not None
    return total, sums


def _scaled(fabric: Fabric) -> bool:
    """Whether half precision scales the loss; a gradient that overflows is then expected now and then."""
    return getattr(fabric.strategy.precision, "scaler", None) is not None


def _freeze_batch_norm(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _row(step: int, split: str, name: str, value: float) -> dict[str, Any]:
    return {"step": step, "split": split, "name": name, "value": value}


def _validate_and_keep(
    fabric: Fabric,
    wrapped: nn.Module,
    network: nn.Module,
    validate: Validate,
    state: dict[str, Any],
    average: WeightAverage | None,
) -> float:
    """Measure, keep the weights if they are the best so far; gives the seconds that took."""
    started = time.monotonic()
    wrapped.eval()
    with torch.no_grad(), average.applied(network) if average else nullcontext():
        found = from_first(fabric, validate(wrapped) if fabric.is_global_zero else None)
        state["curve"] += [_row(state["step"], "validation", key, value) for key, value in found.items()]
        if not state["best"] or _comparable(found["score"]) < _comparable(state["best"]["score"]):
            weights = copy.deepcopy(network.state_dict())
            state.update(best=found, best_step=state["step"], stale=0, best_weights=weights)
        else:
            state["stale"] += 1
    return time.monotonic() - started


def _comparable(score: float) -> float:
    # Nothing is less than NaN, so that a start that could not be measured would stay the best for good.
    return math.inf if math.isnan(score) else score
