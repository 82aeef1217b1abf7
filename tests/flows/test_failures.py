"""A user sees one line; the trace is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.failures import BROKEN, REFUSED, Failure, StageError, failure_path, reported
from tasks.params import ParamsError
from tasks.tracking import TrackingError


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("a.npz: 66 points"), REFUSED, "a.npz: 66 points"),
        (ParamsError("params.yaml: seed = -1"), REFUSED, "params.yaml: seed = -1"),
        (FileNotFoundError(2, "No such file or directory", "a.npz"), REFUSED, "a.npz: No such file or directory"),
        (FileNotFoundError("a.npz: missing; run ingest"), REFUSED, "a.npz: missing; run ingest"),
        (OSError(5, "Input/output error"), BROKEN, "file: Input/output error"),
        (
            OSError(28, "No space left on device", "a.pt"),
            BROKEN,
            "a.pt: No space left on device; free some space, the same command goes on",
        ),
        (
            OSError(28, "No space left on device", "kept.md", None, "artifacts/a.md"),
            BROKEN,
            "artifacts/a.md: No space left on device; free some space, the same command goes on",
        ),
        (TrackingError("MLflow cannot be used"), BROKEN, "MLflow cannot be used"),
        (StageError("ingest: broke"), BROKEN, "ingest: broke"),
        (KeyError("x"), BROKEN, "KeyError: 'x' (a fault in Mien; please report it)"),
    ],
)
def test_what_is_said_of_an_error(error: Exception, code: int, message: str) -> None:
    failure = Failure.of(error)
    assert (failure.exit_code, failure.message) == (code, message)


def run_into(error: BaseException, workspace: Path, *, debug: bool = False) -> int:
    with pytest.raises(SystemExit) as end, reported(workspace, "ingest", debug=debug):
        raise error
    return int(end.value.code or 0)


def test_one_line_and_the_trace_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "params.yaml").touch()
    assert run_into(ValueError("photos: folder is empty"), tmp_path) == REFUSED
    assert capsys.readouterr().err == "error: photos: folder is empty\n"
    kept = Failure.load(failure_path(tmp_path, "ingest"))
    assert kept
    assert "raise error\nValueError: photos: folder is empty" in kept.trace


def test_debug_shows_the_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_into(ValueError("photos: folder is empty"), tmp_path, debug=True)
    assert "Traceback" in capsys.readouterr().err


def test_nothing_is_made_in_a_folder_that_is_no_workspace(tmp_path: Path) -> None:
    run_into(ValueError("x"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_into(KeyboardInterrupt(), tmp_path) == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().err
