"""The command line: help, and errors of one line without a trace."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.testing

from flows import cli
from flows.workspace import create_workspace, preset_path

Call = Callable[..., subprocess.CompletedProcess[str]]


def invoke(*arguments: str) -> tuple[int, str]:
    result = typer.testing.CliRunner().invoke(cli.app, list(arguments))
    return result.exit_code, result.output


def test_help_names_every_command() -> None:
    code, text = invoke("--help")
    assert code == 0
    for name in ("reconstruct", "run", "workspace", "status", "model"):
        assert re.search(rf"\b{name}\b", text)


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_folder_that_is_no_workspace(tmp_path: Path, command: str) -> None:
    code, text = invoke(command, "--workspace", str(tmp_path))
    assert code == 2
    expected = f"error: {tmp_path}/params.yaml: no such file; run in a Mien workspace or name one with --workspace"
    assert text.strip() == expected
    assert not list(tmp_path.iterdir())


def test_an_unknown_key_is_named_before_anything_runs(tmp_path: Path) -> None:
    create_workspace(tmp_path / "w", preset=preset_path("smoke"))
    with (tmp_path / "w" / "params.yaml").open("a") as file:
        file.write("trian_fused: {}\n")
    code, text = invoke("run", "--workspace", str(tmp_path / "w"))
    assert code == 2
    assert text.strip() == "error: params.yaml: trian_fused = {}: unknown key; remove it or check its spelling"


def test_a_workspace_from_the_command_line(tmp_path: Path) -> None:
    code, text = invoke("workspace", str(tmp_path / "w"), "--preset", "smoke", "--set", "project.seed=3")
    assert code == 0
    assert f"mien run --workspace {tmp_path / 'w'}" in text
    assert "seed: 3" in (tmp_path / "w" / "params.yaml").read_text()


def test_a_setting_that_does_not_fit(tmp_path: Path) -> None:
    code, text = invoke("workspace", str(tmp_path / "w"), "--preset", "smoke", "--set", "project.seed=many")
    assert code == 2
    assert text.startswith("error: smoke.yaml with the settings given: project.seed = 'many': expected")
    assert len(text.strip().splitlines()) == 1


def test_model_info_counts_the_face_model(tmp_path: Path) -> None:
    create_workspace(tmp_path / "w", preset=preset_path("smoke"))
    code, text = invoke("model", "info", "--workspace", str(tmp_path / "w"))
    assert code == 0
    assert re.search(r"identity modes\s*│\s*12\b", text)
    assert "jawOpen" in text


def test_no_trace_in_a_process_of_its_own(tmp_path: Path, call: Call) -> None:
    done = call("flows", "ingest", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr.strip() == "error: params.yaml: no such file; run in a Mien workspace or name one with --workspace"
    )


def test_an_unknown_stage_lists_the_stages(tmp_path: Path, call: Call) -> None:
    done = call("flows", "inges", cwd=tmp_path)
    assert done.returncode == 2
    assert "invalid choice: 'inges'" in done.stderr
    assert "train_self_supervised" in done.stderr
    assert "Traceback" not in done.stderr
