from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.face.camera import project, rotation_from_angles, to_camera_space
from models.face.formats import build_face_model
from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.rendering.render import render
from models.types import Camera
from tasks import turn
from tasks.images import decode, read_file
from tasks.turn import reachable_yaw, shift_inside, turn_photos

SIZE = 240


@pytest.fixture(scope="module")
def whole_face() -> MorphableModel:
    return procedural_face(identity_modes=4)


def photo_of(face: MorphableModel, yaw_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """A photo of the mean face before a checkered wall, and its points."""
    rotation = rotation_from_angles(torch.tensor([yaw_deg]).deg2rad(), torch.zeros(1), torch.zeros(1))
    seen = to_camera_space(face.mean[None], rotation=rotation, translation=torch.tensor([[0.0, 0.0, 1000.0]]))
    camera = Camera(torch.tensor([600.0]), torch.full((1, 2), SIZE / 2), (SIZE, SIZE))
    light = torch.zeros(1, 9, 3)
    light[:, 0] = 1.0
    light[:, 3] = 0.3
    drawn = render(seen, face.triangles, albedo=face.albedo_mean[None], lighting=light, camera=camera)
    rows, columns = np.indices((SIZE, SIZE)) // 20
    wall = np.where((rows + columns) % 2, 60, 180)[..., None].astype(np.uint8).repeat(3, 2)
    pixels = (drawn.image[0].clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    image = np.where(drawn.mask[0, ..., None].numpy(), pixels, wall)
    return np.ascontiguousarray(image), project(face.landmarks(seen), camera)[0].numpy()


@pytest.mark.parametrize(
    ("own", "wanted", "reached"),
    [
        (0.0, 45.0, 45.0),
        (0.0, -45.0, -45.0),
        (5.0, -40.0, -40.0),
        (-5.0, -70.0, -65.0),
        (25.0, 80.0, 80.0),
        (25.0, 95.0, 85.0),
        (40.0, 95.0, 90.0),
        (25.0, 10.0, 25.0),
        (25.0, -60.0, 25.0),
        (-30.0, -50.0, -50.0),
        (95.0, 60.0, 95.0),
    ],
)
def test_heads_turn_outward_within_reach(own: float, wanted: float, reached: float) -> None:
    assert reachable_yaw(np.array([own]), np.array([wanted]))[0] == pytest.approx(reached)


@pytest.mark.parametrize(("own_deg", "wanted_deg"), [(0.0, 40.0), (0.0, -40.0), (20.0, 55.0)])
def test_points_lie_where_the_turned_face_has_them(
    whole_face: MorphableModel, monkeypatch: pytest.MonkeyPatch, own_deg: float, wanted_deg: float
) -> None:
    monkeypatch.setattr(turn, "PITCH_SIGMA_DEG", 0.0)
    photo, points = photo_of(whole_face, own_deg)
    (turned,) = turn_photos([photo], points[None], face_model=whole_face, yaw_deg=np.array([wanted_deg]), seed=0)
    _, truth = photo_of(whole_face, wanted_deg)
    side = np.ptp(truth, axis=0).max()
    # Where a head stands after it turned is a matter of its neck; what it looks like is not.
    difference = (turned.points - turned.points.mean(0)) - (truth - truth.mean(0))
    assert np.linalg.norm(difference, axis=1).mean() < 0.03 * side
    assert turned.yaw_deg == pytest.approx(wanted_deg)
    assert turned.fit_error < 0.02


def test_the_photo_changes_at_the_head_alone(whole_face: MorphableModel) -> None:
    photo, points = photo_of(whole_face, 0.0)
    (turned,) = turn_photos([photo], points[None], face_model=whole_face, yaw_deg=np.array([40.0]), seed=0)
    assert turned.image.shape == photo.shape
    assert turned.image.dtype == np.uint8
    changed = np.abs(turned.image.astype(int) - photo).max(2)
    assert changed[:, :4].max() <= 1
    assert changed[:, -4:].max() <= 1
    left, top = points.min(0).astype(int)
    right, bottom = points.max(0).astype(int)
    assert changed[top:bottom, left:right].mean() > 10


def test_the_seed_decides_and_other_photos_do_not(whole_face: MorphableModel) -> None:
    photos, points = zip(*[photo_of(whole_face, yaw) for yaw in (0.0, 15.0)], strict=True)
    yaw = np.array([40.0, 50.0])
    both = turn_photos(photos, np.stack(points), face_model=whole_face, yaw_deg=yaw, seed=1)
    again = turn_photos(photos[:1], np.stack(points[:1]), face_model=whole_face, yaw_deg=yaw[:1], seed=1)
    other = turn_photos(photos[:1], np.stack(points[:1]), face_model=whole_face, yaw_deg=yaw[:1], seed=2)
    np.testing.assert_allclose(both[0].points, again[0].points, atol=0.02)
    assert np.abs(both[0].image.astype(int) - again[0].image).mean() < 0.1
    assert np.abs(other[0].points - again[0].points).max() > 0.3


def test_a_face_at_the_border_stays_in_its_photo(whole_face: MorphableModel) -> None:
    photo, points = photo_of(whole_face, 0.0)
    left = int(points[:, 0].min()) - 2
    cut = np.ascontiguousarray(photo[:, left:])
    inside = points - np.array([left, 0.0])
    (whole,) = turn_photos([photo], points[None], face_model=whole_face, yaw_deg=np.array([-60.0]), seed=0)
    (turned,) = turn_photos([cut], inside[None], face_model=whole_face, yaw_deg=np.array([-60.0]), seed=0)
    assert (whole.points[:, 0] < left - 5).any()
    assert turned.points[:, 0].min() == pytest.approx(0.0, abs=0.01)
    shift = (turned.points - whole.points).mean(0).round().astype(int)
    rows, columns = np.array([whole.points.min(0) + 8, whole.points.max(0) - 8]).astype(int).T[::-1]
    window = whole.image[slice(*rows), slice(*columns)]
    moved = turned.image[slice(*(rows + shift[1])), slice(*(columns + shift[0]))]
    assert np.abs(window.astype(int) - moved).mean() < 8


def test_shifts_are_the_least_that_keep_faces_inside() -> None:
    before = torch.tensor([[[10.0, 10.0], [50.0, 60.0]]] * 4)
    before[3] -= 20.0
    after = before + torch.tensor([[[0.0, 0.0]], [[-15.0, 0.0]], [[60.0, 45.0]], [[-5.0, 3.0]]])
    shift = shift_inside(before, after, torch.tensor([[100.0, 100.0]] * 4))
    assert shift.tolist() == [[0.0, 0.0], [5.0, 0.0], [-10.0, -5.0], [5.0, 0.0]]


def test_no_photo_is_no_work(whole_face: MorphableModel) -> None:
    assert turn_photos([], np.zeros((0, 68, 2)), face_model=whole_face, yaw_deg=np.zeros(0), seed=0) == []


def test_inputs_that_do_not_belong_together_are_refused(whole_face: MorphableModel) -> None:
    photo, points = photo_of(whole_face, 0.0)
    with pytest.raises(ValueError, match=r"1 photos with points \(2, 68, 2\)"):
        turn_photos([photo], np.stack([points, points]), face_model=whole_face, yaw_deg=np.zeros(1), seed=0)
    points[3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        turn_photos([photo], points[None], face_model=whole_face, yaw_deg=np.zeros(1), seed=0)


def test_a_real_portrait_is_turned(shared_data: Path) -> None:
    face = build_face_model("ict", path=shared_data / "face_models" / "ict_facekit_face.npz", identity_modes=20)
    name, *numbers = (shared_data / "portraits" / "landmarks.csv").read_text().splitlines()[2].split(",")
    photo = decode(read_file(shared_data / "portraits" / name, max_bytes=2**20))
    points = np.array(numbers[2:], float).reshape(68, 2)
    (turned,) = turn_photos([photo], points[None], face_model=face, yaw_deg=np.array([45.0]), seed=0)
    assert turned.fit_error < 0.05
    # The eyes come closer to each other than the mouth is high above the chin changes.
    before, after = (np.linalg.norm(found[45] - found[36]) for found in (points, turned.points))
    assert after < 0.9 * before
