"""The small face model that the tests of models/ share."""

from __future__ import annotations

import pytest

from models.face.morphable import MorphableModel
from tests.tiny_face import tiny_face


@pytest.fixture(scope="session")
def face() -> MorphableModel:
    """Read-only."""
    return tiny_face()
