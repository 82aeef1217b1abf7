"""Runs training stages of the tiny workspace in processes of their own, so that tests can kill or combine them."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from models.training import progress
from tasks import train, training_step
from tasks.artifacts import Workspace
from tests.tiny_workspace import Recorder, tiny_params

Sections = Mapping[str, Mapping[str, Any]]


def context() -> ForkServerContext:
    """Processes that start with everything imported, from a server in which torch has not computed anything yet."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.training_process"])
    return found


def started(root: Path, stage: str, sections: Sections, **options: Any) -> tuple[ForkServerProcess, Connection]:
    """A running stage, and what it tells: `step` as it computes one, `half` in the midst of writing its state."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = context().Process(target=_run, args=(str(root), stage, sections, there), kwargs=options, daemon=True)
    process.start()
    there.close()
    return process, here


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What `torchrun` sets."""
    return {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(
    root: str,
    stage: str,
    sections: Sections,
    told: Connection,
    *,
    settings: Mapping[str, str] | None = None,
    stalls: bool = False,
) -> None:
    os.environ.update(settings or {})
    torch.set_num_threads(1)
    recorder, objective = Recorder(), training_step.objective
    train.track = recorder.track  # type: ignore[assignment]

    def telling(*arguments: Any) -> Any:
        if torch.is_grad_enabled():
            told.send("step")
        return objective(*arguments)

    training_step.objective = telling
    if stalls:
        progress.torch = _StallingTorch(told)  # type: ignore[assignment]
    train.train_stage(tiny_params(**sections), Workspace(Path(root)), stage)
    told.send("recorded" if recorder.calls else "silent")


class _StallingTorch:
    """Stops for good in the midst of saving."""

    def __init__(self, told: Connection) -> None:
        self.told = told
        self.load = torch.load

    def save(self, content: Any, file: Any) -> None:
        memory = io.BytesIO()
        torch.save(content, memory)
        file.write(memory.getvalue()[: memory.tell() // 2])
        file.flush()
        self.told.send("half")
        time.sleep(600)
