"""Stage refusion: while reconstructions do not resemble their photos, raise the labelled share and train again.

Rounds are judged by the validation split: similarity says whether to go on, geometry whether a round may be kept.
Training photos say which poses and skin tones need labels most: there labelled samples are drawn more often.
A killed run goes on after the last finished round. Source: method A.4.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from models.reconstruction.reconstructor import load_reconstructor
from models.training.progress import forget_progress
from tasks.artifacts import (
    Workspace,
    load_checkpoint,
    replace_folder,
    save_checkpoint,
    write_curve,
    write_json,
    write_table,
)
from tasks.params import Params, RefusionParams, TrainingParams
from tasks.similarity_groups import (
    SAMPLES,
    Groups,
    group_crops,
    group_rows,
    group_weights,
    probe,
    sample_rows,
    weighted_quality,
)
from tasks.tracking import TrackedRun, track
from tasks.train import fingerprint, fit, labelled_shares, load_trainee, measure_photos
from tasks.training_step import Trainee

KEPT = ("start", "kept")
"""Decisions after which a round's weights are the best so far."""


@dataclass(frozen=True)
class Round:
    """What one round did and what became of it."""

    round: int
    labelled_share: float
    similarity: float
    """Median over the validation split."""
    gain: float
    """Similarity beyond the best before; 0 at the start."""
    geometry: float | None
    """Mean vertex error in mm over the validation split; None where no mesh is known."""
    landmark_nme: float
    decision: str
    """start, kept, no_gain (resembles no more than the best) or rejected (worse geometry); both leave the best."""


@dataclass(frozen=True)
class RefusionResult:
    """Everything the loop leaves behind."""

    rounds: list[Round]
    stopped: str
    """Why the loop ended."""
    best: dict[str, Any]
    """Content of the best checkpoint."""
    curve: list[dict[str, Any]] = field(repr=False)
    samples: list[dict[str, Any]] = field(repr=False)
    """Rows of `samples.parquet`."""
    groups: list[dict[str, Any]] = field(repr=False)
    """Rows of `groups.csv`."""


def refusion(params: Params, workspace: Workspace) -> None:
    """Run the loop; writes checkpoint.pt, curve.csv, metrics.json, and rounds.csv, groups.csv, samples.parquet.

    The last three say what every round did: overall, per group of photos, per photo.
    """
    initial = workspace.folder("train_fused") / "checkpoint.pt"
    trainee = load_trainee(params, workspace, initial, sources=[item.source for item in params.train_fused.sources])
    identity = fingerprint(params, "refusion", [initial, workspace.folder("validate_labels") / "clean.parquet"])
    progress = workspace.progress("refusion")
    with track(params, workspace, "refusion") as run, replace_folder(workspace.folder("refusion")) as folder:
        found = fuse_again(trainee, params, progress=progress, identity=identity, run=run)
        save_checkpoint(folder / "checkpoint.pt", found.best)
        write_curve(folder / "curve.csv", found.curve)
        write_rows(folder / "rounds.csv", [asdict(row) for row in found.rounds])
        write_rows(folder / "groups.csv", found.groups)
        write_table(folder / "samples.parquet", found.samples, SAMPLES)
        kept = best_round(found.rounds)
        write_json(folder / "metrics.json", {"stopped": found.stopped, "kept_round": kept.round, **asdict(kept)})
        run.curve(found.curve)
        run.metrics({"similarity": kept.similarity, "labelled_share": kept.labelled_share})
        run.tags({"mien.stopped": found.stopped})
        run.artifact(folder / "rounds.csv")
        run.artifact(folder / "groups.csv")
    (progress / "rounds.pt").unlink(missing_ok=True)


