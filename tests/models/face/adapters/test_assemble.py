from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.face.adapters.assemble import (
    UNKNOWN_PART,
    FaceModelArrays,
    assemble,
    borrow_appearance,
    cylindrical_uv,
    landmark_positions,
    outward_share,
    procedural_donor,
)
from models.types import PART_NAMES


@pytest.fixture(scope="module")
def arrays() -> FaceModelArrays:
    """The procedural face, larger and somewhere else, as a file without appearance would give it."""
    donor = procedural_donor()
    return FaceModelArrays(
        name="foreign",
        licence="for tests",
        source_sha256="ab" * 32,
        mean=1.1 * donor.mean.numpy() + np.array([3.0, -20.0, 80.0], np.float32),
        identity_basis=donor.identity_basis.numpy()[:2],
        expression_basis=donor.expression_basis.numpy()[:1],
        expression_names=donor.expression_names[:1],
        triangles=donor.triangles.numpy(),
        landmark_vertices=donor.landmark_vertices.numpy(),
    )


def test_what_the_file_has_is_kept(arrays: FaceModelArrays) -> None:
    count = len(arrays.mean)
    stream = np.random.default_rng(0)
    own: dict[str, Any] = {
        "albedo_mean": stream.random((count, 3)).astype(np.float32),
        "albedo_basis": stream.random((2, count, 3)).astype(np.float32),
        "uv": stream.random((count, 2)).astype(np.float32),
        "parts": stream.integers(0, 5, count),
    }
    found = assemble(replace(arrays, **own))
    for key, value in own.items():
        np.testing.assert_array_equal(getattr(found, key).numpy(), value)
    np.testing.assert_array_equal(found.mean.numpy(), arrays.mean)
    assert found.stamp() == {
        "name": "foreign",
        "licence": "for tests",
        "hash": found.content_hash(),
        "source_sha256": "ab" * 32,
    }


def test_own_colours_without_modes_have_none(arrays: FaceModelArrays) -> None:
    found = assemble(replace(arrays, albedo_mean=np.full((len(arrays.mean), 3), 0.5, np.float32)))
    assert found.albedo_size == 0
    assert (found.albedo_mean == 0.5).all()


def test_appearance_is_borrowed_where_it_is_missing(arrays: FaceModelArrays) -> None:
    donor, found = procedural_donor(), assemble(arrays)
    outside = ~(donor.part("eyes") | donor.part("mouth"))
    assert (found.parts[outside] == donor.parts[outside]).float().mean() > 0.98
    error = (found.albedo_mean - donor.albedo_mean)[outside].abs()
    assert error.mean() < 0.01
    assert found.albedo_size == donor.albedo_size
    # Eyeballs are not labelled, so they are taken for skin.
    assert not found.part("eyes").any()


def test_labelled_eyes_and_mouths_take_their_own_colours(arrays: FaceModelArrays) -> None:
    donor = procedural_donor()
    known = donor.parts.numpy()
    labels = np.where(np.isin(known, [3, 4]), known, UNKNOWN_PART)
    found = assemble(replace(arrays, parts=labels))
    assert torch.equal(found.part("eyes"), donor.part("eyes"))
    assert (found.parts == donor.parts).float().mean() > 0.98
    eyes = donor.part("eyes")
    error, as_skin = ((model.albedo_mean - donor.albedo_mean)[eyes].abs().mean() for model in (found, assemble(arrays)))
    assert error < 0.4 * as_skin


def test_borrowing_leaves_its_input_alone(arrays: FaceModelArrays) -> None:
    labels = np.full(len(arrays.mean), UNKNOWN_PART)
    points = landmark_positions(arrays.mean, arrays.landmark_vertices)
    _, _, parts = borrow_appearance(arrays.mean, points, parts=labels)
    assert (labels == UNKNOWN_PART).all()
    assert parts.min() >= 0
    assert parts.max() < len(PART_NAMES)


