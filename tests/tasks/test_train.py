from __future__ import annotations

import csv
import json
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.face.lighting import ambient_light
from models.face.morphable import MorphableModel
from models.reconstruction.confidence import ConfidenceNetwork
from models.reconstruction.geometry_branch import DEPTH_SCALE, POSITION_SCALE_MM
from models.reconstruction.reconstructor import LIGHT_SCALE, Reconstructor, load_reconstructor
from models.training.data import CropSet, make_batch
from models.training.loop import seeded
from models.training.loop import train as loop_train
from models.types import FaceCoefficients
from tasks import train as stage
from tasks import training_step
from tasks.artifacts import Workspace, load_checkpoint
from tasks.params import TrainingSource
from tasks.train import (
    batches_of,
    fingerprint,
    labelled_shares,
    load_trainee,
    measure,
    shape_error,
    train_self_supervised,
    train_stage,
)
from tasks.train_geometry import reconstructor_settings
from tasks.training_step import build_learner, build_step
from tests.tiny_face import tiny_crops, tiny_face, tiny_photos
from tests.tiny_workspace import (
    LABELLED,
    PERSONAL,
    SIZE_PX,
    UNLABELLED,
    Recorder,
    personal_sources,
    tiny_params,
    tiny_workspace,
    with_persons,
)
from tests.training_process import environment, free_port, started


@pytest.fixture(scope="module")
def face() -> MorphableModel:
    return tiny_face()


@pytest.fixture
def workspace(face: MorphableModel, tmp_path: Path) -> Workspace:
    return tiny_workspace(tmp_path, face)


