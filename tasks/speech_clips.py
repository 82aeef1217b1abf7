"""Tables of speech clips: their schemas, and how a stage reads clips back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.animation.clip import SpeechClip
from tasks.artifacts import read_table

CLIPS = pa.schema(
    [
        ("clip_id", pa.string()),  # hash of stored sound, curves and source: equal clips merge
        ("source", pa.string()),
        ("path", pa.string()),  # of the sound file relative to the source's folder; empty for synthetic speech
        ("speaker", pa.string()),  # source/speaker, unique over all sources
        ("emotion", pa.string()),
        ("style", pa.string()),
        ("text", pa.string()),  # what is said, where known, or null
        ("split", pa.string()),  # train, validation or test
        ("held_out", pa.string()),  # test split only: sentences, voices (and their sentences) or clips; else null
        ("seconds", pa.float32()),
        ("frames", pa.int32()),  # T, at 50 Hz
        ("known_channels", pa.int32()),  # how many of the 52 coefficients carry meaning
        ("has_phonemes", pa.bool_()),
        ("level_db", pa.float32()),  # of the speech before it was normalised, dB of full scale
        ("clipped_share", pa.float32()),
        ("sha256", pa.string()),  # of the sound file, or of synthetic samples
        ("shard", pa.string()),  # file name of the shard that holds sound and curves
    ]
)
"""`ingest_speech/clips.parquet`: one row per accepted clip."""

FRAMES = pa.schema(
    [
        ("clip_id", pa.string()),
        ("audio", pa.binary()),  # int16 little-endian, mono, 16 kHz; 320 samples per frame
        ("coefficients", pa.binary()),  # float16 little-endian, (T, 52) in the order of ARKIT_NAMES
        ("known", pa.list_(pa.bool_())),  # 52: which coefficients carry meaning
        ("phonemes", pa.list_(pa.int16())),  # T numbers of PHONEMES, -1 where it is not known or nobody speaks
    ]
)
"""`ingest_speech/frames/clips-NNNNN.parquet`: sound and curves."""


def read_clips(folder: Path, *, splits: Sequence[str], sources: Sequence[str] | None = None) -> Iterator[SpeechClip]:
    """Clips of some splits, and of some sources only if these are named, in the order of the table.

    `folder` is that of `ingest_speech`. Raises: FileNotFoundError or ValueError naming the file and the remedy.
    """
    table = read_table(folder / "clips.parquet", CLIPS)
    wanted = pc.is_in(table["split"], value_set=pa.array(list(splits), pa.string()))
    if sources is not None:
        wanted = pc.and_(wanted, pc.is_in(table["source"], value_set=pa.array(list(sources), pa.string())))
    rows = table.filter(wanted).to_pylist()
    shard: dict[str, int] = {}
    opened, stored = "", None
    for row in rows:
        if row["shard"] != opened:
            path = folder / "frames" / row["shard"]
            if not path.is_file():
                raise FileNotFoundError(f"{path}: missing; run the stage ingest_speech again")
            opened, stored = row["shard"], pq.read_table(path, schema=FRAMES)
            shard = {clip_id: place for place, clip_id in enumerate(stored["clip_id"].to_pylist())}
        if stored is None or row["clip_id"] not in shard:
            raise ValueError(f"{opened}: has no clip {row['clip_id']}; run the stage ingest_speech again")
        place = shard[row["clip_id"]]
        audio = np.frombuffer(stored["audio"][place].as_py(), "<i2")
        yield SpeechClip(
            clip_id=row["clip_id"],
            source=row["source"],
            speaker=row["speaker"],
            emotion=row["emotion"],
            style=row["style"],
            text=row["text"],
            split=row["split"],
            held_out=row["held_out"],
            audio=audio.astype(np.float32) / np.float32(32768.0),
            coefficients=np.frombuffer(stored["coefficients"][place].as_py(), "<f2")
            .reshape(row["frames"], -1)
            .astype(np.float32),
            known=np.array(stored["known"][place].as_py(), bool),
            phonemes=np.array(stored["phonemes"][place].as_py(), np.int64),
        )
