"""The visible outline of projected faces, against where hand-made jaw points lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull

from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.face.formats import build_face_model
from models.face.morphable import MorphableModel
from models.face.outline import FaceRegion, face_region, outline_points
from models.face.procedural import procedural_face
from models.landmarks.framing import FLIP_PERMUTATION
from tests.tiny_face import tiny_face

SIZE = 400
YAWS = [0.0, 20.0, 40.0, 60.0, 75.0, 90.0]


@pytest.fixture(scope="module")
def face() -> MorphableModel:
    return procedural_face(identity_modes=2)


@pytest.fixture(scope="module")
def region(face: MorphableModel) -> FaceRegion:
    return face_region(face)


def photographed(
    model: MorphableModel, region: FaceRegion, *, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Region and landmarks of the mean face in pixels, one face; angles in degrees."""
    angles = torch.deg2rad(torch.tensor([[yaw, pitch, roll]]))
    place = {
        "rotation": rotation_from_angles(*angles.unbind(1)),
        "translation": torch.tensor([[0.0, 0.0, 1200.0]]),
    }
    mean = model.mean[None] - model.landmark_mean.mean(0)
    camera = crop_camera(1, SIZE)
    vertices = project(to_camera_space(mean[:, region.vertices], **place), camera)
    landmarks = project(to_camera_space(model.landmarks(mean), **place), camera)
    return vertices.numpy(), landmarks.numpy()


def outline_of(model: MorphableModel, region: FaceRegion, **angles: float) -> tuple[np.ndarray, np.ndarray]:
    """Outline and landmarks of the mean face."""
    vertices, landmarks = photographed(model, region, **angles)
    return outline_points(region, vertices, landmarks)[0], landmarks[0]


def distance_to_line(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """How far points lie from a line through corners."""
    way = np.linspace(0.0, len(corners) - 1.0, 400)
    line = np.stack([np.interp(way, np.arange(len(corners)), corners[:, axis]) for axis in (0, 1)], 1)
    return np.asarray(np.linalg.norm(points[:, None] - line, axis=2).min(1))


def test_region_ends_at_eyes_jaw_and_lips(face: MorphableModel, region: FaceRegion) -> None:
    places, landmarks = face.mean[region.vertices][region.below], face.landmark_mean
    assert len(places) > 500
    assert places[:, 1].max() <= landmarks[[36, 45], 1].mean()
    assert places[:, 1].min() > landmarks[8, 1] - 5.0
    assert places[:, 0].abs().max() == pytest.approx(float(landmarks[16, 0]), abs=3.0)
    # Not the lips, the tip of the nose, the insides of mouth and eyes.
    for point in (30, 51, 62):
        assert (places - landmarks[point]).norm(dim=1).min() > 5.0
    heights = face.mean[region.vertices[region.level], 1]
    assert ((heights.min(1).values <= 31.9) & (heights.max(1).values >= 31.9)).all()
    assert region.right.sum() == (~region.right).sum() > 10


def test_from_the_front_it_is_the_jaw_of_the_model(face: MorphableModel, region: FaceRegion) -> None:
    outline, landmarks = outline_of(face, region)
    size = np.ptp(landmarks, axis=0).max()
    for point in (0, 8, 16):
        assert np.linalg.norm(outline[point] - landmarks[point]) < 0.02 * size
    hull = ConvexHull(landmarks[:17]).equations
    assert np.abs((outline @ hull[:, :2].T + hull[:, 2]).max(1)).max() < 0.02 * size


@pytest.mark.parametrize("yaw", YAWS)
def test_points_are_evenly_spaced_on_each_side(face: MorphableModel, region: FaceRegion, yaw: float) -> None:
    outline, _ = outline_of(face, region, yaw=yaw, pitch=8.0)
    steps = np.linalg.norm(np.diff(outline, axis=0), axis=1)
    for side in (steps[:8], steps[8:]):
        # A chord over a corner of the outline is a little shorter than the way along it.
        assert np.all(side <= np.max(side))
        assert side.min() > 0.85 * side.max()


@pytest.mark.parametrize("yaw", [25.0, 40.0, 55.0])
def test_the_far_side_follows_the_cheek(face: MorphableModel, region: FaceRegion, yaw: float) -> None:
    vertices, landmarks = photographed(face, region, yaw=yaw)
    outline = outline_points(region, vertices, landmarks)[0]
    # The subject turns to their left, so their left cheek is the far one, and lies to the right in the image.
    near, far, jaw = outline[:8], outline[10:], landmarks[0, :17]
    size = np.ptp(landmarks[0], axis=0).max()
    assert (np.linalg.norm(far[3:] - jaw[13:], axis=1) > 0.04 * size).all()
    assert distance_to_line(near, jaw[:9]).max() < 0.04 * size
    # Nothing of the cheek stands out beyond it: at the height of each of its points, none is farther right.
    cheek = vertices[0][region.below]
    for x, y in far:
        level = cheek[np.abs(cheek[:, 1] - y) < 3.0]
        assert level[:, 0].max() < x + 1.5


@pytest.mark.parametrize(("yaw", "pitch", "roll"), [(30.0, 0.0, 0.0), (60.0, 20.0, -10.0), (90.0, -10.0, 0.0)])
def test_a_mirrored_face_has_the_mirrored_outline(
    face: MorphableModel, region: FaceRegion, yaw: float, pitch: float, roll: float
) -> None:
    one, _ = outline_of(face, region, yaw=yaw, pitch=pitch, roll=roll)
    other, _ = outline_of(face, region, yaw=-yaw, pitch=pitch, roll=-roll)
    mirrored = np.stack([SIZE - other[:, 0], other[:, 1]], 1)[FLIP_PERMUTATION[:17]]
    np.testing.assert_allclose(mirrored, one, atol=1.5)


@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 20.0), (30.0, 20.0), (60.0, 20.0), (45.0, -20.0), (80.0, 15.0)])
def test_the_near_end_stays_before_the_ear(face: MorphableModel, region: FaceRegion, yaw: float, pitch: float) -> None:
    # The line through the eyes' corners in the image would miss it by far where a head is turned and tilted.
    outline, landmarks = outline_of(face, region, yaw=yaw, pitch=pitch)
    assert np.linalg.norm(outline[0] - landmarks[0]) < 0.03 * np.ptp(landmarks, axis=0).max()


