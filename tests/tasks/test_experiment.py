"""Experiments on a workspace of two dozen crops, with networks of a few thousand weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models.face.morphable import MorphableModel
from models.reconstruction.reconstructor import load_reconstructor
from tasks import experiment as runner
from tasks.artifacts import Workspace, load_checkpoint
from tasks.dataset import load_crops
from tasks.experiment import run_experiment, skin_tones
from tasks.params import Params
from tasks.train import train_self_supervised
from tasks.trials import Experiment, plan
from tasks.variants import LabelChange, Variant, ablation_variants
from tests.tiny_face import tiny_face
from tests.tiny_workspace import Recorder, split_off_test, tiny_params, tiny_workspace


@pytest.fixture(scope="module")
def face() -> MorphableModel:
    return tiny_face()


@pytest.fixture
def workspace(face: MorphableModel, tmp_path: Path) -> Workspace:
    root = tmp_path / "workspace"
    root.mkdir()
    return split_off_test(tiny_workspace(root, face))


@pytest.fixture(autouse=True)
def tracked(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    class Parent(Recorder):
        run_id = "parent"

        def params(self, values: Any) -> None:
            self.calls.append(("params", values))

        def track(self, params: Params, workspace: Workspace, stage: str, *, run_id: str | None = None) -> Any:
            self.calls.append(("track", run_id))
            return super().track(params, workspace, stage)

    recorder = Parent()
    monkeypatch.setattr(runner, "track_experiment", recorder.track)
    return recorder


def small(params: Params, *names: str) -> Experiment:
    variants = tuple(variant for variant in ablation_variants(params, {}) if variant.name in names)
    return Experiment("ablation", "title", variants, "three_stages", ("three_stages", "self_supervised"))


def run(
    experiment: Experiment, params: Params, workspace: Workspace, out: Path, *, seeds: int = 1, only: Sequence[str] = ()
) -> list[str]:
    """What was said while it ran: one line for each trial and for each training."""
    said: list[str] = []
    run_experiment(experiment, params, workspace, out, seeds=seeds, command="mien", only=only, say=said.append)
    return said


def rows_of(out: Path) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads((out / "ablation.json").read_text())["rows"]}


def test_from_plan_to_table(workspace: Workspace, tmp_path: Path, tracked: Recorder) -> None:
    params, out = tiny_params(refusion={"similarity_threshold": 1.0}), tmp_path / "out"
    names = ("mean_face", "optimised", "geometry", "self_supervised", "three_stages", "refusion")
    said = run(small(params, *names), params, workspace, out, seeds=2)
    rows = rows_of(out)
    assert list(rows) == list(names)
    assert rows["mean_face"]["seeds"] == [0]
    assert rows["three_stages"]["seeds"] == [0, 1]
    assert rows["three_stages"]["steps"] == 18
    values = rows["three_stages"]["numbers"]["vertex_error_mm"]["seeds"]
    assert values[0] != values[1]
    assert rows["refusion"]["rounds"]["0"][0]["decision"] == "start"
    assert (out / "ablation.png").stat().st_size > 1000
    # Two times self-supervised, three stages, and re-fusion after the same three stages.
    assert sum(line.startswith("    ") for line in said) == 2 * (1 + 3 + 1)
    children = [name for kind, name in tracked.calls if kind == "child"]
    assert {"mean_face-0", "three_stages-1", "refusion-0", "refusion-1"} <= set(children)
    assert {"ablation.json", "ablation.md", "ablation.png"} <= {
        name for kind, name in tracked.calls if kind == "artifact"
    }
    assert not list((out / "progress").rglob("*.pt"))


def test_finished_trials_are_not_repeated(workspace: Workspace, tmp_path: Path, tracked: Recorder) -> None:
    params, out = tiny_params(), tmp_path / "out"
    assert len(run(small(params, "three_stages"), params, workspace, out)) == 4
    first = (out / "ablation.json").read_bytes()
    assert run(small(params, "three_stages"), params, workspace, out) == []
    assert (out / "ablation.json").read_bytes() == first
    assert [run_id for kind, run_id in tracked.calls if kind == "track"] == [None, "parent"]
    # Another stage 3 alone is trained again.
    changed = tiny_params(train_fused={"learning_rate": 2e-3})
    said = run(small(changed, "three_stages"), changed, workspace, out)
    assert [line.split(":")[0].strip() for line in said[1:]] == ["train_fused"]


def test_variants_may_be_trained_one_after_the_other(workspace: Workspace, tmp_path: Path) -> None:
    params, out = tiny_params(), tmp_path / "out"
    experiment = small(params, "geometry", "self_supervised")
    assert run(experiment, params, workspace, out, only=["geometry"]) == [
        "[1/1] landmarks alone, before the stages, seed 0"
    ]
    assert list(rows_of(out)) == ["geometry"]
    assert len(run(experiment, params, workspace, out, only=["self_supervised"])) == 2
    assert list(rows_of(out)) == ["geometry", "self_supervised"]


def test_a_killed_experiment_goes_on_to_the_same_end(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = tiny_params()
    experiment = small(params, "three_stages", "self_supervised")
    run(experiment, params, workspace, tmp_path / "whole")
    fit, count = runner.fit, 0

    def killed(*given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return fit(*given, **named)

    monkeypatch.setattr(runner, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run(experiment, params, workspace, tmp_path / "out")
    assert not (tmp_path / "out" / "ablation.json").exists()
    run(experiment, params, workspace, tmp_path / "out")
    assert count == 5
    whole, resumed = rows_of(tmp_path / "whole"), rows_of(tmp_path / "out")
    for name, row in whole.items():
        assert row["numbers"] == resumed[name]["numbers"]


def test_the_workspaces_own_seed_trains_as_its_stages_do(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import train

    monkeypatch.setattr(train, "track", Recorder().track)
    params = tiny_params()
    train_self_supervised(params, workspace)
    experiment = small(params, "three_stages")
    run(experiment, params, workspace, tmp_path / "out")
    first = plan(experiment, params, workspace, seeds=1)[0].trainings[0]
    expected = load_checkpoint(workspace.folder("train_self_supervised") / "checkpoint.pt")["weights"]
    found = load_checkpoint(tmp_path / "out" / "checkpoints" / f"{first.key}.pt")["weights"]
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_other_seeds_have_other_image_branches_and_the_same_geometry(workspace: Workspace, tmp_path: Path) -> None:
    params = tiny_params()
    # Seed 1 made the tiny workspace's own.
    trial = plan(small(params, "three_stages"), params, workspace, seeds=3)[2]
    own = load_checkpoint(workspace.folder("train_geometry") / "checkpoint.pt")["weights"]
    found = load_checkpoint(runner._start(trial, workspace, tmp_path))["weights"]
    same = {name for name, value in own.items() if torch.equal(value, found[name])}
    assert {name for name in own if name.startswith("geometry.")} <= same
    assert "image.0.weight" not in same


def test_labels_are_changed_for_training_alone(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, seen, fit = tiny_params(), [], runner.fit

    def look(trainee: Any, *given: Any, **named: Any) -> Any:
        seen.append(
            (len(set(trainee.crops.person[trainee.crops.of_source("scans")].tolist())), trainee.validation.source)
        )
        return fit(trainee, *given, **named)

    monkeypatch.setattr(runner, "fit", look)
    variant = Variant("labels_2", "two", params, ("train_supervised",), LabelChange(persons=2))
    run(Experiment("labels", "title", (variant,), "labels_2"), params, workspace, tmp_path / "out")
    assert [persons for persons, _ in seen] == [2]
    assert set(seen[0][1]) == {"photos", "scans"}


def test_without_landmarks_the_image_alone_counts(workspace: Workspace, tmp_path: Path, face: MorphableModel) -> None:
    params = tiny_params()
    experiment = small(params, "three_stages")
    variants = tuple(replace(variant, landmarks=False) for variant in experiment.variants)
    seen = plan(experiment, params, workspace, seeds=1)[0]
    blind = plan(replace(experiment, variants=variants), params, workspace, seeds=1)[0]
    assert {training.key for training in seen.trainings}.isdisjoint(training.key for training in blind.trainings)
    network = load_reconstructor(load_checkpoint(runner._start(blind, workspace, tmp_path)), face).encoder
    image, confidence = torch.rand(2, 3, 32, 32), torch.ones(2, 68)
    torch.nn.init.normal_(network.correction.weight)
    first, second = (network(image, points, confidence) for points in torch.randn(2, 2, 68, 2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    changed = network(1.0 - image, torch.zeros(2, 68, 2), confidence)
    assert not torch.equal(first[0], changed[0])


def test_skin_tones_come_from_the_last_evaluation(workspace: Workspace, tmp_path: Path) -> None:
    crops = load_crops(workspace, tiny_params(), split="test")
    place = Workspace(tmp_path)
    assert skin_tones(place, crops) == {}
    names = list(crops.sample_ids)
    place.folder("evaluate").mkdir(parents=True)
    table = {"sample_id": [*names[1:], "of other data"], "tone_deg": [50.0] * (len(names) - 1) + [0.0]}
    pq.write_table(pa.table(table), place.folder("evaluate") / "samples.parquet")
    found = skin_tones(place, crops)
    assert {name: int(mask.sum()) for name, mask in found.items()} == {
        "light skin": len(names) - 1,
        "medium skin": 0,
        "dark skin": 0,
    }
    assert not found["light skin"][0]
