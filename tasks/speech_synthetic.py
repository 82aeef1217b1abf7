"""Synthetic speech with known curves: sentences spoken by espeak-ng, mouths by viseme rules, rooms and microphones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve, lfilter

from models.animation.audio import normalised, resampled, speech_level_db
from models.animation.clip import SAMPLE_RATE_HZ, frame_count
from models.animation.phonemes import phoneme_segments
from models.animation.visemes import EMOTION_SHAPES, MANNERS, viseme_curves
from models.face.procedural_expressions import ARKIT_NAMES
from tasks.sentences import make_sentences
from tasks.speak import Utterance, speak
from tasks.speech_candidates import SpeechCandidate
from tasks.speech_params import IngestSpeechParams, SyntheticSpeechSource

TIMBRES = ("m1", "f1", "m3", "f2", "m7", "f4", "m5", "f3", "m2", "f5", "m4", "m6", "m8")
"""espeak-ng's variants of a voice."""
MAX_TEXT_BYTES = 16 * 2**20
MAX_SENTENCE = 400
SILENCE_S = (0.15, 0.4)
"""Before and after what is said."""
NOISE_DB = (-75.0, -45.0)
"""Below full scale; speech stands at -23."""
ROOM_SHARE = 0.5
ROOM_S = (0.05, 0.25)
ROOM_LEVEL = (0.02, 0.25)
COLOUR = (-0.35, 0.35)
"""Coefficient of the filter that makes a microphone dull or sharp."""
PROSODY = {
    "neutral": (1.0, 0, 0),
    "joy": (1.08, 12, 25),
    "anger": (1.1, 5, 20),
    "sadness": (0.84, -10, -25),
    "fear": (1.12, 18, 10),
    "disgust": (0.92, -5, 0),
    "surprise": (1.05, 15, 30),
    "plain": (1.0, 0, 0),
    "lively": (1.05, 4, 15),
    "mumbled": (0.97, -3, -20),
}
"""Factor of the rate, and what is added to pitch and to its range."""


@dataclass(frozen=True)
class Speaker:
    """A voice with habits."""

    name: str
    voice: str
    words_per_minute: int
    pitch: int
    pitch_range: int


def synthesize_speech(
    source: SyntheticSpeechSource, params: IngestSpeechParams, *, seed: int, text: Path | None = None
) -> Iterator[SpeechCandidate]:
    """Every sentence read by several speakers; held-out sentences also by speakers who say nothing else.

    Raises: ValueError if the text cannot be used or a name has no rules, SpeechError if espeak-ng does not work.
    """
    for kind, names, table in (("emotion", source.emotions, EMOTION_SHAPES), ("style", source.styles, MANNERS)):
        for name in names:
            if name not in table:
                raise ValueError(f"source {source.name}: {kind} {name!r}, expected one of {', '.join(table)}")
    sentences = make_sentences(source.sentences, seed=seed) if text is None else read_sentences(text, source)
    readings = list(_readings(source, params, sentences, seed=seed))
    spoken = speak([utterance for utterance, _ in readings])
    for number, (said, (_, (sentence, speaker, emotion, style, split, held_out))) in enumerate(
        zip(spoken, readings, strict=True)
    ):
        random = np.random.default_rng([seed, 1, number])
        before, after = random.uniform(*SILENCE_S, 2)
        quiet = [np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32) for seconds in (before, after)]
        voice = resampled(said.samples.astype(np.float32) / 32768.0, said.sample_rate_hz)
        audio = np.concatenate([quiet[0], voice, quiet[1]])
        begin = len(quiet[0]) / SAMPLE_RATE_HZ
        segments = phoneme_segments(
            [(begin + start, name) for start, name in said.phonemes], len(audio) / SAMPLE_RATE_HZ
        )
        coefficients, labels = viseme_curves(segments, frame_count(len(audio)), emotion=emotion, style=style)
        level = speech_level_db(audio)
        audio = recorded(normalised(audio, level_db=params.loudness_db), random)
        audio = normalised(audio, level_db=params.loudness_db)
        yield SpeechCandidate(
            source=source.name,
            path="",
            speaker=f"{source.name}/{speaker}",
            emotion=emotion,
            style=style,
            text=sentence,
            split=split,
            held_out=held_out,
            audio=audio,
            coefficients=coefficients,
            known=np.ones(len(ARKIT_NAMES), bool),
            phonemes=labels,
            level_db=level,
            clipped_share=0.0,
            sha256=hashlib.sha256(said.samples.tobytes()).hexdigest(),
        )