def test_landmarks_within_triangles(arrays: FaceModelArrays) -> None:
    corners = arrays.triangles[np.arange(68)]
    weights = np.tile(np.array([0.5, 0.25, 0.25], np.float32), (68, 1))
    expected = 0.5 * arrays.mean[corners[:, 0]] + 0.25 * (arrays.mean[corners[:, 1]] + arrays.mean[corners[:, 2]])
    np.testing.assert_allclose(landmark_positions(arrays.mean, corners, weights), expected, rtol=1e-5)
    # Half of the weight at the table's vertex, the rest as well: the same points.
    corners = np.repeat(arrays.landmark_vertices[:, None], 3, 1)
    found = assemble(replace(arrays, landmark_vertices=corners, landmark_weights=weights))
    np.testing.assert_allclose(found.landmark_mean.numpy(), arrays.mean[arrays.landmark_vertices], rtol=1e-5)


def test_texture_coordinates_run_around_the_head(arrays: FaceModelArrays) -> None:
    points = landmark_positions(arrays.mean, arrays.landmark_vertices)
    uv = cylindrical_uv(arrays.mean, points)
    assert uv.min() >= 0
    assert uv.max() <= 1
    at = uv[arrays.landmark_vertices]
    assert at[30, 0] == pytest.approx(0.5, abs=1e-3)
    assert at[0, 0] < at[36, 0] < at[30, 0] < at[45, 0] < at[16, 0]
    assert at[8, 1] < at[30, 1] < at[27, 1]


def test_the_outside_is_told_from_the_inside(arrays: FaceModelArrays) -> None:
    points = landmark_positions(arrays.mean, arrays.landmark_vertices)
    found = outward_share(arrays.mean, arrays.triangles, points)
    assert found > 0.5
    assert outward_share(arrays.mean, arrays.triangles[:, ::-1], points) == pytest.approx(-found)


def turned(arrays: FaceModelArrays, *signs: float) -> FaceModelArrays:
    """Axes reversed, and the corners with them where that mirrors."""
    order = slice(None, None, int(np.prod(signs)))
    return replace(arrays, mean=arrays.mean * np.array(signs, np.float32), triangles=arrays.triangles[:, order])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: replace(a, mean=a.mean / 10),
            r"chin to brows measures 14.04 mm, expected 70 to 250; check the unit",
        ),
        (lambda a: replace(a, mean=a.mean * 1000), r"chin to brows measures 1\.\d+e\+05 mm"),
        (lambda a: turned(a, -1, 1, 1), "the axis x does not point the subject's left"),
        (lambda a: turned(a, 1, -1, -1), "the axis y does not point up"),
        (lambda a: turned(a, 1, 1, -1), "the axis z does not point out of the face"),
        (lambda a: replace(a, triangles=a.triangles[:, ::-1]), "triangles are clockwise seen from outside"),
        (lambda a: replace(a, mean=a.mean[:, :2]), r"mean has shape \(3544, 2\), expected \(any, 3\)"),
        (lambda a: replace(a, triangles=a.triangles[:0]), r"triangles has shape \(0, 3\), expected \(any, 3\)"),
        (lambda a: replace(a, triangles=a.triangles + 1), "triangles holds 1 to 3544, expected 0 to 3543"),
        (
            lambda a: replace(a, landmark_vertices=np.arange(67)),
            r"landmark_vertices has shape \(67,\), expected \(68,\)",
        ),
        (lambda a: replace(a, landmark_vertices=np.arange(-1, 67)), "landmark_vertices holds -1 to 66"),
        (
            lambda a: replace(a, landmark_weights=np.ones((68, 3), np.float32)),
            r"landmark_vertices has shape \(68,\), expected \(68, 3\)",
        ),
        (lambda a: replace(a, mean=np.full_like(a.mean, np.nan)), "mean has values that are not finite"),
        (
            lambda a: replace(a, identity_basis=a.identity_basis * np.inf),
            "identity_basis has values that are not finite",
        ),
        (
            lambda a: replace(a, expression_names=()),
            r"expression_basis has shape \(1, 3544, 3\), expected \(0, 3544, 3\)",
        ),
    ],
)
@pytest.mark.usefixtures("as_a_user")
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_no_face_of_ours_is_refused(arrays: FaceModelArrays, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        assemble(change(arrays))
    assert "\n" not in str(caught.value)
