"""The weighted sum of a training step: which terms exist, what each needs, and how they are put together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """What a loss term needs from its source beside photo and landmarks."""

    needs: frozenset[str] = frozenset()


TERMS: dict[str, Term] = {
    "photo": Term(),
    "landmark": Term(),
    "vertex": Term(frozenset({"scan"})),
    "normal": Term(frozenset({"scan"})),
    "photo_on_scan": Term(frozenset({"scan"})),
    "landmark_on_scan": Term(frozenset({"scan"})),
    "identity_prior": Term(),
    "expression_prior": Term(),
    "albedo_prior": Term(),
    "light_prior": Term(),
}
