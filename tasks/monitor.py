"""Whether photos that came in since the champion was trained are still like those that it learned from."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.artifacts import Workspace, read_table
from tasks.face_reader import open_champion
from tasks.monitoring_policy import FEATURES, Limit, MonitoringPolicy
from tasks.params import Params
from tasks.photo_profile import KNOWN, KNOWN_FILE, PROFILE, PROFILE_FILE, choose, clean_table, measure_photos
from tasks.promotion import CHAMPION
from tasks.provenance import FOLDER
from tasks.registry import find_version, open_registry

BINS = 10


@dataclass(frozen=True)
class Shift:
    """How one number moved."""

    feature: str
    reference: float
    """Mean over the training photos."""
    new: float
    psi: float
    """Beyond what so few photos give by chance; never below 0."""
    photos: int
    beyond: str | None
    """Which limit was passed, or None."""


@dataclass(frozen=True)
class DriftReport:
    """What became of the comparison."""

    champion: int
    trained_on: int
    """Photos that were there when the champion was trained."""
    new_photos: int
    measured: int
    shifts: Sequence[Shift]
    reasons: Sequence[str]
    """Why it is time to train again; empty if it is not."""
    fingerprint: str
    """Of the champion and the new photos: the same situation must not start two trainings."""

    @property
    def drifted(self) -> bool:
        """Whether it is time to train again."""
        return bool(self.reasons)

    def rows(self) -> list[dict[str, Any]]:
        """One row per number, for tables."""
        return [asdict(shift) for shift in self.shifts]


def monitor(params: Params, workspace: Workspace, policy: MonitoringPolicy) -> DriftReport:
    """Compare the photos in `clean.parquet` that the champion has not seen with those that it was trained on.

    Raises: FileNotFoundError if there is no champion, or if it does not say what it was trained on.
    """
    reader = open_champion(params, workspace)
    profile, known = _training_photos(params, workspace)
    table = clean_table(workspace)
    fresh = table.filter(pc.invert(pc.is_in(table["sample_id"], known)))
    chosen = choose(fresh, policy.max_photos)
    shifts: list[Shift] = []
    if len(fresh) >= policy.min_photos:
        rows = measure_photos(workspace, chosen, reader.reconstructor, compared=policy.max_photos)
        sources = set(chosen["source"].to_pylist())
        alike = [row for row in profile if row["source"] in sources]
        # Where the sources are new, there is nothing nearer than all that was there.
        shifts = compare_photos(alike if len(alike) >= policy.min_photos else profile, rows, policy.limits)
    share = len(fresh) / max(1, len(known))
    reasons = [f"{shift.feature}: {shift.beyond}" for shift in shifts if shift.beyond]
    if policy.retrain_share is not None and len(fresh) >= policy.min_photos and share >= policy.retrain_share:
        reasons.append(f"{len(fresh)} new photos are {share:.0%} of the {len(known)} that it was trained on")
    names = "\n".join(sorted(fresh["sample_id"].to_pylist()))
    version = int(reader.origin["version"])
    return DriftReport(
        champion=version,
        trained_on=len(known),
        new_photos=len(fresh),
        measured=len(chosen) if shifts else 0,
        shifts=shifts,
        reasons=reasons,
        fingerprint=hashlib.sha256(f"{version}\n{names}".encode()).hexdigest()[:16],
    )


def compare_photos(
    reference: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], limits: Mapping[str, Limit]
) -> list[Shift]:
    """How every number moved that is known of both, and which limits that passes."""
    shifts = []
    for feature in FEATURES:
        old, fresh = (np.array([row[feature] for row in rows], dtype=np.float64) for rows in (reference, new))
        old, fresh = old[np.isfinite(old)], fresh[np.isfinite(fresh)]
        if len(old) < BINS or not len(fresh):
            continue
        psi = stability_index(old, fresh)
        shifts.append(
            Shift(
                feature=feature,
                reference=float(old.mean()),
                new=float(fresh.mean()),
                psi=psi,
                photos=len(fresh),
                beyond=_beyond(limits.get(feature), psi, float(old.mean()), float(fresh.mean())),
            )
        )
    return shifts


def stability_index(reference: np.ndarray, new: np.ndarray, *, bins: int = BINS) -> float:
    """Population stability index over quantile bins of the reference, less what it is by chance, at least 0.

    Of two samples of one distribution the index is about (bins - 1) (1/n + 1/m), the mean of a χ² with bins - 1
    degrees of freedom; without that, fifty photos would always look different. Source: Yurdakul 2018, theorem 3.
    """
    edges = np.unique(np.quantile(reference, np.linspace(0.0, 1.0, bins + 1)[1:-1]))
    shares = []
    for values in (reference, new):
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        # Half a photo more in every bin, so that the logarithm of an empty one exists.
        shares.append((counts + 0.5) / (len(values) + 0.5 * len(counts)))
    index = float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
    by_chance = len(edges) * (1.0 / len(reference) + 1.0 / len(new))
    return max(0.0, index - by_chance)


def _beyond(limit: Limit | None, psi: float, reference: float, new: float) -> str | None:
    if limit is None or not math.isfinite(new):
        return None
    moved = f"mean {reference:.3g} -> {new:.3g}"
    if limit.max_psi is not None and psi > limit.max_psi:
        return f"PSI {psi:.2f} is above {limit.max_psi:g} ({moved})"
    if limit.max_drop is not None and new < reference - limit.max_drop:
        return f"fell by {reference - new:.3g}, more than {limit.max_drop:g} ({moved})"
    if limit.max_rise is not None and new > reference + limit.max_rise:
        return f"rose by {new - reference:.3g}, more than {limit.max_rise:g} ({moved})"
    return None


def _training_photos(params: Params, workspace: Workspace) -> tuple[list[dict[str, Any]], pa.Array]:
    from mlflow.exceptions import MlflowException

    client = open_registry(params, workspace)
    version = find_version(client, params.register.model_name, CHAMPION)
    assert version is not None  # open_champion found one
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(client.download_artifacts(version.run_id, FOLDER, scratch))
            profile = read_table(folder / PROFILE_FILE, PROFILE).to_pylist()
            known = read_table(folder / KNOWN_FILE, KNOWN)["sample_id"].combine_chunks()
    except (MlflowException, OSError):
        raise FileNotFoundError(
            f"{version.name} {version.version} does not say what it was trained on; register a new version first"
        ) from None
    return profile, known
