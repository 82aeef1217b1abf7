"""Stages train_self_supervised, train_supervised and train_fused: method A, the same loop with other sources."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from models.face.alignment import rigid_alignment, transform
from models.face.camera import rotation_distance
from models.losses.coefficients import geometry_embedding
from models.losses.objective import TERMS, objective
from models.metrics import distinctness, landmark_error, similarity
from models.reconstruction.reconstructor import Reconstructor, load_reconstructor
from models.rendering.rasterize import build_rasterizer
from models.training.data import CropSet, make_batch, split_counts
from models.training.loop import LoopResult, LoopSettings, Validate, build_fabric, train
from models.training.progress import forget_progress
from models.types import PART_NAMES, Batch, FaceCoefficients, to_device
from tasks.artifacts import Workspace, load_checkpoint, replace_folder, save_checkpoint, write_curve, write_json
from tasks.dataset import load_crops
from tasks.face_model import load_face_model
from tasks.params import Params, TrainingParams, TrainingSource
from tasks.source_params import is_labelled
from tasks.tracking import track
from tasks.training_step import Trainee, build_learner, build_step, companions_of, encode, needed

QUALITY_RATIOS = ((0.7, 1 / 2), (0.4, 1 / 3), (0.0, 1 / 4))
"""Mean label quality from which on the labelled part of a batch is this large: 1:1, 2:1, 3:1. Source: method A.4."""

EVALUATION_BATCH = 64


def train_self_supervised(params: Params, workspace: Workspace) -> None:
    """Stage 1: photo and landmark losses on unlabelled photos."""
    train_stage(params, workspace, "train_self_supervised")


def train_supervised(params: Params, workspace: Workspace) -> None:
    """Stage 2: mesh losses on the few labelled photos.

    They reach shape only, while the labels, drawn, teach pose and light.
    """
    train_stage(params, workspace, "train_supervised")


def train_fused(params: Params, workspace: Workspace) -> None:
    """Stage 3: both kinds of photos in every batch."""
    train_stage(params, workspace, "train_fused")


def train_stage(params: Params, workspace: Workspace, stage: str) -> None:
    """Train one stage from the weights of its `init`; writes checkpoint.pt, curve.csv and metrics.json."""
    section: TrainingParams = getattr(params, stage)
    initial = workspace.folder(section.init) / "checkpoint.pt"
    trainee = load_trainee(params, workspace, initial, sources=[source.source for source in section.sources])
    shares = labelled_shares(section.sources, trainee, share=section.labelled_share)
    progress = workspace.progress(stage)
    run_training = partial(
        fit,
        trainee,
        section,
        shares=shares,
        seed=params.project.seed,
        progress_folder=progress,
        identity=fingerprint(params, stage, [initial, workspace.folder("validate_labels") / "clean.parquet"]),
        name=stage,
        keep_progress=True,
    )
    if not trainee.fabric.is_global_zero:
        # Of several processes the first alone writes.
        run_training()
        return
    with track(params, workspace, stage) as run, replace_folder(workspace.folder(stage)) as folder:
        result = run_training()
        save_checkpoint(folder / "checkpoint.pt", trainee.content())
        write_curve(folder / "curve.csv", result.curve)
        numbers = {name: value for name, value in result.best.items() if name != "score"}
        metrics = {
            "best_step": result.best_step,
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            **speed(result, section.batch_size),
            "shares": shares,
            "validation": numbers,
        }
        write_json(folder / "metrics.json", metrics)
        run.curve(result.curve)
        run.metrics({f"best/{name}": value for name, value in numbers.items()}, step=result.best_step)
    forget_progress(progress)


def speed(result: LoopResult, batch_size: int) -> dict[str, float | None]:
    """Photos per second of the training steps, and the share of their time in which they waited for data."""
    if not result.steps_taken:
        return {"photos_per_second": None, "waiting_share": None}
    return {
        "photos_per_second": round(result.steps_taken * batch_size / result.step_seconds, 1),
        "waiting_share": round(result.waiting_seconds / result.step_seconds, 4),
    }


def load_trainee(params: Params, workspace: Workspace, checkpoint: Path, *, sources: Sequence[str]) -> Trainee:
    """The network of a checkpoint with the training crops of some sources and the whole validation split."""
    torch.manual_seed(params.project.seed)
    model = load_face_model(params, workspace)
    fabric = build_fabric(device=params.project.device, precision=params.project.precision)
    # A backend that is missing is told now, not after the first batch.
    build_rasterizer(params.project.rasterizer, fabric.device)
    content = load_checkpoint(checkpoint)
    reconstructor = load_reconstructor(content, model).to(fabric.device)
    known = {source.name: source for source in params.ingest.sources}
    # Lips, brows and skin are what a scan measures; eyeballs and the mouth's inside hardly count.
    inner = [PART_NAMES.index("eyes"), PART_NAMES.index("mouth")]
    weights = torch.where(torch.isin(model.parts, torch.tensor(inner, device=fabric.device)), 0.1, 1.0)
    crops = load_crops(workspace, params, split="train", sources=sources)
    for name in sources:
        if not len(crops.of_source(name)):
            raise ValueError(
                f"source {name}: no training crops are left; see artifacts/validate_labels/quarantine.parquet"
            )
    return Trainee(
        reconstructor=reconstructor,
        crops=crops,
        validation=load_crops(workspace, params, split="validation"),
        labelled=frozenset(name for name in sources if is_labelled(known[name])),
        shape_weights=weights,
        landmark_branch=copy.deepcopy(reconstructor.encoder.geometry).requires_grad_(False),
        landmark_map=copy.deepcopy(reconstructor.encoder.identity_map).requires_grad_(False),
        identity_embedding=geometry_embedding(model.identity_basis, model.mean),
        fabric=fabric,
        rasterizer=params.project.rasterizer,
        companions=companions_of(content),
    )


def labelled_shares(
    sources: Sequence[TrainingSource], trainee: Trainee, *, share: float | str | None
) -> dict[str, float]:
    """Each source's share of a batch; with `share` the labelled ones together get that much, or what quality earns."""
    shares = {source.source: source.share for source in sources}
    labelled = sum(value for name, value in shares.items() if name in trainee.labelled)
    if share is None or not 0.0 < labelled < 1.0:
        return shares
    if share == "by_quality":
        chosen = torch.cat([trainee.crops.of_source(name) for name in trainee.labelled])
        quality = float(trainee.crops.quality[chosen].nanmean())
        share = next(ratio for limit, ratio in QUALITY_RATIOS if quality >= limit)
    return {
        name: value * (float(share) / labelled if name in trainee.labelled else (1.0 - float(share)) / (1.0 - labelled))
        for name, value in shares.items()
    }


