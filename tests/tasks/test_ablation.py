"""The small ablation takes over what the stages have trained and trains only what they have not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.face.morphable import MorphableModel
from tasks import experiment as runner
from tasks import train
from tasks.ablation import ablation, ablation_experiment, adopt_stages
from tasks.artifacts import Workspace, load_checkpoint
from tasks.params import Params
from tasks.refusion import refusion
from tasks.train import train_fused, train_self_supervised, train_supervised
from tasks.trials import plan, weights_path
from tests.tiny_face import tiny_face
from tests.tiny_workspace import Recorder, split_off_test, tiny_params, tiny_workspace


@pytest.fixture(scope="module")
def face() -> MorphableModel:
    return tiny_face()


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    class Parent(Recorder):
        run_id = "parent"

        def params(self, values: Any) -> None:
            self.calls.append(("params", values))

        def track(self, params: Params, workspace: Workspace, stage: str, *, run_id: str | None = None) -> Any:
            return super().track(params, workspace, stage)

    recorder = Parent()
    monkeypatch.setattr(runner, "track_experiment", recorder.track)
    monkeypatch.setattr(train, "track", recorder.track)
    monkeypatch.setattr("tasks.refusion.track", recorder.track)
    return recorder


@pytest.fixture
def trained(face: MorphableModel, tmp_path: Path, tracked: Recorder) -> tuple[Params, Workspace]:
    """A workspace whose stages up to re-fusion have run."""
    root = tmp_path / "workspace"
    root.mkdir()
    workspace = split_off_test(tiny_workspace(root, face))
    params = tiny_params(
        train_fused={"init": "train_supervised"},
        refusion={"similarity_threshold": 1.0},
        ablation={"variants": ["mean_face", "self_supervised", "three_stages", "refusion"]},
    )
    for stage in (train_self_supervised, train_supervised, train_fused, refusion):
        stage(params, workspace)
    return params, workspace


def rows_of(workspace: Workspace) -> dict[str, Any]:
    content = json.loads((workspace.folder("ablation") / "ablation.json").read_text())
    return {row["name"]: row for row in content["rows"]}


def test_the_stages_are_not_trained_again(trained: tuple[Params, Workspace], monkeypatch: pytest.MonkeyPatch) -> None:
    params, workspace = trained
    trainings: list[str] = []
    original = runner._train

    def counted(training: Any, *rest: Any) -> None:
        trainings.append(training.stage)
        original(training, *rest)

    monkeypatch.setattr(runner, "_train", counted)
    ablation(params, workspace)
    assert trainings == ["train_self_supervised"]
    rows = rows_of(workspace)
    # Whatever the clock said of the stages.
    whole = sum(getattr(params, stage).steps for stage in ("train_self_supervised", "train_supervised", "train_fused"))
    assert rows["self_supervised"]["steps"] == whole
    assert list(rows) == ["mean_face", "self_supervised", "three_stages", "refusion"]
    assert rows["self_supervised"]["steps"] > params.train_self_supervised.steps
    assert rows["refusion"]["rounds"]["0"][0]["decision"] == "start"
    metrics = json.loads((workspace.folder("ablation") / "metrics.json").read_text())
    assert metrics["vertex_error_mm_low"] <= metrics["vertex_error_mm_difference"] <= metrics["vertex_error_mm_high"]
    assert not workspace.progress("ablation").exists()


def test_what_is_taken_over_is_what_would_be_trained(trained: tuple[Params, Workspace], tmp_path: Path) -> None:
    """The experiment's own training of three stages ends at the weights of the pipeline's."""
    params, workspace = trained
    experiment = ablation_experiment(params, {})
    adopted = adopt_stages(experiment, params, workspace, tmp_path / "adopted")
    assert [training.stage for training in adopted] == [
        "train_self_supervised",
        "train_supervised",
        "train_fused",
        "refusion",
    ]
    own = tmp_path / "own"
    runner.run_experiment(experiment, params, workspace, own, seeds=1, command="mien", only=["three_stages"])
    trial = next(trial for trial in plan(experiment, params, workspace, seeds=1) if trial.name == "three_stages-0")
    paths = [weights_path(trial.trainings[-1], folder) for folder in (own, tmp_path / "adopted")]
    first, second = (load_checkpoint(path)["weights"] for path in paths)
    assert set(first) == set(second)
    for name, value in first.items():
        assert bool((value == second[name]).all()), name


def test_other_parameters_are_not_taken_over(trained: tuple[Params, Workspace], tmp_path: Path) -> None:
    params, workspace = trained
    changed = params.model_copy(
        update={"train_supervised": params.train_supervised.model_copy(update={"learning_rate": 1e-5})}
    )
    experiment = ablation_experiment(changed, {})
    adopted = adopt_stages(experiment, params, workspace, tmp_path / "adopted")
    assert [training.stage for training in adopted] == ["train_self_supervised"]


def test_stages_of_another_order_are_not_taken_over(trained: tuple[Params, Workspace], tmp_path: Path) -> None:
    params, workspace = trained
    section = params.train_fused.model_copy(update={"init": "train_self_supervised"})
    branched = params.model_copy(update={"train_fused": section})
    adopted = adopt_stages(ablation_experiment(branched, {}), branched, workspace, tmp_path / "adopted")
    assert [training.stage for training in adopted] == ["train_self_supervised", "train_supervised"]


def test_unknown_variants_are_named(trained: tuple[Params, Workspace]) -> None:
    params, workspace = trained
    wrong = params.model_copy(update={"ablation": params.ablation.model_copy(update={"variants": ("best",)})})
    with pytest.raises(ValueError, match=r"ablation.variants: 'best' is unknown, expected one of mean_face"):
        ablation(wrong, workspace)


def test_a_kill_keeps_finished_trainings(trained: tuple[Params, Workspace], monkeypatch: pytest.MonkeyPatch) -> None:
    params, workspace = trained

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_comparison", broken)
        with pytest.raises(RuntimeError, match="stopped"):
            ablation(params, workspace)
    assert not workspace.folder("ablation").exists()
    monkeypatch.setattr(runner, "_train", broken)
    ablation(params, workspace)
    assert "self_supervised" in rows_of(workspace)