@pytest.fixture(autouse=True)
def tracked(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(stage, "track", recorder.track)
    return recorder


def sources(**shares: float) -> list[TrainingSource]:
    return [TrainingSource(source=name, share=share, losses={"photo": 1.0}) for name, share in shares.items()]


class Known(nn.Module):
    """Gives prepared raw numbers, one row a crop, in the order of the crops."""

    def __init__(self, reconstructor: Reconstructor, truth: FaceCoefficients) -> None:
        super().__init__()
        _, middle = reconstructor.pose(torch.cat([truth.rotation, torch.zeros_like(truth.translation)], 1))
        # Translation is place(position) minus the turned middle of the landmarks; place(0) is (0, 0, 1000).
        position = truth.translation - middle + torch.tensor([0.0, 0.0, 1000.0])
        raw = torch.cat([position[:, :2] / POSITION_SCALE_MM, (position[:, 2:] / 1000.0).log() / DEPTH_SCALE], 1)
        light = (truth.lighting - ambient_light(len(raw))) / LIGHT_SCALE
        self.rows = (
            truth.identity,
            truth.expression,
            torch.cat([truth.rotation, raw], 1),
            truth.albedo,
            light.flatten(1),
        )
        self.start = 0

    def forward(self, image: Tensor, landmarks: Tensor, confidence: Tensor) -> tuple[Tensor, ...]:
        stop = self.start + len(image)
        rows = tuple(row[self.start : stop] for row in self.rows)
        self.start = stop
        return rows


def known(face: MorphableModel, count: int, **changes: Any) -> tuple[Reconstructor, CropSet, FaceCoefficients]:
    torch.manual_seed(0)
    reconstructor = Reconstructor(face, reconstructor_settings(tiny_params())).eval()
    truth = tiny_photos(face, count, size_px=SIZE_PX, seed=0)[0]
    return reconstructor, replace(tiny_crops(face, count, size_px=SIZE_PX), **changes), truth


def test_indices_come_in_batches() -> None:
    assert [batch.tolist() for batch in batches_of(3)] == [[0, 1, 2]]
    assert [len(batch) for batch in batches_of(150)] == [64, 64, 22]
    assert torch.cat(list(batches_of(150))).tolist() == list(range(150))
    assert list(batches_of(0)) == []


@pytest.mark.parametrize("count", [8, 70])
def test_the_truth_measures_as_perfect(face: MorphableModel, count: int) -> None:
    reconstructor, crops, truth = known(face, count)
    found = measure(reconstructor, Known(reconstructor, truth), crops)
    assert set(found) == {"landmark_nme", "similarity", "pose_error_deg", "vertex_error_mm"}
    assert found["landmark_nme"] < 1e-4
    assert found["similarity"] > 0.99
    assert found["pose_error_deg"] < 0.1
    assert found["vertex_error_mm"] < 1e-3


def test_errors_are_measured_where_the_truth_is_known(face: MorphableModel) -> None:
    reconstructor, crops, truth = known(face, 8)
    crops.annotation[:4] += 1.0
    crops.annotation[4:] = torch.nan
    crops.landmarks[4:] += torch.tensor([3.0, 4.0])
    crops.rotation[2:] = torch.nan
    crops.mesh_index[:6] = -1
    wrong = replace(truth, identity=truth.identity.clone())
    wrong.identity[6:, 0] += 1.0
    found = measure(reconstructor, Known(reconstructor, wrong), crops)
    size = crops.landmarks.amax(1) - crops.landmarks.amin(1)
    size = size.prod(1).sqrt()
    # Annotated by √2 px, else detected by 5 px; the two faces of other width also miss their landmarks a little.
    expected = torch.cat([2**0.5 / size[:4], 5 / size[4:]]).mean().item()
    assert found["landmark_nme"] == pytest.approx(expected, rel=0.05)
    assert found["pose_error_deg"] < 0.1
    outer = face.part("skin") | face.part("lips") | face.part("brows")
    mode = face.identity_basis[0, outer]
    # The mode stretches evenly to both sides: hardly any of it is a rigid motion.
    assert found["vertex_error_mm"] == pytest.approx((mode - mode.mean(0)).norm(dim=1).mean().item(), rel=0.02)


def test_nothing_known_leaves_out_the_measure(face: MorphableModel) -> None:
    reconstructor, crops, truth = known(face, 4)
    bare = replace(crops, rotation=torch.full((4, 3), torch.nan), mesh_index=torch.full((4,), -1))
    assert set(measure(reconstructor, Known(reconstructor, truth), bare)) == {"landmark_nme", "similarity"}


def test_the_objective_is_pooled_over_crops(face: MorphableModel) -> None:
    reconstructor, crops, truth = known(face, 70)
    found = measure(
        reconstructor,
        Known(reconstructor, truth),
        crops,
        loss=lambda batch, coefficients: torch.tensor(float(len(batch.image))),
    )
    assert found["objective"] == pytest.approx((64 * 64 + 6 * 6) / 70)


def test_shape_error_ignores_where_the_label_stands(face: MorphableModel) -> None:
    crops = tiny_crops(face, 4, size_px=SIZE_PX)
    moved = replace(crops, neutral=crops.neutral @ torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]) + 50.0)
    indices, everything = torch.tensor([1, 3]), torch.ones(face.vertex_count, dtype=torch.bool)
    neutral = crops.neutral[crops.mesh_index[indices]]
    assert shape_error(neutral, moved, indices, everything).max() < 1e-3
    bent = shape_error(neutral + face.identity_basis[1], moved, indices, everything)
    assert (bent > 0.5).all()


def test_a_label_without_neutral_shape_is_taken_with_its_expression(face: MorphableModel) -> None:
    crops = tiny_crops(face, 4, size_px=SIZE_PX)
    unknown = replace(crops, neutral=torch.full_like(crops.neutral, torch.nan))
    everything = torch.ones(face.vertex_count, dtype=torch.bool)
    indices = torch.tensor([0, 2])
    assert shape_error(crops.vertices[crops.mesh_index[indices]], unknown, indices, everything).max() < 1e-3


