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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from rich.progress import Progress
from torch import Generator, Tensor, nn

from models.training.orthogonal import Muon

StepLoss = Callable[[nn.Module, Generator], tuple[Tensor, dict[str, Tensor]]]
"""(network, generator) -> loss to minimise, and named numbers for the log."""

Validate = Callable[[nn.Module], dict[str, float]]
"""network in evaluation mode -> named numbers, among them the `score`."""


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "muon": Muon}


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


def build_fabric(*, device: str, precision: str) -> Fabric:
    """Fabric for one process; `auto` precision takes bf16 where the processor computes in it."""
    accelerator = device
    if device == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16-mixed" if accelerator == "cpu" and _computes_in_bf16() else "32-true"
        if accelerator == "cuda" and torch.cuda.is_bf16_supported():
            precision = "bf16-mixed"
    return Fabric(accelerator=accelerator, devices=1, precision=precision)


def _computes_in_bf16() -> bool:
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


def seeded(seed: int, step: int) -> Generator:
    """The generator of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


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
) -> LoopResult:
    """Minimise `loss`, keep the weights with the lowest validation `score`, load them into `network` at the end.

    The rate warms up linearly and decays as a cosine. State goes to `progress_folder` at every validation and is used
    again if its `fingerprint` (whatever identifies the run) agrees; a finished run removes it.
    """
    optimizer: torch.optim.Optimizer = OPTIMIZERS[settings.optimizer](
        _parameter_groups(network, settings.rate_factors), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    wrapped, optimizer = fabric.setup(network, optimizer)
    state: dict[str, Any] = {"step": 0, "best_step": 0, "best": {}, "best_weights": None, "curve": [], "stale": 0}
    state_file = progress_folder / "state.pt"
    resumed = _read_state(state_file, fingerprint)
    if resumed:
        network.load_state_dict(resumed.pop("weights"))
        optimizer.load_state_dict(resumed.pop("optimizer"))
        state = resumed
        fabric.print(f"{name}: resumes at step {state['step']}")
    started = time.monotonic()
    with Progress(disable=not fabric.is_global_zero or not os.isatty(2), transient=True) as progress:
        task = progress.add_task(name, total=settings.steps, completed=state["step"])
        if not resumed:
            _validate_and_keep(wrapped, network, validate, state)
        while state["step"] < settings.steps and state["stale"] < settings.patience:
            step = state["step"]
            wrapped.train()
            if settings.freeze_batch_norm:
                _freeze_batch_norm(network)
            rate = settings.learning_rate * _schedule(step, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            value, named = loss(wrapped, seeded(settings.seed, step))
            optimizer.zero_grad()
            fabric.backward(value)
            norm = fabric.clip_gradients(wrapped, optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False)
            if not torch.isfinite(value) or (norm is not None and not torch.isfinite(norm)):
                raise FloatingPointError(
                    f"{name}: the loss is {float(value.detach())} with gradient norm {norm} at step {step}, expected "
                    "finite numbers; lower the learning rate or use precision 32-true"
                )
            optimizer.step()
            state["step"] = step + 1
            progress.update(task, completed=step + 1)
            if step % 10 == 0:
                row = {"loss": float(value.detach()), **{key: float(item.detach()) for key, item in named.items()}}
                state["curve"] += [_row(step, "train", key, item) for key, item in row.items()]
            if (step + 1) % settings.validate_every == 0 or step + 1 == settings.steps:
                _validate_and_keep(wrapped, network, validate, state)
                _write_state(state_file, fingerprint, network, optimizer, state)
    network.load_state_dict(state["best_weights"])
    network.eval()
    state_file.unlink(missing_ok=True)
    return LoopResult(
        best_step=state["best_step"],
        best=state["best"],
        steps=state["step"],
        seconds=time.monotonic() - started,
        curve=state["curve"],
    )


def _parameter_groups(network: nn.Module, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameters by the factor of their learning rate; those with 0 stop requiring gradients."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        factor = next((factor for prefix, factor in factors.items() if name.startswith(prefix)), 1.0)
        parameter.requires_grad_(factor > 0.0)
        if factor > 0.0:
            groups.setdefault(factor, []).append(parameter)
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]


def _schedule(step: int, settings: LoopSettings) -> float:
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * done))


def _freeze_batch_norm(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _row(step: int, split: str, name: str, value: float) -> dict[str, Any]:
    return {"step": step, "split": split, "name": name, "value": value}


def _validate_and_keep(wrapped: nn.Module, network: nn.Module, validate: Validate, state: dict[str, Any]) -> None:
    wrapped.eval()
    with torch.no_grad():
        found = validate(wrapped)
    state["curve"] += [_row(state["step"], "validation", key, value) for key, value in found.items()]
    if not state["best"] or _comparable(found["score"]) < _comparable(state["best"]["score"]):
        weights = copy.deepcopy(network.state_dict())
        state.update(best=found, best_step=state["step"], stale=0, best_weights=weights)
    else:
        state["stale"] += 1


def _comparable(score: float) -> float:
    # Nothing is less than NaN, so that a start that could not be measured would stay the best for good.
    return math.inf if math.isnan(score) else score


def _write_state(path: Path, fingerprint: str, network: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    content = {"weights": network.state_dict(), "optimizer": optimizer.state_dict(), "fingerprint": fingerprint}
    torch.save({**content, **state}, temporary)
    temporary.replace(path)


def _read_state(path: Path, fingerprint: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state if state.pop("fingerprint") == fingerprint else None
