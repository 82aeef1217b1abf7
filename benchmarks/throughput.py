"""Photos per second of the training stages and where a step's time goes: `python -m benchmarks.throughput --json FILE`.

Takes the crops, the face model and the geometry branch of a workspace whose stages up to `validate_labels` are done. A
row for each of the three stages holds:

- `stage`, `device`, `backbone`, `size_px`, `batch`, `threads`;
- `photos_per_second`: of undisturbed steps, batches being prepared in the background as in training;
- `waiting_share`: of their time, spent waiting for a batch;
- `shares`: where the time of steps taken apart goes, adding up to 1: `load` (drawing, gathering and augmenting crops,
  here in the foreground), `network_forward`, `network_backward`, `render` and `losses` (meshes, labels, terms), both
  with their gradients, and `step` (clipping and optimiser).

The parts are cut where tensors pass from one to the next, and gradients are handed over by hand, so a step taken apart
computes what a whole one computes. `--backbone resnet-50 --size-px 224` measures another image branch, on crops that
are enlarged. Shares hold between machines of a kind; photos per second do not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from lightning.fabric import Fabric
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from models.losses import objective as objective_module
from models.reconstruction.reconstructor import Reconstructor
from models.rendering.render import render
from models.training.data import CropSet, split_counts
from models.training.loading import BatchLoader, seeded
from models.training.schedule import parameter_groups
from models.types import Batch, Camera, Rendering
from tasks.artifacts import Workspace
from tasks.params import Params, TrainingParams, load_params
from tasks.train import labelled_shares, load_trainee
from tasks.training_step import Trainee, build_step

STAGES = ("train_self_supervised", "train_supervised", "train_fused")
PARTS = ("load", "network_forward", "network_backward", "render", "losses", "step")
NETWORK = ("network_forward", "network_backward")
MAX_SHARE = 0.25
"""Nothing but the network should take more of a step."""
WARM_UP_STEPS = 3
ENLARGED_CROPS = 256
"""Of each source; enough to draw from when crops are enlarged."""

Row = dict[str, Any]


class Stopwatch:
    """Seconds by part; waits for the device at both ends, so that a part pays for what it started."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = self.now()
        yield
        self.seconds[name] += self.now() - started


