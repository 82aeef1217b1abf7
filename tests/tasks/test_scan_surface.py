"""Scans made ready: what is kept, what is merged, and what is too much."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from models.face.registration import RegistrationError
from tasks.mesh_files import read_geometry
from tasks.scan_landmarks import read_scan_landmarks
from tasks.scan_surface import prepare_surface

LANDMARKS = np.random.default_rng(0).normal(0.0, 30.0, (68, 3))


def grid(side: float, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(np.linspace(-side, side, count), np.linspace(-side, side, count), indexing="ij")
    index = np.arange(count * count).reshape(count, count)
    a, b, c, d = (part.ravel() for part in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]))
    triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    return np.stack([x.ravel(), y.ravel(), 0 * x.ravel()], 1), triangles


def sides(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    corners = vertices[triangles]
    return np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)


def test_long_sides_are_split_and_no_gap_opens() -> None:
    vertices, triangles = grid(60.0)
    vertices[4] = [41.0, 17.0, 5.0]
    surface = prepare_surface(vertices, triangles, LANDMARKS)
    measure = np.sqrt(np.square(LANDMARKS - LANDMARKS.mean(0)).sum(1).mean())
    assert sides(surface.vertices, surface.triangles).max() <= 0.1 * measure
    before, after = (
        trimesh.Trimesh(*mesh, process=False) for mesh in ((vertices, triangles), (surface.vertices, surface.triangles))
    )
    assert after.area == pytest.approx(before.area)
    # A gap would add edges of one triangle inside; the border's length would grow.
    lengths = []
    for mesh in (before, after):
        different, uses = np.unique(mesh.edges_sorted, axis=0, return_counts=True)
        ends = mesh.vertices[different[uses == 1]]
        lengths.append(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1).sum())
    assert lengths[1] == pytest.approx(lengths[0])
    np.testing.assert_allclose(after.face_normals[:, 2] > 0, True)


def test_seams_are_closed() -> None:
    vertices, triangles = grid(20.0, 13)
    split, apart = vertices[triangles].reshape(-1, 3), np.arange(triangles.size).reshape(-1, 3)
    surface = prepare_surface(split, apart, LANDMARKS)
    assert len(surface.vertices) == len(vertices)


def test_what_is_far_from_the_face_is_left_out() -> None:
    vertices, triangles = grid(20.0, 13)
    far = vertices + [0.0, 5000.0, 0.0]
    both = np.concatenate([vertices, far]), np.concatenate([triangles, triangles + len(vertices)])
    assert len(prepare_surface(*both, LANDMARKS).triangles) == len(triangles)


def test_collapsed_triangles_are_dropped() -> None:
    vertices, triangles = grid(20.0, 13)
    with_collapsed = np.concatenate([triangles, [[0, 0, 1], [5, 5, 5]]])
    assert len(prepare_surface(vertices, with_collapsed, LANDMARKS).triangles) == len(triangles)


@pytest.mark.parametrize(
    ("scale", "shift", "landmarks", "expected"),
    [
        (1.0, 0.0, np.full((68, 3), np.nan), "landmarks_too_few"),
        (1.0, 9000.0, LANDMARKS, "landmarks_disagree"),
        (2e4, 0.0, LANDMARKS, "mesh_too_large"),
    ],
)
def test_what_cannot_be_used(scale: float, shift: float, landmarks: np.ndarray, expected: str) -> None:
    vertices, triangles = grid(20.0)
    with pytest.raises(RegistrationError) as caught:
        prepare_surface(scale * vertices + shift, triangles, landmarks)
    assert caught.value.reason == expected


def test_files_of_a_real_scan(shared_data: Path) -> None:
    """Its landmarks are stored eyes before brows, left and right as the viewer sees them."""
    folder = shared_data / "scans" / "james"
    vertices, triangles = read_geometry(folder / "james.obj")
    points = read_scan_landmarks(folder / "james.ljson")
    known = np.load(folder / "james_scan_cameras.npz")
    assert triangles is not None
    assert (vertices.shape, triangles.shape) == ((6393, 3), (12228, 3))
    np.testing.assert_allclose(vertices, known["vertices"], atol=1e-3)
    np.testing.assert_array_equal(triangles, known["triangles"])
    # Outer and inner corners of both eyes from the viewer's left to the right, the mouth below the nose.
    assert (np.diff(points[[36, 39, 42, 45], 0]) > 10).all()
    assert (np.diff(points[[27, 33, 51, 57, 8], 1]) < 0).all()
    assert points[30, 2] == points[17:, 2].max()
    assert len(prepare_surface(vertices, triangles, points).triangles) > len(triangles)
