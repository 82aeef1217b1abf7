from __future__ import annotations
from collections.abc import Iterator
from pathlib import Path
from tasks.artifacts import Workspace
from tasks.params import Params
from tasks.speech_candidates import SpeechCandidate, SpeechRefusal
from tasks.speech_params import VideoSource


def read_videos(
    source: VideoSource, folder: Path, params: Params, workspace: Workspace
) -> Iterator[SpeechCandidate | SpeechRefusal]:
    raise NotImplementedError
    yield
