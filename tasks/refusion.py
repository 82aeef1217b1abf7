"""Stage refusion: while reconstructions do not resemble their photos, raise the labelled share and train again.

Rounds are judged by the validation split: similarity says whether to go on, geometry whether a round may be kept.
A killed run goes on after the last finished round. Source: method A.4.
"""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from models.metrics import similarity
from models.reconstruction.reconstructor import Reconstructor, load_reconstructor, reconstructor_content
from models.training.data import CropSet, make_batch
from models.types import to_device
from tasks.artifacts import Workspace, load_checkpoint, replace_folder, save_checkpoint, write_curve, write_json
from tasks.params import Params, RefusionParams, TrainingParams
from tasks.tracking import TrackedRun, track
from tasks.train import (
    Trainee,
    batches_of,
    encode,
    fingerprint,
    fit,
    labelled_shares,
    load_trainee,
    measure,
)


@dataclass(frozen=True)
class Round:
    """What one round did and what became of it."""

    round: int
    labelled_share: float
    similarity: float
    """Median over the validation split."""
    geometry: float | None
    """Mean vertex error in mm over the validation split; None where no mesh is known."""
    landmark_nme: float
    decision: str


def refusion(params: Params, workspace: Workspace) -> None:
    """Run the loop; writes checkpoint.pt (the best kept), rounds.csv, curve.csv and metrics.json."""
    section, stage = params.refusion, params.train_fused
    initial = workspace.folder("train_fused") / "checkpoint.pt"
    trainee = load_trainee(params, workspace, initial, sources=[source.source for source in stage.sources])
    identity = fingerprint(params, "refusion", [initial, workspace.folder("validate_labels") / "clean.parquet"])
    progress = workspace.progress("refusion")
    state = _read_state(progress, identity, trainee)
    with track(params, workspace, "refusion") as run, replace_folder(workspace.folder("refusion")) as folder:
        if not state["rounds"]:
            shares = labelled_shares(stage.sources, trainee, share=stage.labelled_share)
            share = sum(value for name, value in shares.items() if name in trainee.labelled)
            first = judge(trainee, number=0, share=share)
            state["rounds"] = [asdict(Round(**{**asdict(first), "decision": "start"}))]
        while True:
            rounds = [Round(**row) for row in state["rounds"]]
            reason = stop_reason(rounds, section, labelled=bool(trainee.labelled))
            if reason:
                break
            found = _run_round(trainee, params, rounds, progress, identity, state, run)
            state["rounds"].append(asdict(found))
            if found.decision == "kept":
                state["best"] = reconstructor_content(trainee.reconstructor)
            save_checkpoint(progress / "rounds.pt", {"fingerprint": identity, **state})
        save_checkpoint(folder / "checkpoint.pt", state["best"])
        write_curve(folder / "curve.csv", state["curve"])
        _write_rounds(folder / "rounds.csv", rounds)
        kept = best_round(rounds)
        metrics: dict[str, Any] = {"stopped": reason, "kept_round": kept.round, **asdict(kept)}
        write_json(folder / "metrics.json", metrics)
        run.curve(state["curve"])
        run.metrics({"similarity": kept.similarity, "labelled_share": kept.labelled_share})
        run.tags({"mien.stopped": reason})
    (progress / "rounds.pt").unlink(missing_ok=True)


def best_round(rounds: list[Round]) -> Round:
    """The last round that was kept, or the start."""
    return next(row for row in reversed(rounds) if row.decision in ("kept", "start"))


def stop_reason(rounds: list[Round], section: RefusionParams, *, labelled: bool) -> str:
    """Why the loop ends now, or an empty string."""
    present = best_round(rounds)
    if present.similarity >= section.similarity_threshold:
        return f"similarity {present.similarity:.3f} reaches {section.similarity_threshold:g}"
    if not labelled:
        return "no source has labelled meshes, so there is no share to raise"
    if rounds[-1].decision == "rejected":
        return f"round {rounds[-1].round} worsened the geometry by more than {section.max_geometry_loss:.0%}"
    if len(rounds) > 2:
        gains = [after.similarity - before.similarity for before, after in zip(rounds[-3:-1], rounds[-2:], strict=True)]
        if max(gains) < section.min_gain:
            return f"two rounds in a row gained less than {section.min_gain:g}"
    if len(rounds) - 1 >= section.max_rounds:
        return f"{section.max_rounds} rounds are done"
    return ""


