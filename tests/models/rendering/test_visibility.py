from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.landmarks.framing import FLIP_PERMUTATION
from models.rendering.shade import vertex_normals
from models.rendering.visibility import TOLERANCE_MM, facing, visible_landmarks, visible_vertices
from models.types import Camera
from tests.sheet_face import filling_camera, in_front, sheet


@pytest.fixture(scope="module")
def whole_face() -> MorphableModel:
    return procedural_face(identity_modes=4)


def turned(face: MorphableModel, yaw_deg: tuple[float, ...], pitch_deg: float = 0.0) -> Tensor:
    yaw = torch.tensor(yaw_deg).deg2rad()
    rotation = rotation_from_angles(yaw, torch.full_like(yaw, pitch_deg).deg2rad(), torch.zeros_like(yaw))
    translation = torch.tensor([0.0, 0.0, 1000.0]).expand(len(yaw), 3)
    return to_camera_space(face.mean.expand(len(yaw), -1, -1), rotation=rotation, translation=translation)


def two_sheets(gap_mm: float) -> tuple[Tensor, Tensor]:
    """A sheet of 7 x 7 vertices behind a smaller one that covers its 3 x 3 in the middle."""
    behind, _, triangles = sheet(7)
    before, _, _ = sheet(7, half_mm=20.0)
    before = before + torch.tensor([0.0, 0.0, gap_mm])
    return in_front(torch.cat([behind, before])), torch.cat([triangles, triangles + len(behind)])


def test_what_lies_behind_is_hidden() -> None:
    vertices, triangles = two_sheets(10.0)
    seen = visible_vertices(vertices, triangles, filling_camera(64))[0]
    expected = torch.ones(7, 7, dtype=torch.bool)
    expected[2:5, 2:5] = False
    # The last column and the first row project onto the border at 64, which is outside.
    expected[:, -1] = expected[0] = False
    assert torch.equal(seen[:49].view(7, 7), expected)
    assert seen[49:].all()


def test_what_touches_hides_nothing() -> None:
    vertices, triangles = two_sheets(0.5 * TOLERANCE_MM)
    seen = visible_vertices(vertices, triangles, filling_camera(64))[0]
    assert seen[:49].view(7, 7)[1:, :-1].all()


def test_behind_is_hidden_whichever_triangle_comes_first() -> None:
    vertices, triangles = two_sheets(10.0)
    camera = filling_camera(64)
    assert torch.equal(
        visible_vertices(vertices, triangles, camera), visible_vertices(vertices, triangles.flip(0), camera)
    )


@pytest.mark.parametrize("turn_deg", [0.0, 50.0, 75.0, 85.0])
def test_a_slanted_sheet_does_not_hide_itself(turn_deg: float) -> None:
    vertices, _, triangles = sheet(9, half_mm=40.0)
    seen = visible_vertices(in_front(vertices, turn_deg=turn_deg), triangles, filling_camera(32))
    assert seen.all()


def test_what_looks_away_is_not_visible() -> None:
    vertices, _, triangles = sheet(3, half_mm=40.0)
    assert not visible_vertices(in_front(vertices, turn_deg=95.0), triangles, filling_camera(32)).any()


def test_points_outside_the_image_or_behind_the_camera_are_not_visible() -> None:
    vertices, _, triangles = sheet(5)
    camera = filling_camera(32)
    aside = Camera(camera.focal_px, camera.principal_px + torch.tensor([16.0, 0.0]), camera.size)
    seen = visible_vertices(in_front(vertices), triangles, aside)[0].view(5, 5)
    # Columns at 0, 8, … 32 pixels move to 16, 24, 32, 40, 48; the lowest row lies on the border.
    assert seen.any(0).tolist() == [True, True, False, False, False]
    behind = in_front(vertices) - torch.tensor([0.0, 0.0, 2000.0])
    assert not visible_vertices(behind, triangles, camera).any()


