"""What a user sees when something goes wrong: one line; the trace goes into a file of the workspace."""

from __future__ import annotations

import errno
import json
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

REFUSED = 2
"""Exit code when the input or the parameters are at fault: trying again cannot help."""

BROKEN = 1
"""Exit code of everything else."""


class StageError(RuntimeError):
    """A stage that ran in a process of its own did not succeed; the message says why."""


@dataclass(frozen=True)
class Failure:
    """Why a command did not succeed."""

    message: str
    exit_code: int
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an error: known kinds by their own message, others as what they are, a fault of the program."""
        from tasks.tracking import TrackingError

        trace = "".join(traceback.format_exception(error))
        if isinstance(error, KeyboardInterrupt):
            return cls("interrupted; the same command goes on from the last checkpoint", 130, trace)
        message = str(error).strip() or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            message = f"{error.filename or 'file'}: {error.strerror}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                # A copy names the sound file first, then the one that has no room.
                full = error.filename2 or error.filename or "the disk"
                message = f"{full}: {error.strerror}; free some space, the same command goes on"
        if isinstance(error, (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError)):
            return cls(message, REFUSED, trace)
        if isinstance(error, (OSError, TrackingError, StageError)):
            return cls(message, BROKEN, trace)
        first = message.splitlines()[0]
        return cls(f"{type(error).__name__}: {first} (a fault in Mien; please report it)", BROKEN, trace)

    def save(self, path: Path) -> None:
        """Keep the failure with its trace."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Failure | None:
        """The failure that was kept, or None."""
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def show(self, *, debug: bool, path: Path | None = None) -> None:
        """Print to stderr: one line, with `debug` the whole trace."""
        if debug:
            print(self.trace, file=sys.stderr)
        red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
        where = f"\n(trace: {path})" if path and not debug and "fault in Mien" in self.message else ""
        print(f"{red}error: {self.message}{plain}{where}", file=sys.stderr)


def failure_path(workspace: Path, name: str) -> Path:
    """Where the last failure of a stage or command is kept."""
    return workspace / ".mien" / "failures" / f"{name}.json"


@contextmanager
def reported(workspace: Path, name: str, *, debug: bool = False) -> Iterator[None]:
    """Turn any error of the block into one line on stderr and an exit code."""
    path = failure_path(workspace, name)
    # A scheduler that ends us must not leave our server behind; and a shell starts background jobs deaf to SIGINT.
    before = {kind: signal.signal(kind, _interrupt) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the outermost place, where nothing may pass
        failure = Failure.of(error)
        # A mistyped folder is no workspace; nothing is made in it.
        if (workspace / "params.yaml").is_file():
            failure.save(path)
        failure.show(debug=debug, path=path)
        raise SystemExit(failure.exit_code) from None
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
