"""Where a model comes from: what git and DVC know, and a hash that only the weights change."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from tasks import provenance
from tasks.artifacts import Workspace, load_checkpoint, save_checkpoint
from tasks.provenance import ancestors, known_from_tags, lock_hash, named, trace, weights_hash

GRAPH = {
    "ingest": {"outs": ["artifacts/ingest"]},
    "train_fused": {"deps": ["artifacts/ingest", "code.py"], "outs": ["artifacts/train_fused"]},
    "evaluate": {"deps": ["artifacts/train_fused"], "outs": ["artifacts/evaluate"]},
    "ingest_speech": {"outs": ["artifacts/ingest_speech"]},
}
LOCK = {
    "ingest": {"outs": [{"path": "artifacts/ingest", "md5": "aa"}], "params": {"params.yaml": {"ingest": {"n": 1}}}},
    "train_fused": {"outs": [{"path": "artifacts/train_fused", "md5": "bb"}]},
    "ingest_speech": {"outs": [{"path": "artifacts/ingest_speech", "md5": "cc"}]},
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": GRAPH}))
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": LOCK}))
    (tmp_path / "params.yaml").write_text("ingest: {n: 1}")
    return Workspace(tmp_path)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkout"
    (folder / "tasks").mkdir(parents=True)
    (folder / "tasks" / "provenance.py").write_text("one")
    (folder / "README.md").write_text("one")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    monkeypatch.setattr(provenance, "CODE", folder)
    return folder


def found(workspace: Workspace) -> dict[str, tuple[str, str]]:
    known = trace(workspace, ["train_fused"], checkpoints=[{}]).known
    return {aspect: (one.state, one.detail) for aspect, one in known.items()}


def test_all_is_known_of_a_clean_run(workspace: Workspace, checkout: Path) -> None:
    result = trace(workspace, ["train_fused"], checkpoints=[{"w": torch.ones(2)}])
    assert {one.state for one in result.known.values()} == {"yes"}
    assert list(result.lock) == ["ingest", "train_fused"]
    tags = result.tags()
    assert tags["source.dvc_lock"] == lock_hash({name: LOCK[name] for name in ("train_fused", "ingest")})
    assert tags["source.weights"] == weights_hash([{"w": torch.ones(2)}])
    assert len(tags["source.commit"]) == 40
    assert known_from_tags(tags) == result.known


def test_code_that_was_not_committed_is_named(workspace: Workspace, checkout: Path) -> None:
    (checkout / "README.md").write_text("two")
    assert found(workspace)["code"][0] == "yes"
    (checkout / "tasks" / "other.py").write_text("new")
    (checkout / "tasks" / "provenance.py").write_text("two")
    state, detail = found(workspace)["code"]
    assert state == "no"
    assert detail.startswith("tasks/provenance.py, tasks/other.py differ from commit ")


def test_code_below_another_repository_belongs_to_no_commit(
    workspace: Workspace, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / "venv"
    installed.mkdir()
    monkeypatch.setattr(provenance, "CODE", installed)
    assert found(workspace)["code"] == ("unknown", "no git commit names the code")


def test_data_without_a_record(workspace: Workspace, checkout: Path) -> None:
    short = {name: entry for name, entry in LOCK.items() if name != "ingest"}
    (workspace.root / "dvc.lock").write_text(yaml.safe_dump({"stages": short}))
    assert found(workspace)["data"] == ("no", "dvc.lock does not know ingest; run `dvc repro`")
    (workspace.root / "dvc.lock").unlink()
    assert found(workspace)["data"][0] == found(workspace)["params"][0] == "unknown"


def test_parameters_that_were_edited_since(workspace: Workspace, checkout: Path) -> None:
    workspace.params.write_text("ingest: {n: 2}")
    expected = ("no", "ingest: ingest in params.yaml is not what was run; run `dvc repro`")
    assert found(workspace)["params"] == expected


def test_small_numbers_are_the_same_in_both_files(workspace: Workspace, checkout: Path) -> None:
    lock = workspace.root / "dvc.lock"
    # As DVC writes what it read as 1.0e-5.
    lock.write_text(lock.read_text().replace("n: 1", "n: [1e-05, 2]"))
    workspace.params.write_text("ingest: {n: [1.0e-5, 2]}")
    assert found(workspace)["params"][0] == "yes"
    workspace.params.write_text("ingest: {n: [1.0e-6, 2]}")
    assert found(workspace)["params"][0] == "no"


def test_hash_of_weights(tmp_path: Path) -> None:
    content = {"state": {"b": torch.arange(3.0), "a": torch.tensor(1.0)}, "width": 4}
    save_checkpoint(tmp_path / "one.pt", content)
    assert weights_hash([load_checkpoint(tmp_path / "one.pt")]) == weights_hash([content])
    turned = {"width": 4, "state": {"a": torch.tensor(1.0), "b": torch.arange(3.0)}}
    assert weights_hash([turned]) == weights_hash([content])
    for other in (
        {**content, "width": 5},
        {**content, "state": {"b": torch.arange(3.0), "a": torch.tensor(1.0000001)}},
        {**content, "state": {"b": torch.arange(3.0)[None], "a": torch.tensor(1.0)}},
        {**content, "state": {"b": torch.arange(3.0).double(), "a": torch.tensor(1.0)}},
    ):
        assert weights_hash([other]) != weights_hash([content])


def test_ancestors_in_the_order_of_the_graph() -> None:
    assert ancestors(GRAPH, ["evaluate"]) == ["ingest", "train_fused", "evaluate"]
    assert ancestors(GRAPH, ["ingest_speech"]) == ["ingest_speech"]


def test_many_things_are_a_few_and_a_number() -> None:
    assert named(["a", "b"]) == "a, b"
    assert named(list("abcdef")) == "a, b, c, d and 2 more"