def fuse_again(trainee: Trainee, params: Params, *, progress: Path, identity: str, run: TrackedRun) -> RefusionResult:
    """Run rounds until one of the reasons of `stop_reason`; the trainee ends with the best weights.

    State goes to `progress` after every round; the file rounds.pt there is the caller's to remove once all is written.
    """
    # Groups are those of the first weights, also where a killed loop goes on from better ones.
    initial = trainee.content()
    groups = group_crops(trainee.reconstructor, trainee.validation)
    state = _read_state(progress, identity, trainee)
    if not state["rounds"]:
        shares = labelled_shares(params.train_fused.sources, trainee, share=params.train_fused.labelled_share)
        share = sum(value for name, value in shares.items() if name in trainee.labelled)
        first, found = judge(trainee, number=0, share=share)
        state["rounds"] = [asdict(first)]
        state["samples"] = sample_rows(found, trainee.validation, groups, number=0, split="validation")
        state["groups"] = group_rows(state["samples"], {})
    looked_at: _Probe | None = None
    while True:
        rounds = [Round(**row) for row in state["rounds"]]
        reason = stop_reason(rounds, params.refusion, labelled=bool(trainee.labelled))
        if reason:
            break
        if looked_at is None:
            trainee.reconstructor.encoder.load_state_dict(initial["weights"])
            looked_at = _Probe.of(trainee, params)
        if not any(row["split"] == "train" for row in state["groups"]):
            # Only a loop that goes on needs to know which groups lack labels.
            _note(state, looked_at.rows(trainee, number=0), {})
        _run_round(trainee, params, looked_at, groups, progress, identity, state, run)
        save_checkpoint(progress / "rounds.pt", {"fingerprint": identity, **state})
        forget_progress(progress / f"round-{len(rounds)}")
    trainee.restore(state["best"])
    return RefusionResult(rounds, reason, state["best"], state["curve"], state["samples"], state["groups"])


def best_round(rounds: Sequence[Round]) -> Round:
    """The last round that was kept, or the start."""
    return next(row for row in reversed(rounds) if row.decision in KEPT)


def stop_reason(rounds: Sequence[Round], section: RefusionParams, *, labelled: bool) -> str:
    """Why the loop ends now, or an empty string."""
    present = best_round(rounds)
    if present.similarity >= section.similarity_threshold:
        return f"similarity {present.similarity:.3f} reaches {section.similarity_threshold:g}"
    if not labelled:
        return "no source has labelled meshes, so there is no share to raise"
    if rounds[-1].decision == "rejected":
        return f"round {rounds[-1].round} worsened the geometry by more than {section.max_geometry_loss:.0%}"
    if len(rounds) > 2 and max(row.gain for row in rounds[-2:]) < section.min_gain:
        return f"two rounds in a row gained less than {section.min_gain:g}"
    if len(rounds) - 1 >= section.max_rounds:
        return f"{section.max_rounds} rounds are done"
    return ""


def judge(
    trainee: Trainee, *, number: int, share: float, before: Sequence[Round] = (), limit: float = 0.0
) -> tuple[Round, dict[str, Tensor]]:
    """Measure the present weights on the validation split, and decide against the rounds before.

    Geometry is compared with the best that any kept round reached, so that small losses cannot add up. Also returns
    what was measured of every photo.
    """
    found = measure_photos(trainee.reconstructor, trainee.reconstructor.encoder, trainee.validation)
    resemblance = float(found["similarity"].median())
    error = float(found["vertex_error_mm"].nanmean())
    geometry = None if math.isnan(error) else error
    decision, gain = "start", 0.0
    if before:
        gain = resemblance - best_round(before).similarity
        reached = [row.geometry for row in before if row.decision in KEPT and row.geometry is not None]
        decision = "kept" if gain > 0.0 else "no_gain"
        if geometry is not None and reached and geometry > min(reached) * (1.0 + limit):
            decision = "rejected"
    judged = Round(
        round=number,
        labelled_share=share,
        similarity=resemblance,
        gain=gain,
        geometry=geometry,
        landmark_nme=float(found["landmark_nme"].nanmean()),
        decision=decision,
    )
    return judged, found


