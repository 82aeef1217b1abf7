from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.face.formats import build_face_model
from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.rendering.texture_chart import mirror_map, seam_triangles, texture_chart
from models.types import PART_NAMES
from tests.sheet_face import sheet, sheet_face


@pytest.fixture(scope="module")
def whole_face() -> MorphableModel:
    return procedural_face(identity_modes=1)


def lopsided(uv: Tensor) -> Tensor:
    """Another layout: the left half of the sheet takes 0.3 of the width, and u runs backwards."""
    right = uv[:, 0]
    return torch.stack([1.0 - torch.where(right < 0.5, 0.6 * right, 0.3 + 1.4 * (right - 0.5)), uv[:, 1]], 1)


def test_texels_of_a_square_lie_where_their_uv_says() -> None:
    vertices, uv, triangles = sheet(2)
    chart = texture_chart(sheet_face(vertices, uv, triangles), 4)
    assert chart.inside.all()
    places = chart.image(chart.interpolate(vertices[None]))[0]
    # Four texels over 100 mm: centres at -37.5, -12.5, 12.5, 37.5; the first row is the top.
    steps = torch.tensor([-37.5, -12.5, 12.5, 37.5])
    torch.testing.assert_close(places[0], steps.expand(4, 4))
    torch.testing.assert_close(places[1], -steps[:, None].expand(4, 4))


def test_uv_may_wind_backwards() -> None:
    vertices, uv, triangles = sheet(4)
    chart = texture_chart(sheet_face(vertices, uv * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0]), triangles), 8)
    assert chart.inside.all()
    places = chart.image(chart.interpolate(vertices[None]))[0]
    torch.testing.assert_close(places[0], -torch.linspace(-43.75, 43.75, 8).expand(8, 8))


def test_texels_beside_the_surface_show_nothing() -> None:
    vertices, uv, triangles = sheet(3)
    chart = texture_chart(sheet_face(vertices, 0.25 + 0.5 * uv, triangles), 8)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:6, 2:6] = True
    assert torch.equal(chart.inside, expected)


def test_where_parts_overlap_the_outer_one_owns_the_texel() -> None:
    vertices, uv, triangles = sheet(3)
    inner = vertices - torch.tensor([0.0, 0.0, 5.0])
    for order in (torch.cat([vertices, inner]), torch.cat([inner, vertices])):
        face = sheet_face(order, uv.repeat(2, 1), torch.cat([triangles, triangles + 9]))
        chart = texture_chart(face, 8)
        assert not chart.interpolate(order[None])[..., 2].any()


def test_values_and_image_are_inverse() -> None:
    vertices, uv, triangles = sheet(3)
    chart = texture_chart(sheet_face(vertices, 0.2 + 0.5 * uv, triangles), 9)
    values = torch.rand(2, len(chart.texels), 5)
    assert torch.equal(chart.values(chart.image(values)), values)
    assert not chart.image(values)[..., ~chart.inside].any()


def cut_in_two() -> tuple[Tensor, Tensor, Tensor]:
    """A sheet whose right half stands on the other side of the texture: the triangles in the middle cross the seam."""
    vertices, uv, triangles = sheet(9)
    left = vertices[:, 0] < 1.0
    return vertices, torch.stack([torch.where(left, 0.5 * uv[:, 0] + 0.6, 0.4 * uv[:, 0]), uv[:, 1]], 1), triangles


def test_triangles_across_a_seam_own_no_texel() -> None:
    vertices, uv, triangles = cut_in_two()
    seams = seam_triangles(uv, triangles, vertices)
    across = vertices[triangles][..., 0]
    assert torch.equal(seams, (across.amin(1) < 1.0) & (across.amax(1) > 1.0))
    chart = texture_chart(sheet_face(vertices, uv, triangles), 64)
    assert torch.equal(chart.uncharted, seams)
    # Five columns of vertices span 0.6 to 0.85, the other four 0.25 to 0.4.
    assert chart.inside.any(0).float().mean().item() == pytest.approx(0.4, abs=2 / 64)
    # Were the seam drawn, texels between the halves would lie on it.
    places = chart.interpolate(vertices[None])[0, :, 0]
    assert not ((places > 1.0) & (places < 12.0)).any()


def test_further_tiles_own_no_texel() -> None:
    vertices, uv, triangles = sheet(3)
    tiled = torch.cat([uv, uv + torch.tensor([1.0, 0.0])])
    face = sheet_face(torch.cat([vertices, vertices]), tiled, torch.cat([triangles, triangles + 9]))
    chart = texture_chart(face, 8)
    assert chart.uncharted.tolist() == [False] * 8 + [True] * 8
    assert chart.corners.max() < 9


def test_a_coarse_mesh_has_no_seams() -> None:
    vertices, uv, triangles = sheet(2)
    assert not seam_triangles(uv, triangles, vertices).any()


