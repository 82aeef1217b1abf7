"""How sure a number is that was measured on some persons: bootstrap intervals over persons, and paired differences.

Photos of one person resemble each other, so persons are drawn with replacement, never photos. All draws of a seed are
the same whatever is measured, so that numbers of two methods on the same photos are compared draw by draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, Shaped

Statistic = Callable[[Float[np.ndarray, "K"]], float]
"""A number that sums up values, such as `numpy.mean`."""

DRAWS = 1000
LEVEL = 0.95


POOLED_BINS = 256
"""Cells of equally many points in which pooled medians are looked up, with a straight line within each."""


@lru_cache(maxsize=64)
def resamples(groups: int, *, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "D G"]:
    """How often each group is drawn in each resample; every row adds up to the number of groups. Not to be changed."""
    chance = np.full(groups, 1.0 / groups) if groups else np.zeros(0)
    drawn: Float[np.ndarray, "D G"] = np.random.default_rng(seed).multinomial(groups, chance, size=draws).astype(float)
    drawn.flags.writeable = False
    return drawn


def percentiles(found: Float[np.ndarray, "D"], *, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of resampled numbers; those that are not numbers do not count, and NaN where none is."""
    found = found[np.isfinite(found)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1.0 - level) / 2.0, (1.0 + level) / 2.0]).tolist()
    return low, high


def bootstrap_interval(
    values: Float[np.ndarray, "N"],
    groups: Shaped[np.ndarray, "M"] | None = None,
    *,
    statistic: Statistic = np.mean,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """Ends of the percentile interval of a statistic, when groups (persons) are drawn again with replacement.

    Convention: values that are not finite are unknown and do not count. Without groups every value is its own.
    Degenerate: without a known value both ends are NaN; of one group alone they are equal.
    Raises: ValueError if groups and values differ in number, or the level does not lie between 0 and 1.
    Source: Efron 1979, the cluster bootstrap; means and medians are found for all draws at once.
    """
    values, places = _known(values, groups, level)
    if not len(values):
        return float("nan"), float("nan")
    drawn = resamples(int(places.max()) + 1, draws=draws, seed=seed)
    if statistic is np.mean:
        count = np.bincount(places)
        total = np.bincount(places, weights=values)
        return percentiles((drawn @ total) / (drawn @ count), level=level)
    if statistic is np.median:
        order = np.argsort(values)
        reached = np.cumsum(drawn[:, places[order]], axis=1)
        # The two middle ones of each draw; with an odd number they are the same.
        lower = (reached > (reached[:, -1:] - 1) // 2).argmax(axis=1)
        upper = (reached > reached[:, -1:] // 2).argmax(axis=1)
        ordered = values[order]
        return percentiles((ordered[lower] + ordered[upper]) / 2.0, level=level)
    return percentiles(
        np.array([float(statistic(np.repeat(values, row))) for row in drawn[:, places].astype(int)]), level=level
    )


def pooled_median_interval(
    parts: Sequence[Float[np.ndarray, "_"]],
    groups: Shaped[np.ndarray, "N"],
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of the median over all points of all parts (photos), when groups (persons) are drawn again.

    Precision: a 256th of the points; medians of draws are interpolated between quantiles of the whole.
    Degenerate: without a point both ends are NaN.
    """
    points = np.concatenate([np.zeros(0), *parts])
    if not len(points):
        return float("nan"), float("nan")
    sizes = np.array([len(part) for part in parts])
    _, places = np.unique(groups[sizes > 0], return_inverse=True)
    count = int(places.max()) + 1
    edges = np.quantile(points, np.linspace(0.0, 1.0, POOLED_BINS + 1))
    cells = np.clip(np.searchsorted(edges, points, side="right") - 1, 0, POOLED_BINS - 1)
    table = np.bincount(np.repeat(places, sizes[sizes > 0]) * POOLED_BINS + cells, minlength=count * POOLED_BINS)
    drawn = resamples(count, draws=draws, seed=seed) @ table.reshape(count, POOLED_BINS).astype(np.float64)
    reached = np.cumsum(drawn, axis=1)
    half = reached[:, -1:] / 2.0
    cell = (reached >= half).argmax(axis=1)
    row = np.arange(len(drawn))
    before = reached[row, cell] - drawn[row, cell]
    share = (half[:, 0] - before) / np.maximum(drawn[row, cell], 1.0)
    return percentiles(edges[cell] + share * (edges[cell + 1] - edges[cell]), level=level)


def paired_difference(
    first: Float[np.ndarray, "N"],
    second: Float[np.ndarray, "N"],
    groups: Shaped[np.ndarray, "M"] | None = None,
    *,
    statistic: Statistic = np.mean,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float, float]:
    """A statistic of first minus second photo by photo, and the interval that holds it; see `bootstrap_interval`.

    A difference whose interval excludes zero is not explained by which persons were measured. Photos that either lacks
    do not count; without any all three are NaN.
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    known = difference[np.isfinite(difference)]
    if not len(known):
        return float("nan"), float("nan"), float("nan")
    low, high = bootstrap_interval(difference, groups, statistic=statistic, draws=draws, level=level, seed=seed)
    return float(statistic(known)), low, high


def _known(
    values: Float[np.ndarray, "N"], groups: Shaped[np.ndarray, "M"] | None, level: float
) -> tuple[Float[np.ndarray, "K"], Int[np.ndarray, "K"]]:
    """The finite values as doubles, and the number of each one's group, counted from 0 without gaps."""
    values = np.asarray(values, np.float64)
    groups = np.arange(len(values)) if groups is None else np.asarray(groups)
    if groups.shape != values.shape:
        raise ValueError(f"bootstrap: {len(groups)} groups, expected one for each of {len(values)} values")
    if not 0.0 < level < 1.0:
        raise ValueError(f"bootstrap: level is {level}, expected a share between 0 and 1, e.g. 0.95")
    known = np.isfinite(values)
    _, places = np.unique(groups[known], return_inverse=True)
    return values[known], places
