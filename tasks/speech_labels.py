"""What a table beside sound files or films says about them: speaker, emotion, style, split."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.annotations import AnnotationError, read_rows, safe_name
from tasks.speech_candidates import SpeechRefusal
from tasks.speech_params import CurvesSource, VideoSource

SPLITS = ("train", "validation", "test")
LABEL = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class ClipLabels:
    """What is known of a file beside its content."""

    speaker: str
    """Unique over all sources: source/speaker."""
    emotion: str
    style: str
    split: str | None


class LabelError(ValueError):
    """A row of the table that cannot be used: `reason` is a short code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ClipTable:
    """The rows of `clips.csv` by file; an absent table says nothing of any file."""

    def __init__(self, source: CurvesSource | VideoSource, folder: Path) -> None:
        """Raises: FileNotFoundError or ValueError naming folder or table and the remedy."""
        if not folder.is_dir():
            raise FileNotFoundError(f"source {source.name}: {folder}: no such folder; correct ingest_speech.sources")
        self._source = source
        self._hold_out = source.hold_out if isinstance(source, CurvesSource) else ()
        self._speaker = source.speaker if isinstance(source, CurvesSource) else None
        self.path = folder / safe_name(source.table)
        self._rows: dict[str, dict[str, str]] = {}
        self._unsafe: list[str] = []
        if not self.path.exists():
            return
        for row in read_rows(self.path, ("file",), remedy="expected a CSV with a column file"):
            try:
                self._rows[safe_name(row["file"])] = row
            except AnnotationError:
                self._unsafe.append(row["file"])

    def labels(self, name: str) -> ClipLabels:
        """Labels of a file by its path in the folder.

        Raises: LabelError if the table says something that cannot be.
        """
        row = self._rows.get(name, {})
        speaker = row.get("speaker") or self._speaker or f"file:{name}"
        split = row.get("split") or ("test" if name in self._hold_out else None)
        if split is not None and split not in SPLITS:
            raise LabelError("bad_split", f"{self.path.name}: split {split!r}, expected one of {', '.join(SPLITS)}")
        labels = {}
        for key, default in (("emotion", self._source.emotion), ("style", self._source.style)):
            labels[key] = (row.get(key) or default).lower()
            if not LABEL.fullmatch(labels[key]):
                raise LabelError(
                    "bad_label", f"{self.path.name}: {key} {row[key]!r}, expected letters, digits and underscores"
                )
        return ClipLabels(f"{self._source.name}/{speaker}", labels["emotion"], labels["style"], split)

    def leftovers(self, names: set[str]) -> Iterator[SpeechRefusal]:
        """Rows and held-out names without a file."""
        for name in self._rows:
            if name not in names:
                yield self._refusal(name, "missing_file", f"{self.path.name} names it, but there is no such file")
        for name in self._unsafe:
            yield self._refusal(name, "unsafe_path", f"in {self.path.name}, expected a path inside the folder")
        for name in self._hold_out:
            if name not in names and name not in self._rows:
                yield self._refusal(name, "missing_file", "hold_out names it, but there is no such file")

    def _refusal(self, name: str, reason: str, detail: str) -> SpeechRefusal:
        return SpeechRefusal(self._source.name, name, reason, detail)
