from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from models.face.alignment import transform
from models.face.morphable import MorphableModel
from models.losses.geometry import align_scan, normal_distance, vertex_distance
from models.rendering.shade import vertex_normals
from models.types import Scan


def scan_of(face: MorphableModel, vertices: Tensor) -> Scan:
    return Scan(vertices=vertices, normals=vertex_normals(vertices, face.triangles), landmarks=face.landmarks(vertices))


def moved(scan: Scan, seed: int) -> Scan:
    rotation = torch.from_numpy(Rotation.random(rng=seed).as_matrix())[None].to(scan.vertices.dtype)
    translation = 300 * torch.randn(1, 3, generator=torch.Generator().manual_seed(seed)).to(scan.vertices.dtype)
    return Scan(
        vertices=transform(scan.vertices, rotation, translation),
        normals=scan.normals @ rotation.transpose(1, 2),
        landmarks=transform(scan.landmarks, rotation, translation),
    )


def test_vertex_distance_by_hand() -> None:
    target = torch.zeros(1, 3, 3)
    vertices = torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]])
    found = vertex_distance(vertices, target, weights=torch.tensor([1.0, 0.5, 0.5]))
    assert found.item() == pytest.approx((5 + 0.5 * 2) / 2, abs=1e-3)


def test_normal_distance_by_hand() -> None:
    target = torch.tensor([[[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]]])
    half = math.sqrt(0.5)
    normals = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [half, half, 0]]])
    found = normal_distance(normals, target, weights=torch.tensor([1.0, 1.0, 1.0, 2.0]))
    assert found.item() == pytest.approx((0 + 1 + 2 + 2 * (1 - half)) / 5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_the_scan_stands_does_not_matter(face: MorphableModel, seed: int) -> None:
    predicted = face.vertices(torch.tensor([[1.0, -1.0, 0.5, 0.0]])).double()
    truth = scan_of(face, face.vertices(torch.tensor([[0.0, 1.0, 0.5, 1.0]])).double())
    weights = torch.ones(face.vertex_count).double()
    landmarks = face.landmarks(predicted)
    here, there = align_scan(truth, landmarks), align_scan(moved(truth, seed), landmarks)
    torch.testing.assert_close(there.vertices, here.vertices)
    torch.testing.assert_close(there.landmarks, here.landmarks)
    torch.testing.assert_close(there.normals, here.normals)
    near = vertex_distance(predicted, here.vertices, weights=weights)
    far = vertex_distance(predicted, there.vertices, weights=weights)
    torch.testing.assert_close(near, far)
    assert 0.5 < near.item() < vertex_distance(predicted, moved(truth, seed).vertices, weights=weights).item()


def test_an_equal_face_has_no_distance_after_alignment(face: MorphableModel) -> None:
    vertices = face.mean[None].double()
    aligned = align_scan(moved(scan_of(face, vertices), 3), face.landmarks(vertices))
    weights = torch.ones(face.vertex_count).double()
    assert vertex_distance(vertices, aligned.vertices, weights=weights).item() == pytest.approx(1e-4, rel=1e-3)
    normals = vertex_normals(vertices, face.triangles)
    assert normal_distance(normals, aligned.normals, weights=weights).item() == pytest.approx(0, abs=1e-9)


def test_alignment_changes_neither_size_nor_form(face: MorphableModel) -> None:
    truth = scan_of(face, 1.3 * face.mean[None].double())
    aligned = align_scan(truth, face.landmarks(face.mean[None].double()))
    sides = [(mesh[0, 1:] - mesh[0, :-1]).norm(dim=1) for mesh in (aligned.vertices, truth.vertices)]
    torch.testing.assert_close(sides[0], sides[1])


def test_no_gradient_passes_the_alignment(face: MorphableModel) -> None:
    vertices = face.mean[None].clone().requires_grad_()
    aligned = align_scan(scan_of(face, face.mean[None]), face.landmarks(vertices))
    assert not aligned.vertices.requires_grad
    assert not aligned.normals.requires_grad
    assert not aligned.landmarks.requires_grad


def test_gradients_of_the_distances() -> None:
    generator = torch.Generator().manual_seed(4)
    first, second = torch.randn(2, 2, 5, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(5, generator=generator, dtype=torch.float64)
    first.requires_grad_()
    assert torch.autograd.gradcheck(lambda value: vertex_distance(value, second, weights=weights), (first,))
    assert torch.autograd.gradcheck(lambda value: normal_distance(value, second, weights=weights), (first,))


def test_icp_brings_a_label_nearer_whose_landmarks_are_off(face: MorphableModel) -> None:
    predicted = face.vertices(torch.tensor([[1.0, -1.0, 0.5, 0.0]])).double()
    exact = moved(scan_of(face, predicted), 2)
    shaken = torch.randn(1, 68, 3, generator=torch.Generator().manual_seed(3)).double()
    label = replace(exact, landmarks=exact.landmarks + 4.0 * shaken)
    surface = predicted, vertex_normals(predicted, face.triangles)
    weights = torch.ones(face.vertex_count).double()
    landmarks = face.landmarks(predicted)
    rough = align_scan(label, landmarks)
    fine = align_scan(label, landmarks, icp_steps=20, surface=surface)
    distances = [vertex_distance(predicted, scan.vertices, weights=weights).item() for scan in (rough, fine)]
    assert distances[0] > 1.0
    assert distances[1] < 0.2 * distances[0]
    # Normals and landmarks went along: the motion is one and rigid.
    again = vertex_normals(fine.vertices, face.triangles)
    torch.testing.assert_close(fine.normals, again, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        (fine.landmarks - fine.landmarks[:, :1]).norm(dim=2), (label.landmarks - label.landmarks[:, :1]).norm(dim=2)
    )


def test_icp_may_look_at_a_region_only(face: MorphableModel) -> None:
    predicted = face.mean[None].double()
    bulged = predicted.clone()
    bulged[:, 100:] += torch.tensor([0.0, 0.0, 15.0])
    label = replace(scan_of(face, bulged), landmarks=face.landmarks(predicted) + 1.0)
    surface = predicted, vertex_normals(predicted, face.triangles)
    aligned = align_scan(label, face.landmarks(predicted), icp_steps=20, surface=surface, region=torch.arange(100))
    assert (aligned.vertices - predicted)[:, :100].norm(dim=2).mean() < 0.1


def test_icp_needs_a_surface(face: MorphableModel) -> None:
    scan = scan_of(face, face.mean[None])
    with pytest.raises(ValueError, match="5 ICP steps without the surface"):
        align_scan(scan, scan.landmarks, icp_steps=5)
