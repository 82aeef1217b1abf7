from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from models.face.adapters.assemble import procedural_donor
from models.face.adapters.landmark_finder import locate_landmarks


def test_another_person_of_the_same_model_is_found() -> None:
    """Other proportions, size, place and a nod: the truth is known, and the mesh is another half of the vertices."""
    donor = procedural_donor()
    coefficients = np.random.default_rng(2).normal(size=donor.identity_size) * 0.7
    shape = donor.mean.numpy() + np.einsum("i,ivc->vc", coefficients, donor.identity_basis.numpy())
    turn = Rotation.from_euler("xyz", [8.0, -4.0, 3.0], degrees=True).as_matrix()
    moved = 1.08 * shape @ turn.T + np.array([5.0, 60.0, -30.0])
    found = locate_landmarks(moved, donor.triangles.numpy())
    error = np.linalg.norm(found - moved[donor.landmark_vertices.numpy()], axis=1)
    assert np.median(error) < 2.5
    assert error[17:].max() < 8.0


@pytest.mark.parametrize("region", [6706, 11248])
def test_the_points_of_ict_are_found(shared_data: Path, region: int) -> None:
    path = shared_data / "face_models" / "ict_facekit_face.npz"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    with np.load(path) as file:
        mean, triangles, table = 10.0 * file["mean"][:region], file["triangles"], file["landmarks68"]
    found = locate_landmarks(mean, triangles[(triangles < region).all(1)].astype(np.int64))
    error = np.linalg.norm(found - mean[table], axis=1)
    # Measured: median 3.4, 2.7 without the jaw, whose points are defined differently.
    assert np.median(error) < 4.0
    assert np.median(error[17:]) < 3.2
    assert error[17:].max() < 9.0


def test_a_face_that_looks_down_is_found_or_refused(shared_data: Path) -> None:
    """Once the forehead or the neck reaches further than the nose, points elsewhere would be worse than none."""
    path = shared_data / "face_models" / "ict_facekit_face.npz"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    with np.load(path) as file:
        mean, triangles, table = 10.0 * file["mean"], file["triangles"].astype(np.int64), file["landmarks68"]
    nod = mean @ Rotation.from_euler("xyz", [20.0, 10.0, 5.0], degrees=True).as_matrix().T
    assert (nod[:, 2] > nod[table[30], 2]).any()
    assert np.median(np.linalg.norm(locate_landmarks(nod, triangles) - nod[table], axis=1)) < 4.0
    with pytest.raises(ValueError, match="no face was found"):
        locate_landmarks(mean @ Rotation.from_euler("x", 25.0, degrees=True).as_matrix().T, triangles)


def test_what_is_no_face_is_refused() -> None:
    """A flat square of two metres."""
    side = np.linspace(-1000.0, 1000.0, 60)
    x, y = np.meshgrid(side, side)
    mean = np.stack([x.ravel(), y.ravel(), np.zeros(3600)], 1)
    index = np.arange(3600).reshape(60, 60)
    a, b, c = index[:-1, :-1].ravel(), index[:-1, 1:].ravel(), index[1:, 1:].ravel()
    with pytest.raises(ValueError, match=r"no face was found for the 68 points.*face_model\.landmarks"):
        locate_landmarks(mean, np.stack([a, b, c], 1))
