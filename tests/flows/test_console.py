"""What all commands share: answers for people and for programs, examples, progress, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer.testing

from flows import cli
from flows.console import Answer, command, examples


def test_answers_for_people_programs_and_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    Answer().files([Path("a.glb")], faces=[1])
    assert capsys.readouterr().out == "a.glb\n"
    Answer(as_json=True).files([Path("a.glb")], faces=[1])
    assert json.loads(capsys.readouterr().out) == {"files": ["a.glb"], "faces": [1]}
    Answer(quiet=True).files([Path("a.glb")])
    Answer().say_more("more")
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    Answer(verbose=True).say_more("more")
    assert capsys.readouterr().err == "more\n"


def test_progress_is_silent_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for answer in (Answer(), Answer(quiet=True, verbose=True), Answer(as_json=True, verbose=True)):
        with answer.progress("photos") as show:
            show(1, 2, 3)
    assert capsys.readouterr().err == ""
    with Answer(verbose=True).progress("photos") as show:
        show(1, 2, 3)
        show(2, 2, 5)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("2 of 2 photos, 5 faces, ")


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("bad option"), 2), (FileNotFoundError(2, "No such file", "x"), 2), (OSError(28, "full", "y"), 1)],
)
def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception, code: int) -> None:
    with pytest.raises(SystemExit) as stopped, command("reconstruct", tmp_path):
        raise error
    assert stopped.value.code == code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_examples_show_brackets_as_they_are() -> None:
    assert "photo\\[1].jpg" in examples("mien reconstruct 'photo[1].jpg'")


COMMANDS = ("run", "reconstruct", "landmarks", "animate", "export", "workspace", "status")


@pytest.mark.parametrize("name", [*COMMANDS, "model convert", "model info", "model preview"])
def test_every_command_shows_examples_and_exit_codes(name: str) -> None:
    result = typer.testing.CliRunner().invoke(cli.app, [*name.split(), "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert f"mien {name}" in result.output
    assert "Exit codes: 0 done, 1 broken, 2 refused, 130 interrupted." in " ".join(result.output.split())


def test_completion_can_be_installed() -> None:
    result = typer.testing.CliRunner().invoke(cli.app, ["--help"])
    assert "--install-completion" in result.output


def test_status_and_model_info_as_json(tmp_path: Path) -> None:
    from flows.workspace import create_workspace, preset_path

    create_workspace(tmp_path / "w", preset=preset_path("smoke"))
    runner = typer.testing.CliRunner()
    info = json.loads(runner.invoke(cli.app, ["model", "info", "--json", "-w", str(tmp_path / "w")]).stdout)
    assert info["kind"] == "procedural"
    status = json.loads(runner.invoke(cli.app, ["status", "--json", "-w", str(tmp_path / "w")]).stdout)
    assert status["stages"]["ingest"] == {"state": "not made yet", "because_of": []}
    assert status["evaluation"] is None


def test_unknown_outputs_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    result = typer.testing.CliRunner().invoke(
        cli.app, ["reconstruct", "a.jpg", "-o", str(tmp_path / "out"), "--outputs", "fbx", "-w", str(tmp_path)]
    )
    assert result.exit_code == 2
    assert "error: --outputs fbx: no such output, expected some of glb, obj, ply" in result.output
