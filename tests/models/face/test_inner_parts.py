"""Eyes and mouths for face models with holes: where they sit, and how they move."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from models.animation.gltf import MorphFace, read_glb, vertex_normals, write_animated_glb
from models.animation.morphs import morph_targets
from models.face.formats import build_face_model
from models.face.inner_parts import (
    CLEARANCE_MM,
    InnerParts,
    Openings,
    boundary_loops,
    find_openings,
    fit_eyeball,
    make_inner_parts,
    steady_gaze,
)
from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.face.procedural_expressions import ARKIT_NAMES
from tests.browser_player import validate_glb


@pytest.fixture(scope="module")
def mask() -> MorphableModel:
    """The procedural face without its own eyes and mouth."""
    model = deepcopy(procedural_face())
    inner = model.part("eyes") | model.part("mouth")
    model.triangles = model.triangles[~inner[model.triangles].any(1)]
    return model


@pytest.fixture(scope="module")
def openings(mask: MorphableModel) -> Openings:
    return find_openings(mask)


@pytest.fixture(scope="module")
def parts(mask: MorphableModel, openings: Openings) -> InnerParts:
    names, targets = morph_targets(mask)
    found = make_inner_parts(openings, mask.mean.numpy(), names=names, targets=targets, light=np.ones(3))
    assert found is not None
    return found


def piece(parts: InnerParts, name: str) -> np.ndarray:
    (own,) = (one for one in parts.pieces if one.name == name)
    return np.unique(own.triangles)


def worn(parts: InnerParts, **weights: float) -> np.ndarray:
    return parts.moved(np.array([weights.get(name, 0.0) for name in ARKIT_NAMES], np.float32))


def test_loops_of_a_square_with_a_hole() -> None:
    outer, inner = np.arange(4), np.arange(4, 8)
    sides = [(outer[i], outer[(i + 1) % 4], inner[(i + 1) % 4], inner[i]) for i in range(4)]
    triangles = np.array([corner for a, b, c, d in sides for corner in ((a, b, c), (a, c, d))])
    assert sorted(sorted(loop.tolist()) for loop in boundary_loops(triangles)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_model_with_eyes_and_mouth_gets_none() -> None:
    model = procedural_face()
    found = find_openings(model)
    assert not found.any
    names, targets = morph_targets(model)
    assert make_inner_parts(found, model.mean.numpy(), names=names, targets=targets, light=np.ones(3)) is None


def test_a_mask_has_two_eyes_and_a_mouth(mask: MorphableModel, openings: Openings) -> None:
    marks = mask.landmarks(mask.mean[None])[0].numpy()
    for loop, landmarks in ((openings.right_eye, slice(36, 42)), (openings.left_eye, slice(42, 48))):
        assert np.linalg.norm(mask.mean.numpy()[loop].mean(0) - marks[landmarks].mean(0)) < 5.0
    assert np.ptp(mask.mean.numpy()[openings.mouth][:, 0]) > 40.0


def test_eyeball_of_a_known_sphere() -> None:
    angle = np.linspace(0.0, 2.0 * np.pi, 40, endpoint=False)
    radius = 14.5
    across, up = 12.5 * np.cos(angle), 6.0 * np.sin(angle)
    edge = np.stack([across, up, np.sqrt(radius**2 - across**2 - up**2)], 1) + [30.0, 35.0, 80.0]
    centre, found = fit_eyeball(edge)
    assert np.abs(centre - [30.0, 35.0, 80.0]).max() < 0.05
    assert found == pytest.approx(radius - CLEARANCE_MM, abs=0.05)


def test_no_lid_lies_in_its_eyeball_open_or_shut(mask: MorphableModel, openings: Openings, parts: InnerParts) -> None:
    names, targets = morph_targets(mask)
    blink = targets[names.index("eyeBlinkLeft")]
    ball = np.unique(np.concatenate([one.triangles for one in parts.pieces if one.group == "eye_left"]))
    for weight in (0.0, 1.0):
        lids = mask.mean.numpy()[openings.left_eye] + weight * blink[openings.left_eye]
        points = worn(parts, eyeBlinkLeft=weight)[ball]
        centre = points[points[:, 2].argmax()] - [0.0, 0.0, np.ptp(points[:, 0]) / 2.0]
        assert np.linalg.norm(lids - centre, axis=1).min() > np.ptp(points[:, 0]) / 2.0


@pytest.mark.parametrize(
    ("shape", "axis", "sign"),
    [("eyeLookUpLeft", 1, 1), ("eyeLookDownLeft", 1, -1), ("eyeLookOutLeft", 0, 1), ("eyeLookInLeft", 0, -1)],
)
def test_the_left_eye_looks_where_the_shape_says(parts: InnerParts, shape: str, axis: int, sign: int) -> None:
    left, right = piece(parts, "eye_left_pupil"), piece(parts, "eye_right_pupil")
    moved = worn(parts, **{shape: 1.0}) - parts.vertices
    assert sign * moved[left, axis].mean() > 4.0, "a pupil goes half of an eyeball's radius"
    assert np.abs(moved[right]).max() < 1e-6


def test_the_right_eye_looks_out_to_the_right(parts: InnerParts) -> None:
    moved = worn(parts, eyeLookOutRight=1.0) - parts.vertices
    assert moved[piece(parts, "eye_right_pupil"), 0].mean() < -4.0


def test_the_jaw_takes_the_lower_teeth_and_leaves_the_upper(mask: MorphableModel, parts: InnerParts) -> None:
    names, targets = morph_targets(mask)
    chin = targets[names.index("jawOpen")][find_openings(mask).chin].mean(0)
    moved = worn(parts, jawOpen=1.0) - parts.vertices
    assert np.abs(moved[piece(parts, "upper_teeth")]).max() < 1e-6
    lower = moved[piece(parts, "lower_teeth"), 1] / chin[1]
    assert lower.min() > 0.5
    assert lower.max() < 1.3, "the front teeth are further from the hinge than the chin"
    smile = worn(parts, mouthSmileLeft=1.0) - parts.vertices
    assert np.abs(smile[piece(parts, "lower_teeth")]).max() < 1e-6


def test_the_mouth_stays_at_the_lips(mask: MorphableModel, openings: Openings, parts: InnerParts) -> None:
    names, targets = morph_targets(mask)
    for shape in ("jawOpen", "mouthPucker", "mouthSmileLeft"):
        lips = mask.mean.numpy()[openings.mouth] + targets[names.index(shape)][openings.mouth]
        walls = worn(parts, **{shape: 1.0})[piece(parts, "mouth")]
        gap = np.linalg.norm(lips[:, None] - walls[None], axis=2).min(1)
        assert gap.max() < 1e-3, shape


def test_normals_point_to_those_who_look(parts: InnerParts) -> None:
    normals = vertex_normals(parts.vertices, parts.triangles)
    for name in ("eye_left_iris", "eye_right_pupil", "upper_teeth", "lower_teeth"):
        assert normals[piece(parts, name), 2].mean() > 0.3, name


def test_a_dark_photo_has_dark_eyes(mask: MorphableModel, openings: Openings, parts: InnerParts) -> None:
    names, targets = morph_targets(mask)
    light = np.array([0.4, 0.5, 0.6])
    dim = make_inner_parts(openings, mask.mean.numpy(), names=names, targets=targets, light=light)
    assert dim is not None
    assert np.allclose(dim.colours, parts.colours * light, atol=1e-6)


def test_irises_have_the_colour_that_they_are_given(mask: MorphableModel, openings: Openings) -> None:
    names, targets = morph_targets(mask)
    blue = (0.3, 0.4, 0.6)
    found = make_inner_parts(
        openings, mask.mean.numpy(), names=names, targets=targets, light=np.full(3, 0.5), iris=blue
    )
    assert found is not None
    for side in ("left", "right"):
        shown = found.colours[piece(found, f"eye_{side}_iris")].mean(0)
        assert np.allclose(shown / shown.max(), np.array(blue) / 0.6, atol=1e-3)
        assert shown.max() == pytest.approx(0.3, abs=0.06)
        (one,) = (own for own in found.pieces if own.name == f"eye_{side}_iris")
        assert one.colour == pytest.approx((0.15, 0.2, 0.3))
        radius = np.ptp(found.vertices[piece(found, f"eye_{side}_limbus"), 0]) / 2.0
        assert radius == pytest.approx(6.0, abs=0.1), "12 mm in every adult"


def test_steady_gaze_does_not_squint() -> None:
    names = ("eyeLookInLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight", "jawOpen")
    steady = steady_gaze(names, np.array([[0.3, -0.2, 0.4, 0.0, 0.7]]))
    assert steady.tolist() == [pytest.approx([0.0, 0.0, 0.2, 0.2, 0.7])]


def test_a_glb_keeps_them_and_is_valid(mask: MorphableModel, parts: InnerParts, tmp_path: Path) -> None:
    names, targets = morph_targets(mask)
    face = MorphFace(
        vertices=mask.mean.numpy(),
        triangles=mask.triangles.numpy(),
        colours=mask.albedo_mean.numpy(),
        target_names=tuple(names),
        targets=targets,
        inner=parts,
    )
    write_animated_glb(tmp_path / "face.glb", face)
    found, _ = read_glb(tmp_path / "face.glb")
    assert found.inner is not None
    assert {one.group for one in found.inner.pieces} == {"eye_left", "eye_right", "teeth", "mouth"}
    assert len(found.vertices) == mask.vertex_count, "the face keeps its topology"
    # Order differs, since each group has its own vertices; extents and motion do not.
    assert np.allclose(np.ptp(found.inner.vertices, axis=0), np.ptp(parts.vertices, axis=0), atol=1e-3)
    jaw = names.index("jawOpen")
    assert found.inner.targets[jaw].min() == pytest.approx(parts.targets[jaw].min(), abs=1e-3)
    issues = validate_glb(tmp_path / "face.glb")
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]


def test_a_glb_refuses_parts_of_another_rig(mask: MorphableModel, parts: InnerParts, tmp_path: Path) -> None:
    mean = mask.mean.numpy()
    face = MorphFace(mean, mask.triangles.numpy(), mean, ("a",), np.zeros((1, *mean.shape)), inner=parts)
    with pytest.raises(ValueError, match="52 targets of inner parts for 1 names"):
        write_animated_glb(tmp_path / "face.glb", face)


def test_eyeballs_lie_where_ict_facekit_has_its_own(shared_data: Path) -> None:
    folder = shared_data / "face_models"
    narrow = build_face_model("ict", path=folder / "ict_facekit_face.npz", identity_modes=20)
    full = build_face_model("ict", path=folder / "ict_facekit_full_f16.npz", identity_modes=20, region="full")
    openings = find_openings(narrow)
    assert not find_openings(full).any
    coefficients = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32))
    own, whole = narrow.vertices(coefficients).numpy(), full.vertices(coefficients).numpy()
    balls = np.arange(21451, 24591)
    balls = balls[full.mean.numpy()[balls, 0] > 0.0]
    for shape, truth in zip(own, whole, strict=True):
        centre, radius = fit_eyeball(shape[openings.left_eye])
        middle = 0.5 * (truth[balls].min(0) + truth[balls].max(0))
        assert np.abs(centre - middle).max() < 3.0
        # The front of the eyeball, which is what can be seen, within the thickness of a lid.
        assert abs((centre[2] + radius) - truth[balls, 2].max()) < 2.5
