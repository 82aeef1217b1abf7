from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.face.morphable import MorphableModel
from tasks import refusion as stage
from tasks.artifacts import Workspace, load_checkpoint, read_table
from tasks.params import RefusionParams
from tasks.refusion import Round, best_round, judge, refusion, stop_reason
from tasks.similarity_groups import SAMPLES
from tasks.train import load_trainee, measure, measure_photos
from tasks.training_step import Trainee
from tests.tiny_face import tiny_face
from tests.tiny_workspace import Recorder, tiny_params, tiny_workspace

SECTION = RefusionParams(similarity_threshold=0.8, max_rounds=4, min_gain=0.01, max_geometry_loss=0.02)


def rounds_of(*rows: tuple[float, str]) -> list[Round]:
    """Rounds by similarity and decision; the gain follows from those before."""
    rounds: list[Round] = []
    for number, (similarity, decision) in enumerate(rows):
        rounds.append(
            Round(
                round=number,
                labelled_share=0.5,
                similarity=similarity,
                gain=similarity - best_round(rounds).similarity if rounds else 0.0,
                geometry=1.0,
                landmark_nme=0.02,
                decision=decision,
            )
        )
    return rounds


START, KEPT, NO_GAIN, REJECTED = "start", "kept", "no_gain", "rejected"


@pytest.mark.parametrize(
    ("rows", "labelled", "expected"),
    [
        # Similar enough at once, exactly at the threshold, or after a round.
        ([(0.81, START)], True, "similarity 0.810 reaches 0.8"),
        ([(0.8, START)], True, "similarity 0.800 reaches 0.8"),
        ([(0.5, START), (0.9, KEPT)], True, "similarity 0.900 reaches 0.8"),
        # Nothing to raise, but a good result needs nothing raised.
        ([(0.5, START)], False, "no source has labelled meshes"),
        ([(0.85, START)], False, "similarity 0.850 reaches 0.8"),
        # Similarity bought with geometry does not count, however high.
        ([(0.5, START), (0.9, REJECTED)], True, "round 1 worsened the geometry by more than 2%"),
        ([(0.5, START), (0.6, KEPT), (0.95, REJECTED)], True, "round 2 worsened the geometry"),
        # Two small gains in a row are stagnation, one is not, nor are two with a large one between.
        ([(0.5, START), (0.5, NO_GAIN)], True, ""),
        ([(0.5, START), (0.505, KEPT), (0.51, KEPT)], True, "two rounds in a row gained less than 0.01"),
        ([(0.5, START), (0.4, NO_GAIN), (0.3, NO_GAIN)], True, "two rounds in a row gained less than 0.01"),
        # A fall that the next round makes up for is no gain beyond the best.
        ([(0.5, START), (0.4, NO_GAIN), (0.505, KEPT)], True, "two rounds in a row gained less than 0.01"),
        ([(0.5, START), (0.6, KEPT), (0.6, NO_GAIN)], True, ""),
        ([(0.5, START), (0.5, NO_GAIN), (0.6, KEPT)], True, ""),
        ([(0.5, START), (0.6, KEPT), (0.6, NO_GAIN), (0.6, NO_GAIN)], True, "two rounds in a row"),
        # All rounds are used.
        ([(0.3, START), (0.4, KEPT), (0.5, KEPT), (0.6, KEPT)], True, ""),
        ([(0.3, START), (0.4, KEPT), (0.5, KEPT), (0.6, KEPT), (0.7, KEPT)], True, "4 rounds are done"),
        # Going on.
        ([(0.5, START)], True, ""),
        ([(0.5, START), (0.7, KEPT)], True, ""),
    ],
)
def test_why_the_loop_ends(rows: list[tuple[float, str]], labelled: bool, expected: str) -> None:
    found = stop_reason(rounds_of(*rows), SECTION, labelled=labelled)
    assert found.startswith(expected)
    assert bool(found) is bool(expected)


def test_no_rounds_allowed_ends_the_loop_at_once() -> None:
    section = SECTION.model_copy(update={"max_rounds": 0})
    assert stop_reason(rounds_of((0.5, START)), section, labelled=True) == "0 rounds are done"


@pytest.mark.parametrize(
    ("decisions", "expected"),
    [
        ([START], 0),
        ([START, KEPT], 1),
        ([START, REJECTED], 0),
        ([START, KEPT, NO_GAIN], 1),
        ([START, KEPT, KEPT, REJECTED], 2),
    ],
)
def test_the_best_round_is_the_last_kept(decisions: list[str], expected: int) -> None:
    assert best_round(rounds_of(*((0.5, decision) for decision in decisions))).round == expected


@pytest.fixture(scope="module")
def face() -> MorphableModel:
    return tiny_face()