def fit(
    trainee: Trainee,
    section: TrainingParams,
    *,
    shares: Mapping[str, float],
    seed: int,
    progress_folder: Path,
    identity: str,
    name: str,
    keep_progress: bool = False,
) -> LoopResult:
    """Run the training loop; the trainee's weights and companions become those of the best validation.

    With `keep_progress` the caller removes the progress when the result is safe, see `forget_progress`.
    """
    losses = {source.source: source.losses for source in section.sources}
    counts = split_counts(dict(shares), section.batch_size)
    learner = build_learner(
        trainee,
        losses,
        center_rate=section.center_rate,
        confidence_width=section.confidence_width,
        map_steps=section.identity_map_steps,
        seed=seed,
    )
    load, loss = build_step(
        trainee,
        losses,
        counts,
        accumulate=section.accumulate,
        photos_per_person={source.source: source.photos_per_person for source in section.sources},
        learner=learner,
        warmup_steps=section.identity_warmup_steps,
        steps=section.steps,
    )
    result = train(
        trainee.fabric,
        learner,
        settings=LoopSettings(
            steps=section.steps,
            learning_rate=section.learning_rate,
            warmup_steps=min(section.warmup_steps, section.steps // 5 + 1),
            weight_decay=section.weight_decay,
            clip_norm=section.clip_norm,
            validate_every=section.validate_every,
            patience=section.patience,
            seed=seed,
            freeze_batch_norm=section.freeze_batch_norm,
            rate_factors={
                "encoder.geometry.": section.geometry_rate,
                # Nothing but persons says which way of stretching identities is right.
                "encoder.identity_map.": 1.0 if learner.memory else 0.0,
                "memory.": section.class_rate,
            },
            schedule=section.schedule,
            decay_at=section.decay_at,
            ema_decay=section.ema_decay,
        ),
        loss=loss,
        load=load,
        settle=learner.settle,
        validate=_validation(trainee, losses),
        progress_folder=progress_folder,
        fingerprint=identity,
        name=name,
        keep_progress=keep_progress,
    )
    trainee.companions.update(learner.content())
    return result


def _validation(trainee: Trainee, losses: Mapping[str, Mapping[str, float]]) -> Validate:
    """Validation numbers and their score.

    The score is shape, landmarks and unlikeness, each relative to the start, where the stage uses meshes, else the
    stage's losses. Where losses are about persons, how alike different persons are joins it in the same way.
    """
    needs = needed(losses)
    start: dict[str, float] = {}
    terms = _of_photos(next((terms for name, terms in losses.items() if name not in trainee.labelled), {}))

    def look(encoder: nn.Module) -> dict[str, float]:
        embeddings: list[Tensor] = []

        def loss(batch: Batch, coefficients: FaceCoefficients) -> Tensor:
            step = trainee.step(batch, coefficients)
            embeddings.append(step.embedding.cpu())
            return objective(step, terms)[0]

        found = measure(trainee.reconstructor, encoder, trainee.validation, loss=loss)
        if "person" in needs:
            found["distinctness"] = distinctness(torch.cat(embeddings), trainee.validation.person)
        return found

    if "scan" in needs and bool((trainee.validation.mesh_index >= 0).any()):
        trainee.reconstructor.eval()
        with torch.no_grad():
            start = look(trainee.reconstructor.encoder)

    def validate(encoder: nn.Module) -> dict[str, float]:
        found = look(encoder)
        if start:
            shape, points = "vertex_error_mm", "landmark_nme"
            unlikeness = (1.0 - found["similarity"]) / (1.0 - start["similarity"])
            found["score"] = found[shape] / start[shape] + found[points] / start[points] + unlikeness
        else:
            found["score"] = found["objective"]
        if start and math.isfinite(start.get("distinctness", math.nan)):
            found["score"] += (1.0 - found["distinctness"]) / (1.0 - start["distinctness"])
        return found

    return validate


def _of_photos(terms: Mapping[str, float]) -> dict[str, float]:
    """Of a source's losses those that can be asked of photos of any person; never none."""
    kept = {name: weight for name, weight in terms.items() if not TERMS[name].needs}
    return kept or {"photo": 1.0, "landmark": 1e-3}


def batches_of(count: int) -> Iterator[Tensor]:
    """Consecutive indices, `EVALUATION_BATCH` at a time."""
    for start in range(0, count, EVALUATION_BATCH):
        yield torch.arange(start, min(start + EVALUATION_BATCH, count))


def measure(
    reconstructor: Reconstructor,
    encoder: nn.Module,
    crops: CropSet,
    *,
    loss: Callable[[Batch, FaceCoefficients], Tensor] | None = None,
) -> dict[str, float]:
    """Means over a split of what `measure_photos` finds, over the photos for which it is known."""
    found = measure_photos(reconstructor, encoder, crops, loss=loss)
    known = {name: values[values.isfinite()] for name, values in found.items()}
    return {name: float(values.mean()) for name, values in known.items() if len(values)}


@torch.no_grad()
def measure_photos(
    reconstructor: Reconstructor,
    encoder: nn.Module,
    crops: CropSet,
    *,
    loss: Callable[[Batch, FaceCoefficients], Tensor] | None = None,
    chosen: Tensor | None = None,
) -> dict[str, Tensor]:
    """Landmark NME and similarity of every photo (N,); where the truth is known also vertex error (mm), pose error (°).

    NaN where unknown. With `loss` also the `objective`, what it gives; with `chosen` (N,) of these photos alone.
    """
    model, device = reconstructor.model, reconstructor.model.mean.device
    outer = model.part("skin") | model.part("lips") | model.part("brows")
    found: dict[str, list[Tensor]] = {}
    chosen = torch.arange(len(crops)) if chosen is None else chosen
    for places in batches_of(len(chosen)):
        indices = chosen[places]
        batch = to_device(make_batch(crops, indices, model=model, source="validation", labelled=False), device)
        coefficients = encode(reconstructor, encoder, batch.image, batch.landmarks, batch.confidence)
        drawn = reconstructor.reconstruct(coefficients, batch.camera, shade=True)
        assert drawn.rendering is not None
        annotation = crops.annotation[indices].to(device)
        target = torch.where(annotation.isfinite(), annotation, batch.landmarks)
        values = {
            "landmark_nme": landmark_error(drawn.landmarks, target),
            "similarity": similarity(batch.image, drawn.rendering.image, drawn.rendering.mask & batch.mask),
            "pose_error_deg": rotation_distance(coefficients.rotation, crops.rotation[indices].to(device)).rad2deg(),
        }
        if loss is not None:
            values["objective"] = loss(batch, coefficients).expand(len(indices))
        known = crops.mesh_index[indices] >= 0
        values["vertex_error_mm"] = values["similarity"].new_full((len(indices),), torch.nan)
        if bool(known.any()):
            values["vertex_error_mm"][known.to(device)] = shape_error(
                drawn.neutral[known.to(device)], crops, indices[known], outer
            )
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: torch.cat(parts) for name, parts in found.items()}


def shape_error(neutral: Tensor, crops: CropSet, indices: Tensor, chosen: Tensor) -> Tensor:
    """Mean vertex distance in mm of neutral shapes (B, V, 3) over the chosen vertices, after rigid alignment.

    A label without a known neutral shape is taken with its expression.
    """
    meshes = crops.mesh_index[indices]
    truth = crops.neutral[meshes]
    truth = torch.where(truth.isfinite(), truth, crops.vertices[meshes]).to(neutral.device)[:, chosen]
    predicted = neutral[:, chosen]
    rotation, translation, _ = rigid_alignment(predicted, truth)
    distance: Tensor = torch.linalg.vector_norm(transform(predicted, rotation, translation) - truth, dim=2)
    return distance.mean(1)


def fingerprint(params: Params, stage: str, inputs: Sequence[Path]) -> str:
    """Identifies a run, so that only an unfinished run of the same inputs and parameters is resumed."""
    sections = ["project", "face_model", "encoder", "train_geometry", "validate_labels", stage]
    digest = hashlib.sha256(repr([getattr(params, section) for section in sections]).encode())
    for path in inputs:
        digest.update(path.read_bytes())
    return digest.hexdigest()
