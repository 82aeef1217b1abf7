"""Fixtures that tests of several parts share, and settings that hold for all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows.environment import SETTINGS

REPOSITORY = Path(__file__).resolve().parent.parent

for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos, scans and face models beside the checkout; not part of it, so tests that need them may skip."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data at {path}")
    return path
