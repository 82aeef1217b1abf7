"""What photos are like: brightness, size, pose and likeness, of a choice that never changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.reconstruction.reconstructor import load_reconstructor
from tasks.artifacts import Workspace, load_checkpoint, read_table
from tasks.photo_profile import (
    KNOWN,
    KNOWN_FILE,
    PROFILE,
    PROFILE_FILE,
    choose,
    clean_table,
    measure_photos,
    write_profile,
)
from tests.tiny_face import tiny_face
from tests.tiny_workspace import clean_rows, tiny_workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return tiny_workspace(tmp_path_factory.mktemp("profile"), tiny_face())


def test_brightness_and_size_of_a_photo(workspace: Workspace) -> None:
    rows = {row["sample_id"]: row for row in measure_photos(workspace, clean_table(workspace), None, compared=0)}
    stored, _, crops = clean_rows(tiny_face())
    assert set(rows) == {row["sample_id"] for row in stored}
    pixels = np.frombuffer(crops[0], np.uint8).reshape(-1, 3) / 255.0
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    first = rows[stored[0]["sample_id"]]
    assert (first["brightness"], first["contrast"]) == pytest.approx((luma.mean(), luma.std()), abs=1e-5)
    # The box is one pixel wide, the photo's shorter side 64.
    assert (first["face_px"], first["face_share"]) == pytest.approx((1.0, 1.0 / 64.0))
    assert (first["confidence"], first["yaw_deg"]) == (1.0, stored[0]["yaw_deg"])
    assert np.isnan(first["similarity"])


def test_likeness_is_measured_for_a_few(workspace: Workspace) -> None:
    reconstructor = load_reconstructor(
        load_checkpoint(workspace.folder("train_geometry") / "checkpoint.pt"), tiny_face()
    )
    rows = measure_photos(workspace, clean_table(workspace), reconstructor, compared=5)
    found = [row["similarity"] for row in rows if not np.isnan(row["similarity"])]
    assert len(found) == 5
    assert all(-1.0 <= value <= 1.0 for value in found)
    assert len(set(found)) == 5


def test_the_choice_is_a_matter_of_names_alone() -> None:
    names = [f"sample-{number}" for number in range(200)]
    first = choose(pa.table({"sample_id": names}), 20)["sample_id"].to_pylist()
    turned = choose(pa.table({"sample_id": names[::-1]}), 20)["sample_id"].to_pylist()
    assert sorted(first) == sorted(turned)
    assert len(set(first)) == 20
    # More of them hold all that fewer held.
    assert set(first) <= set(choose(pa.table({"sample_id": names}), 40)["sample_id"].to_pylist())


def test_what_is_kept_with_a_version(workspace: Workspace, tmp_path: Path) -> None:
    reconstructor = load_reconstructor(
        load_checkpoint(workspace.folder("train_geometry") / "checkpoint.pt"), tiny_face()
    )
    write_profile(tmp_path, workspace, reconstructor)
    known = read_table(tmp_path / KNOWN_FILE, KNOWN)["sample_id"].to_pylist()
    table = clean_table(workspace).to_pylist()
    assert known == sorted(row["sample_id"] for row in table)
    profile = read_table(tmp_path / PROFILE_FILE, PROFILE).to_pylist()
    assert {row["sample_id"] for row in profile} == {row["sample_id"] for row in table if row["split"] == "train"}
