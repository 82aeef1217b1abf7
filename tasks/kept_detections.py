"""What the detector found in which photo, so that a later run looks at new photos alone.

Convention: one part for each shard, in `.mien/kept/detect_landmarks/FINGERPRINT`, named after its photos. A shard whose
photos are the same has its part already; of one that has changed, the photos that are elsewhere are taken from there.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts import LANDMARKS, Workspace, replace_file
from tasks.places import Places

Row = dict[str, Any]

DETECTED = LANDMARKS.append(pa.field("found", pa.bool_()))
"""Rows of `LANDMARKS`; where no face was found, all but the sample id and `found` is null."""


class KeptDetections:
    """The parts of one detector, with its settings."""

    def __init__(self, workspace: Workspace, fingerprint: str) -> None:
        self.folder = workspace.root / ".mien" / "kept" / "detect_landmarks" / fingerprint[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._parts: list[str] = []
        stops, ids = [0], []
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                column = pq.read_table(path, columns=["sample_id"])["sample_id"]
            except (pa.ArrowException, OSError):
                path.unlink(missing_ok=True)
                continue
            self._parts.append(path.name)
            stops.append(stops[-1] + len(column))
            ids += column.chunks
        self._stops = np.array(stops[1:])
        self._places = Places(pa.chunked_array(ids, pa.string()))
        self._used: set[str] = set()

    def known(self, sample_ids: Sequence[str]) -> dict[str, list[str]]:
        """Parts that hold some of these photos, with the photos; nothing where they have a part of their own."""
        name = part_name(sample_ids)
        self._used.add(name)
        if (self.folder / name).exists():
            return {}
        parts: dict[str, list[str]] = {}
        for sample_id in sample_ids:
            row = self._places.find(sample_id)
            if row is not None:
                part = self._parts[int(np.searchsorted(self._stops, row, side="right"))]
                parts.setdefault(part, []).append(sample_id)
        return parts

    def close(self) -> None:
        """Remove parts of photos and detectors that are no longer there."""
        for path in self.folder.glob("*.parquet"):
            if path.name not in self._used:
                path.unlink(missing_ok=True)
        for other in self.folder.parent.iterdir():
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)


def part_name(sample_ids: Sequence[str]) -> str:
    """File name of the part of exactly these photos in this order."""
    return f"{hashlib.sha256(' '.join(sample_ids).encode()).hexdigest()[:32]}.parquet"


def read_part(path: Path, sample_ids: Sequence[str] | None = None) -> dict[str, Row]:
    """Rows of a part by sample id, or some of them."""
    where = None if sample_ids is None else [("sample_id", "in", list(sample_ids))]
    return {row["sample_id"]: row for row in pq.read_table(path, filters=where).to_pylist()}


def write_part(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows of a part, whole or not at all."""
    with replace_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=DETECTED), temporary, compression="zstd")
