"""What a clip of speech must fulfil, as expectations on the rows of `tasks/speech_store.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.speech_params import IngestSpeechParams
from tasks.verdict import load_great_expectations

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

MIN_MOUTH_MOTION = 0.01
"""Standard deviation of the mouth channel that moves most; a mouth that speaks moves ten times as much."""
OVERSHOOT = 0.05
"""Curves of solvers go a little beyond [0, 1] and are cut; curves in percent or in millimetres do so by more."""


def speech_expectations(limits: IngestSpeechParams) -> list[Expectation]:
    """The expectations, most fundamental first: the first one that a clip breaks is the reason of its refusal."""
    gxe = load_great_expectations().expectations

    def between(reason: str, column: str, low: float | None, high: float | None, description: str) -> Expectation:
        return gxe.ExpectColumnValuesToBeBetween(
            column=column, min_value=low, max_value=high, description=description, meta={"reason": reason}
        )

    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="split",
            value_set=["train", "validation", "test"],
            description="the clip is in a split",
            meta={"reason": "no_split"},
        ),
        between("curves_not_finite", "not_finite", 0, 0, "all coefficients that carry meaning are finite"),
        between(
            "length_differs",
            "length_difference_s",
            None,
            limits.max_length_difference_s,
            f"sound and curves differ in length by at most {limits.max_length_difference_s:g} s",
        ),
        between(
            "curves_out_of_range",
            "lowest",
            -OVERSHOOT,
            None,
            f"no coefficient is below 0 by more than {OVERSHOOT:g}",
        ),
        between(
            "curves_out_of_range",
            "highest",
            None,
            1.0 + OVERSHOOT,
            f"no coefficient is above 1 by more than {OVERSHOOT:g}",
        ),
        between("no_mouth", "known_mouth_channels", 1, None, "at least one coefficient of mouth or jaw is known"),
        between(
            "mouth_still",
            "mouth_motion",
            MIN_MOUTH_MOTION,
            None,
            f"a coefficient of mouth or jaw varies by at least {MIN_MOUTH_MOTION:g} (standard deviation)",
        ),
        between("too_short", "seconds", limits.min_seconds, None, f"the clip lasts at least {limits.min_seconds:g} s"),
        between("too_long", "seconds", None, limits.max_seconds, f"the clip lasts at most {limits.max_seconds:g} s"),
        between("silent", "level_db", limits.silence_db, 0.0, f"speech is louder than {limits.silence_db:g} dB"),
        between(
            "clipped",
            "clipped_share",
            None,
            limits.max_clipped_share,
            f"at most {limits.max_clipped_share:.1%} of the samples stand at full scale",
        ),
        gxe.ExpectColumnValuesToBeUnique(
            column="sample_id", description="no other clip is the same", meta={"reason": "duplicate"}
        ),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="split",
            column_B="sound_split",
            description="the clip is in the split in which its sound is first seen",
            meta={"reason": "sound_in_two_splits"},
        ),
    ]
