"""The stage `ingest_speech`: speech with coefficient curves from every source, checked, split and stored.

Every clip that a source offers is either accepted or quarantined with a reason, and the counts are checked. A clip
whose twin was accepted before, or whose sound is in another split, is refused.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.artifacts import QUARANTINE, Workspace, replace_folder, write_json, write_table
from tasks.data_docs import write_data_docs
from tasks.params import Params
from tasks.speech_candidates import SpeechCandidate, SpeechRefusal
from tasks.speech_clips import CLIPS
from tasks.speech_curves import read_curves
from tasks.speech_expectations import speech_expectations
from tasks.speech_params import CurvesSource, IngestSpeechParams, SpeechSource, SyntheticSpeechSource
from tasks.speech_picture import draw_clips
from tasks.speech_store import SpeechStore
from tasks.speech_synthetic import synthesize_speech
from tasks.speech_video import read_videos
from tasks.tracking import finite, track
from tasks.verdict import RowFailure, open_context, validate_table

STAGE = "ingest_speech"
SPLITS = ("train", "validation", "test")


class SpeechGateError(ValueError):
    """More clips failed than `ingest_speech.max_failed_share` allows; the message says which and where to look."""


def ingest_speech(params: Params, workspace: Workspace) -> None:
    """Read or make every source of `params.ingest_speech` into `artifacts/ingest_speech/`.

    Raises: SpeechGateError if too many clips fail, FileNotFoundError or ValueError with a one-line remedy; the previous
    output then stays as it was, and what the gate refused lies in `.mien/failed/ingest_speech/`.
    """
    section, seed = params.ingest_speech, params.project.seed
    failed = workspace.root / ".mien" / "failed" / STAGE
    with track(params, workspace, STAGE) as run, replace_folder(workspace.folder(STAGE)) as folder:
        store = SpeechStore(folder, shard_clips=section.shard_clips)
        for source in section.sources:
            for item in _items(source, params, workspace):
                if isinstance(item, SpeechRefusal):
                    store.refuse(item)
                else:
                    store.accept(item, lambda clip: split_of(clip, section, seed))
        store.close()
        if not store.rows and not store.refusals:
            raise ValueError(f"{STAGE}: the sources hold no clips; correct ingest_speech.sources")
        context = open_context()
        failures: dict[int, RowFailure] = {}
        examples = {refusal.reason: refusal.detail for refusal in reversed(store.refusals)}
        if store.rows:
            table = clip_table(store.rows)
            failures = judge(table, section, context)
            examples |= {failure.reason: failure.detail for failure in reversed(failures.values())}
        summary = summarize(store, failures, section)
        _write_quarantine(folder, store, failures)
        if store.rows:
            write_data_docs(context, folder / "data_docs", summary=summary, examples=examples, subject="Speech")
        write_json(folder / "summary.json", summary)
        if not summary["gate"]["passed"]:
            with replace_folder(failed) as kept:
                for path in folder.iterdir():
                    if path.name != "frames":
                        (shutil.copytree if path.is_dir() else shutil.copy)(path, kept / path.name)
            raise SpeechGateError(gate_message(summary, failed))
        clean = [{field.name: row[field.name] for field in CLIPS} for row in store.rows if row["row"] not in failures]
        write_table(folder / "clips.parquet", clean, CLIPS)
        draw_clips(folder, folder / "examples.png")
        run.metrics(finite({name: value for name, value in summary.items() if name != "reasons"}))
    shutil.rmtree(failed, ignore_errors=True)


def split_of(clip: SpeechCandidate, params: IngestSpeechParams, seed: int) -> tuple[str, str | None]:
    """Split of a clip, and what the test split holds out; where the source does not say, a matter of its path alone."""
    if clip.split is not None:
        held_out = clip.held_out or "clips" if clip.split == "test" else None
        return clip.split, held_out
    digest = hashlib.sha256(f"{seed}/{clip.source}/{clip.path}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < params.test_share:
        return "test", "clips"
    return ("validation" if place < params.test_share + params.validation_share else "train"), None


def clip_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows with what only all of them together can tell: in which split a sound is first seen."""
    table = pd.DataFrame(rows)
    sound = table["source"] + "/" + table["sha256"]
    table["sound_split"] = table.groupby(sound)["split"].transform("first")
    return table


