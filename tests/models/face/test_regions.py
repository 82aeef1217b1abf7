"""Regions of the face: where they lie on any face model, and that only the shape of a region counts as its error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from models.face.formats import build_face_model
from models.face.morphable import MorphableModel
from models.face.regions import REGIONS, face_regions, region_errors, region_scan_errors
from models.face.surface import SurfaceTopology
from models.rendering.shade import vertex_normals
from tests.tiny_face import tiny_face


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return build_face_model("procedural", identity_modes=6)


@pytest.fixture(scope="module")
def regions(model: MorphableModel) -> dict[str, torch.Tensor]:
    return face_regions(model)


def test_regions_lie_where_their_names_say(model: MorphableModel, regions: dict[str, torch.Tensor]) -> None:
    mean, points = model.mean, model.landmarks(model.mean[None])[0]
    assert tuple(regions) == REGIONS
    assert int(sum(chosen.long() for chosen in regions.values()).max()) == 1
    assert all(int(chosen.sum()) > 100 for chosen in regions.values())
    assert regions["nose"][model.landmark_vertices[30]]
    assert regions["mouth"][model.landmark_vertices[[48, 51, 54, 57]]].all()
    assert float(mean[regions["forehead"], 1].min()) > float(points[[19, 24], 1].min()) - 5.0
    cheeks = mean[regions["cheeks"]]
    assert float(cheeks[:, 1].max()) < float(points[[41, 46], 1].mean())
    # As much on the one side as on the other.
    left, right = int((cheeks[:, 0] > 0).sum()), int((cheeks[:, 0] < 0).sum())
    assert left == pytest.approx(right, rel=0.05)


def test_eyes_and_the_inside_of_the_mouth_belong_to_none(
    model: MorphableModel, regions: dict[str, torch.Tensor]
) -> None:
    inside = model.part("eyes") | model.part("mouth")
    assert not any(bool((chosen & inside).any()) for chosen in regions.values())


def test_moving_a_region_as_a_whole_is_no_error_of_it(model: MorphableModel, regions: dict[str, torch.Tensor]) -> None:
    target = model.mean[None].double()
    turn = torch.from_numpy(Rotation.from_euler("xyz", [8, -5, 3], degrees=True).as_matrix())
    predicted = target.clone()
    predicted[:, regions["nose"]] = predicted[:, regions["nose"]] @ turn.T + 4.0
    errors = region_errors(predicted, target, regions)
    assert max(float(error) for error in errors.values()) < 1e-9


def test_a_larger_nose_is_an_error_of_the_nose_alone(model: MorphableModel, regions: dict[str, torch.Tensor]) -> None:
    target = model.mean[None].double()
    nose = regions["nose"]
    predicted = target.clone()
    centre = target[:, nose].mean(1, keepdim=True)
    predicted[:, nose] = centre + 1.2 * (target[:, nose] - centre)
    errors = region_errors(predicted, target, regions)
    # Uniform scaling cannot be undone by a motion, so each vertex keeps a fifth of its distance to the centre.
    expected = 0.2 * (target[:, nose] - centre).norm(dim=2).mean()
    assert float(errors.pop("nose")) == pytest.approx(float(expected), rel=1e-6)
    assert max(float(error) for error in errors.values()) < 1e-9


def test_a_coarse_mesh_has_regions_that_are_not_measured() -> None:
    model = tiny_face()
    errors = region_errors(model.mean[None], model.mean[None], face_regions(model))
    assert set(errors) == set(REGIONS)
    assert any(bool(error.isnan()) for error in errors.values())


def test_a_scan_of_another_topology_gives_the_distance_to_its_surface(
    model: MorphableModel, regions: dict[str, torch.Tensor]
) -> None:
    target, triangles = model.mean[None], model.triangles
    scan, normals = target[0].double().numpy(), vertex_normals(target, triangles)[0].double().numpy()
    topology = SurfaceTopology.build(triangles.numpy(), len(scan))
    chosen = {name: region.numpy() for name, region in regions.items()}
    turn = Rotation.from_euler("xyz", [2, -1, 1.5], degrees=True)
    moved = turn.apply(scan) + np.array([0.7, -0.4, 0.6])
    same = region_scan_errors(moved, chosen, scan=scan, scan_normals=normals, scan_topology=topology)
    assert max(same.values()) < 0.05
    bumped = scan.copy()
    bumped[chosen["forehead"]] += 1.5 * np.sin(scan[chosen["forehead"], :1] / 6.0) * normals[chosen["forehead"]]
    found = region_scan_errors(bumped, chosen, scan=scan, scan_normals=normals, scan_topology=topology)
    assert 0.4 < found["forehead"] < 1.5
    assert max(found[name] for name in ("nose", "mouth", "cheeks")) < 0.05