@pytest.mark.parametrize("layout", [lambda uv: uv, lopsided])
def test_the_mirror_map_reflects_points_in_any_layout(layout) -> None:  # type: ignore[no-untyped-def]
    vertices, uv, triangles = sheet(11)
    face = sheet_face(vertices, layout(uv), triangles)
    chart = texture_chart(face, 40)
    mirror = mirror_map(face, chart)
    places = chart.interpolate(vertices[None])[0]
    found = (places[mirror.sources] * mirror.weights[..., None]).sum(1)
    torch.testing.assert_close(mirror.weights.sum(1), torch.ones(len(places)))
    # Texels are up to 100 / (40 * 0.3) mm apart.
    assert (found - places * torch.tensor([-1.0, 1.0, 1.0])).norm(dim=1).max() < 100 / (40 * 0.3) / 2 + 0.1


def test_the_mirror_map_of_a_symmetric_layout_is_the_flipped_texture() -> None:
    vertices, uv, triangles = sheet(5)
    face = sheet_face(vertices, uv, triangles)
    chart = texture_chart(face, 12)
    mirror = mirror_map(face, chart)
    assert torch.equal(mirror.sources[:, 0].view(12, 12), torch.arange(144).view(12, 12).flip(1))
    assert mirror.weights[:, 0].min() > 0.999


def test_what_has_no_mirror_image_gets_none() -> None:
    vertices, uv, triangles = sheet(5, centre_x=25.0)
    face = sheet_face(vertices, uv, triangles)
    chart = texture_chart(face, 20)
    mirror = mirror_map(face, chart)
    across = chart.interpolate(vertices[None])[0, :, 0]
    # The sheet reaches from -25 to 75 mm.
    assert (mirror.weights[across < 25.0].sum(1) > 0.99).all()
    assert not mirror.weights[across > 32.0].any()


def test_layers_that_look_apart_do_not_mirror_into_each_other() -> None:
    vertices, uv, triangles = sheet(5)
    inner = vertices - torch.tensor([0.0, 0.0, 1.0])
    face = sheet_face(
        torch.cat([vertices, inner]),
        torch.cat([0.5 * uv, 0.5 * uv + 0.5]),
        torch.cat([triangles, triangles.flip(1) + len(vertices)]),
    )
    chart = texture_chart(face, 32)
    mirror = mirror_map(face, chart)
    depth = chart.interpolate(face.mean[None])[0, :, 2]
    torch.testing.assert_close(depth[mirror.sources[:, 0]], depth)


def test_errors_name_what_is_wrong() -> None:
    vertices, uv, triangles = sheet(2)
    with pytest.raises(ValueError, match="0 px, expected a positive size"):
        texture_chart(sheet_face(vertices, uv, triangles), 0)
    with pytest.raises(ValueError, match="sheet: no texel of 8 x 8 lies on the surface; check its uv"):
        texture_chart(sheet_face(vertices, torch.zeros_like(uv), triangles), 8)


def test_the_mouth_of_the_procedural_face_does_not_smear_over_its_chin(whole_face: MorphableModel) -> None:
    chart = texture_chart(whole_face, 128)
    mouth = whole_face.parts == PART_NAMES.index("mouth")
    seams = chart.triangles[chart.uncharted]
    assert 50 < len(seams) < 200
    assert mouth[seams].any(1).all()
    in_mouth = torch.zeros(128 * 128, dtype=torch.bool)
    in_mouth[chart.texels] = mouth[chart.corners].any(1)
    # The chin's rows; the mouth's inside has its own place below.
    assert not in_mouth.view(128, 128)[:104].any()
    assert in_mouth.any()


def test_the_procedural_face_mirrors_onto_itself(whole_face: MorphableModel) -> None:
    chart = texture_chart(whole_face, 96)
    mirror = mirror_map(whole_face, chart)
    places = chart.interpolate(whole_face.mean[None])[0]
    apart = (places[mirror.sources[:, 0]] * torch.tensor([-1.0, 1.0, 1.0]) - places).norm(dim=1)
    assert mirror.weights.sum(1).min() > 0.99
    assert apart.quantile(0.99) < 0.5


def test_the_ict_face_has_a_chart_and_mirrors(shared_data: Path) -> None:
    face = build_face_model("npz", path=shared_data / "face_models" / "ict_facekit_face.npz", identity_modes=1)
    chart = texture_chart(face, 128)
    assert not chart.uncharted.any()
    # Doubled areas of its uv triangles sum to 1.085.
    assert chart.inside.float().mean().item() == pytest.approx(0.5423, abs=0.005)
    mirror = mirror_map(face, chart)
    places = chart.interpolate(face.mean[None])[0]
    apart = (places[mirror.sources[:, 0]] * torch.tensor([-1.0, 1.0, 1.0]) - places).norm(dim=1)
    assert apart.quantile(0.99) < 0.5
