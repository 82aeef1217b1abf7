"""Where a stage's files lie, their table schemas, and writers that leave either the whole thing or nothing."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

STAGES = (
    "ingest",
    "train_detector",
    "train_geometry",
    "detect_landmarks",
    "validate_labels",
    "train_self_supervised",
    "train_supervised",
    "train_fused",
    "refusion",
    "ablation",
    "evaluate",
    "register",
    "ingest_speech",
    "train_animator",
    "evaluate_animator",
)

_floats = pa.list_(pa.float32())

SAMPLES = pa.schema(
    [
        ("sample_id", pa.string()),  # hash of the stored pixels, so that duplicates merge
        ("source", pa.string()),
        ("path", pa.string()),  # relative to the source's folder; empty for rendered photos
        ("person", pa.string()),  # source/person, unique over all sources
        ("split", pa.string()),  # train, validation or test; one per person
        ("labelled", pa.bool_()),  # may training see the mesh
        ("mesh_id", pa.string()),  # row of meshes.parquet, null without a mesh
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("shard", pa.string()),  # file name of the image shard
        ("landmarks", _floats),  # 136 numbers x0, y0 … in pixels of the stored photo: annotated or true, or null
        ("rotation", _floats),  # 3 numbers, true axis-angle where known, or null
        ("dense", _floats),  # x0, y0 … of further vertices of the face model in pixels of the stored photo, or null
        ("outline", _floats),  # 34 numbers x0, y0 …: the jaw points where people put them, for rendered photos, or null
    ]
)
"""`ingest/samples.parquet`: one row per accepted photo."""

IMAGES = pa.schema([("sample_id", pa.string()), ("image", pa.binary())])
"""`ingest/images-NNNNN.parquet`: encoded RGB photos (PNG or JPEG), upright, 8 bit."""

MESHES = pa.schema(
    [
        ("mesh_id", pa.string()),
        ("person", pa.string()),
        ("vertices", _floats),  # 3 V numbers in model space, mm, with expression: what a scanner sees
        ("neutral", _floats),  # the same person without expression where known, or null
        ("fit_error_mm", pa.float32()),  # residual of the registration; 0 for rendered truth
        ("coverage", pa.float32()),  # share of the face that the scan covers
    ]
)
"""`ingest/meshes.parquet`: one row per label mesh."""

QUARANTINE = pa.schema(
    [
        ("source", pa.string()),
        ("path", pa.string()),
        ("sample_id", pa.string()),  # null before a photo could be read
        ("reason", pa.string()),  # a short code, e.g. not_an_image
        ("detail", pa.string()),  # what was found, what was expected
    ]
)
"""`<stage>/quarantine.parquet`: what was refused and why."""

LANDMARKS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("landmarks", _floats),  # 136 numbers in pixels of the stored photo
        ("confidence", _floats),  # 68 numbers in [0, 1]
        ("box", _floats),  # x0, y0, x1, y1 around the points
        ("face_score", pa.float32()),
        ("yaw_deg", pa.float32()),
        ("pitch_deg", pa.float32()),
        ("roll_deg", pa.float32()),
        ("dense", _floats),  # x0, y0 … of further vertices of the face model, from a detector that finds them, or null
        ("dense_confidence", _floats),  # one number in [0, 1] for each of them, or null
    ]
)
"""`detect_landmarks/landmarks.parquet`: one row per photo in which a face was found."""

POINT_COLUMNS = ("dense", "dense_confidence", "outline")
"""Stay in the tables of the stages that make them; a table from before they existed is read as one without any."""

CLEAN = pa.schema(
    [
        *[field for field in SAMPLES if field.name not in ("landmarks", *POINT_COLUMNS)],
        ("annotation", _floats),  # SAMPLES.landmarks under a name of its own
        *[field for field in LANDMARKS if field.name not in ("sample_id", *POINT_COLUMNS)],
        ("label_quality", pa.float32()),  # [0, 1] for samples with a mesh, else null
        ("affine", _floats),  # 9 numbers, row-major, crop pixels -> photo pixels
    ]
)
"""`validate_labels/clean.parquet`: the rows that every later stage reads."""

CROPS = pa.schema([("sample_id", pa.string()), ("crop", pa.binary())])
"""`validate_labels/crops-NNNNN.parquet`: raw RGB bytes of `crop_size_px`² pixels, row-major."""


@dataclass(frozen=True)
class Workspace:
    """A folder with `params.yaml` and `artifacts/`."""

    root: Path

    @property
    def params(self) -> Path:
        """The parameters of this workspace."""
        return self.root / "params.yaml"

    def folder(self, stage: str) -> Path:
        """Output folder of a stage.

        Raises: ValueError if no stage has that name.
        """
        if stage not in STAGES:
            raise ValueError(f"stage {stage!r} is unknown, expected one of {', '.join(STAGES)}")
        return self.root / "artifacts" / stage

    def progress(self, stage: str) -> Path:
        """Where a running stage keeps what it needs to resume; outside the outputs, which DVC clears before a run."""
        return self.root / ".mien" / "progress" / stage

    def resolve(self, path: Path) -> Path:
        """A path from `params.yaml`, relative to the workspace."""
        return path if path.is_absolute() else self.root / path


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `path` if the block succeeds, and vanishes if it fails.

    What a kill left of an earlier attempt is removed, and what it had moved aside comes back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        remove_leftovers(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        claim = _claim(temporary)
    try:
        temporary.chmod(0o755)
        yield temporary
        with _locked(path.parent):
            old = None
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
                path.rename(old / path.name)
            temporary.rename(path)
        if old:
            shutil.rmtree(old)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name_full_disk(error, path)
        raise
    finally:
        if claim is not None:
            os.close(claim)


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of a folder left beside it; what a living one writes stays."""
    pattern = re.compile(rf"\.{re.escape(path.name)}-(old-)?[a-z0-9_]{{8}}")
    for left in sorted(path.parent.iterdir()) if path.parent.is_dir() else ():
        if not pattern.fullmatch(left.name) or not left.is_dir():
            continue
        claim = _claim(left)
        if claim is None:
            continue
        try:
            # Killed between the two renamings, the writer left no output in place: the former one is still good.
            if (left / path.name).is_dir() and not path.exists():
                (left / path.name).rename(path)
            shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(claim)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among all that move folders here; the lock ends with its process, however that ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems lock no folders; there only two runs at once are less safe.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _claim(folder: Path) -> int | None:
    """Handle of a folder that nobody else holds, which holds it until it is closed; None if somebody does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a temporary file name that takes the place of `path` if the block succeeds, and vanishes if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name_full_disk(error, path)
        raise


def _name_full_disk(error: BaseException, path: Path) -> None:
    """Add to the error of a write on a full disk, which names no file, what was to be written."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
        error.filename = str(path)


