"""The sounds of speech that frames are labelled with, and how the IPA of a synthesiser becomes a row of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

CONSONANTS = (
    *("p", "b", "m", "f", "v", "th", "dh", "t", "d", "n", "s", "z", "sh", "zh", "ch", "jh"),
    *("k", "g", "ng", "l", "r", "w", "y", "h"),
)
VOWELS = ("iy", "ih", "eh", "ae", "ah", "aa", "ao", "uh", "uw", "er", "ax", "ey", "ay", "oy", "ow", "aw")

PHONEMES = (*CONSONANTS, *VOWELS)
"""Symbols in the manner of ARPABET; a label is a place in this list, -1 where nobody speaks or it is not known."""

SILENCE = -1
BILABIALS = tuple(PHONEMES.index(symbol) for symbol in ("p", "b", "m"))
"""Sounds that are not made with open lips."""
EMOTIONS = ("neutral", "joy", "anger", "sadness", "fear", "disgust", "surprise")
"""Emotions that synthetic speech can show; other sources may bring names of their own."""
STYLES = ("plain", "lively", "mumbled")
"""Manners in which synthetic speech is spoken."""

_IPA = {
    # two vowels in one syllable
    **{"eɪ": "ey", "aɪ": "ay", "ɔɪ": "oy", "oʊ": "ow", "əʊ": "ow", "aʊ": "aw", "ʌʉ": "aw", "ɔø": "oy", "oə": "ao"},
    # affricates
    **{"tʃ": "ch", "dʒ": "jh", "ts": "s", "pf": "f", "tɕ": "ch", "ʈʂ": "ch", "dz": "z"},
    **{"p": "p", "b": "b", "m": "m", "ɱ": "f", "β": "b", "ɸ": "f", "f": "f", "v": "v", "ʋ": "v", "θ": "th", "ð": "dh"},
    **{"t": "t", "ʈ": "t", "ɾ": "d", "d": "d", "ɖ": "d", "n": "n", "ɳ": "n", "ɲ": "n", "s": "s", "z": "z"},
    **{"ʂ": "sh", "ʃ": "sh", "ɕ": "sh", "ʒ": "zh", "ʐ": "zh", "ʑ": "zh", "k": "k", "q": "k", "c": "k", "x": "k"},
    **{"χ": "k", "ɣ": "g", "ɡ": "g", "g": "g", "ɟ": "g", "ŋ": "ng", "l": "l", "ɫ": "l", "ʎ": "l", "ɬ": "l", "ɭ": "l"},
    **{"ɹ": "r", "r": "r", "ɻ": "r", "ʁ": "h", "ʀ": "h", "w": "w", "ʍ": "w", "ɥ": "w", "j": "y", "h": "h", "ɦ": "h"},
    **{"ʔ": "h", "ç": "h", "ħ": "h", "ʕ": "h"},
    **{"i": "iy", "ɨ": "ih", "ɪ": "ih", "e": "eh", "ɛ": "eh", "æ": "ae", "a": "ae", "ɐ": "ah", "ʌ": "ah", "ɑ": "aa"},
    **{"ɒ": "ao", "ɔ": "ao", "o": "ow", "ʊ": "uh", "u": "uw", "ʉ": "uw", "y": "uw", "ʏ": "uh", "ø": "uh", "œ": "er"},
    **{"ɯ": "ih", "ɤ": "ah", "ɚ": "er", "ɜ": "er", "ɝ": "er", "ə": "ax", "ᵻ": "ih", "ɘ": "ax", "ɵ": "uh"},
}
_PIECES = re.compile("|".join(sorted(_IPA, key=len, reverse=True)))
STRESS = "ˈ"


@dataclass(frozen=True)
class Segment:
    """One sound in time; a pause has no symbol."""

    start: float
    """Seconds."""
    end: float
    symbol: str | None
    stressed: bool = False


def ipa_symbols(ipa: str) -> list[str]:
    """The sounds of a piece of IPA; marks of stress, length and tone, and signs nobody knows, count for nothing."""
    return [_IPA[piece] for piece in _PIECES.findall(ipa)]


def phoneme_segments(phonemes: Sequence[tuple[float, str]], seconds: float) -> list[Segment]:
    """Sounds and pauses without gaps from 0 to `seconds`, from starts in order and IPA as a synthesiser reports them.

    A piece of several sounds is shared out evenly. Pauses that follow each other become one.
    """
    segments: list[Segment] = []

    def add(start: float, end: float, symbol: str | None, stressed: bool = False) -> None:
        if end <= start:
            return
        if symbol is None and segments and segments[-1].symbol is None:
            segments[-1] = Segment(segments[-1].start, end, None)
        else:
            segments.append(Segment(start, end, symbol, stressed))

    starts = [min(max(start, 0.0), seconds) for start, _ in phonemes]
    add(0.0, starts[0] if starts else seconds, None)
    for start, end, (_, ipa) in zip(starts, [*starts[1:], seconds], phonemes, strict=False):
        symbols = ipa_symbols(ipa)
        if not symbols:
            add(start, end, None)
        step = (end - start) / max(len(symbols), 1)
        for place, symbol in enumerate(symbols):
            stressed = STRESS in ipa and symbol in VOWELS
            add(start + place * step, start + (place + 1) * step, symbol, stressed)
    return segments
