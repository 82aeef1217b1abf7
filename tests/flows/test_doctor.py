"""`mien doctor`: true statements about packages, backends and files, and an exit code that says whether all is well."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
import typer.testing

from flows import doctor as module
from flows.cli import app
from flows.doctor import Finding, examine, requirements
from tasks.artifacts import STAGES


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "params.yaml").write_text(
        "face_model: {kind: npz, path: nowhere.npz}\n"
        "ingest: {sources: [{kind: synthetic, name: faces, persons: 2}]}\n"
        "train_self_supervised: &one {init: train_geometry, steps: 1,"
        " sources: [{source: faces, share: 1, losses: {photo: 1}}]}\n"
        "train_supervised: *one\ntrain_fused: *one\n"
    )
    (folder / "artifacts" / "ingest").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def findings(workspace: Path) -> dict[tuple[str, str], Finding]:
    return {(finding.topic, finding.name): finding for finding in examine(workspace)}


def test_what_is_there_is_said_to_work(findings: dict[tuple[str, str], Finding]) -> None:
    assert findings["packages", "core"].state == "works"
    assert findings["devices", "processor"].state == "works"
    for name in ("numba", "torch"):
        found = findings["backends", f"rasterizer {name}"]
        assert found.state == "works"
        assert int(found.text.split()[1]) > 10
    assert "checkout in" in findings["machine", "mien"].text


def test_what_is_missing_is_named_with_its_place(findings: dict[tuple[str, str], Finding], workspace: Path) -> None:
    model = findings["workspace", "face model"]
    assert (model.state, model.text) == ("broken", f"npz: {workspace / 'nowhere.npz'} (not there)")
    assert findings["workspace", "artifacts"].text.startswith(f"1 of {len(STAGES)} stages made")
    assert findings["workspace", "registry"].state == "absent"
    assert findings["workspace", "landmark detector"].text.endswith("train_detector/checkpoint.pt (not there)")
    assert not (workspace / "mlruns").exists()


def test_weights_are_looked_for_where_torch_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "2DFAN4-11f355bf06.pth.tar").touch()
    found = {finding.name: finding for finding in module._weights()}
    assert found["FAN landmarks"].state == "works"
    assert (found["FAN face finder"].state, found["FAN face finder"].text) == (
        "absent",
        str(folder / "s3fd-619a316812.pth"),
    )


def test_wrong_versions_break_the_core_and_extras_are_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version("numpy")
    wanted = [
        f"numpy>{version}",
        "no-such-thing>=2",
        "torch",
        "another-thing ; extra == 'dask'",
        "mien[dask] ; extra == 'dask'",
    ]
    monkeypatch.setattr(module, "requirements", lambda: [*wanted, "never ; python_version < '3'"])
    core, extra = module._packages()
    assert core.state == "broken"
    assert core.text == f"numpy {version}, expected >{version}; no-such-thing is not installed"
    assert (extra.name, extra.state) == ("extra dask", "absent")
    assert extra.text == "another-thing is not installed: pip install 'mien[dask]'"


def test_requirements_are_those_of_the_project() -> None:
    named = requirements()
    assert any(entry.startswith("torch>=") for entry in named)
    assert any(entry.startswith("ruff") and 'extra == "dev"' in entry for entry in named)


def test_a_look_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> None:
        raise RuntimeError("libcuda.so.1: cannot open\nmore")

    for name in ("_packages", "_backends", "_weights", "_tools"):
        monkeypatch.setattr(module, name, lambda: iter(()))
    monkeypatch.setattr(module, "_devices", broken)
    found = {finding.topic: finding for finding in examine(tmp_path)}
    assert (found["devices"].state, found["devices"].text) == ("broken", "RuntimeError: libcuda.so.1: cannot open")


def test_the_exit_code_tells_and_json_is_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for state, code in (("absent", 0), ("broken", 1)):
        made = [Finding("a topic", "a thing", state, "what [is] known")]  # type: ignore[arg-type]
        monkeypatch.setattr(module, "examine", lambda _, made=made: made)
        result = typer.testing.CliRunner().invoke(app, ["doctor", "--workspace", str(tmp_path), "--json"])
        assert result.exit_code == code
        assert json.loads(result.output)[0]["state"] == state
        shown = typer.testing.CliRunner().invoke(app, ["doctor", "--workspace", str(tmp_path)])
        assert "what [is] known" in shown.output
        assert shown.exit_code == code