@dataclass(frozen=True)
class _Probe:
    """The training photos that say where labels are wanted, and the groups of all training crops."""

    chosen: Tensor
    groups: Groups

    @classmethod
    def of(cls, trainee: Trainee, params: Params) -> _Probe:
        unlabelled = [item.source for item in params.train_fused.sources if item.source not in trainee.labelled]
        chosen = probe(trainee.crops, unlabelled, seed=params.project.seed)
        return cls(chosen=chosen, groups=group_crops(trainee.reconstructor, trainee.crops))

    def rows(self, trainee: Trainee, *, number: int) -> list[dict[str, Any]]:
        encoder = trainee.reconstructor.encoder
        found = measure_photos(trainee.reconstructor, encoder, trainee.crops, chosen=self.chosen)
        return sample_rows(found, trainee.crops, self.groups, number=number, split="train", chosen=self.chosen)


def _run_round(
    trainee: Trainee,
    params: Params,
    looked_at: _Probe,
    groups: Groups,
    progress: Path,
    identity: str,
    state: dict[str, Any],
    run: TrackedRun,
) -> None:
    """Train from the best checkpoint with more labelled samples, measure, and note everything in the state."""
    section = params.refusion
    before = [Round(**row) for row in state["rounds"]]
    number, share = len(before), before[-1].labelled_share
    # A stage that began above the limit is not brought down to it: the share is only ever raised.
    share = max(share, min(share + section.share_step, section.max_labelled_share))
    now, tried = best_round(before).round, before[-1].round
    base = best_round(before[:-1]).round if tried else now
    weights = group_weights(*(_of_round(state["groups"], place) for place in (now, tried, base)))
    trainee.restore(state["best"])
    crops = replace(trainee.crops, quality=weighted_quality(trainee.crops, looked_at.groups, weights))
    update = {"steps": section.steps, "learning_rate": section.learning_rate, "validate_every": section.steps}
    training: TrainingParams = params.train_fused.model_copy(update=update)
    with run.child(f"refusion-{number}") as nested:
        result = fit(
            replace(trainee, crops=crops),
            training,
            shares=labelled_shares(params.train_fused.sources, trainee, share=share),
            seed=params.project.seed + number,
            progress_folder=progress / f"round-{number}",
            identity=f"{identity}-{number}",
            name=f"refusion round {number}",
            keep_progress=True,
        )
        judged, found = judge(trainee, number=number, share=share, before=before, limit=section.max_geometry_loss)
        samples = sample_rows(found, trainee.validation, groups, number=number, split="validation")
        rows = _note(state, [*samples, *looked_at.rows(trainee, number=number)], weights)
        state["rounds"].append(asdict(judged))
        offset = section.steps * (number - 1)
        state["curve"] += [{**row, "step": row["step"] + offset} for row in result.curve]
        if judged.decision in KEPT:
            state["best"] = trainee.content()
        nested.curve(result.curve)
        nested.metrics(
            {
                "similarity": judged.similarity,
                "gain": judged.gain,
                "labelled_share": share,
                "vertex_error_mm": judged.geometry,
                "landmark_nme": judged.landmark_nme,
                **{
                    f"similarity {row['kind']} {row['group']}": row["similarity"]
                    for row in rows
                    if row["split"] == "validation"
                },
            }
        )
        nested.tags({"mien.decision": judged.decision})


def _note(state: dict[str, Any], samples: list[dict[str, Any]], weights: Mapping[str, float]) -> list[dict[str, Any]]:
    """Add the rows of a round's photos and of their groups to the state; returns the latter."""
    rows = group_rows(samples, weights)
    state["samples"] += samples
    state["groups"] += rows
    return rows


def _of_round(rows: Sequence[Mapping[str, Any]], number: int) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["round"] == number]


def _read_state(progress: Path, identity: str, trainee: Trainee) -> dict[str, Any]:
    path = progress / "rounds.pt"
    if path.exists():
        state = load_checkpoint(path)
        if state.pop("fingerprint") == identity:
            load_reconstructor(state["best"], trainee.reconstructor.model)
            return state
    return {"rounds": [], "best": trainee.content(), "curve": [], "samples": [], "groups": []}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same keys as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
