"""Sound files with coefficient curves beside them: NPZ, CSV by ARKit name, and what Live Link Face records.

Convention: row k of a file without times stands for k / fps seconds; curves begin where the sound begins.
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.animation.audio import AudioError
from models.animation.clip import FRAME_RATE_HZ, frame_times
from models.face.procedural_expressions import ARKIT_NAMES
from tasks.artifacts import Workspace
from tasks.speech_candidates import SpeechCandidate, SpeechRefusal
from tasks.speech_labels import ClipTable, LabelError
from tasks.speech_params import CurvesSource, IngestSpeechParams
from tasks.speech_recordings import Recording

SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".mov", ".mp4")
CURVE_SUFFIXES = (".npz", ".csv")
CURVE_ENDINGS = ("", "_bs")
"""`take.wav` goes with `take.npz` or `take_bs.npz`, and so on."""
MAX_CURVE_BYTES = 512 * 2**20
MAX_CURVES = 4096
LIVE_LINK_RATES = (30.0, 60.0)
TIMECODE = re.compile(r"(\d+):(\d+):(\d+):(\d+)(\.\d+)?")

_PLACES = {name.lower(): place for place, name in enumerate(ARKIT_NAMES)}


class CurveError(ValueError):
    """A file of curves that cannot be used: `reason` is a short code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class RawCurves:
    """Named curves as a file holds them."""

    values: NDArray[np.float64]
    """(K, S)"""
    names: tuple[str, ...]
    times: NDArray[np.float64]
    """(K,) seconds, rising."""
    seconds: float
    """From the first row to the end of the last."""


def read_curves(
    source: CurvesSource, folder: Path, params: IngestSpeechParams, *, workspace: Workspace
) -> Iterator[SpeechCandidate | SpeechRefusal]:
    """Every sound file of a folder with its curves, and every file of curves without sound, as candidate or refusal.

    Raises: FileNotFoundError or ValueError naming folder, table or mapping and the remedy, if these cannot be used.
    """
    table = ClipTable(source, folder)
    mapping = None if source.mapping is None else read_mapping(workspace.resolve(source.mapping))
    other = {table.path} | ({workspace.resolve(source.mapping)} if source.mapping else set())
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in other]
    curves = {path for path in files if path.suffix.lower() in CURVE_SUFFIXES}
    sounds = [path for path in files if path.suffix.lower() in SOUND_SUFFIXES]
    if not sounds and not curves:
        raise ValueError(
            f"source {source.name}: no sound in {folder}, expected files such as {', '.join(SOUND_SUFFIXES[:3])}; "
            "correct ingest_speech.sources"
        )
    taken: set[Path] = set()
    for path in sounds:
        name = path.relative_to(folder).as_posix()
        beside = [path.with_name(path.stem + ending + suffix) for suffix in CURVE_SUFFIXES for ending in CURVE_ENDINGS]
        found = [candidate for candidate in beside if candidate in curves]
        taken.update(found)
        try:
            if not found:
                raise CurveError(
                    "no_curves", f"{name}: no curves beside it, expected {beside[0].name} or {beside[2].name}"
                )
            yield _candidate(source, name, path, found[0], params, table, mapping)
        except (AudioError, CurveError, LabelError) as error:
            yield SpeechRefusal(source.name, name, error.reason, str(error))
    for path in sorted(curves - taken):
        name = path.relative_to(folder).as_posix()
        yield SpeechRefusal(source.name, name, "no_sound", f"{name}: curves without a sound file of the same name")
    yield from table.leftovers({path.relative_to(folder).as_posix() for path in sounds})


def _candidate(
    source: CurvesSource,
    name: str,
    sound: Path,
    curves: Path,
    params: IngestSpeechParams,
    table: ClipTable,
    mapping: Mapping[str, tuple[str, ...]] | None,
) -> SpeechCandidate:
    recording = Recording.read(sound, table.labels(name), params)
    raw = shifted(read_curve_file(curves, fps=source.fps), source.column_shift)
    coefficients, known = arkit_curves(raw, mapping, name=curves.name)
    if source.channels is not None:
        wanted = {channel.lower() for channel in source.channels}
        unknown = wanted - set(_PLACES)
        if unknown:
            raise ValueError(f"source {source.name}: channels {', '.join(sorted(unknown))}, expected ARKit's names")
        known &= np.array([arkit.lower() in wanted for arkit in ARKIT_NAMES])
    return recording.candidate(
        source.name, name, coefficients=at_frames(raw.times, coefficients, raw.seconds), known=known
    )


