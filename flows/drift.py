"""New photos against those that the champion knows, and what was found in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.monitor import DriftReport


def look(workspace: Path) -> DriftReport:
    """Compare new photos with those that the champion was trained on.

    Raises: FileNotFoundError if there is no champion, or it does not say what it was trained on.
    """
    from tasks.artifacts import Workspace
    from tasks.monitor import monitor as compare
    from tasks.monitoring_policy import load_monitoring
    from tasks.params import load_params

    place = Workspace(workspace)
    return compare(load_params(place.params), place, load_monitoring())


def describe(report: DriftReport) -> str:
    """What was found, in a sentence."""
    start = f"{report.new_photos} new photos since version {report.champion} ({report.trained_on} photos) was trained"
    if report.reasons:
        return f"{start}; time to train again: {'; '.join(report.reasons)}"
    return f"{start}; {'no limit is passed' if report.measured else 'too few to say anything'}"