def read_sentences(path: Path, source: SyntheticSpeechSource) -> list[str]:
    """The first lines of a text, without empty and repeated ones.

    Raises: FileNotFoundError or ValueError naming the file and the remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(f"source {source.name}: {path}: no such file; correct text")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise ValueError(f"{path}: over {MAX_TEXT_BYTES / 2**20:.0f} MiB, expected a list of sentences; cut it")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8, expected a text with one sentence per line; save it again") from None
    sentences = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    for sentence in sentences:
        if len(sentence) > MAX_SENTENCE:
            raise ValueError(f"{path}: a line of {len(sentence)} characters, expected at most {MAX_SENTENCE}; split it")
    if not sentences:
        raise ValueError(f"{path}: no sentences, expected one per line")
    return sentences[: source.sentences]


def draw_speakers(source: SyntheticSpeechSource, *, seed: int) -> list[Speaker]:
    """Voices with timbre, rate and pitch; no two share voice and timbre while there are enough of them."""
    random = np.random.default_rng([seed, 2])
    speakers = []
    for number in range(source.speakers):
        voice = source.voices[number % len(source.voices)]
        timbre = TIMBRES[(number + number // (len(TIMBRES) * len(source.voices))) % len(TIMBRES)]
        high = timbre.startswith("f")
        speakers.append(
            Speaker(
                name=f"{voice}+{timbre}-{number}",
                voice=f"{voice}+{timbre}",
                words_per_minute=int(random.integers(135, 195)),
                pitch=int(random.integers(45, 75) if high else random.integers(25, 55)),
                pitch_range=int(random.integers(35, 65)),
            )
        )
    return speakers


def recorded(audio: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """The same speech through a microphone of some colour, in a room, with noise: real recordings are never clean."""
    sound = audio.astype(np.float64)
    if random.random() < ROOM_SHARE:
        decay = random.uniform(*ROOM_S)
        times = np.arange(round(2.0 * decay * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        echoes = random.standard_normal(len(times)) * np.exp(-times / (decay / 3.0))
        echoes *= random.uniform(*ROOM_LEVEL) / np.sqrt(np.square(echoes).sum())
        sound = sound + fftconvolve(sound, echoes)[: len(sound)]
    sound = lfilter([1.0, random.uniform(*COLOUR)], [1.0], sound)
    noise = lfilter([1.0], [1.0, -0.7], random.standard_normal(len(sound)))
    sound = sound + noise * 10.0 ** (random.uniform(*NOISE_DB) / 20.0)
    peak = np.abs(sound).max()
    return np.asarray(sound * min(1.0, 0.99 / max(peak, 1e-9)), np.float32)


def _readings(
    source: SyntheticSpeechSource, params: IngestSpeechParams, sentences: list[str], *, seed: int
) -> Iterator[tuple[Utterance, tuple[str, str, str, str, str, str | None]]]:
    speakers = draw_speakers(source, seed=seed)
    heard, held_out_speakers = speakers[: -source.held_out_speakers], speakers[-source.held_out_speakers :]
    splits = _splits(sentences, params, seed=seed)
    random = np.random.default_rng([seed, 3])
    for place, sentence in enumerate(sentences):
        for reading in range(source.readings):
            split = splits[sentence]
            by_stranger = split == "test" and (place + reading) % 2 == 1
            group = held_out_speakers if by_stranger else heard
            speaker = group[random.integers(len(group))]
            emotion = source.emotions[random.integers(len(source.emotions))]
            style = source.styles[random.integers(len(source.styles))]
            held_out = ("voices" if by_stranger else "sentences") if split == "test" else None
            yield (
                _utterance(sentence, speaker, emotion, style),
                (sentence, speaker.name, emotion, style, split, held_out),
            )


def _utterance(sentence: str, speaker: Speaker, emotion: str, style: str) -> Utterance:
    rate, pitch, spread = float(speaker.words_per_minute), speaker.pitch, speaker.pitch_range
    for name in (emotion, style):
        factor, higher, wider = PROSODY[name]
        rate, pitch, spread = rate * factor, pitch + higher, spread + wider
    return Utterance(
        text=sentence,
        voice=speaker.voice,
        words_per_minute=round(rate),
        pitch=int(np.clip(pitch, 0, 99)),
        pitch_range=int(np.clip(spread, 0, 99)),
    )


def _splits(sentences: list[str], params: IngestSpeechParams, *, seed: int) -> dict[str, str]:
    """The split of every sentence, in exact shares, at least one of each where there are three."""
    ranked = sorted(sentences, key=lambda sentence: hashlib.sha256(f"{seed}/{sentence}".encode()).digest())
    few = len(ranked) >= 3
    tests = max(round(params.test_share * len(ranked)), int(few and params.test_share > 0))
    validations = max(round(params.validation_share * len(ranked)), int(few and params.validation_share > 0))
    return {
        sentence: "test" if place < tests else "validation" if place < tests + validations else "train"
        for place, sentence in enumerate(ranked)
    }