def read_curve_file(path: Path, *, fps: float | None = None) -> RawCurves:
    """Named curves of an NPZ or CSV file; nothing in it is executed.

    NPZ: `weights` or `coefficients` (K, S), `names` (S,), `fps`. CSV: a column per shape and one of time code, time in
    seconds or none, in which case `fps` is needed. Raises: CurveError.
    """
    if path.stat().st_size > MAX_CURVE_BYTES:
        raise CurveError("curves_too_large", f"{path.name}: over {MAX_CURVE_BYTES / 2**20:.0f} MiB; cut it")
    raw = _read_npz(path, fps) if path.suffix.lower() == ".npz" else _read_csv(path, fps)
    if not len(raw.values):
        raise CurveError("no_curves", f"{path.name}: no rows, expected one per frame")
    if len(raw.times) > 1 and (np.diff(raw.times) <= 0).any():
        raise CurveError("curves_times", f"{path.name}: times do not rise; export it again")
    return raw


def shifted(raw: RawCurves, columns: int) -> RawCurves:
    """Every name with the values that stand so many columns to its right; names without values are left out.

    The curves that FACEGOOD published need 1: only then left and right shapes move together and the jaw with the sound.
    """
    places = [place + columns for place in range(len(raw.names))]
    kept = [(name, place) for name, place in zip(raw.names, places, strict=True) if 0 <= place < len(places)]
    return replace(raw, values=raw.values[:, [place for _, place in kept]], names=tuple(name for name, _ in kept))


