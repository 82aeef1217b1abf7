"""Whether two photos show one person, told from their reconstructed shapes, and how distinct shapes are.

Convention: a distance is small for photos of one person; everything counts photos of test persons only. Intervals are
bootstrap intervals over persons, as in models/statistics.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from models.statistics import percentiles, resamples

FOLDS = 10
FALSE_ACCEPTS = 1e-2
MAX_PAIRS = 50_000
"""Pairs of different persons that are compared; a fixed random choice where there are more."""

MAX_PAIRS_PER_PERSON = 200

RESAMPLED_PAIRS = 10_000
"""Pairs of different persons that intervals are made from; a thousand draws of more take long and change nothing."""


@dataclass(frozen=True)
class Pairs:
    """Photos to compare, by their places in a list of photos."""

    first: Int[np.ndarray, "P"]
    second: Int[np.ndarray, "P"]
    same: Bool[np.ndarray, "P"]
    fold: Int[np.ndarray, "P"]
    """Which tenth a pair belongs to: its threshold comes from the other nine."""

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.first)

    def chosen(self, mask: Bool[np.ndarray, "P"]) -> Pairs:
        """Some of the pairs, dealt to the folds anew."""
        same = self.same[mask]
        return Pairs(self.first[mask], self.second[mask], same, deal(same))


@dataclass(frozen=True)
class Verification:
    """How well a threshold on a distance tells pairs of one person from pairs of two; NaN where a kind is missing."""

    accuracy: float
    """Mean of the rates on both kinds of pairs; with as many of either it is the share of right answers."""
    accuracy_deviation: float
    """Standard deviation over the folds."""
    auc: float
    """Chance that a pair of one person is nearer than a pair of two."""
    tar: float
    """Share of pairs of one person that are accepted where `FALSE_ACCEPTS` of the others are."""
    threshold: float
    """Distance below which a pair counts as one person; mean over the folds."""
    right: Bool[np.ndarray, "P"]
    """Whether each pair was judged rightly by the threshold of the other folds."""


def all_pairs(person: Shaped[np.ndarray, "N"], *, seed: int = 0) -> Pairs:
    """All pairs of photos of one person and of different ones, as far as the limits above allow, in ten folds."""
    generator = np.random.default_rng(seed)
    order = np.argsort(person, kind="stable")
    same: list[np.ndarray] = []
    for photos in np.split(order, np.flatnonzero(np.diff(person[order].astype(np.int64))) + 1):
        pairs = np.stack(np.triu_indices(len(photos), 1), 1)
        if len(pairs) > MAX_PAIRS_PER_PERSON:
            pairs = pairs[np.sort(generator.choice(len(pairs), MAX_PAIRS_PER_PERSON, replace=False))]
        same.append(photos[pairs])
    alike = np.concatenate([np.zeros((0, 2), np.int64), *same])
    count = len(person)
    if count * (count - 1) // 2 <= 4 * MAX_PAIRS:
        other = np.stack(np.triu_indices(count, 1), 1)
    else:
        other = generator.integers(0, count, (4 * MAX_PAIRS, 2))
        other = np.unique(np.sort(other, axis=1), axis=0)
    other = other[person[other[:, 0]] != person[other[:, 1]]]
    if len(other) > MAX_PAIRS:
        other = other[np.sort(generator.choice(len(other), MAX_PAIRS, replace=False))]
    both = np.concatenate([alike, other])
    flags = np.arange(len(both)) < len(alike)
    # In a random order, so that a fold holds pairs of all persons.
    shuffled = generator.permutation(len(both))
    both, flags = both[shuffled], flags[shuffled]
    return Pairs(both[:, 0], both[:, 1], flags, deal(flags))


def deal(same: Bool[np.ndarray, "P"], *, folds: int = FOLDS) -> Int[np.ndarray, "P"]:
    """Deal pairs to folds in turn, those of one person and those of two each by themselves."""
    fold = np.zeros(len(same), np.int64)
    for kind in (same, ~same):
        fold[kind] = np.arange(kind.sum()) % folds
    return fold


def verify(distance: Float[np.ndarray, "P"], pairs: Pairs) -> Verification:
    """Judge every pair by the threshold that is best on the other folds.

    Degenerate: without a pair of either kind, or in a single fold, all numbers are NaN.
    """
    distance = np.asarray(distance, np.float64)
    folds = np.unique(pairs.fold)
    right = np.zeros(len(pairs), bool)
    thresholds, rates = [], []
    if pairs.same.any() and not pairs.same.all():
        for fold in folds:
            here = pairs.fold == fold
            if not (pairs.same[~here].any() and (~pairs.same[~here]).any()):
                continue
            threshold = best_threshold(distance[~here], pairs.same[~here])
            right[here] = (distance[here] < threshold) == pairs.same[here]
            thresholds.append(threshold)
            rates.append(_balanced(right[here], pairs.same[here]))
    known = bool(thresholds)
    spread = np.array([rate for rate in rates if math.isfinite(rate)])
    return Verification(
        accuracy=_balanced(right, pairs.same) if known else math.nan,
        accuracy_deviation=float(spread.std(ddof=1)) if len(spread) > 1 else math.nan,
        auc=area_under_curve(distance, pairs.same),
        tar=accept_rate(distance, pairs.same),
        threshold=float(np.mean(thresholds)) if known else math.nan,
        right=right,
    )


def best_threshold(distance: Float[np.ndarray, "P"], same: Bool[np.ndarray, "P"]) -> float:
    """The distance that tells most pairs rightly, both kinds counting alike; halfway between two neighbours."""
    order = np.argsort(distance, kind="stable")
    ordered, alike = distance[order], same[order]
    accepted = np.concatenate([[0.0], np.cumsum(alike) / max(1, alike.sum())])
    refused = 1.0 - np.concatenate([[0.0], np.cumsum(~alike) / max(1, (~alike).sum())])
    edges = np.concatenate([[ordered[0]], (ordered[1:] + ordered[:-1]) / 2.0, [np.nextafter(ordered[-1], np.inf)]])
    # Between equal distances there is no room for a threshold.
    possible = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])
    return float(edges[np.where(possible, accepted + refused, -1.0).argmax()])


def area_under_curve(distance: Float[np.ndarray, "P"], same: Bool[np.ndarray, "P"]) -> float:
    """Chance that a random pair of one person is nearer than a random pair of two; equal distances count half."""
    if not same.any() or same.all():
        return math.nan
    values, places = np.unique(distance, return_inverse=True)
    alike = np.bincount(places[same], minlength=len(values)).astype(np.float64)
    other = np.bincount(places[~same], minlength=len(values)).astype(np.float64)
    farther = other.sum() - np.cumsum(other)
    return float((alike * (farther + other / 2.0)).sum() / (alike.sum() * other.sum()))


def accept_rate(
    distance: Float[np.ndarray, "P"], same: Bool[np.ndarray, "P"], *, false_accepts: float = FALSE_ACCEPTS
) -> float:
    """Share of pairs of one person nearer than all but `false_accepts` of the pairs of two."""
    if not same.any() or same.all():
        return math.nan
    other = np.sort(distance[~same])
    threshold = other[int(false_accepts * len(other))]
    return float((distance[same] < threshold).mean())


def verification_intervals(
    distance: Float[np.ndarray, "P"], pairs: Pairs, right: Bool[np.ndarray, "P"], person: Int[np.ndarray, "N"]
) -> dict[str, tuple[float, float]]:
    """95 % intervals of accuracy and AUC if other persons had been compared: a pair counts once for each draw of both.

    Accuracy: the thresholds stay as they were.
    """
    _, owner = np.unique(person, return_inverse=True)
    draws = resamples(int(owner.max()) + 1 if len(owner) else 0)
    # Pairs come in a random order, so that the first of them are as good as any.
    kept = pairs.same | (np.cumsum(~pairs.same) <= RESAMPLED_PAIRS)
    order = np.flatnonzero(kept)[np.argsort(distance[kept], kind="stable")]
    first, second, same = owner[pairs.first[order]], owner[pairs.second[order]], pairs.same[order]
    judged = right[order]
    accuracy, auc = np.full(len(draws), np.nan), np.full(len(draws), np.nan)
    for row, drawn in enumerate(draws):
        # A person drawn twice makes two persons; their photos are no pairs of one.
        weight = np.where(same, drawn[first], drawn[first] * drawn[second])
        alike, other = weight * same, weight * ~same
        total, rest = alike.sum(), other.sum()
        if total > 0 and rest > 0:
            accuracy[row] = ((alike @ judged) / total + (other @ judged) / rest) / 2.0
            auc[row] = (alike * (rest - np.cumsum(other))).sum() / (total * rest)
    return {"accuracy": percentiles(accuracy), "auc": percentiles(auc)}


def cosine_distance(first: Float[np.ndarray, "P K"], second: Float[np.ndarray, "P K"]) -> Float[np.ndarray, "P"]:
    """One minus the cosine of the angle; 1 where either is zero."""
    length = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return 1.0 - (first * second).sum(1) / np.maximum(length, 1e-12)


def distinctness_interval(embedding: Float[np.ndarray, "N K"], person: Shaped[np.ndarray, "N"]) -> tuple[float, float]:
    """95 % interval of `distinctness` if other persons had been photographed."""
    _, owner = np.unique(person, return_inverse=True)
    count = int(owner.max()) + 1 if len(owner) else 0
    sums, pairs = np.zeros((count, count)), np.zeros((count, count))
    embedding = np.asarray(embedding, np.float64)
    for row in range(len(embedding)):
        distance = pairwise_distance(embedding[row : row + 1], embedding[row + 1 :])[0]
        np.add.at(sums[owner[row]], owner[row + 1 :], distance)
        np.add.at(pairs[owner[row]], owner[row + 1 :], 1.0)
    # A pair of two persons lies on either side of the diagonal; of a person with itself, which is a ratio, twice.
    sums, pairs = sums + sums.T, pairs + pairs.T
    own, own_pairs = np.diag(sums).copy(), np.diag(pairs).copy()
    np.fill_diagonal(sums, 0.0)
    np.fill_diagonal(pairs, 0.0)
    drawn = resamples(count)
    with np.errstate(invalid="ignore", divide="ignore"):
        intra = (drawn @ own) / (drawn @ own_pairs)
        inter = ((drawn @ sums) * drawn).sum(1) / ((drawn @ pairs) * drawn).sum(1)
        return percentiles((inter - intra) / (inter + intra))


def nearest_person(
    embedding: Float[np.ndarray, "N K"],
    person: Shaped[np.ndarray, "N"],
    gallery: Float[np.ndarray, "G K"],
    gallery_person: Shaped[np.ndarray, "G"],
) -> Bool[np.ndarray, "N"]:
    """Whether the nearest shape of the gallery, such as the persons' true neutral ones, is of the photo's person."""
    if not len(gallery):
        return np.zeros(len(embedding), bool)
    nearest = [
        pairwise_distance(part, gallery).argmin(1) for part in np.array_split(embedding, max(1, len(embedding) // 256))
    ]
    found: Bool[np.ndarray, "N"] = gallery_person[np.concatenate(nearest)] == person
    return found


def nearest_other_photo(embedding: Float[np.ndarray, "N K"], person: Shaped[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
    """Whether the nearest other photo shows the same person; of persons with a single photo it never does."""
    distance = pairwise_distance(embedding, embedding)
    np.fill_diagonal(distance, np.inf)
    found: Bool[np.ndarray, "N"] = person[distance.argmin(1)] == person
    return found


def pairwise_distance(first: Float[np.ndarray, "N K"], second: Float[np.ndarray, "M K"]) -> Float[np.ndarray, "N M"]:
    """Euclidean distances of all rows."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2.0 * first @ second.T
    return np.sqrt(np.maximum(squares, 0.0))


def yaw_pairs(pairs: Pairs, yaw_deg: Float[np.ndarray, "N"], edges_deg: Sequence[float]) -> dict[str, Pairs]:
    """Pairs by the larger |yaw| of the two photos; beyond the last edge counts as the last bin."""
    larger = np.maximum(np.abs(yaw_deg[pairs.first]), np.abs(yaw_deg[pairs.second]))
    found = {}
    for place, (low, high) in enumerate(pairwise(edges_deg)):
        last = place == len(edges_deg) - 2
        found[f"{low:g}-{high:g}"] = pairs.chosen((larger >= low) & ((larger < high) | last))
    return found


def _balanced(right: Bool[np.ndarray, "P"], same: Bool[np.ndarray, "P"]) -> float:
    if not same.any() or same.all():
        return math.nan
    return float(right[same].mean() + right[~same].mean()) / 2.0
