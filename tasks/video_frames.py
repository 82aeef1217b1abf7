"""Frames of films, upright and with their times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from tasks.images import Pixels

FILM_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


class VideoError(ValueError):
    """A film that cannot be used: `reason` is a short code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_frames(path: Path, *, max_seconds: float) -> Iterator[tuple[float, Pixels]]:
    """Frames as upright RGB with their times since the sound began; frames whose time does not rise are left out.

    Raises: VideoError if the file holds no picture or cannot be decoded.
    """
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise VideoError("no_picture", f"{path.name}: holds no picture; give a film of a face")
            begin = 0.0
            if container.streams.audio:
                sound = container.streams.audio[0]
                begin = float((sound.start_time or 0) * (sound.time_base or 0))
            last = -np.inf
            for frame in container.decode(container.streams.video[0]):
                if frame.time is None or frame.time - begin <= last:
                    continue
                last = frame.time - begin
                if last > max_seconds:
                    return
                image = frame.to_ndarray(format="rgb24")
                turns = round(frame.rotation / 90.0) % 4
                yield last, np.ascontiguousarray(np.rot90(image, turns))
    except FileNotFoundError:
        raise VideoError("missing", f"{path.name}: no such file; check its name") from None
    except av.error.FFmpegError as error:
        raise VideoError("not_video", f"{path.name}: cannot be decoded ({type(error).__name__}); give MP4") from error


def frame_count(path: Path) -> int:
    """How many frames the file says it holds; 0 where it does not say."""
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.video:
                return 0
            stream = container.streams.video[0]
            if stream.frames:
                return int(stream.frames)
            seconds = float((container.duration or 0) / 1e6)
            return round(seconds * float(stream.average_rate or 0))
    except av.error.FFmpegError:
        return 0
