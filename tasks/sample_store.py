"""The output of `ingest` while it grows: shards as they fill, tables at the end."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts import IMAGES, MESHES, QUARANTINE, read_table, write_table
from tasks.images import decode_stored, pixel_hash
from tasks.kept_photos import EarlierShards
from tasks.sample_rows import LEARNED_FROM_DUPLICATES, Account, Persons, SampleRows
from tasks.sources import Candidate, Mesh, Refusal, StoredPhoto

MESH_GROUP_ROWS = 32

SHARD_BYTES = 128 * 2**20
"""A shard of large photos is closed here, before it has all its rows."""


class SampleStore:
    """Takes candidates and refusals, merges duplicates, and keeps the account of both.

    A photo with the pixels of an earlier one is quarantined as `duplicate`; what only it knows (landmarks, pose) goes
    to the earlier one, and the two persons become one, because otherwise the photo could be in two splits.
    `earlier`: shards of the former output, in which photos lie whose candidates come without content.
    """

    def __init__(self, folder: Path, *, shard_rows: int, earlier: EarlierShards | None = None) -> None:
        self._folder = folder
        self._shards = _Shards(folder, shard_rows, earlier)
        self._meshes = MeshFile(folder / "meshes.parquet")
        self._rows = SampleRows(folder)
        self._quarantine: list[dict[str, Any]] = []
        self._found: Counter[str] = Counter()
        self._persons = Persons()
        self._mesh_ids: set[str] = set()

    @property
    def linked(self) -> dict[str, str]:
        """Shards that are those of the former output, with their SHA-256."""
        return self._shards.linked

    def accept(self, candidate: Candidate) -> None:
        """Store a photo, unless its pixels are there already."""
        self._found[candidate.source] += 1
        stored = candidate.stored or _look(candidate)
        person = printable(candidate.person)
        self._persons.meet(person)
        first = self._rows.find(stored.sample_id)
        if first is not None:
            row = self._rows.read(first)
            self._rows.complete(first, {name: _flat(getattr(candidate, name)) for name in LEARNED_FROM_DUPLICATES})
            self._persons.join(row["person"], person)
            detail = f"same pixels as {row['path'] or stored.sample_id} of source {row['source']}"
            self._set_aside(Refusal(candidate.source, candidate.path, "duplicate", detail), stored.sample_id)
            return
        if candidate.mesh is not None and candidate.mesh.mesh_id not in self._mesh_ids:
            self._mesh_ids.add(candidate.mesh.mesh_id)
            self._meshes.add(candidate.mesh, person)
        self._rows.add(
            {
                "sample_id": stored.sample_id,
                "source": candidate.source,
                "path": printable(candidate.path),
                "person": person,
                "labelled": candidate.labelled,
                "mesh_id": candidate.mesh.mesh_id if candidate.mesh else candidate.mesh_id,
                "width": stored.width,
                "height": stored.height,
                "shard": self._shards.add(stored.sample_id, candidate.content, count=stored.count),
                "landmarks": _flat(candidate.landmarks),
                "rotation": _flat(candidate.rotation),
                "dense": _flat(candidate.dense),
                "outline": _flat(candidate.outline),
            }
        )

    def refuse(self, refusal: Refusal) -> None:
        """Quarantine a photo."""
        self._found[refusal.source] += 1
        self._set_aside(refusal, None)

    def person(self, name: str) -> str:
        """The person as whom somebody is kept, after the duplicates seen so far."""
        return self._persons.kept_as(name)

    def meshes(self, source: str) -> Iterator[tuple[str, str, np.ndarray]]:
        """Mesh id, person and vertices (V, 3) of the stored meshes of a source; no mesh can be added from then on."""
        for row in self._meshes.rows():
            if row["mesh_id"].startswith(f"{source}/"):
                yield row["mesh_id"], self.person(row["person"]), np.float32(row["vertices"]).reshape(-1, 3)

    def annotated_photos(
        self, source: str, wanted: Callable[[str], bool], *, most: int
    ) -> Iterator[tuple[bytes, np.ndarray]]:
        """Content and landmarks (68, 2) of annotated photos of a source whose persons are wanted, spread over all."""
        rows = [
            {name: row[name] for name in ("sample_id", "shard", "landmarks")}
            for row in self._rows
            if row["source"] == source and row["landmarks"] is not None and wanted(self.person(row["person"]))
        ]
        places = np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int)
        chosen = {rows[place]["sample_id"]: rows[place] for place in places}
        for sample_id, content in self._shards.contents({row["shard"] for row in chosen.values()}):
            if sample_id in chosen:
                yield content, np.float32(chosen[sample_id]["landmarks"]).reshape(68, 2)

    def close(self, split_of: Callable[[str], str], *, sources: Sequence[str]) -> dict[str, Any]:
        """Write the tables and give the account: in total and by source.

        Raises: RuntimeError if a photo was lost on the way.
        """
        self._shards.close()
        self._meshes.close(self.person)
        accounts = {source: Account(self._persons) for source in (None, *sources)}

        def settled() -> Iterator[dict[str, Any]]:
            for row in self._rows:
                person = self.person(row["person"])
                complete = row | {"person": person, "split": split_of(person)}
                for source in (None, row["source"]):
                    if source in accounts:
                        accounts[source].add(complete)
                yield complete

        self._rows.write(self._folder / "samples.parquet", settled())
        write_table(self._folder / "quarantine.parquet", self._quarantine, QUARANTINE)
        return {
            "total": accounts[None].settle(self._found.total(), self._quarantine),
            "sources": {
                source: accounts[source].settle(
                    self._found[source], [row for row in self._quarantine if row["source"] == source]
                )
                for source in sources
            },
        }

    def _set_aside(self, refusal: Refusal, sample_id: str | None) -> None:
        self._quarantine.append(
            {
                "source": refusal.source,
                "path": printable(refusal.path),
                "sample_id": sample_id,
                "reason": refusal.reason,
                "detail": printable(refusal.detail),
            }
        )


def _look(candidate: Candidate) -> StoredPhoto:
    assert candidate.content is not None, "a photo without content comes with what it would tell"
    pixels = decode_stored(candidate.content)
    return StoredPhoto(pixel_hash(pixels), pixels.shape[1], pixels.shape[0], len(candidate.content))


@dataclass
class _Shards:
    folder: Path
    rows: int
    earlier: EarlierShards | None = None
    number: int = 0
    ids: list[str] = field(default_factory=list)
    images: list[bytes | None] = field(default_factory=list)
    size: int = 0
    linked: dict[str, str] = field(default_factory=dict)

    def add(self, sample_id: str, content: bytes | None, *, count: int) -> str:
        """Name of the shard that takes the photo of so many bytes."""
        name = f"images-{self.number:05d}.parquet"
        self.ids.append(sample_id)
        self.images.append(content)
        self.size += count
        if len(self.ids) == self.rows or self.size >= SHARD_BYTES:
            self.close()
        return name

    def contents(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Sample ids and contents of the shards of those names; the last one may still be open."""
        for name in sorted(names):
            if (self.folder / name).exists():
                table = read_table(self.folder / name, IMAGES)
                yield from zip(table["sample_id"].to_pylist(), table["image"].to_pylist(), strict=True)
            else:
                yield from zip(self.ids, self._complete(), strict=True)

    def close(self) -> None:
        if not self.ids:
            return
        path = self.folder / f"images-{self.number:05d}.parquet"
        if not self._link(path):
            rows: dict[str, list[Any]] = {"sample_id": self.ids, "image": self._complete()}
            write_table(path, rows, IMAGES)
        self.number += 1
        self.ids, self.images, self.size = [], [], 0

    def _link(self, path: Path) -> bool:
        """Take the shard of the former output that holds the same photos, where there is one."""
        if self.earlier is None or any(content is not None for content in self.images):
            return False
        shard = self.earlier.shard_of(self.ids)
        if shard is None:
            return False
        try:
            os.link(shard, path)
        except OSError:
            # Some file systems have no links.
            return False
        self.linked[path.name] = self.earlier.digest(shard)
        return True

    def _complete(self) -> list[bytes]:
        missing = [sample_id for sample_id, content in zip(self.ids, self.images, strict=True) if content is None]
        found = self.earlier.contents(missing) if self.earlier is not None and missing else {}
        return [
            found[name] if content is None else content for name, content in zip(self.ids, self.images, strict=True)
        ]