class ApartStep:
    """A training step in parts, with the gradients of a whole one."""

    def __init__(self, fabric: Fabric, wrapped: nn.Module, watch: Stopwatch) -> None:
        self.fabric, self.wrapped, self.watch = fabric, wrapped, watch
        self.raw: list[tuple[Tensor, Tensor]] = []
        """What the network gave, and the copies that the losses saw."""
        self.drawn: list[tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]] = []
        """Inputs of each rendering with the copies it saw, its image, and the copy that the losses saw."""

    def network(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with self.watch.part("network_forward"):
            raw = self.wrapped(*inputs)
        self.raw = [(value, _cut(value)) for value in raw]
        return tuple(copy for _, copy in self.raw)

    def render(
        self,
        vertices: Tensor,
        triangles: Tensor,
        *,
        albedo: Tensor,
        lighting: Tensor,
        camera: Camera,
        rasterizer: str = "auto",
    ) -> Rendering:
        inputs = [(value, _cut(value)) for value in (vertices, albedo, lighting)]
        with self.watch.part("render"):
            found = render(
                inputs[0][1],
                triangles,
                albedo=inputs[1][1],
                lighting=inputs[2][1],
                camera=camera,
                rasterizer=rasterizer,
            )
        image = _cut(found.image)
        self.drawn.append((inputs, found.image, image))
        return replace(found, image=image)

    def backward(self, total: Tensor) -> None:
        images = [copy for _, image, copy in self.drawn if image.requires_grad]
        ends, gradients = [total], [torch.ones_like(total)]
        with self.watch.part("losses"):
            wanted = torch.autograd.grad(total, images, retain_graph=True) if images else ()
        with self.watch.part("render"):
            for (inputs, image, _), gradient in zip(self.drawn, wanted, strict=True):
                torch.autograd.backward(image, gradient)
                for value, copy in inputs:
                    if copy.grad is not None:
                        ends.append(value)
                        gradients.append(copy.grad)
        with self.watch.part("losses"):
            torch.autograd.backward(ends, gradients)
        with self.watch.part("network_backward"):
            known = [(value, copy.grad) for value, copy in self.raw if copy.grad is not None]
            # A sum whose gradients are those handed over; the precision has a say in how a loss is propagated.
            self.fabric.backward(torch.stack([(value.float() * gradient).sum() for value, gradient in known]).sum())
        self.drawn.clear()


def _cut(value: Tensor) -> Tensor:
    return value.detach().requires_grad_(value.requires_grad)


def measure(trainee: Trainee, params: Params, stage: str, *, steps: int) -> Row:
    """One stage's row, see the module's heading."""
    section: TrainingParams = getattr(params, stage)
    losses = {source.source: source.losses for source in section.sources}
    shares = labelled_shares(section.sources, trainee, share=section.labelled_share)
    load, loss = build_step(trainee, losses, split_counts(shares, section.batch_size))
    fabric, encoder = trainee.fabric, trainee.reconstructor.encoder
    groups = parameter_groups(encoder, {"geometry.": section.geometry_rate})
    wrapped, optimizer = fabric.setup(encoder, torch.optim.AdamW(groups, lr=1e-5))
    wrapped.train()
    watch = Stopwatch(fabric.device)

    def finish() -> None:
        fabric.clip_gradients(wrapped, optimizer, max_norm=section.clip_norm, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()

    with closing(BatchLoader(load, seed=0, start=0, stop=WARM_UP_STEPS + steps)) as loader:
        for number, (batches,) in enumerate(loader):
            if number == WARM_UP_STEPS:
                started, loader.waiting_seconds = watch.now(), 0.0
            fabric.backward(loss(wrapped, batches)[0])
            finish()
        seconds = watch.now() - started
        waiting = loader.waiting_seconds
    for step in range(steps):
        apart = ApartStep(fabric, wrapped, watch)
        with watch.part("load"):
            ((*batches,),) = load(seeded(1, step))
        total = _forward(apart, loss, batches)
        apart.backward(total)
        with watch.part("step"):
            finish()
    taken = sum(watch.seconds.values())
    return {
        "stage": stage,
        "device": str(fabric.device),
        "backbone": trainee.reconstructor.settings.backbone,
        "size_px": trainee.reconstructor.settings.crop_size_px,
        "batch": section.batch_size,
        "threads": torch.get_num_threads(),
        "photos_per_second": round(steps * section.batch_size / seconds, 1),
        "waiting_share": round(waiting / seconds, 4),
        "shares": {name: round(value / taken, 4) for name, value in watch.seconds.items()},
    }


def _forward(apart: ApartStep, loss: Any, batches: list[Batch]) -> Tensor:
    """The loss of a step; its time that is neither the network's nor the renderer's counts as that of the losses."""
    watch, original = apart.watch, objective_module.render
    others = watch.seconds["network_forward"] + watch.seconds["render"]
    objective_module.render = apart.render  # type: ignore[assignment]
    try:
        started = watch.now()
        total: Tensor = loss(apart.network, batches)[0]
        seconds = watch.now() - started
    finally:
        objective_module.render = original
    watch.seconds["losses"] += seconds - (watch.seconds["network_forward"] + watch.seconds["render"] - others)
    return total


def with_backbone(trainee: Trainee, *, backbone: str, size_px: int) -> Trainee:
    """The same trainee with another image branch of random weights, on crops of another size."""
    old = trainee.reconstructor
    if (backbone, size_px) == (old.settings.backbone, old.settings.crop_size_px):
        return trainee
    settings = replace(old.settings, backbone=backbone, crop_size_px=size_px)
    reconstructor = Reconstructor(old.model, settings)
    reconstructor.encoder.geometry.load_state_dict(old.encoder.geometry.state_dict())
    reconstructor = reconstructor.to(trainee.fabric.device)
    return replace(trainee, reconstructor=reconstructor, crops=_resized(trainee.crops, size_px))


def _resized(crops: CropSet, size_px: int) -> CropSet:
    if size_px == crops.images.shape[-1]:
        return crops
    scale = size_px / crops.images.shape[-1]
    chosen = torch.cat([crops.of_source(name)[:ENLARGED_CROPS] for name in dict.fromkeys(crops.source)])
    images = nn.functional.interpolate(crops.images[chosen].float(), size=(size_px, size_px), mode="bilinear")
    return replace(
        crops,
        sample_ids=tuple(crops.sample_ids[place] for place in chosen.tolist()),
        source=tuple(crops.source[place] for place in chosen.tolist()),
        images=images.byte(),
        landmarks=crops.landmarks[chosen] * scale,
        confidence=crops.confidence[chosen],
        annotation=crops.annotation[chosen] * scale,
        person=crops.person[chosen],
        affine=crops.affine[chosen] @ torch.diag(torch.tensor([1 / scale, 1 / scale, 1.0])),
        photo_size=crops.photo_size[chosen],
        rotation=crops.rotation[chosen],
        yaw_deg=crops.yaw_deg[chosen],
        quality=crops.quality[chosen],
        mesh_index=crops.mesh_index[chosen],
    )


def missed_aims(rows: list[Row]) -> list[str]:
    """A line for every part beside the network that takes more of a step than it should."""
    return [
        f"{row['stage']}: {name} takes {share:.0%} of a step, aim {MAX_SHARE:.0%}"
        for row in rows
        for name, share in row["shares"].items()
        if name not in NETWORK and share > MAX_SHARE
    ]


def table_of(rows: list[Row]) -> Table:
    first = rows[0]
    table = Table(title=f"{first['backbone']} at {first['size_px']} px on {first['device']}, batch {first['batch']}")
    for number, name in enumerate(("stage", "photos/s", "waiting", *PARTS)):
        table.add_column(name.replace("_", " "), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        shares = [f"{row['shares'][name]:.1%}" for name in PARTS]
        table.add_row(row["stage"], f"{row['photos_per_second']}", f"{row['waiting_share']:.1%}", *shares)
    return table


def main(
    json_file: Annotated[Path, typer.Option("--json", help="where the rows go")],
    workspace: Annotated[Path, typer.Option(help="with artifacts up to validate_labels")] = Path(),
    steps: Annotated[int, typer.Option(help="measured steps of each stage", min=1)] = 20,
    batch_size: Annotated[int | None, typer.Option(help="instead of the stages' own", min=1)] = None,
    backbone: Annotated[str | None, typer.Option(help="instead of the workspace's")] = None,
    size_px: Annotated[int | None, typer.Option(help="crops are enlarged to this", min=32)] = None,
    threads: Annotated[int | None, typer.Option(help="of the processor", min=1)] = None,
) -> None:
    """Measure the training stages of a workspace."""
    if threads:
        torch.set_num_threads(threads)
    params, place = load_params(workspace / "params.yaml"), Workspace(workspace)
    rows: list[Row] = []
    for stage in STAGES:
        section: TrainingParams = getattr(params, stage)
        if batch_size:
            params = params.model_copy(update={stage: section.model_copy(update={"batch_size": batch_size})})
        checkpoint = place.folder("train_geometry") / "checkpoint.pt"
        trainee = load_trainee(params, place, checkpoint, sources=[source.source for source in section.sources])
        settings = trainee.reconstructor.settings
        trainee = with_backbone(
            trainee, backbone=backbone or settings.backbone, size_px=size_px or settings.crop_size_px
        )
        rows.append(measure(trainee, params, stage, steps=steps))
    unfinished = json_file.with_name(f"{json_file.name}.unfinished")
    unfinished.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(json_file)
    console = Console(width=140)
    console.print(table_of(rows))
    for line in missed_aims(rows):
        console.print(line)


if __name__ == "__main__":
    typer.run(main)