def judge(trainee: Trainee, *, number: int, share: float, before: Round | None = None, limit: float = 0.0) -> Round:
    """Measure the present weights on the validation split, and decide against the round before."""
    found = measure(trainee.reconstructor, trainee.reconstructor.encoder, trainee.validation)
    geometry = found.get("vertex_error_mm")
    decision = "kept"
    if before is not None and before.geometry is not None and geometry is not None:
        decision = "rejected" if geometry > before.geometry * (1.0 + limit) else "kept"
    return Round(
        round=number,
        labelled_share=share,
        similarity=median_similarity(trainee.reconstructor, trainee.validation),
        geometry=geometry,
        landmark_nme=found["landmark_nme"],
        decision=decision,
    )


@torch.no_grad()
def median_similarity(reconstructor: Reconstructor, crops: CropSet) -> float:
    """Median similarity of renderings and photos."""
    values = []
    for indices in batches_of(len(crops)):
        batch = make_batch(crops, indices, model=reconstructor.model, source="validation", labelled=False)
        batch = to_device(batch, reconstructor.model.mean.device)
        coefficients = encode(reconstructor, reconstructor.encoder, batch.image, batch.landmarks, batch.confidence)
        drawn = reconstructor.reconstruct(coefficients, batch.camera, shade=True).rendering
        assert drawn is not None
        values.append(similarity(batch.image, drawn.image, drawn.mask & batch.mask))
    return float(torch.cat(values).median())


def _run_round(
    trainee: Trainee,
    params: Params,
    rounds: list[Round],
    progress: Path,
    identity: str,
    state: dict[str, Any],
    run: TrackedRun,
) -> Round:
    """Train from the best checkpoint with a larger labelled share, measure, and take it back if geometry suffered."""
    section, number, before = params.refusion, len(rounds), best_round(rounds)
    # A stage that began above the limit is not brought down to it: the share is only ever raised.
    raised = min(before.labelled_share + section.share_step, section.max_labelled_share)
    share = max(before.labelled_share, raised)
    trainee.reconstructor.encoder.load_state_dict(state["best"]["weights"])
    shares = labelled_shares(params.train_fused.sources, trainee, share=share)
    update = {"steps": section.steps, "learning_rate": section.learning_rate, "validate_every": section.steps}
    training: TrainingParams = params.train_fused.model_copy(update=update)
    with run.child(f"refusion-{number}") as nested:
        result = fit(
            trainee,
            training,
            shares=shares,
            seed=params.project.seed + number,
            progress_folder=progress / f"round-{number}",
            identity=f"{identity}-{number}",
            name=f"refusion round {number}",
        )
        found = judge(trainee, number=number, share=share, before=before, limit=section.max_geometry_loss)
        offset = section.steps * (number - 1)
        state["curve"] += [{**row, "step": row["step"] + offset} for row in result.curve]
        nested.curve(result.curve)
        nested.metrics({"similarity": found.similarity, "labelled_share": share, "vertex_error_mm": found.geometry})
        nested.tags({"mien.decision": found.decision})
    return found


def _read_state(progress: Path, identity: str, trainee: Trainee) -> dict[str, Any]:
    path = progress / "rounds.pt"
    if path.exists():
        state = load_checkpoint(path)
        if state.pop("fingerprint") == identity:
            load_reconstructor(state["best"], trainee.reconstructor.model)
            trainee.reconstructor.encoder.load_state_dict(state["best"]["weights"])
            return state
    return {"rounds": [], "best": reconstructor_content(trainee.reconstructor), "curve": []}


def _write_rounds(path: Path, rounds: list[Round]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(rounds[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rounds)
