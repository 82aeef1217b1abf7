"""Speech by espeak-ng, offline from the wheel `espeakng-loader`, with the time of every phoneme.

The library keeps state that colours what it says next. So it lives in a process of its own, which forks for every
sentence: a request gives the same samples whatever was asked before. That process is this file, run as a script.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

RETRIEVAL, PHONEMES_AS_IPA = 2, 1 | 2
RATE, VOLUME, PITCH, PITCH_RANGE = 1, 2, 3, 4
UTF8 = 1
END_OF_LIST, PHONEME = 0, 7


class SpeechError(ValueError):
    """espeak-ng does not work or does not know a voice."""


@dataclass(frozen=True)
class Utterance:
    """What is to be said and how."""

    text: str
    voice: str
    """Name as in espeak-ng, with an optional timbre: `en-us+f2`."""
    words_per_minute: int = 175
    pitch: int = 50
    """0 to 99."""
    pitch_range: int = 50
    """0 is monotonous, 99 excited."""


@dataclass(frozen=True)
class Spoken:
    """Sound and phonemes of an utterance."""

    samples: NDArray[np.int16]
    sample_rate_hz: int
    phonemes: list[tuple[float, str]]
    """Start in seconds and IPA; an empty name is a pause. Each lasts until the next, the last until the end."""


def speak(utterances: Sequence[Utterance]) -> Iterator[Spoken]:
    """Say one utterance after the other.

    Raises: SpeechError naming voice or library.
    """
    process = subprocess.Popen([sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        if process.stdin is None or process.stdout is None:
            raise SpeechError("espeak-ng: its process has no pipes")
        try:
            for utterance in utterances:
                process.stdin.write(json.dumps(asdict(utterance)).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    raise SpeechError(
                        f"espeak-ng ended while it said {utterance.text[:40]!r}; install espeakng-loader again"
                    )
                head = json.loads(line)
                if "error" in head:
                    raise SpeechError(head["error"])
                samples = np.frombuffer(process.stdout.read(2 * head["samples"]), "<i2")
                yield Spoken(samples, head["rate"], [(ms / 1000.0, name) for ms, name in head["phonemes"]])
        finally:
            process.stdin.close()


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def _serve() -> None:
    """Answer requests on standard input until it ends: a line of JSON, then the samples."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(RETRIEVAL, 0, str(espeakng_loader.get_data_path()).encode(), PHONEMES_AS_IPA)
    for line in sys.stdin.buffer:
        sys.stdout.flush()
        child = os.fork()
        if not child:
            _say(library, rate, json.loads(line))
            os._exit(0)
        os.waitpid(child, 0)


def _say(library: ctypes.CDLL, rate: int, request: dict[str, str | int]) -> None:
    pieces: list[bytes] = []
    phonemes: list[tuple[int, str]] = []

    def heard(samples: object, count: int, events: object) -> int:
        if samples and count:
            pieces.append(ctypes.string_at(samples, 2 * count))  # type: ignore[arg-type]
        place = 0
        while (event := events[place]).type != END_OF_LIST:  # type: ignore[index]
            if event.type == PHONEME:
                phonemes.append((event.audio_position, bytes(event.id.string).decode("utf-8", "replace")))
            place += 1
        return 0

    callback = _CALLBACK(heard)
    library.espeak_SetSynthCallback(callback)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    out = sys.stdout.buffer
    if rate <= 0:
        out.write(json.dumps({"error": "espeak-ng cannot start; install espeakng-loader again"}).encode() + b"\n")
    elif library.espeak_SetVoiceByName(str(request["voice"]).encode()):
        out.write(
            json.dumps({"error": f"espeak-ng has no voice {request['voice']!r}; correct voices"}).encode() + b"\n"
        )
    else:
        for number, key in ((RATE, "words_per_minute"), (PITCH, "pitch"), (PITCH_RANGE, "pitch_range")):
            library.espeak_SetParameter(number, int(request[key]), 0)
        text = str(request["text"]).encode() + b"\0"
        library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, UTF8, None, None)
        library.espeak_Synchronize()
        sound = b"".join(pieces)
        head = {"samples": len(sound) // 2, "rate": rate, "phonemes": phonemes}
        out.write(json.dumps(head).encode() + b"\n" + sound)
    out.flush()


if __name__ == "__main__":
    _serve()