@pytest.mark.parametrize(
    ("shares", "share", "expected"),
    [
        ({"photos": 0.5, "scans": 0.5}, None, {"photos": 0.5, "scans": 0.5}),
        ({"photos": 0.5, "scans": 0.5}, 0.75, {"photos": 0.25, "scans": 0.75}),
        ({"photos": 0.5, "scans": 0.125, "copies": 0.375}, 0.6, {"photos": 0.4, "scans": 0.15, "copies": 0.45}),
        ({"scans": 0.25, "copies": 0.75}, 0.5, {"scans": 0.25, "copies": 0.75}),
        ({"photos": 1.0}, 0.5, {"photos": 1.0}),
    ],
)
def test_the_labelled_sources_together_get_the_share(
    face: MorphableModel,
    workspace: Workspace,
    shares: dict[str, float],
    share: float | None,
    expected: dict[str, float],
) -> None:
    trainee = load_trainee(tiny_params(), workspace, geometry_checkpoint(workspace), sources=["photos", "scans"])
    trainee = replace(trainee, labelled=frozenset({"scans", "copies"}))
    found = labelled_shares(sources(**shares), trainee, share=share)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("quality", "expected"),
    [(1.0, 1 / 2), (0.7, 1 / 2), (0.69, 1 / 3), (0.4, 1 / 3), (0.39, 1 / 4), (0.0, 1 / 4)],
)
def test_the_quality_of_the_labels_earns_the_share(workspace: Workspace, quality: float, expected: float) -> None:
    trainee = load_trainee(tiny_params(), workspace, geometry_checkpoint(workspace), sources=["photos", "scans"])
    labelled = torch.tensor([name == "scans" for name in trainee.crops.source])
    # The mean counts, over labelled crops with a known quality alone.
    values = torch.where(labelled, quality + 1e-6, torch.nan)
    values[labelled.nonzero()[0]] = torch.nan
    trainee = replace(trainee, crops=replace(trainee.crops, quality=values))
    found = labelled_shares(sources(photos=0.5, scans=0.5), trainee, share="by_quality")
    assert found == pytest.approx({"photos": 1 - expected, "scans": expected})


def geometry_checkpoint(workspace: Workspace) -> Path:
    return workspace.folder("train_geometry") / "checkpoint.pt"


def test_a_trainee_is_the_checkpoint_with_its_crops(workspace: Workspace, face: MorphableModel) -> None:
    trainee = load_trainee(tiny_params(), workspace, geometry_checkpoint(workspace), sources=["scans"])
    assert trainee.labelled == {"scans"}
    assert set(trainee.crops.source) == {"scans"}
    assert set(trainee.validation.source) == {"photos", "scans"}
    inner = face.part("eyes") | face.part("mouth")
    assert trainee.shape_weights[inner].unique().tolist() == pytest.approx([0.1])
    assert trainee.shape_weights[~inner].unique().tolist() == [1.0]
    assert not any(parameter.requires_grad for parameter in trainee.landmark_branch.parameters())
    assert all(parameter.requires_grad for parameter in trainee.reconstructor.encoder.parameters())


