"""The sounds of speech that frames are labelled with."""

from __future__ import annotations

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