def nearest_hit_gap(vertices: np.ndarray, triangles: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """How far (mm) before each chosen vertex its ray first meets a triangle that it is no corner of; -inf if none."""
    a, b, c = (vertices[triangles[:, corner]] for corner in range(3))
    planes = np.stack([np.cross(c, b), np.cross(a, c), np.cross(b, a)])
    volume = np.einsum("fc,fc->f", a, planes[0])
    front = volume > 0
    planes, volume, corners = planes[:, front], volume[front], triangles[front]
    gaps = []
    for part in np.array_split(chosen, max(1, len(chosen) // 64)):
        sides = np.einsum("vc,kfc->kvf", vertices[part], planes)
        total = sides.sum(0)
        met = (sides >= -1e-9 * np.abs(total)).all(0) & (total > 0)
        met &= ~(corners[None] == part[:, None, None]).any(2)
        share = volume / np.where(total > 0, total, 1.0)
        gaps.append(np.where(met, (1.0 - share) * vertices[part, 2:], -np.inf).max(1))
    return np.concatenate(gaps)


def contour_distance(pixels: np.ndarray, vertices: np.ndarray, triangles: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Distance in pixels from each chosen vertex to the nearest edge between a front and a back, or of the mesh."""
    a, b, c = (vertices[triangles[:, corner]] for corner in range(3))
    front = np.einsum("fc,fc->f", a, np.cross(c, b)) > 0
    edges = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), axis=1)
    edges, place = np.unique(edges, axis=0, return_inverse=True)
    contour = edges[np.bincount(place.ravel(), np.tile(front, 3)) == 1]
    start, along = pixels[contour[:, 0]], pixels[contour[:, 1]] - pixels[contour[:, 0]]
    offset = pixels[chosen][:, None] - start
    share = np.clip((offset * along).sum(2) / np.maximum((along**2).sum(1), 1e-12), 0.0, 1.0)
    return np.linalg.norm(offset - share[..., None] * along, axis=2).min(1)


@pytest.mark.parametrize("yaw_deg", [0.0, 35.0, 70.0])
def test_vertices_agree_with_rays_but_near_contours(whole_face: MorphableModel, yaw_deg: float) -> None:
    vertices, camera = turned(whole_face, (yaw_deg,), 8.0), crop_camera(1, 160)
    seen = visible_vertices(vertices, whole_face.triangles, camera, oversampling=2)[0].numpy()
    pixels = project(vertices, camera)[0].double().numpy()
    in_image = ((pixels >= 0) & (pixels < 160)).all(1)
    assert in_image.mean() > 0.95
    chosen = np.arange(0, whole_face.vertex_count, 3)
    exact, triangles = vertices[0].double().numpy(), whole_face.triangles.numpy()
    front = (facing(vertices, vertex_normals(vertices, whole_face.triangles)) > 0)[0].numpy()
    expected = (front & in_image)[chosen] & (nearest_hit_gap(exact, triangles, chosen) <= TOLERANCE_MM)
    clear = contour_distance(pixels, exact, triangles, chosen) > 0.5
    assert clear.mean() > 0.5
    assert 0.2 < expected[clear].mean() < 0.9
    np.testing.assert_array_equal(seen[chosen][clear], expected[clear])
    assert (seen[chosen] == expected).mean() > 0.98


def test_every_image_of_a_batch_is_its_own(whole_face: MorphableModel) -> None:
    vertices = turned(whole_face, (-50.0, 0.0, 25.0))
    camera = crop_camera(3, 64)
    together = visible_vertices(vertices, whole_face.triangles, camera)
    for image in range(3):
        alone = visible_vertices(vertices[image : image + 1], whole_face.triangles, crop_camera(1, 64))
        assert torch.equal(together[image : image + 1], alone)
    assert not torch.equal(together[0], together[2])


def test_a_face_in_front_shows_its_features_and_one_that_turns_hides_its_far_side(whole_face: MorphableModel) -> None:
    seen = visible_landmarks(whole_face, turned(whole_face, (0.0, 60.0)), crop_camera(2, 128))
    assert seen[0, 17:].all()
    # It turns to its own left, so its left jaw, brow and eye go out of sight.
    assert seen[1, :8].all()
    assert seen[1, 36:42].all()
    assert not seen[1, 10:17].any()
    assert not seen[1, [25, 26, 42, 45]].any()


@pytest.mark.parametrize("yaw_deg", [25.0, 55.0])
def test_landmarks_of_mirrored_heads_mirror(whole_face: MorphableModel, yaw_deg: float) -> None:
    seen = visible_landmarks(whole_face, turned(whole_face, (yaw_deg, -yaw_deg)), crop_camera(2, 128))
    assert torch.equal(seen[0], seen[1, torch.as_tensor(FLIP_PERMUTATION)])
    assert not seen.all()


def test_a_landmark_within_a_triangle_is_seen_with_its_corners(face: MorphableModel) -> None:
    vertices = turned(face, (0.0, 180.0))
    seen = visible_landmarks(face, vertices, crop_camera(2, 64))
    assert seen[0].float().mean() > 0.8
    assert not seen[1].any()
