from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.animation.phonemes import BILABIALS, PHONEMES, Segment, ipa_symbols, phoneme_segments


@pytest.mark.parametrize(
    ("ipa", "symbols"),
    [
        ("p", ["p"]),
        ("ˈɑː", ["aa"]),
        ("ˌoʊ", ["ow"]),
        ("tʃ", ["ch"]),
        ("əl", ["ax", "l"]),
        ("ˈaɪɚ", ["ay", "er"]),
        ("n̩", ["n"]),
        ("", []),
        ("(en)", ["eh", "n"]),
        ("☃", []),
    ],
)
def test_ipa(ipa: str, symbols: list[str]) -> None:
    assert ipa_symbols(ipa) == symbols


def test_bilabials() -> None:
    assert [PHONEMES[place] for place in BILABIALS] == ["p", "b", "m"]


def test_segments_cover_the_clip_and_share_pieces_out() -> None:
    segments = phoneme_segments([(0.1, "b"), (0.2, "əl"), (0.4, ""), (0.5, ""), (0.6, "ˈɑː")], 1.0)
    assert [(round(one.start, 6), round(one.end, 6), one.symbol, one.stressed) for one in segments] == [
        (0.0, 0.1, None, False),
        (0.1, 0.2, "b", False),
        (0.2, 0.3, "ax", False),
        (0.3, 0.4, "l", False),
        (0.4, 0.6, None, False),
        (0.6, 1.0, "aa", True),
    ]


def test_nothing_said_is_one_pause() -> None:
    assert phoneme_segments([], 2.0) == [Segment(0.0, 2.0, None)]


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from(["p", "", "ɑː", "tʃ", "əl", "x̩"])), max_size=12))
def test_segments_never_overlap_or_leave_gaps(events: list[tuple[float, str]]) -> None:
    segments = phoneme_segments(sorted(events, key=lambda event: event[0]), 2.0)
    edges = [(segment.start, segment.end) for segment in segments]
    assert edges[0][0] == 0.0
    assert edges[-1][1] == pytest.approx(2.0)
    for (_, end), (start, _) in itertools.pairwise(edges):
        assert start == pytest.approx(end)
