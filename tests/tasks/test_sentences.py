from __future__ import annotations

import pytest

from tasks.sentences import make_sentences


def test_sentences_differ_and_do_not_depend_on_their_number() -> None:
    sentences = make_sentences(200, seed=0)
    assert len(set(sentences)) == 200
    assert make_sentences(50, seed=0) == sentences[:50]
    assert make_sentences(50, seed=1) != sentences[:50]
    assert all(sentence[0].isupper() and sentence[-1] in ".!?" and "{" not in sentence for sentence in sentences)


def test_they_are_rich_in_closed_lips() -> None:
    text = "".join(make_sentences(100, seed=0)).lower()
    letters = [letter for letter in text if letter.isalpha()]
    assert sum(letter in "pbm" for letter in letters) / len(letters) > 0.08


def test_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match="bring a text of your own"):
        make_sentences(10**6, seed=0)
