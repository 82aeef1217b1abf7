"""Registration of scans whose true vertices are known: a finer mesh of a face, shuffled, moved and spoiled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation

from models.face.alignment import rigid_alignment, transform
from models.face.formats import build_face_model
from models.face.morphable import MorphableModel
from models.face.nearest import NearestSurface
from models.face.registration import RegistrationError, register_scan
from tests.tiny_face import tiny_face

INNER = slice(17, None)


@dataclass(frozen=True)
class Example:
    """A scan, and what its registration should find."""

    model: MorphableModel
    vertices: np.ndarray
    triangles: np.ndarray
    landmarks: np.ndarray
    truth: np.ndarray
    """Vertices of the model, in its space."""
    back: tuple[np.ndarray, np.ndarray, float]
    """From the scan to that space: rotation, translation, scale."""


def example(*, bump_mm: float = 0.0, landmark_noise_mm: float = 0.0, scale: float = 1.0, seed: int = 0) -> Example:
    model = tiny_face()
    random = np.random.default_rng(seed)
    identity = torch.tensor([[0.8, -1.0, 0.7, 1.0]])
    truth = model.vertices(identity, torch.tensor([[0.5, 0.0, 0.8]]))[0].double().numpy()
    left, up = truth[:, 0] / 70, truth[:, 1] / 90
    truth[:, 2] += bump_mm * np.exp(-12 * (left - 0.5) ** 2 - 12 * (up + 0.35) ** 2)
    landmarks = model.landmarks(torch.from_numpy(truth)[None].float())[0].double().numpy()
    landmarks = landmarks + landmark_noise_mm * random.standard_normal(landmarks.shape)
    vertices, triangles = truth, model.triangles.numpy()
    for _ in range(2):
        vertices, triangles = trimesh.remesh.subdivide(vertices, triangles)
    order = random.permutation(len(vertices))
    triangles = np.argsort(order)[triangles][random.permutation(len(triangles))]
    rotation, translation = Rotation.random(rng=seed).as_matrix(), 200.0 * random.standard_normal(3)
    back = rotation.T, -translation @ rotation, 1.0 / scale
    moved = [scale * (points @ rotation.T + translation) for points in (vertices[order], landmarks)]
    return Example(model, moved[0], triangles, moved[1], truth, back)


def inside(model: MorphableModel) -> np.ndarray:
    """Vertices of the skin away from the patch's border, where neighbours tell on all sides."""
    mean = model.mean.numpy()
    return (np.abs(mean[:, 0]) < 55) & (np.abs(mean[:, 1]) < 72) & ~(model.part("eyes") | model.part("mouth")).numpy()


def error(found: np.ndarray, case: Example) -> np.ndarray:
    """Distances of vertices away from the border; where a face stands in model space is a convention, so aligned."""
    points = [torch.from_numpy(vertices[inside(case.model)])[None] for vertices in (found, case.truth)]
    aligned = transform(points[0], *rigid_alignment(*points)[:2])
    return (aligned - points[1]).norm(dim=2)[0].numpy()


def test_a_face_of_the_model_is_found_again() -> None:
    case = example()
    found = register_scan(case.model, case.vertices, case.triangles, case.landmarks)
    assert error(found.vertices, case).mean() < 0.5
    assert found.residual_mm < 0.3
    assert found.coverage > 0.8
    assert found.valid[inside(case.model)].mean() > 0.97
    assert found.landmark_error_mm < 0.5
    assert found.scale == 1.0
    np.testing.assert_allclose(found.identity, [0.8, -1.0, 0.7, 1.0], atol=0.15)
    assert (found.expression >= 0).all()
    assert (found.expression <= 1).all()


def test_the_motion_leads_from_the_scan_to_the_registered_mesh() -> None:
    case = example(seed=3)
    found = register_scan(case.model, case.vertices, case.triangles, case.landmarks)
    moved = case.vertices @ found.rotation.T + found.translation
    distance = NearestSurface(moved, case.triangles).query(found.vertices[inside(case.model)]).distance
    assert distance.mean() < 0.2


def test_what_the_model_cannot_express_is_deformed() -> None:
    case = example(bump_mm=5.0)
    found = register_scan(case.model, case.vertices, case.triangles, case.landmarks)
    alone = case.model.vertices(*(torch.from_numpy(part)[None].float() for part in (found.identity, found.expression)))
    assert error(found.vertices, case).mean() < 0.7
    assert error(found.vertices, case).mean() < 0.9 * error(alone[0].double().numpy(), case).mean()
    surface = NearestSurface(case.vertices @ found.rotation.T + found.translation, case.triangles)
    bump = np.linalg.norm(case.truth[:, :2] - [35.0, -31.0], axis=1) < 25.0
    gaps = [surface.query(mesh[bump]).distance.mean() for mesh in (found.vertices, alone[0].double().numpy())]
    assert gaps[1] > 0.5
    assert gaps[0] < 0.1 * gaps[1]
    assert found.residual_mm < 0.1 * found.model_residual_mm