@pytest.mark.parametrize("yaw", [60.0, 75.0, 90.0])
def test_in_profile_the_far_side_lies_before_the_mouth(face: MorphableModel, region: FaceRegion, yaw: float) -> None:
    outline, landmarks = outline_of(face, region, yaw=yaw)
    far, size = outline[9:], np.ptp(landmarks, axis=0).max()
    # Between the eyes and the tip of the nose, never bridging nose and chin.
    assert far[:, 0].max() < landmarks[30, 0]
    assert far[:, 0].min() > landmarks[36, 0]
    assert np.linalg.norm(far[-1] - landmarks[45]) < 0.15 * size
    assert np.all(np.diff(far[:, 1]) < 0.0)


def test_it_turns_with_the_photo(face: MorphableModel, region: FaceRegion) -> None:
    vertices, landmarks = photographed(face, region, yaw=35.0, pitch=-10.0)
    turn = 3.0 * np.array([[0.6, -0.8], [0.8, 0.6]])
    still = outline_points(region, vertices, landmarks)
    turned = outline_points(region, vertices @ turn.T - 70.0, landmarks @ turn.T - 70.0)
    np.testing.assert_allclose(turned, still @ turn.T - 70.0, atol=0.02)


def test_what_has_no_outline(face: MorphableModel, region: FaceRegion) -> None:
    vertices, landmarks = (np.repeat(one, 4, 0) for one in photographed(face, region))
    vertices[0, 3] = np.nan
    landmarks[1, 40] = np.inf
    vertices[2, :, 0], landmarks[2, :, 0] = 7.0, 7.0
    outline = outline_points(region, vertices, landmarks)
    assert np.isnan(outline[:3]).all()
    assert np.isfinite(outline[3]).all()
    assert outline_points(region, vertices[:0], landmarks[:0]).shape == (0, 17, 2)


def test_a_small_face_that_is_not_symmetric() -> None:
    tiny = tiny_face()
    outline, landmarks = outline_of(tiny, face_region(tiny), yaw=15.0)
    assert np.isfinite(outline).all()
    assert np.linalg.norm(outline[8] - landmarks[8]) < 0.25 * np.ptp(landmarks, axis=0).max()


def test_a_model_without_skin_is_refused(face: MorphableModel) -> None:
    tiny = tiny_face()
    tiny.parts[:] = 4
    with pytest.raises(ValueError, match=r"tiny: no skin between its eyes and its chin.*ingest\.outlines to false"):
        face_region(tiny)


class TestIctFaceKit:
    @pytest.fixture
    def heads(self, shared_data: Path) -> list[MorphableModel]:
        path = shared_data / "face_models" / "ict_facekit_full_f16.npz"
        return [build_face_model("ict", path=path, region=name, identity_modes=1) for name in ("full", "narrow_face")]

    @pytest.mark.parametrize("yaw", [0.0, 45.0, -80.0])
    def test_neck_and_ears_are_no_part_of_it(self, heads: list[MorphableModel], yaw: float) -> None:
        (full, landmarks), (narrow, _) = (outline_of(head, face_region(head), yaw=yaw) for head in heads)
        # The narrow face ends a little before the ears.
        assert np.linalg.norm(full - narrow, axis=1).max() < 0.05 * np.ptp(landmarks, axis=0).max()

    def test_the_near_end_lies_before_the_ear(self, heads: list[MorphableModel]) -> None:
        head = heads[0]
        outline, landmarks = outline_of(head, face_region(head), yaw=90.0)
        size = np.ptp(landmarks, axis=0).max()
        # This model's own jaw begins far before it.
        assert 0.08 * size < landmarks[0, 0] - outline[0, 0] < 0.2 * size
        assert abs(outline[0, 1] - landmarks[[36, 45], 1].mean()) < 0.04 * size