def judge(table: pd.DataFrame, params: IngestSpeechParams, context: Any) -> dict[int, RowFailure]:
    """The verdict of the suite; of clips that are the same the first one stays."""
    failures = validate_table(context, table, speech_expectations(params), stage=STAGE, asset="clips").failures
    first: set[str] = set()
    for row, clip_id in zip(table["row"], table["sample_id"], strict=True):
        failure = failures.get(row)
        if failure is not None and failure.reason == "duplicate" and clip_id not in first:
            del failures[row]
        first.add(clip_id)
    return failures


def summarize(store: SpeechStore, failures: dict[int, RowFailure], params: IngestSpeechParams) -> dict[str, Any]:
    """Counts of what came in and what became of it.

    Raises: RuntimeError if they do not add up.
    """
    good = [row for row in store.rows if row["row"] not in failures]
    reasons = Counter(refusal.reason for refusal in store.refusals)
    reasons.update(failure.reason for failure in failures.values())
    total = len(store.rows) + len(store.refusals)
    if total != len(good) + reasons.total():
        raise RuntimeError(f"{STAGE}: {total} clips came in, {len(good)} accepted and {reasons.total()} quarantined")
    share = reasons.total() / total

    def numbers(source: str | None) -> dict[str, Any]:
        rows = [row for row in store.rows if source in (None, row["source"])]
        kept = [row for row in good if source in (None, row["source"])]
        refused = sum(source in (None, refusal.source) for refusal in store.refusals)
        return {
            "in": len(rows) + refused,
            "clean": len(kept),
            "quarantined": len(rows) - len(kept) + refused,
            "seconds": round(sum(row["seconds"] for row in kept), 2),
            "speakers": len({row["speaker"] for row in kept}),
            "clips_by_split": {split: sum(row["split"] == split for row in kept) for split in SPLITS},
        }

    sources = [source.name for source in params.sources]
    return {
        **numbers(None),
        "failed_share": round(share, 6),
        "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "gate": {
            "passed": share <= params.max_failed_share and bool(good),
            "max_failed_share": params.max_failed_share,
        },
        "sources": {name: numbers(name) for name in sources},
    }


def gate_message(summary: dict[str, Any], failed: Path) -> str:
    """One line: how many clips failed, how many may, mostly why, and where to look."""
    reasons = ", ".join(f"{reason} ({number})" for reason, number in list(summary["reasons"].items())[:3])
    return (
        f"{STAGE}: {summary['failed_share']:.1%} of {summary['in']} clips failed, expected at most "
        f"{summary['gate']['max_failed_share']:.1%} (ingest_speech.max_failed_share) and a clip left; "
        f"mostly {reasons}; see {failed / 'quarantine.parquet'}"
    )


def _items(source: SpeechSource, params: Params, workspace: Workspace) -> Iterator[SpeechCandidate | SpeechRefusal]:
    section = params.ingest_speech
    if isinstance(source, SyntheticSpeechSource):
        text = None if source.text is None else workspace.resolve(source.text)
        yield from synthesize_speech(source, section, seed=params.project.seed, text=text)
    elif isinstance(source, CurvesSource):
        yield from read_curves(source, workspace.resolve(source.path), section, workspace=workspace)
    else:
        yield from read_videos(source, workspace.resolve(source.path), params, workspace)


def _write_quarantine(folder: Path, store: SpeechStore, failures: dict[int, RowFailure]) -> None:
    rows = [
        {
            "source": row["source"],
            "path": row["path"],
            "sample_id": row["clip_id"],
            "reason": failures[row["row"]].reason,
            "detail": failures[row["row"]].detail,
        }
        for row in store.rows
        if row["row"] in failures
    ]
    rows += [
        {"source": one.source, "path": one.path, "sample_id": None, "reason": one.reason, "detail": one.detail}
        for one in store.refusals
    ]
    write_table(folder / "quarantine.parquet", rows, QUARANTINE)
