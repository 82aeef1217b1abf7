"""Photo files made ready for storing, in pieces that any process can do, and only where the file has changed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from tasks import images
from tasks.artifacts import replace_file
from tasks.fan_out import Spread
from tasks.images import ImageError, decode, decode_stored, encode, pixel_hash, read_file, reduce
from tasks.source_params import IngestParams

CHUNK = 128
"""Files that are made ready together; a stage that is killed loses no more than the chunks under way."""

CHUNK_BYTES = 64 * 2**20
"""A chunk of large photos is split, so that memory stays bounded."""

SETTLED_NS = 2 * 10**9
"""The dates of a file that changed more recently are not trusted: it may change again under the same ones."""

UNCHANGED = "unchanged"
"""Reason of a file whose bytes are those of the last time although its dates are not."""

PREPARED = pa.schema(
    [
        ("name", pa.binary()),  # relative to the source's folder, as the file system spells it
        ("size", pa.int64()),  # of the file; -1 where it could not be looked at
        ("changed_ns", pa.int64()),  # the later of the dates of content and of entry; -1 where that is too recent
        ("inode", pa.uint64()),
        ("sha256", pa.binary()),  # of the file, null where it could not be read
        ("sample_id", pa.string()),  # of the stored pixels, null where the photo is refused
        ("width", pa.int32()),  # of the stored photo
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("stored_bytes", pa.int32()),
        ("reason", pa.string()),  # why it is refused, or null
        ("detail", pa.string()),
    ]
)
"""What is known of a photo file; beside it a part has the column `image`, the content as it is stored."""

PART = PREPARED.append(pa.field("image", pa.binary()))


@dataclass(frozen=True)
class PreparedPhoto:
    """A row of `PREPARED`, and the photo's content where it is at hand."""

    name: bytes
    size: int = -1
    changed_ns: int = -1
    inode: int = 0
    sha256: bytes | None = None
    sample_id: str | None = None
    width: int = 0
    height: int = 0
    original_width: int = 0
    original_height: int = 0
    stored_bytes: int = 0
    reason: str | None = None
    detail: str | None = None
    image: bytes | None = None


@dataclass(frozen=True)
class Chunk:
    """Files for one call of `prepare_chunk`."""

    folder: Path
    names: tuple[str, ...]
    known: Mapping[str, bytes]
    """SHA-256 of the files' former content, where that need not be looked at again."""
    params: IngestParams
    parts: Path
    """Folder that takes the part."""
    fingerprint: str


class Former(Protocol):
    """What is known of files from the last time."""

    def get(self, name: str) -> PreparedPhoto | None:
        """What was made of a file; None where that is not at hand."""
        ...


def prepare_photos(
    folder: Path, names: Sequence[str], former: Former, params: IngestParams, *, parts: Path, spread: Spread
) -> Iterator[PreparedPhoto]:
    """Every file in the order of the names: as it was `former`, where it has not changed, else made ready.

    Parts that a killed run left are used.
    """
    same = bytearray(len(names))
    for place, name in enumerate(names):
        photo = former.get(name)
        same[place] = photo is not None and _dates(folder / name) == (photo.size, photo.changed_ns, photo.inode)
    fingerprint = preparation_fingerprint(params)

    def chunks() -> Iterator[Chunk]:
        changed = (name for place, name in enumerate(names) if not same[place])
        for group in _grouped(changed, folder):
            known = {name: photo.sha256 for name in group if (photo := former.get(name)) is not None and photo.sha256}
            yield Chunk(folder=folder, names=group, known=known, params=params, parts=parts, fingerprint=fingerprint)

    ready = (photo for path in spread(prepare_chunk, chunks()) for photo in read_part(path))
    for place, name in enumerate(names):
        known = former.get(name) if same[place] else None
        if known is None:
            now = next(ready)
            known = former.get(name) if now.reason == UNCHANGED else None
            yield now if known is None else replace(known, size=now.size, changed_ns=now.changed_ns, inode=now.inode)
        else:
            yield known


