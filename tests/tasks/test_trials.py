from __future__ import annotations

from pathlib import Path

import pytest

from models.face.morphable import MorphableModel
from tasks.artifacts import CLEAN, Workspace, read_table, write_json, write_table
from tasks.params import Params
from tasks.trials import Experiment, estimate, labelled_persons, plan, seconds_per_step, weights_path
from tasks.variants import ablation_variants, seeded
from tests.tiny_face import tiny_face
from tests.tiny_workspace import split_off_test, tiny_params, tiny_workspace


@pytest.fixture(scope="module")
def face() -> MorphableModel:
    return tiny_face()


@pytest.fixture
def workspace(face: MorphableModel, tmp_path: Path) -> Workspace:
    root = tmp_path / "workspace"
    root.mkdir()
    return split_off_test(tiny_workspace(root, face))


def small(params: Params, *names: str) -> Experiment:
    variants = tuple(variant for variant in ablation_variants(params, {}) if variant.name in names)
    return Experiment("ablation", "title", variants, "three_stages", ("three_stages", "self_supervised"))


def test_variants_share_what_they_have_in_common(workspace: Workspace) -> None:
    params = tiny_params()
    trials = plan(small(params, "three_stages", "refusion", "without_L3", "without_L1"), params, workspace, seeds=2)
    keys = {(trial.variant.name, trial.seed): [training.key for training in trial.trainings] for trial in trials}
    assert keys["refusion", 0][:3] == keys["three_stages", 0]
    # L3 is no loss of stage 1, L1 is.
    assert keys["without_L3", 0][0] == keys["three_stages", 0][0]
    assert keys["without_L3", 0][1] != keys["three_stages", 0][1]
    assert keys["without_L1", 0][0] != keys["three_stages", 0][0]
    assert not set(keys["three_stages", 0]) & set(keys["three_stages", 1])


def test_a_key_follows_the_data(workspace: Workspace) -> None:
    params = tiny_params()
    experiment = small(params, "three_stages")
    before = plan(experiment, params, workspace, seeds=1)[0].key
    assert plan(experiment, params, workspace, seeds=1)[0].key == before
    path = workspace.folder("validate_labels") / "clean.parquet"
    write_table(path, read_table(path, CLEAN).to_pylist()[:-1], CLEAN)
    assert plan(experiment, params, workspace, seeds=1)[0].key != before


def test_time_is_guessed_from_the_workspaces_own_run(workspace: Workspace, tmp_path: Path) -> None:
    params = tiny_params()
    assert seconds_per_step(workspace) == {}
    for stage in ("train_self_supervised", "train_supervised", "train_fused"):
        write_json(workspace.folder(stage) / "metrics.json", {"steps": 10, "seconds": 5.0})
    assert seconds_per_step(workspace)["train_fused"] == 0.5
    trials = plan(small(params, "three_stages", "without_L3"), params, workspace, seeds=1)
    trainings, seconds = estimate(trials, workspace, tmp_path / "out")
    # Stage 1 is shared.
    assert trainings == 5
    assert seconds == pytest.approx(5 * (6 * 0.5 + 4.0) + 2 * 3 * 0.03)
    for training in trials[0].trainings:
        path = weights_path(training, tmp_path / "out")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert estimate(trials, workspace, tmp_path / "out")[0] == 2


def test_a_workspace_without_data_is_named(tmp_path: Path) -> None:
    params = tiny_params()
    with pytest.raises(FileNotFoundError, match="run the stage train_geometry first"):
        plan(small(params, "three_stages"), params, Workspace(tmp_path), seeds=1)


def test_a_seed_changes_nothing_but_the_seed() -> None:
    params = tiny_params()
    assert seeded(params, 5).project.seed == 5
    assert seeded(params, 5).train_fused == params.train_fused


def test_labelled_persons(workspace: Workspace) -> None:
    assert labelled_persons(tiny_params(), workspace) == 9
