"""The parameters that say where the work of a stage runs. They change no result, so no stage depends on them."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from tasks.source_params import PositiveCount, Section


class RunnerParams(Section):
    """What ingest, detect_landmarks and evaluate hand their work to."""

    kind: Literal["serial", "threads", "processes", "dask", "ray"] = "serial"
    workers: PositiveCount | None = None
    """None: as many as there are processor cores."""
    address: str | None = None
    """Of a Dask scheduler or a Ray cluster whose machines see the workspace at the same path; None: one of its own."""

    @model_validator(mode="after")
    def _address_of_a_cluster(self) -> RunnerParams:
        if self.address is not None and self.kind not in ("dask", "ray"):
            raise ValueError(f"kind {self.kind} runs on this machine and takes no address; remove it, or set kind")
        return self