def prepare_chunk(chunk: Chunk) -> Path:
    """Make the photos of a chunk ready; gives the file with them, which may be there from a run that was killed."""
    dates = [(name, _dates(chunk.folder / name)) for name in chunk.names]
    content = (chunk.fingerprint, str(chunk.folder), dates, sorted(chunk.known.items()))
    path = chunk.parts / f"{hashlib.sha256(repr(content).encode()).hexdigest()[:32]}.parquet"
    if path.exists():
        return path
    photos = [prepare_photo(chunk.folder, name, chunk.params, known=chunk.known.get(name)) for name in chunk.names]
    columns = {name: pa.array([getattr(photo, name) for photo in photos], PART.field(name).type) for name in PART.names}
    with replace_file(path) as temporary:
        pq.write_table(pa.table(columns, schema=PART), temporary, compression="none")
    return path


def read_part(path: Path) -> Iterator[PreparedPhoto]:
    """The photos of a part, a few in memory at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=16):
            for row in batch.to_pylist():
                yield PreparedPhoto(**row)


def prepare_photo(folder: Path, name: str, params: IngestParams, *, known: bytes | None = None) -> PreparedPhoto:
    """Read, decode, turn upright, reduce and encode a file, or say why that cannot be done."""
    path = folder / name
    size, changed_ns, inode = _dates(path)
    if time.time_ns() - changed_ns < SETTLED_NS:
        changed_ns = -1
    entry = PreparedPhoto(os.fsencode(name), size=size, changed_ns=changed_ns, inode=inode)
    try:
        if not path.exists():
            raise ImageError("missing_file", "no such file")
        content = read_file(path, max_bytes=params.max_image_bytes)
        entry = replace(entry, sha256=hashlib.sha256(content).digest())
        if known is not None and entry.sha256 == known:
            return replace(entry, reason=UNCHANGED, detail="")
        image = decode(
            content,
            max_bytes=params.max_image_bytes,
            max_pixels=params.max_image_pixels,
            min_side_px=params.min_image_side_px,
        )
        stored = reduce(image, max_side_px=params.max_side_px)
        if min(stored.shape[:2]) < params.min_image_side_px:
            raise ImageError("too_small", f"{stored.shape[1]} x {stored.shape[0]} after reduction")
        encoded = encode(stored)
    except ImageError as error:
        return replace(entry, reason=error.reason, detail=error.detail)
    return replace(
        entry,
        sample_id=pixel_hash(decode_stored(encoded)),
        width=stored.shape[1],
        height=stored.shape[0],
        original_width=image.shape[1],
        original_height=image.shape[0],
        stored_bytes=len(encoded),
        image=encoded,
    )


def preparation_fingerprint(params: IngestParams) -> str:
    """What a prepared photo follows from beside its file: limits, code and libraries."""
    names = ("max_image_bytes", "max_image_pixels", "min_image_side_px", "max_side_px")
    limits = {name: getattr(params, name) for name in names}
    libraries = [importlib.metadata.version(name) for name in ("opencv-python", "pillow", "numpy")]
    digest = hashlib.sha256(json.dumps([limits, libraries]).encode())
    for source in (images.__file__, __file__):
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()


def prepared_table(photos: Iterable[PreparedPhoto]) -> pa.Table:
    """Rows of `PREPARED`."""
    rows: list[dict[str, Any]] = [
        {field.name: getattr(photo, field.name) for field in fields(photo) if field.name != "image"} for photo in photos
    ]
    return pa.Table.from_pylist(rows, schema=PREPARED)


def _grouped(names: Iterable[str], folder: Path) -> Iterator[tuple[str, ...]]:
    group: list[str] = []
    size = 0
    for name in names:
        group.append(name)
        size += max(0, _dates(folder / name)[0])
        if len(group) == CHUNK or size >= CHUNK_BYTES:
            yield tuple(group)
            group, size = [], 0
    if group:
        yield tuple(group)


def _dates(path: Path) -> tuple[int, int, int]:
    """Size, date and place of a file, which tell whether it has changed; its content decides where they have."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1, 0
    return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns), status.st_ino
