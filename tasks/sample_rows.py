"""The rows of the sample manifest while it grows: most of them on the disk, so that memory does not grow with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts import SAMPLES, replace_file

Row = dict[str, Any]

SPLITS = ("train", "validation", "test")

LEARNED_FROM_DUPLICATES = ("landmarks", "rotation", "dense", "outline")

BLOCK_ROWS = 2048
GROUP_ROWS = 16_384
"""Rows of a row group of the finished table; who wants the rows of one shard reads no other group."""

_UNFINISHED = pa.schema([field for field in SAMPLES if field.name != "split"])


class SampleRows:
    """Rows in the order in which they come, by number and by sample id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers: dict[int, int] = {}
        self._open: list[Row] = []
        self._blocks = 0
        self._learned: dict[int, Row] = {}
        """What duplicates knew more, by number."""
        self._last: tuple[int, list[Row]] = (-1, [])

    def add(self, row: Row) -> None:
        """Append a row without its split."""
        self._numbers[int(row["sample_id"], 16)] = len(self._numbers)
        self._open.append(row)
        if len(self._open) == BLOCK_ROWS:
            pq.write_table(pa.Table.from_pylist(self._open, schema=_UNFINISHED), self._path(self._blocks))
            self._blocks += 1
            self._open = []

    def find(self, sample_id: str) -> int | None:
        """Number of a photo's row, or None."""
        return self._numbers.get(int(sample_id, 16))

    def read(self, number: int) -> Row:
        """A row with all that is known so far."""
        block, place = divmod(number, BLOCK_ROWS)
        if block == self._blocks:
            row = self._open[place]
        else:
            if self._last[0] != block:
                self._last = (block, pq.read_table(self._path(block)).to_pylist())
            row = self._last[1][place]
        return row | self._learned.get(number, {})

    def complete(self, number: int, values: Row) -> None:
        """Fill in what a row lacks."""
        row = self.read(number)
        new = {name: value for name, value in values.items() if row[name] is None and value is not None}
        if new:
            self._learned.setdefault(number, {}).update(new)

    def __iter__(self) -> Iterator[Row]:
        for block in range(self._blocks + 1):
            rows = self._open if block == self._blocks else pq.read_table(self._path(block)).to_pylist()
            for place, row in enumerate(rows):
                yield row | self._learned.get(block * BLOCK_ROWS + place, {})

    def write(self, path: Path, rows: Iterable[Row]) -> None:
        """Write finished rows as `samples.parquet`, and remove what was kept on the disk meanwhile."""
        remaining = iter(rows)
        with replace_file(path) as temporary, pq.ParquetWriter(temporary, SAMPLES, compression="zstd") as writer:
            while block := list(islice(remaining, GROUP_ROWS)):
                writer.write_table(pa.Table.from_pylist(block, schema=SAMPLES))
        for block_number in range(self._blocks):
            self._path(block_number).unlink()

    def _path(self, block: int) -> Path:
        return self._folder / f"rows-{block:05d}.unfinished"


class Persons:
    """Who turned out to be whom; of two, the one who came first stays."""

    def __init__(self) -> None:
        self._arrival: dict[int, int] = {}
        self._same_as: dict[str, str] = {}

    def meet(self, person: str) -> None:
        """Note that somebody came."""
        self._arrival.setdefault(hash(person), len(self._arrival))

    def number(self, person: str) -> int:
        """The place of somebody in the order of arrival."""
        return self._arrival[hash(person)]

    def kept_as(self, person: str) -> str:
        """The person as whom somebody is kept."""
        while person in self._same_as:
            person = self._same_as[person]
        return person

    def join(self, one: str, other: str) -> None:
        """Two names are one person's."""
        first, second = sorted((self.kept_as(one), self.kept_as(other)), key=self.number)
        if first != second:
            self._same_as[second] = first


class Account:
    """Counts accepted photos of one source, or of all."""

    def __init__(self, persons: Persons) -> None:
        self._order = persons
        self._seen = bytearray()
        self._counts: Counter[str] = Counter()
        self._photos: Counter[str] = Counter()
        self._persons: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        """Count a photo with its split."""
        self._photos[row["split"]] += 1
        number = self._order.number(row["person"])
        if number >= len(self._seen):
            self._seen.extend(bytes(number + BLOCK_ROWS - len(self._seen)))
        if not self._seen[number]:
            self._seen[number] = 1
            self._persons[row["split"]] += 1
        self._counts["labelled"] += bool(row["labelled"])
        self._counts["with_landmarks"] += row["landmarks"] is not None
        self._counts["with_mesh"] += row["mesh_id"] is not None

    def settle(self, found: int, quarantine: list[Row]) -> dict[str, Any]:
        """The account.

        Raises: RuntimeError if a photo was lost on the way.
        """
        accepted = self._photos.total()
        if found != accepted + len(quarantine):
            raise RuntimeError(f"ingest: {found} photos came in, {accepted} accepted and {len(quarantine)} quarantined")
        return {
            "found": found,
            "accepted": accepted,
            "quarantined": len(quarantine),
            "reasons": dict(sorted(Counter(row["reason"] for row in quarantine).items())),
            "persons": self._persons.total(),
            **{name: self._counts[name] for name in ("labelled", "with_landmarks", "with_mesh")},
            "photos_by_split": {split: self._photos[split] for split in SPLITS},
            "persons_by_split": {split: self._persons[split] for split in SPLITS},
        }
