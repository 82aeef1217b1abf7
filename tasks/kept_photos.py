"""What the last run of `ingest` made of which file, so that a later one looks at what is new alone.

The photos themselves are kept once: in the output, which DVC leaves in place while the stage runs. Shards whose photos
stay the same become part of the new output without being read. The index lies in `.mien/kept/ingest`; without it, or
where a shard is not as it was written, the files are read again and the output is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.artifacts import IMAGES, Workspace, read_table, write_json
from tasks.places import Places
from tasks.prepared_photos import PREPARED, PreparedPhoto, prepared_table

INDEX, NEXT = "index", "next"

ROWS_AT_ONCE = 4096


class EarlierShards:
    """Shards of the former output that are as they were written."""

    def __init__(self, folder: Path, written: dict[str, dict[str, Any]]) -> None:
        self._folder = folder
        self._written = written
        self._sound: dict[str, bool] = {}
        self._open: tuple[str, dict[str, bytes]] = ("", {})
        self._ids: pa.Array = pa.array([], pa.string())
        self._rows: dict[str, tuple[int, int]] = {}
        """Of every shard, which rows of the table of samples are its photos: they follow one another."""
        table = _samples(folder) if written else None
        if table is not None and len(table):
            self._ids = table["sample_id"].combine_chunks()
            runs = pc.run_end_encode(table["shard"].combine_chunks())
            stops = runs.run_ends.to_pylist()
            for shard, start, stop in zip(runs.values.to_pylist(), [0, *stops], stops, strict=False):
                # A shard in two places is none of ours.
                known = shard in written and shard not in self._rows
                self._rows[shard if known else f"{shard} {start}"] = (start, stop)
        self._names = list(self._rows)
        self._stops = np.array([stop for _, stop in self._rows.values()], np.int64)
        self._places = Places(self._ids)

    def has(self, sample_id: str | None) -> bool:
        """Whether the photo can be had from here."""
        shard = None if sample_id is None else self._shard(sample_id)
        return shard is not None and self.is_sound(shard)

    def is_sound(self, shard: str) -> bool:
        """Whether a shard is as it was written; its content is looked at where its dates do not say so."""
        if shard not in self._sound:
            path, written = self._folder / shard, self._written[shard]
            try:
                status = path.stat()
                same = written["dates"] == [status.st_size, status.st_mtime_ns, status.st_ino]
                like = status.st_size == written["dates"][0]
                self._sound[shard] = same or (like and file_digest(path) == written["sha256"])
            except OSError:
                self._sound[shard] = False
        return self._sound[shard]

    def shard_of(self, sample_ids: Sequence[str]) -> Path | None:
        """The shard of exactly these photos in this order, if there is one."""
        shard = self._shard(sample_ids[0])
        if shard is None or not self.is_sound(shard):
            return None
        start, stop = self._rows[shard]
        return self._folder / shard if self._ids[start:stop].to_pylist() == list(sample_ids) else None

    def contents(self, sample_ids: Collection[str]) -> dict[str, bytes]:
        """Contents of photos as they are stored."""
        wanted: dict[str, list[str]] = {}
        for sample_id in sample_ids:
            shard = self._shard(sample_id)
            assert shard is not None, "only photos that are at hand are asked for"
            wanted.setdefault(shard, []).append(sample_id)
        found: dict[str, bytes] = {}
        for shard, ids in wanted.items():
            if self._open[0] != shard:
                self._open = ("", {})
                table = read_table(self._folder / shard, IMAGES)
                self._open = (
                    shard,
                    dict(zip(table["sample_id"].to_pylist(), table["image"].to_pylist(), strict=True)),
                )
            found |= {sample_id: self._open[1][sample_id] for sample_id in ids}
        return found

    def digest(self, shard: Path) -> str:
        """SHA-256 of a sound shard."""
        return str(self._written[shard.name]["sha256"])

    def _shard(self, sample_id: str) -> str | None:
        row = self._places.find(sample_id)
        if row is None:
            return None
        shard = self._names[int(np.searchsorted(self._stops, row, side="right"))]
        return shard if shard in self._written else None


class FormerPhotos:
    """What the last run made of the files of a source, where that is at hand."""

    def __init__(self, table: pa.Table, shards: EarlierShards) -> None:
        self._table = table
        self._shards = shards
        self._places = Places(table["name"])
        self._some: tuple[int, list[PreparedPhoto]] = (-1, [])

    def get(self, name: str) -> PreparedPhoto | None:
        """The photo of a file; None where it was not there, or is nowhere to be had."""
        row = self._places.find(os.fsencode(name))
        if row is None:
            return None
        # Files are asked for in the order of the table.
        block, place = divmod(row, ROWS_AT_ONCE)
        if self._some[0] != block:
            rows = self._table.slice(block * ROWS_AT_ONCE, ROWS_AT_ONCE).to_pylist()
            self._some = (block, [PreparedPhoto(**values) for values in rows])
        photo = self._some[1][place]
        return photo if photo.reason is not None or self._shards.has(photo.sample_id) else None


class KeptPhotos:
    """The index of the last run, and that of the present one while it grows."""

    def __init__(self, workspace: Workspace, *, fingerprint: str) -> None:
        self._folder = workspace.root / ".mien" / "kept" / "ingest"
        self._fingerprint = fingerprint
        self._next = self._folder / NEXT
        self.parts = self._folder / "parts"
        _settle(self._folder, workspace.folder("ingest"))
        known = _read_json(self._folder / INDEX / "shards.json")
        written = known["shards"] if known.get("fingerprint") == fingerprint else {}
        self.shards = EarlierShards(workspace.folder("ingest"), written)
        self._usable = bool(written)
        shutil.rmtree(self._next, ignore_errors=True)
        self._next.mkdir(parents=True)
        self.parts.mkdir(exist_ok=True)

    def former(self, source: str) -> FormerPhotos:
        """What is known of the files of a source whose photos are at hand."""
        path = self._folder / INDEX / f"{source}.parquet"
        table = PREPARED.empty_table()
        if self._usable and path.is_file():
            with suppress(pa.ArrowException, OSError):
                found = pq.read_table(path)
                table = found if found.schema.equals(PREPARED) else table
        return FormerPhotos(table, self.shards)

    def keep(self, source: str, photos: Iterable[PreparedPhoto]) -> Iterator[PreparedPhoto]:
        """Hand on what was made ready, and note it for the next run."""
        noted: list[PreparedPhoto] = []
        with pq.ParquetWriter(self._next / f"{source}.parquet", PREPARED, compression="zstd") as writer:
            for photo in photos:
                yield photo
                noted.append(replace(photo, image=None))
                if len(noted) == ROWS_AT_ONCE:
                    writer.write_table(prepared_table(noted))
                    noted = []
            writer.write_table(prepared_table(noted))

    def write(self, folder: Path, linked: dict[str, str]) -> None:
        """Note the shards of a new output, before it takes its place; `linked`: digests of those that are known."""
        shards = {}
        for path in sorted(folder.glob("images-*.parquet")):
            status = path.stat()
            shards[path.name] = {
                "dates": [status.st_size, status.st_mtime_ns, status.st_ino],
                "sha256": linked.get(path.name) or file_digest(path),
            }
        write_json(self._next / "shards.json", {"fingerprint": self._fingerprint, "shards": shards})

    def close(self) -> None:
        """The new output is in place: its index becomes the index, and what a kill would have needed goes."""
        shutil.rmtree(self._folder / INDEX, ignore_errors=True)
        self._next.rename(self._folder / INDEX)
        shutil.rmtree(self.parts, ignore_errors=True)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settle(folder: Path, output: Path) -> None:
    """After a kill between the new output and its index the index that was ready takes its place."""
    ready = _read_json(folder / NEXT / "shards.json").get("shards", {})
    places = {name: entry["dates"][2] for name, entry in ready.items()}
    if ready and all((output / name).is_file() and (output / name).stat().st_ino == at for name, at in places.items()):
        shutil.rmtree(folder / INDEX, ignore_errors=True)
        (folder / NEXT).rename(folder / INDEX)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _samples(folder: Path) -> pa.Table | None:
    try:
        return pq.read_table(folder / "samples.parquet", columns=["sample_id", "shard"])
    except (OSError, pa.ArrowException):
        return None