@pytest.mark.parametrize("name", ["train_self_supervised", "train_supervised", "train_fused"])
def test_a_stage_leaves_checkpoint_curve_and_metrics(
    workspace: Workspace, face: MorphableModel, tracked: Recorder, name: str
) -> None:
    params = tiny_params(train_supervised={"init": "train_geometry"}, train_fused={"init": "train_geometry"})
    train_stage(params, workspace, name)
    folder = workspace.folder(name)
    assert {path.name for path in folder.iterdir()} == {"checkpoint.pt", "curve.csv", "metrics.json"}
    before = load_checkpoint(geometry_checkpoint(workspace))
    after = load_checkpoint(folder / "checkpoint.pt")
    load_reconstructor(after, face)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == 6
    same = all(torch.equal(value, after["weights"][key]) for key, value in before["weights"].items())
    assert same is (metrics["best_step"] == 0)
    assert set(metrics["validation"]) >= {"landmark_nme", "similarity", "objective", "vertex_error_mm"}
    with (folder / "curve.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["step"] for row in rows if row["split"] == "validation"} == {"0", "3", "6"}
    assert len([call for call in tracked.calls if call[0] == "curve"]) == 1
    if name != "train_self_supervised":
        numbers = {(row["step"], row["name"]): float(row["value"]) for row in rows if row["split"] == "validation"}
        relative = [numbers["6", key] / numbers["0", key] for key in ("vertex_error_mm", "landmark_nme")]
        relative.append((1.0 - numbers["6", "similarity"]) / (1.0 - numbers["0", "similarity"]))
        assert numbers["0", "score"] == pytest.approx(3.0)
        assert numbers["6", "score"] == pytest.approx(sum(relative))
    if name == "train_fused":
        assert metrics["shares"] == {"photos": 0.75, "scans": 0.25}
        assert {"photos/photo", "scans/vertex"} <= {row["name"] for row in rows}


def test_training_lowers_its_objective(workspace: Workspace) -> None:
    params = tiny_params(train_self_supervised={"steps": 40, "batch_size": 8, "validate_every": 20})
    train_self_supervised(params, workspace)
    with (workspace.folder("train_self_supervised") / "curve.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["name"] == "objective"]
    first, *_, last = (float(row["value"]) for row in rows)
    assert last < 0.9 * first


def test_a_killed_stage_leaves_no_output_and_goes_on(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    params, objective = tiny_params(), training_step.objective
    calls = iter(range(10**6))

    def killed(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and next(calls) == 4:
            raise KeyboardInterrupt
        return objective(*arguments)

    monkeypatch.setattr(training_step, "objective", killed)
    with pytest.raises(KeyboardInterrupt):
        train_stage(params, workspace, "train_self_supervised")
    folder = workspace.folder("train_self_supervised")
    assert not folder.exists()
    assert {path.name for path in folder.parent.iterdir()} == {"ingest", "validate_labels", "train_geometry"}
    train_stage(params, workspace, "train_self_supervised")
    # Killed in the fifth step; the last validation was after the third, so three steps are taken.
    assert next(calls) == 5 + 3
    resumed = load_checkpoint(folder / "checkpoint.pt")["weights"]
    monkeypatch.setattr(training_step, "objective", objective)
    train_stage(params, workspace, "train_self_supervised")
    whole = load_checkpoint(folder / "checkpoint.pt")["weights"]
    assert all(torch.equal(value, whole[key]) for key, value in resumed.items())


def weights_of(workspace: Workspace, name: str) -> dict[str, Tensor]:
    return load_checkpoint(workspace.folder(name) / "checkpoint.pt")["weights"]


def persons_of(workspace: Workspace, name: str) -> dict[str, Tensor]:
    return load_checkpoint(workspace.folder(name) / "checkpoint.pt")["persons"]["state"]


def finished(process: Any, told: Any) -> list[str]:
    """What a process told until its end."""
    heard = []
    while told.poll(300):
        try:
            heard.append(told.recv())
        except EOFError:
            break
    process.join(60)
    assert process.exitcode == 0
    return heard


@pytest.mark.slow
def test_a_stage_killed_at_any_moment_ends_like_an_undisturbed_one(face: MorphableModel, tmp_path: Path) -> None:
    name, moments = "train_fused", random.Random(0)
    training = {"init": "train_geometry", "steps": 16, "validate_every": 3, "ema_decay": 0.9, "schedule": "step"}
    training |= {"sources": personal_sources(), "identity_warmup_steps": 10}
    for place in ("whole", "killed"):
        (tmp_path / place).mkdir()
    whole, killed = (with_persons(tiny_workspace(tmp_path / place, face)) for place in ("whole", "killed"))
    undisturbed = finished(*started(whole.root, name, {name: training}))
    steps = 0
    for stalls in (False, True, False, False):
        process, told = started(killed.root, name, {name: training}, stalls=stalls)
        # Two sources, so two calls a step; a process that stalls is killed in the midst of writing.
        last = 10**6 if stalls else moments.randint(8, 12)
        for _ in range(last):
            assert told.poll(300)
            if told.recv() == "half":
                break
            steps += 1
        time.sleep(0.02 * moments.random())
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not killed.folder(name).exists()
    assert (killed.progress(name) / "state.pt").exists()
    steps += finished(*started(killed.root, name, {name: training})).count("step")
    assert undisturbed.count("step") == 2 * 16
    # Work was lost and done again, but less than all of it.
    assert 2 * 16 < steps < 5 * 2 * 16
    expected, found = weights_of(whole, name), weights_of(killed, name)
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    expected, found = persons_of(whole, name), persons_of(killed, name)
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    curves = [(workspace.folder(name) / "curve.csv").read_text() for workspace in (whole, killed)]
    assert curves[0] == curves[1]
    assert list(killed.progress(name).iterdir()) == []


@pytest.mark.parametrize(("batch_size", "accumulate"), [(7, 1), (8, 2)])
def test_two_processes_train_like_one(face: MorphableModel, tmp_path: Path, batch_size: int, accumulate: int) -> None:
    name = "train_fused"
    training = {"init": "train_geometry", "steps": 11, "validate_every": 5, "batch_size": batch_size}
    if accumulate > 1:
        # Portions one after the other have statistics of their own, so they only add up without any.
        training |= {"freeze_batch_norm": True, "sources": personal_sources(), "identity_warmup_steps": 4}
    for place in ("alone", "together"):
        (tmp_path / place).mkdir()
    alone, together = (with_persons(tiny_workspace(tmp_path / place, face)) for place in ("alone", "together"))
    finished(*started(alone.root, name, {name: training}))
    port = free_port()
    pair = [
        started(together.root, name, {name: training | {"accumulate": accumulate}}, settings=environment(rank, 2, port))
        for rank in (0, 1)
    ]
    heard = [finished(*one) for one in pair]
    assert [told[-1] for told in heard] == ["recorded", "silent"]
    curves = []
    for workspace in (alone, together):
        with (workspace.folder(name) / "curve.csv").open(encoding="utf-8") as file:
            curves.append(
                {(row["step"], row["split"], row["name"]): float(row["value"]) for row in csv.DictReader(file)}
            )
    assert curves[0].keys() == curves[1].keys()
    assert {"0", "10"} <= {step for step, split, _ in curves[0] if split == "train"}
    for key, value in curves[0].items():
        assert curves[1][key] == pytest.approx(value, rel=2e-3), key
    for key, value in weights_of(alone, name).items():
        torch.testing.assert_close(weights_of(together, name)[key], value, rtol=0.02, atol=5e-4)
    if accumulate == 1:
        return
    for key, value in persons_of(alone, name).items():
        torch.testing.assert_close(persons_of(together, name)[key], value, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("schedule", ["step", "constant"])
def test_options_of_the_engine_reach_the_loop(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    options = {"schedule": schedule, "decay_at": 0.25, "ema_decay": 0.5, "accumulate": 2}
    params = tiny_params(train_self_supervised=options)
    seen = []

    def recorded(*arguments: Any, **named: Any) -> Any:
        seen.append(named["settings"])
        return loop_train(*arguments, **named)

    monkeypatch.setattr(stage, "train", recorded)
    train_self_supervised(params, workspace)
    assert (seen[0].schedule, seen[0].decay_at, seen[0].ema_decay) == (schedule, 0.25, 0.5)
    metrics = json.loads((workspace.folder("train_self_supervised") / "metrics.json").read_text())
    assert metrics["photos_per_second"] > 0
    assert 0 <= metrics["waiting_share"] <= 1


def test_a_batch_in_portions_has_the_gradient_of_the_whole(workspace: Workspace) -> None:
    trainee = load_trainee(tiny_params(), workspace, geometry_checkpoint(workspace), sources=["photos", "scans"])
    encoder = trainee.reconstructor.encoder.eval()
    losses = {"photos": UNLABELLED, "scans": LABELLED}
    found = []
    for accumulate in (1, 3):
        load, loss = build_step(trainee, losses, {"photos": 4, "scans": 3}, accumulate=accumulate)
        encoder.zero_grad()
        portions = load(seeded(5, 0))
        assert len(portions) == accumulate
        total, sums = torch.zeros(()), {}
        for batches in portions:
            value, named = loss(encoder, batches)
            value.backward()
            total = total + value.detach()
            sums = {key: sums.get(key, 0.0) + item.detach() for key, item in named.items()}
        gradient = encoder.correction.weight.grad
        assert gradient is not None
        found.append((total, sums, gradient.clone()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_more_portions_than_faces_are_refused(workspace: Workspace) -> None:
    params = tiny_params(train_self_supervised={"accumulate": 5})
    with pytest.raises(ValueError, match=r"batch_size is 4, expected at least one face for each of 5 parts"):
        train_self_supervised(params, workspace)


def test_a_source_without_crops_is_named(workspace: Workspace) -> None:
    data = tiny_params().model_dump(mode="json")
    data["ingest"]["sources"].append({"kind": "synthetic", "name": "more", "persons": 2})
    data["train_self_supervised"]["sources"].append({"source": "more", "share": 0.5, "losses": UNLABELLED})
    data["train_self_supervised"]["sources"][0]["share"] = 0.5
    params = stage.Params.model_validate(data)
    with pytest.raises(ValueError, match="source more: no training crops are left"):
        train_stage(params, workspace, "train_self_supervised")


def test_the_rasterizer_of_the_params_draws_the_losses(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    params = tiny_params(project={"rasterizer": "torch"})
    trainee = load_trainee(params, workspace, geometry_checkpoint(workspace), sources=["photos"])
    assert trainee.rasterizer == "torch"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    params = tiny_params(project={"rasterizer": "pytorch3d"})
    with pytest.raises(ValueError, match="pytorch3d: the package is not installed"):
        load_trainee(params, workspace, geometry_checkpoint(workspace), sources=["photos"])


def test_the_fingerprint_follows_parameters_and_inputs(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"one")
    first = fingerprint(tiny_params(), "train_fused", [path])
    assert fingerprint(tiny_params(evaluate={"pictures": 2}), "train_fused", [path]) == first
    assert fingerprint(tiny_params(train_fused={"steps": 7}), "train_fused", [path]) != first
    assert fingerprint(tiny_params(), "train_supervised", [path]) != first
    path.write_bytes(b"two")
    assert fingerprint(tiny_params(), "train_fused", [path]) != first


def fused(**changes: Any) -> Any:
    options = {"init": "train_geometry", "sources": personal_sources(), "identity_warmup_steps": 3}
    return tiny_params(train_fused={**options, **changes})


def test_losses_of_persons_train_and_stay_in_the_checkpoint(workspace: Workspace) -> None:
    params = fused(validate_every=6)
    train_stage(params, with_persons(workspace), "train_fused")
    content = load_checkpoint(workspace.folder("train_fused") / "checkpoint.pt")
    # 18 training crops, four of each person; the last one has two.
    assert len(content["persons"]["persons"]) == 5
    metrics = json.loads((workspace.folder("train_fused") / "metrics.json").read_text())
    assert -1.0 < metrics["validation"]["distinctness"] < 1.0
    with (workspace.folder("train_fused") / "curve.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {f"photos/{name}" for name in PERSONAL} <= {row["name"] for row in rows}
    assert not {f"scans/{name}" for name in PERSONAL} & {row["name"] for row in rows}
    scores = [float(row["value"]) for row in rows if row["name"] == "score"]
    assert scores[0] == pytest.approx(4.0)


def test_a_later_training_goes_on_with_the_persons_it_finds(workspace: Workspace) -> None:
    trainee = load_trainee(fused(), with_persons(workspace), geometry_checkpoint(workspace), sources=["photos"])
    losses = {"photos": {**UNLABELLED, **PERSONAL}}
    learner = build_learner(trainee, losses)
    memory = learner.memory
    assert memory is not None
    assert memory.persons == tuple(f"person-{number}" for number in range(5))
    lengths = memory.class_weights.detach().norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(5))
    memory.centers[2] = 7.0
    memory.steps += 40
    trainee.companions.update(learner.content())
    again = build_learner(trainee, losses).memory
    assert again is not None
    assert again.centers[2].tolist() == [7.0] * 4
    assert int(again.steps) == 40
    trainee.companions.clear()
    fresh = build_learner(trainee, losses).memory
    assert fresh is not None
    assert int(fresh.steps) == 0
    assert fresh.centers[2].tolist() != [7.0] * 4


def test_centres_begin_where_frontal_neutral_photos_are(workspace: Workspace) -> None:
    trainee = load_trainee(fused(), with_persons(workspace), geometry_checkpoint(workspace), sources=["photos"])
    memory = build_learner(trainee, {"photos": {"center": 1.0}}).memory
    assert memory is not None
    batch = make_batch(
        trainee.crops, torch.arange(2), model=trainee.reconstructor.model, source="photos", labelled=False
    )
    coefficients = trainee.reconstructor.from_landmarks(batch.landmarks, batch.confidence)
    step = trainee.step(batch, coefficients)
    weight = step.person_weight.clamp_min(1e-3)[:, None]
    torch.testing.assert_close(memory.centers[0], (weight * step.embedding).sum(0) / weight.sum())


def test_photos_of_a_person_come_together(workspace: Workspace) -> None:
    trainee = load_trainee(fused(), with_persons(workspace), geometry_checkpoint(workspace), sources=["photos"])
    losses = {"photos": UNLABELLED}
    load, _ = build_step(trainee, losses, {"photos": 6}, photos_per_person={"photos": 2})
    for number in range(5):
        ((batch,),) = load(seeded(3, number))
        # Nine photos of four persons with two and one with one.
        assert len(batch.person.unique()) in (3, 4)
        assert len(set(batch.sample_ids)) == 6


def test_losses_of_persons_grow(workspace: Workspace) -> None:
    trainee = load_trainee(fused(), with_persons(workspace), geometry_checkpoint(workspace), sources=["photos"])
    losses = {"photos": {"separation": 3.0, "identity_prior": 1e-3}}
    learner = build_learner(trainee, losses)
    load, loss = build_step(trainee, losses, {"photos": 4}, learner=learner, warmup_steps=4)
    ((batch,),) = load(seeded(0, 0))
    learner.eval()
    values = []
    for _ in range(6):
        value, named = loss(learner, [batch])
        values.append(float((value.detach() - 1e-3 * named["photos/identity_prior"]) / named["photos/separation"]))
        learner.settle()
    assert values == pytest.approx([0.75, 1.5, 2.25, 3.0, 3.0, 3.0], rel=1e-4)


def test_a_source_of_strangers_is_named(workspace: Workspace) -> None:
    with pytest.raises(ValueError, match="source photos: every photo shows another person"):
        train_stage(fused(), workspace, "train_fused")
    assert not workspace.folder("train_fused").exists()


def test_the_network_of_confidence_learns_and_stays_in_the_checkpoint(workspace: Workspace) -> None:
    losses = {**UNLABELLED, "photo_likelihood": 0.5}
    sources = [{"source": "photos", "share": 1.0, "losses": losses}]
    params = tiny_params(train_self_supervised={"sources": sources, "confidence_width": 2, "validate_every": 6})
    train_self_supervised(params, workspace)
    content = load_checkpoint(workspace.folder("train_self_supervised") / "checkpoint.pt")
    assert "persons" not in content
    network = ConfidenceNetwork.load(content["confidence"])
    assert network.width == 2
    metrics = json.loads((workspace.folder("train_self_supervised") / "metrics.json").read_text())
    assert bool(network.head.weight.any()) is (metrics["best_step"] > 0)


def test_the_map_of_identities_is_found_once(workspace: Workspace) -> None:
    trainee = load_trainee(fused(), with_persons(workspace), geometry_checkpoint(workspace), sources=["photos"])
    layer = trainee.reconstructor.encoder.identity_map
    losses = {"photos": {"center": 0.01}}
    build_learner(trainee, losses)
    assert not layer.weight.any()
    learner = build_learner(trainee, losses, map_steps=5)
    assert layer.weight.any()
    assert torch.equal(trainee.landmark_map.weight, layer.weight)
    # The anchor is where the landmarks and the map put a face, so that the stage begins without a pull.
    batch = make_batch(
        trainee.crops, torch.arange(3), model=trainee.reconstructor.model, source="photos", labelled=False
    )
    step = trainee.step(batch, trainee.reconstructor(batch.image, batch.landmarks, batch.confidence))
    torch.testing.assert_close(step.landmark_identity, step.coefficients.identity, atol=1e-4, rtol=1e-3)
    trainee.companions.update(learner.content())
    before = layer.weight.detach().clone()
    build_learner(trainee, losses, map_steps=5)
    assert torch.equal(layer.weight, before)


def test_only_persons_move_the_map(workspace: Workspace) -> None:
    train_stage(tiny_params(train_fused={"init": "train_geometry"}), workspace, "train_fused")
    assert not weights_of(workspace, "train_fused")["identity_map.weight"].any()


def test_a_checkpoint_without_a_map_is_read(workspace: Workspace, face: MorphableModel) -> None:
    content = load_checkpoint(geometry_checkpoint(workspace))
    kept = {key: value for key, value in content["weights"].items() if not key.startswith("identity_map.")}
    assert len(kept) == len(content["weights"]) - 2
    loaded = load_reconstructor({**content, "weights": kept}, face)
    assert not loaded.encoder.identity_map.weight.any()
    broken = {key: value for key, value in kept.items() if not key.startswith("correction.")}
    with pytest.raises(RuntimeError, match="correction"):
        load_reconstructor({**content, "weights": broken}, face)