def test_faulty_landmarks_cost_little() -> None:
    exact, noisy = example(), example(landmark_noise_mm=3.0)
    found = [register_scan(case.model, case.vertices, case.triangles, case.landmarks) for case in (exact, noisy)]
    assert error(found[1].vertices, noisy).mean() < 1.5
    assert found[1].residual_mm < 0.4
    assert found[1].landmark_error_mm > 3 * found[0].landmark_error_mm


def test_a_hole_is_told_and_filled() -> None:
    case = example()
    at_home = case.vertices @ case.back[0].T + case.back[1]
    hole = np.linalg.norm(at_home[:, :2] - [-30.0, -20.0], axis=1) < 22.0
    triangles = case.triangles[~hole[case.triangles].any(1)]
    whole = register_scan(case.model, case.vertices, case.triangles, case.landmarks)
    found = register_scan(case.model, case.vertices, triangles, case.landmarks)
    in_hole = np.linalg.norm(case.truth[:, :2] - [-30.0, -20.0], axis=1) < 18.0
    assert in_hole.sum() > 5
    assert not found.valid[in_hole].any()
    assert found.coverage < whole.coverage - 0.04
    assert np.linalg.norm(found.vertices - case.truth, axis=1)[in_hole].mean() < 1.0
    assert error(found.vertices, case).mean() < 0.7


def test_an_unknown_unit() -> None:
    case = example(scale=0.013)
    found = register_scan(case.model, case.vertices, case.triangles, case.landmarks, free_scale=True)
    # How large a face is cannot be told for sure, its form can.
    assert found.scale * 0.013 == pytest.approx(1.0, abs=0.1)
    size = np.linalg.norm(case.truth - case.truth.mean(0)) / np.linalg.norm(found.vertices - found.vertices.mean(0))
    assert size * found.scale * 0.013 == pytest.approx(1.0, abs=0.01)
    assert found.residual_mm < 0.3


def test_either_winding() -> None:
    case = example()
    found = [
        register_scan(case.model, case.vertices, triangles, case.landmarks)
        for triangles in (case.triangles, case.triangles[:, ::-1])
    ]
    np.testing.assert_allclose(found[1].vertices, found[0].vertices, atol=1e-4)
    assert found[1].coverage == pytest.approx(found[0].coverage)


def test_missing_landmarks_do_not_count() -> None:
    case = example()
    landmarks = case.landmarks.copy()
    landmarks[:17] = np.nan
    landmarks[20:40] = np.nan
    found = register_scan(case.model, case.vertices, case.triangles, landmarks)
    assert error(found.vertices, case).mean() < 0.5


def reason(case: Example, **changes: np.ndarray) -> str:
    scan = {"vertices": case.vertices, "triangles": case.triangles, "landmarks": case.landmarks, **changes}
    with pytest.raises(RegistrationError) as caught:
        register_scan(case.model, **scan)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_what_cannot_be_registered() -> None:
    case = example()
    few = case.landmarks.copy()
    few[24:] = np.nan
    mirrored = np.array([-1.0, 1.0, 1.0])
    one_place = np.where(np.isnan(case.landmarks), np.nan, 5.0)
    far = 1e5 + case.vertices
    assert reason(case, landmarks=few) == "landmarks_too_few"
    assert reason(case, landmarks=np.random.default_rng(0).permutation(case.landmarks)) == "landmarks_disagree"
    assert reason(case, landmarks=one_place) == "landmarks_disagree"
    assert reason(case, vertices=0.1 * case.vertices, landmarks=0.1 * case.landmarks) == "mesh_wrong_scale"
    assert reason(case, vertices=far) == "registration_failed"
    assert mirrored.prod() < 0
    assert reason(case, vertices=case.vertices * mirrored, landmarks=case.landmarks * mirrored) in (
        "landmarks_disagree",
        "registration_failed",
    )


def test_a_real_scan(shared_data: Path) -> None:
    """Its topology, and the people who annotated it, knew nothing of the model."""
    folder = shared_data / "scans" / "james"
    data = np.load(folder / "james_scan_cameras.npz")
    model = build_face_model("npz", path=shared_data / "face_models" / "ict_facekit_face.npz")
    # Stored with the eyes before the brows.
    order = [*range(17), *range(29, 34), *range(43, 48), *range(34, 43), *range(17, 29), *range(48, 68)]
    found = register_scan(
        model,
        data["vertices"].astype(np.float64),
        data["triangles"].astype(np.int64),
        data["landmarks68_3d"][order].astype(np.float64),
    )
    assert found.residual_mm < 0.4
    assert found.residual_mm < 0.6 * found.model_residual_mm
    assert found.coverage > 0.9
    assert found.landmark_error_mm < 5.0
    # The inner face, where hands and machine agree best: eye corners and the tip and base of the nose.
    points = model.landmarks(torch.from_numpy(found.vertices)[None].float())[0].numpy()
    seen = data["landmarks68_3d"][order] @ found.rotation.T + found.translation
    exact = [30, 33, 36, 39, 42, 45]
    assert np.linalg.norm(points - seen, axis=1)[exact].mean() < 4.0
