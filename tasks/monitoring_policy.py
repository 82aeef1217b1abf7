"""The limits of `mlflow/monitoring.yaml`: how far new photos may lie from those that a model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from tasks.promotion import read_policy
from tasks.shipped import SHIPPED
from tasks.source_params import PositiveCount, Section

MONITORING_PATH = SHIPPED / "mlflow" / "monitoring.yaml"

FEATURES = (
    "yaw_deg",
    "pitch_deg",
    "roll_deg",
    "brightness",
    "contrast",
    "face_share",
    "face_px",
    "confidence",
    "similarity",
)
"""Numbers of a photo that are watched."""

Positive = Annotated[float, Field(gt=0.0)]


class Limit(Section):
    """How far one number may move."""

    max_psi: Positive | None = None
    max_drop: Positive | None = None
    max_rise: Positive | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Limit:
        if self.max_psi is None and self.max_drop is None and self.max_rise is None:
            raise ValueError("one of max_psi, max_drop and max_rise at least")
        return self


class MonitoringPolicy(Section):
    """What is watched, and when it is time to train again."""

    min_photos: PositiveCount = 50
    max_photos: PositiveCount = 400
    retrain_share: Positive | None = None
    limits: dict[str, Limit] = Field(min_length=1)

    @model_validator(mode="after")
    def _known_numbers(self) -> MonitoringPolicy:
        unknown = sorted(set(self.limits) - set(FEATURES))
        if unknown:
            raise ValueError(f"limits: {', '.join(unknown)} unknown, expected some of {', '.join(FEATURES)}")
        return self


def load_monitoring(path: Path = MONITORING_PATH) -> MonitoringPolicy:
    """Read the limits.

    Raises: ParamsError naming the file, the key, what was found and what was expected, one line per fault.
    """
    return read_policy(path, MonitoringPolicy)
