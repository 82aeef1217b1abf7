"""What all commands of `mien` share: options, examples in their help, progress, answers in words or as JSON.

Exit codes: 0 done; 1 something broke; 2 the input or an option is at fault; 130 interrupted. Answers go to stdout, what
went wrong and progress to stderr. `--json` makes the answer one JSON document, `--quiet` leaves it out.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.environment import prepare
from flows.failures import reported

WorkspaceOption = Annotated[Path, typer.Option("--workspace", "-w", help="Folder with params.yaml and artifacts/.")]
CheckpointOption = Annotated[
    Path | None, typer.Option(help="Weights of a training stage; default: the registry's champion.")
]
AnimatorOption = Annotated[
    Path | None, typer.Option(help="Weights of train_animator; default: the registry's champion.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but what went wrong.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1; auto: CUDA where there is one.")]

EVERY_S = 5.0
"""Where nobody watches, progress is a line in a log so often at most."""


@dataclass
class Settings:
    """What was said before the name of the command."""

    debug: bool = False


settings = Settings()


@contextmanager
def command(name: str, workspace: Path) -> Iterator[None]:
    """Environment and error handling of every command."""
    prepare(workspace)
    with reported(workspace, name, debug=settings.debug):
        yield


def examples(*lines: str) -> str:
    """The end of a command's help."""
    # Square brackets would be markup.
    shown = "\n".join(line.replace("[", "\\[") for line in lines)
    return f"[bold]Examples[/bold]\n{shown}\n\nExit codes: 0 done, 1 broken, 2 refused, 130 interrupted."


@dataclass(frozen=True)
class Answer:
    """How a command answers."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    def say(self, *lines: object) -> None:
        """Lines for people."""
        if not (self.quiet or self.as_json):
            for line in lines:
                print(line)

    def say_more(self, *lines: object) -> None:
        """Lines for people who asked for more; they go to stderr, since they are no answer."""
        if self.verbose:
            for line in lines:
                print(line, file=sys.stderr)

    def files(self, paths: Iterable[Path], **more: Any) -> None:
        """What was written, and more about it in the JSON document."""
        found = [str(path) for path in paths]
        self.say(*found)
        self.document({"files": found, **more})

    def document(self, content: Any) -> None:
        """The answer for programs."""
        if self.as_json:
            print(json.dumps(content, ensure_ascii=False, default=str))

    @contextmanager
    def progress(self, thing: str, counted: str = "faces") -> Iterator[Callable[[int, int, int], None]]:
        """A function of things done, all things and what was counted: a bar where someone watches, else a few lines."""
        if self.quiet or self.as_json or not (sys.stderr.isatty() or self.verbose):
            yield lambda done, total, count: None  # noqa: ARG005
            return
        if not sys.stderr.isatty():
            yield _log(thing, counted)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn(thing),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{{task.fields[rate]:.1f}} {counted}/s"),
            TimeRemainingColumn(),
        )
        started = time.perf_counter()
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            row = bar.add_task(thing, total=None, rate=0.0)

            def show(done: int, total: int, count: int) -> None:
                rate = count / max(time.perf_counter() - started, 1e-6)
                bar.update(row, completed=done, total=total, rate=rate)

            yield show


def _log(thing: str, counted: str) -> Callable[[int, int, int], None]:
    started = last = time.perf_counter()

    def show(done: int, total: int, count: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last >= EVERY_S or done == total:
            last = now
            rate = count / max(now - started, 1e-6)
            print(f"{done} of {total} {thing}, {count} {counted}, {rate:.1f} {counted}/s", file=sys.stderr)

    return show
