"""Every stage as a flow: the table from names to the plain functions of tasks/, and how one is run."""

from __future__ import annotations

import importlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flows.failures import failure_path
from flows.locks import alone
from flows.notices import show_pictures
from flows.run_log import record
from flows.runners import FANNED_OUT, open_runner

if TYPE_CHECKING:
    from tasks.artifacts import Workspace
    from tasks.params import Params

FUNCTIONS = {
    "ingest": "tasks.ingest:ingest",
    "train_detector": "tasks.train_detector:train_detector",
    "train_geometry": "tasks.train_geometry:train_geometry",
    "detect_landmarks": "tasks.detect:detect_landmarks",
    "validate_labels": "tasks.validate:validate_labels",
    "train_self_supervised": "tasks.train:train_self_supervised",
    "train_supervised": "tasks.train:train_supervised",
    "train_fused": "tasks.train:train_fused",
    "refusion": "tasks.refusion:refusion",
    "ablation": "tasks.ablation:ablation",
    "evaluate": "tasks.evaluate:evaluate",
    "register": "tasks.register:register",
    "ingest_speech": "tasks.ingest_speech:ingest_speech",
    "train_animator": "tasks.train_animator:train_animator",
    "evaluate_animator": "tasks.evaluate_animator:evaluate_animator",
}
"""Module and function of every stage; imported only when it runs."""

SHARED = ("train_self_supervised", "train_supervised", "train_fused")
"""Stages that several processes run together when `torchrun` starts them."""

CHATTY = (
    "great_expectations",
    "lightning.fabric.utilities.distributed",
    "lightning.fabric.utilities.rank_zero",
    "lightning.pytorch.utilities.rank_zero",
)
"""Loggers whose news, such as the precision chosen, would be told in every stage."""


def stage_function(name: str) -> Callable[..., None]:
    """The plain function of a stage.

    Raises: ValueError if no stage has that name.
    """
    if name not in FUNCTIONS:
        raise ValueError(f"stage {name!r} is unknown, expected one of {', '.join(FUNCTIONS)}")
    module, function = FUNCTIONS[name].split(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def run_stage(name: str, workspace: Path) -> None:
    """Run a stage as a flow run of its name.

    Needs a Prefect API, see `flows.server`. Raises: whatever the stage raises.
    """
    from prefect import flow
    from prefect.artifacts import create_markdown_artifact
    from prefect.states import Completed, Failed

    from tasks.artifacts import Workspace
    from tasks.params import load_params

    errors: list[BaseException] = []
    done: list[str] = []

    # Named after the stage, not after the function, so that Prefect shows what `dvc.yaml` shows.
    @flow(name=name, flow_run_name=f"{name} in {workspace.resolve().name}", validate_parameters=False)
    def stage(folder: str):  # type: ignore[no-untyped-def]
        place = Workspace(Path(folder))
        try:
            _call(name, load_params(place.params), place)
        except Exception as error:  # noqa: BLE001 - handed to the caller; the page shows the message, no trace
            errors.append(error)
            return Failed(message=f"{type(error).__name__}: {error}")
        done.append(name)
        create_markdown_artifact(key=name.replace("_", "-"), markdown=_summary(place.folder(name)), description=name)
        show_pictures(name, place.folder(name))
        return Completed()

    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    failure_path(workspace, name).unlink(missing_ok=True)
    started = time.monotonic()
    print(f"[{name}] starts", flush=True)
    with alone(workspace, name):
        try:
            stage(str(workspace.resolve()), return_state=True)
        except Exception as error:
            if not (done or errors):
                raise
            # What the stage says counts; all that is lost is what the page would show.
            print(f"[{name}] Prefect's server was lost ({type(error).__name__})", flush=True)
    seconds = time.monotonic() - started
    found = record(workspace, name, seconds=seconds, error=errors[0] if errors else None)
    if errors:
        raise errors[0]
    print(f"[{name}] done in {seconds:.1f} s{f': {found}' if found else ''}", flush=True)


def _call(name: str, params: Params, workspace: Workspace) -> None:
    """The plain function; one that hands out its work gets the runner that the params name."""
    if name not in FANNED_OUT:
        stage_function(name)(params, workspace)
        return
    with open_runner(params.runner) as spread:
        stage_function(name)(params, workspace, spread=spread)


def run_beside(name: str, workspace: Path) -> None:
    """Run a stage in a process that helps the first one, which alone is a flow run, reports and writes."""
    from tasks.artifacts import Workspace
    from tasks.params import load_params

    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    place = Workspace(workspace.resolve())
    stage_function(name)(load_params(place.params), place)


def check_processes(name: str, count: int) -> None:
    """Refuse to run in several processes what only one may run.

    Raises: ValueError naming the stages that may.
    """
    if count > 1 and name not in SHARED:
        raise ValueError(
            f"{name}: started in {count} processes, expected 1; torchrun is for {', '.join(SHARED)}, "
            f"use python -m flows {name}"
        )


def _summary(folder: Path) -> str:
    """What a stage says about its result, for the Prefect page."""
    for name in ("metrics.json", "summary.json"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            return f"`{folder / name}`\n\n```json\n{json.dumps(content, indent=2)}\n```"
    return f"`{folder}`"