@pytest.fixture
def workspace(face: MorphableModel, tmp_path: Path) -> Workspace:
    """The untrained network stands for the fused one."""
    workspace = tiny_workspace(tmp_path, face)
    workspace.folder("train_geometry").rename(workspace.folder("train_fused"))
    return workspace


@pytest.fixture(autouse=True)
def tracked(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(stage, "track", recorder.track)
    return recorder


def rows_of(workspace: Workspace) -> list[dict[str, str]]:
    with (workspace.folder("refusion") / "rounds.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def metrics_of(workspace: Workspace) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((workspace.folder("refusion") / "metrics.json").read_text())
    return metrics


def judged(monkeypatch: pytest.MonkeyPatch, *verdicts: tuple[float, str]) -> None:
    """Replace the measuring of each round by prepared numbers, the first being the start."""
    prepared = iter(rounds_of(*verdicts))

    def give(trainee: Any, *, number: int, share: float, **limits: Any) -> tuple[Round, dict[str, torch.Tensor]]:
        row = next(prepared)
        assert row.round == number
        found = measure_photos(trainee.reconstructor, trainee.reconstructor.encoder, trainee.validation)
        return replace(row, labelled_share=share), found

    monkeypatch.setattr(stage, "judge", give)


def weights_of(workspace: Workspace, folder: str) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_checkpoint(workspace.folder(folder) / "checkpoint.pt")["weights"]
    return weights


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_rounds_raise_the_labelled_share_from_the_last_kept_one(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tracked: Recorder
) -> None:
    judged(monkeypatch, (0.3, START), (0.4, KEPT), (0.5, KEPT))
    refusion(tiny_params(refusion={"share_step": 0.3, "max_labelled_share": 0.75}), workspace)
    assert [float(row["labelled_share"]) for row in rows_of(workspace)] == pytest.approx([0.25, 0.55, 0.75])
    metrics = metrics_of(workspace)
    assert (metrics["stopped"], metrics["kept_round"], metrics["similarity"]) == ("2 rounds are done", 2, 0.5)
    assert {path.name for path in workspace.folder("refusion").iterdir()} == {
        *("checkpoint.pt", "curve.csv", "metrics.json", "rounds.csv", "groups.csv", "samples.parquet")
    }
    assert [name for kind, name in tracked.calls if kind == "child"] == ["refusion-1", "refusion-2"]
    with (workspace.folder("refusion") / "curve.csv").open(encoding="utf-8") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["split"] == "validation"]
    assert sorted(set(steps)) == [0, 2, 4]


def test_a_share_beyond_the_limit_is_not_lowered(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(monkeypatch, (0.3, START), (0.4, KEPT), (0.5, KEPT))
    params = tiny_params(train_fused={"labelled_share": 0.8}, refusion={"max_labelled_share": 0.5})
    refusion(params, workspace)
    assert [float(row["labelled_share"]) for row in rows_of(workspace)] == pytest.approx([0.8, 0.8, 0.8])


def test_a_rejected_round_leaves_the_weights_before_it(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(monkeypatch, (0.3, START), (0.9, REJECTED))
    refusion(tiny_params(), workspace)
    assert [row["decision"] for row in rows_of(workspace)] == [START, REJECTED]
    assert metrics_of(workspace)["kept_round"] == 0
    assert same(weights_of(workspace, "train_fused"), weights_of(workspace, "refusion"))


def test_a_good_start_is_passed_on_unchanged(workspace: Workspace) -> None:
    refusion(tiny_params(refusion={"similarity_threshold": 0.0}), workspace)
    assert len(rows_of(workspace)) == 1
    assert metrics_of(workspace)["stopped"].endswith("reaches 0")
    assert same(weights_of(workspace, "train_fused"), weights_of(workspace, "refusion"))


def test_a_killed_loop_goes_on_after_the_last_finished_round(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, fit, trained = tiny_params(refusion={"similarity_threshold": 1.0}), stage.fit, []

    def killed(trainee: Any, section: Any, *, name: str, **rest: Any) -> Any:
        if name.endswith("2") and len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(name)
        return fit(trainee, section, name=name, **rest)

    monkeypatch.setattr(stage, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        refusion(params, workspace)
    assert not workspace.folder("refusion").exists()
    trained.append("killed")
    refusion(params, workspace)
    assert trained == ["refusion round 1", "killed", "refusion round 2"]
    resumed, rows = weights_of(workspace, "refusion"), rows_of(workspace)
    assert not list(workspace.progress("refusion").rglob("*.pt"))
    refusion(params, workspace)
    assert rows_of(workspace) == rows
    assert same(resumed, weights_of(workspace, "refusion"))


def test_a_round_that_gains_nothing_is_taken_back_and_the_next_goes_further(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, (0.3, START), (0.2, NO_GAIN), (0.2, NO_GAIN))
    refusion(tiny_params(refusion={"share_step": 0.2, "max_labelled_share": 0.75}), workspace)
    assert [float(row["labelled_share"]) for row in rows_of(workspace)] == pytest.approx([0.25, 0.45, 0.65])
    assert metrics_of(workspace)["kept_round"] == 0
    assert same(weights_of(workspace, "train_fused"), weights_of(workspace, "refusion"))


def test_every_round_notes_its_photos_and_their_groups(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, fit = [], stage.fit
    judged(monkeypatch, (0.3, START), (0.4, KEPT), (0.5, KEPT))
    monkeypatch.setattr(
        stage,
        "fit",
        lambda trainee, section, **rest: drawn.append(trainee.crops.quality) or fit(trainee, section, **rest),
    )
    refusion(tiny_params(), workspace)
    samples = read_table(workspace.folder("refusion") / "samples.parquet", SAMPLES).to_pylist()
    assert {(row["round"], row["split"]) for row in samples} == {
        (number, split) for number in (0, 1, 2) for split in ("train", "validation")
    }
    with (workspace.folder("refusion") / "groups.csv").open(encoding="utf-8") as file:
        groups = list(csv.DictReader(file))
    validation = [row for row in groups if row["split"] == "validation" and row["round"] == "1"]
    for kind in ("yaw", "tone", "source"):
        assert sum(int(row["photos"]) for row in validation if row["kind"] == kind) == 6
    # Labels of quality 0.5 are drawn in proportion to it and to how badly their groups do.
    weights = {(row["kind"], row["group"]): float(row["label_weight"]) for row in groups if row["round"] == "1"}
    assert len(drawn) == 2
    possible = [
        0.5 * yaw * tone
        for (a, _), yaw in weights.items()
        for (b, _), tone in weights.items()
        if (a, b) == ("yaw", "tone")
    ]
    assert all(min(abs(value - other) for other in possible) < 1e-6 for value in drawn[0][drawn[0].isfinite()].tolist())


def trainee_of(workspace: Workspace) -> Trainee:
    return load_trainee(
        tiny_params(), workspace, workspace.folder("train_fused") / "checkpoint.pt", sources=["photos", "scans"]
    )


def test_a_round_is_judged_by_the_validation_split(workspace: Workspace) -> None:
    trainee = trainee_of(workspace)
    expected = measure(trainee.reconstructor, trainee.reconstructor.encoder, trainee.validation)
    first, found = judge(trainee, number=0, share=0.25)
    assert (first.decision, first.gain) == (START, 0.0)
    assert first.geometry == pytest.approx(expected["vertex_error_mm"])
    assert first.landmark_nme == pytest.approx(expected["landmark_nme"])
    assert first.similarity == float(found["similarity"].median())
    assert float(found["similarity"].mean()) == pytest.approx(expected["similarity"])
    assert len(found["similarity"]) == len(trainee.validation)


def test_the_validation_split_is_measured_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    trainee, calls = trainee_of(workspace), []
    monkeypatch.setattr(stage, "measure_photos", lambda *given: calls.append(given) or measure_photos(*given))
    judge(trainee, number=0, share=0.25)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("similarity", "factors", "decision"),
    [
        (0.5, (0.9,), REJECTED),
        (0.5, (0.985,), REJECTED),
        (0.5, (0.995,), KEPT),
        (0.5, (1.2,), KEPT),
        # Geometry is compared with the best that was kept, not with the last.
        (0.5, (0.985, 0.994), REJECTED),
        # No better likeness: taken back; worse geometry is the graver fault.
        (-0.5, (1.0,), NO_GAIN),
        (-0.5, (0.9,), REJECTED),
    ],
)
def test_a_round_may_worsen_the_geometry_by_the_limit(
    workspace: Workspace, similarity: float, factors: tuple[float, ...], decision: str
) -> None:
    trainee = trainee_of(workspace)
    now, _ = judge(trainee, number=0, share=0.25)
    assert now.geometry is not None
    before = [
        replace(now, round=number, geometry=now.geometry * factor, similarity=now.similarity - similarity)
        for number, factor in enumerate(factors)
    ]
    found, _ = judge(trainee, number=len(before), share=0.5, before=before, limit=0.01)
    assert found.decision == decision
    assert found.gain == pytest.approx(similarity)


def test_without_known_meshes_likeness_alone_decides(workspace: Workspace) -> None:
    trainee = trainee_of(workspace)
    before = Round(0, 0.25, -1.0, 0.0, None, 0.02, START)
    assert judge(trainee, number=1, share=0.5, before=[before], limit=0.01)[0].decision == KEPT