def arkit_curves(
    raw: RawCurves, mapping: Mapping[str, tuple[str, ...]] | None, *, name: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Curves (K, 52) in ARKit's order, and which of them the file knows. A coefficient of several shapes is their
    largest.

    Raises: CurveError if none is known.
    """
    columns = {shape.lower(): place for place, shape in enumerate(raw.names)}
    shapes = mapping if mapping is not None else {arkit: (arkit,) for arkit in ARKIT_NAMES}
    curves = np.zeros((len(raw.values), len(ARKIT_NAMES)))
    known = np.zeros(len(ARKIT_NAMES), bool)
    for arkit, parts in shapes.items():
        found = [columns[part.lower()] for part in parts if part.lower() in columns]
        if found:
            place = _PLACES[arkit.lower()]
            curves[:, place] = raw.values[:, found].max(1)
            known[place] = True
    if not known.any():
        raise CurveError(
            "no_arkit_names",
            f"{name}: none of its columns ({', '.join(raw.names[:4])} …) is ARKit's; give a mapping",
        )
    return curves, known


def read_mapping(path: Path) -> dict[str, tuple[str, ...]]:
    """Which shapes make up each ARKit coefficient, from a CSV of name, `shape` or `max(shape,shape)`, and validity.

    Rows that say `invalid`, name no shape or no ARKit coefficient are left out.
    Raises: FileNotFoundError or ValueError naming the file and the remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such mapping; correct ingest_speech.sources")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
    mapping = {}
    for row in rows[1:]:
        if len(row) < 2 or row[0].lower() not in _PLACES or (len(row) > 2 and row[2].lower() == "invalid"):
            continue
        parts = re.sub(r"^max\((.*)\)$", r"\1", row[1])
        shapes = tuple(part.strip() for part in parts.split(",") if part.strip())
        if shapes and shapes[0].lower() != "invalid":
            mapping[ARKIT_NAMES[_PLACES[row[0].lower()]]] = shapes
    if not mapping:
        raise ValueError(f"{path}: no row with an ARKit name and its shapes, expected columns ARKIT, shape, status")
    return mapping


def at_frames(times: NDArray[np.float64], values: NDArray[np.float64], seconds: float) -> NDArray[np.float32]:
    """Values (K, C) at the middle of every whole frame of so many seconds; held beyond the ends."""
    wanted = frame_times(int(seconds * FRAME_RATE_HZ + 1e-6))
    return np.stack([np.interp(wanted, times, column) for column in values.T], 1).astype(np.float32)


def _read_npz(path: Path, fps: float | None) -> RawCurves:
    try:
        # NumPy leaves a file open in which it finds no archive.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            content = {key: file[key] for key in ("weights", "coefficients", "names", "fps") if key in file.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise CurveError("not_curves", f"{path.name}: not an NPZ file of numbers ({type(error).__name__})") from None
    values = content.get("weights", content.get("coefficients"))
    names = content.get("names", np.array(ARKIT_NAMES))
    if values is None or values.ndim != 2 or values.dtype.kind not in "fiu" or values.shape[1] != names.size:
        found = "nothing" if values is None else f"{values.dtype} {values.shape}"
        raise CurveError(
            "not_curves", f"{path.name}: weights are {found} with {names.size} names, expected (frames, names)"
        )
    rate = float(content["fps"].ravel()[0]) if "fps" in content and content["fps"].size else fps
    return _even(path, values.astype(np.float64), tuple(str(name) for name in names), rate)


def _read_csv(path: Path, fps: float | None) -> RawCurves:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise CurveError("not_curves", f"{path.name}: not a CSV file in UTF-8 ({type(error).__name__})") from None
    head = [name.strip() for name in rows[0]] if rows else []
    if len(head) < 2 or len(head) > MAX_CURVES:
        raise CurveError("not_curves", f"{path.name}: {len(head)} columns, expected one per shape")
    body = [row for row in rows[1:] if len(row) == len(head)]
    if len(body) < len(rows) - 1:
        raise CurveError("not_curves", f"{path.name}: {len(rows) - 1 - len(body)} rows with another number of columns")
    shapes = [place for place, name in enumerate(head) if name.lower() in _PLACES]
    if not shapes:
        shapes = [place for place, name in enumerate(head) if name.lower() not in ("timecode", "time", "frame")]
    try:
        values = np.array([[float(row[place]) for place in shapes] for row in body]).reshape(len(body), len(shapes))
    except ValueError as error:
        raise CurveError("not_curves", f"{path.name}: {error}, expected numbers") from None
    names = tuple(head[place] for place in shapes)
    lowered = [name.lower() for name in head]
    if "timecode" in lowered:
        return _timed(path, values, names, [row[lowered.index("timecode")] for row in body], fps)
    if "time" in lowered:
        try:
            times = np.array([float(row[lowered.index("time")]) for row in body])
        except ValueError as error:
            raise CurveError("curves_times", f"{path.name}: {error}, expected seconds") from None
        step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        return RawCurves(values, names, times, float(times[-1]) + step if len(times) else 0.0)
    return _even(path, values, names, fps)


def _even(path: Path, values: NDArray[np.float64], names: tuple[str, ...], fps: float | None) -> RawCurves:
    if fps is None or not 1.0 <= fps <= 1000.0:
        raise CurveError(
            "no_frame_rate", f"{path.name}: its frame rate is {fps}, expected 1 to 1000; set the source's fps"
        )
    return RawCurves(values, names, np.arange(len(values)) / fps, len(values) / fps)


def _timed(
    path: Path, values: NDArray[np.float64], names: tuple[str, ...], codes: list[str], fps: float | None
) -> RawCurves:
    """Live Link Face's time codes `hours:minutes:seconds:frames.part`; frames that were dropped leave gaps."""
    parts = [TIMECODE.fullmatch(code.strip()) for code in codes]
    if not all(parts):
        wrong = next(code for code, part in zip(codes, parts, strict=True) if part is None)
        raise CurveError("curves_times", f"{path.name}: time code {wrong!r}, expected such as 15:37:05:29.123")
    numbers = [[float(group or 0.0) for group in part.groups()] for part in parts if part is not None]
    highest = max((row[3] for row in numbers), default=0.0)
    rate = fps or next((rate for rate in LIVE_LINK_RATES if highest < rate), 0.0)
    if highest >= rate:
        raise CurveError("no_frame_rate", f"{path.name}: frame {highest:g} in a time code; set the source's fps")
    to_seconds: Callable[[list[float]], float] = lambda row: (  # noqa: E731 (one formula)
        3600.0 * row[0] + 60.0 * row[1] + row[2] + (row[3] + row[4]) / rate
    )
    times = np.array([to_seconds(row) for row in numbers])
    if len(times):
        # A take may run over midnight.
        times = times + 86400.0 * np.cumsum(np.r_[0.0, np.diff(times)] < -43200.0)
        times = times - times[0]
    return RawCurves(values, names, times, float(times[-1]) + 1.0 / rate if len(times) else 0.0)