class MeshFile:
    """`meshes.parquet`, written row group by row group, so that memory stays bounded."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = _mesh_writer(path)
        self._persons: list[str] = []

    def add(self, mesh: Mesh, person: str) -> None:
        """Append a mesh."""
        self._persons.append(person)
        self._rows.append(
            {
                "mesh_id": mesh.mesh_id,
                "person": person,
                "vertices": mesh.vertices.ravel(),
                "neutral": None if mesh.neutral is None else mesh.neutral.ravel(),
                "fit_error_mm": mesh.fit_error_mm,
                "coverage": mesh.coverage,
            }
        )
        if len(self._rows) == MESH_GROUP_ROWS:
            self._flush()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Mesh id, person and vertices of every mesh; ends the writing."""
        self._end()
        with pq.ParquetFile(self._path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["mesh_id", "person", "vertices"])
                for row in range(len(table)):
                    yield {
                        "mesh_id": table["mesh_id"][row].as_py(),
                        "person": table["person"][row].as_py(),
                        "vertices": table["vertices"][row].values.to_numpy(),
                    }

    def close(self, person_of: Callable[[str], str]) -> None:
        """End the writing; persons who turned out to be the same get one name."""
        self._end()
        if all(person_of(person) == person for person in self._persons):
            return
        renamed = self._path.with_suffix(".renamed")
        column = MESHES.get_field_index("person")
        with pq.ParquetFile(self._path) as file, _mesh_writer(renamed) as writer:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                persons = pa.array([person_of(person) for person in table["person"].to_pylist()], pa.string())
                writer.write_table(table.set_column(column, MESHES.field(column), persons))
        renamed.replace(self._path)

    def _flush(self) -> None:
        if self._writer is None:
            raise RuntimeError(f"{self._path.name}: a mesh came after the table was read")
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=MESHES))
            self._rows = []

    def _end(self) -> None:
        if self._writer is not None:
            self._flush()
            self._writer.close()
            self._writer = None


def printable(text: str) -> str:
    """The text without what cannot be stored: file names need not be valid Unicode."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _mesh_writer(path: Path) -> pq.ParquetWriter:
    # Bytes of equal significance side by side compress several times better than whole numbers.
    floats = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in ("vertices", "neutral")}
    return pq.ParquetWriter(
        path, MESHES, compression="zstd", use_dictionary=["mesh_id", "person"], column_encoding=floats
    )


def _flat(values: np.ndarray | None) -> list[float] | None:
    return None if values is None else np.asarray(values, np.float32).ravel().tolist()