def write_table(path: Path, rows: list[dict[str, Any]] | dict[str, list[Any]], schema: pa.Schema) -> None:
    """Write rows as Parquet.

    Raises: ValueError naming the file if a row does not fit the schema.
    """
    try:
        if isinstance(rows, dict):
            table = pa.Table.from_pydict(rows, schema=schema)
        else:
            table = pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    with replace_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(
    path: Path, schema: pa.Schema, *, columns: Sequence[str] | None = None, where: Sequence[Any] | None = None
) -> pa.Table:
    """Read a Parquet table and check its schema; with `columns` these alone, `where` as pyarrow's filters.

    Raises: FileNotFoundError or ValueError naming the file and the stage that makes it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; run the stage {path.parent.name} first")
    try:
        table = pq.read_table(path, columns=columns, filters=where)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: cannot be read ({reason}); run {path.parent.name} again") from None
    expected = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    for place, field in enumerate(expected):
        if field.name in POINT_COLUMNS and field.name not in table.column_names and place <= table.num_columns:
            table = table.add_column(place, field, pa.nulls(len(table), field.type))
    if not table.schema.equals(expected):
        raise ValueError(
            f"{path}: columns {table.column_names}, expected {expected.names}; run {path.parent.name} again"
        )
    return table


def without_nan(value: Any) -> Any:
    """The same with None for every number that is not finite, as JSON wants it."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, data: Any) -> None:
    """Write JSON for people to read; not-a-number is refused."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises: FileNotFoundError naming the stage that makes the file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; run the stage {path.parent.name} first")
    return json.loads(path.read_text(encoding="utf-8"))


def write_curve(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows step, split, name, value of a training curve."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=["step", "split", "name", "value"])
        writer.writeheader()
        writer.writerows(rows)


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Save tensors and plain values.

    Raises: OSError naming the file if it cannot be written.
    """
    with replace_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:
            # What torch says of a full disk is where in its own code it noticed.
            raise OSError(f"{path}: cannot be written; check the free space") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load what `save_checkpoint` wrote; executes nothing.

    Raises: FileNotFoundError or ValueError naming the file and the remedy.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; run the stage {path.parent.name} first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not a checkpoint
        raise ValueError(f"{path}: not a checkpoint of Mien ({type(error).__name__}); train again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a checkpoint of Mien; train again")
    return content
