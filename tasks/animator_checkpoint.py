"""The animator's checkpoint: the network, the features that it hears through, and how lips were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.animation.animator import Animator, animator_content, load_animator
from models.animation.lips import LipCalibration
from tasks.artifacts import load_checkpoint


def checkpoint_content(animator: Animator, calibration: LipCalibration, encoder: str) -> dict[str, Any]:
    """What `mien animate` needs."""
    return {
        **animator_content(animator),
        "encoder": encoder,
        "calibration": {
            "gaps": calibration.gaps,
            "jaw_gap_mm": calibration.jaw_gap_mm,
            "face_model": calibration.face_model,
        },
    }


def open_animator(path: Path) -> Animator:
    """The network of a checkpoint.

    Raises: ValueError or FileNotFoundError naming the file and the remedy.
    """
    content = load_checkpoint(path)
    try:
        return load_animator(content)
    except (KeyError, TypeError):
        raise ValueError(f"{path}: not an animator's checkpoint; train it again") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
