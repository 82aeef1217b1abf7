from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.face.camera import project, rotation_from_angles, to_camera_space
from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.rendering.relief import COLUMNS, ROWS, HeadRelief, carry_points, head_relief, sheet_places, turn_about
from models.rendering.texture import attribute_texture, draw_texture
from models.rendering.texture_chart import texture_chart
from models.types import Camera

SIZE = 240


@pytest.fixture(scope="module")
def whole_face() -> MorphableModel:
    return procedural_face(identity_modes=2)


def photo_camera(count: int = 1) -> Camera:
    """Holds a head with much around it."""
    return Camera(torch.full((count,), 500.0), torch.full((count, 2), SIZE / 2), (SIZE, SIZE))


def placed(face: MorphableModel, yaw_deg: float, *, roll_deg: float = 0.0) -> Tensor:
    angles = torch.tensor([[yaw_deg], [0.0], [roll_deg]]).deg2rad()
    return to_camera_space(
        face.mean[None], rotation=rotation_from_angles(*angles), translation=torch.tensor([[0.0, 0.0, 1000.0]])
    )


def relief_of(face: MorphableModel, vertices: Tensor) -> HeadRelief:
    return head_relief(vertices, face.landmarks(vertices), face.triangles, photo_camera(), roundness=torch.ones(1))


def yaw_turn(degrees: float) -> Tensor:
    """In camera axes, whose y axis points down: a head that turns to its own left."""
    return torch.tensor([[0.0, -math.radians(degrees), 0.0]])


def test_a_point_turns_by_its_share() -> None:
    points = torch.tensor([[[2.0, 0.0, 5.0], [2.0, 0.0, 5.0], [2.0, 3.0, 5.0]]])
    centre, turn = torch.tensor([[1.0, 0.0, 5.0]]), torch.tensor([[0.0, 0.0, math.pi / 2]])
    turned = turn_about(points, centre, turn, torch.tensor([[1.0, 0.5, 0.0]]))
    half = math.sqrt(0.5)
    expected = torch.tensor([[[1.0, 1.0, 5.0], [1.0 + half, half, 5.0], [2.0, 3.0, 5.0]]])
    torch.testing.assert_close(turned, expected, atol=1e-6, rtol=0)


def test_the_sheet_lies_on_the_face_and_behind_it_around(whole_face: MorphableModel) -> None:
    vertices = placed(whole_face, 0.0)
    relief, landmarks = relief_of(whole_face, vertices), whole_face.landmarks(vertices)
    front = landmarks[:, [27, 28, 29, 30, 33, 51, 57]]
    torch.testing.assert_close(relief.depth_at(project(front, photo_camera())), front[..., 2], atol=4.0, rtol=0)
    beside = project(landmarks[:, [0, 16]], photo_camera()) + torch.tensor([[-20.0, 0.0], [20.0, 0.0]])
    assert (relief.depth_at(beside) > landmarks[:, [0, 16], 2] + 20.0).all()
    assert project(relief.centre[:, None], photo_camera())[0, 0] == pytest.approx([120.0, 105.0], abs=20.0)


def test_the_face_turns_and_the_end_of_the_sheet_stays(whole_face: MorphableModel) -> None:
    vertices = placed(whole_face, 20.0, roll_deg=30.0)
    relief = relief_of(whole_face, vertices)
    share = relief.share.view(ROWS, COLUMNS)
    for end in (share[0], share[-1], share[:, 0], share[:, -1]):
        assert end.abs().max() == 0.0
    near = (relief.pixels[0][:, None] - project(whole_face.landmarks(vertices), photo_camera())).norm(dim=2).amin(1)
    assert relief.share[0, near < 1.0].min() > 0.999


def test_without_a_turn_every_pixel_stays(whole_face: MorphableModel) -> None:
    relief = relief_of(whole_face, placed(whole_face, 25.0))
    places, there = sheet_places(relief.turned(torch.zeros(1, 3)), relief.pixels, photo_camera())
    y, x = torch.meshgrid(*[torch.arange(SIZE) + 0.5] * 2, indexing="ij")
    low, high = relief.pixels[0].amin(0), relief.pixels[0].amax(0)
    inside = (x > low[0]) & (x < high[0]) & (y > low[1]) & (y < high[1])
    assert inside.float().mean() > 0.5
    assert there[0][inside].all()
    assert (places[0] - torch.stack([x, y]))[:, there[0]].abs().max() < 0.1


@pytest.mark.parametrize(("yaw_deg", "turn_deg"), [(0.0, 60.0), (0.0, -60.0), (30.0, 55.0), (-20.0, -60.0)])
def test_no_hole_opens(whole_face: MorphableModel, yaw_deg: float, turn_deg: float) -> None:
    relief = relief_of(whole_face, placed(whole_face, yaw_deg))
    _, before = sheet_places(relief.nodes, relief.pixels, photo_camera())
    _, after = sheet_places(relief.turned(yaw_turn(turn_deg)), relief.pixels, photo_camera())
    assert (before & ~after).sum() == 0


@pytest.mark.parametrize("turn_deg", [-40.0, 0.0, 40.0])
def test_points_turn_with_the_face_and_keep_their_offset(whole_face: MorphableModel, turn_deg: float) -> None:
    vertices = placed(whole_face, 0.0)
    relief, landmarks = relief_of(whole_face, vertices), whole_face.landmarks(vertices)
    turn = yaw_turn(turn_deg)
    truth = project(turn_about(landmarks, relief.centre, turn, torch.ones(1, 68)), photo_camera())
    seen = project(landmarks, photo_camera())
    carried = carry_points(relief, seen, landmarks, turn=turn, camera=photo_camera())
    inner = (carried - truth)[0, 17:].norm(dim=1)
    assert inner.mean() < 0.5
    assert inner.max() < 3.0
    offset = torch.tensor([3.0, 2.0])
    nose = slice(27, 31)
    moved = carry_points(relief, seen + offset, landmarks, turn=turn, camera=photo_camera())
    along = (moved - carried)[0, nose].mean(0)
    expected = offset * torch.tensor([math.cos(math.radians(turn_deg)), 1.0])
    assert (along - expected).abs().max() < 2.5


def test_a_turned_photo_resembles_a_photo_of_the_turned_head(whole_face: MorphableModel) -> None:
    chart = texture_chart(whole_face, 256)
    albedo = attribute_texture(whole_face.albedo_mean[None], chart)
    vertices, turn = placed(whole_face, 10.0), yaw_turn(25.0)
    relief = relief_of(whole_face, vertices)
    before = draw_texture(albedo, vertices, chart=chart, camera=photo_camera())
    turned = turn_about(vertices, relief.centre, turn, torch.ones(vertices.shape[:2]))
    truth = draw_texture(albedo, turned, chart=chart, camera=photo_camera())
    places, _ = sheet_places(relief.turned(turn), relief.pixels, photo_camera())
    grid = places.permute(0, 2, 3, 1) / SIZE * 2.0 - 1.0
    drawn = torch.nn.functional.grid_sample(before, grid, align_corners=False)
    middle = project(whole_face.landmarks(turned), photo_camera())[0, 17:]
    (left, top), (right, bottom) = middle.amin(0).long(), middle.amax(0).long()
    window = (..., slice(top, bottom), slice(left, right))
    error = (drawn[window] - truth[window]).abs().mean()
    assert error < 0.3 * (before[window] - truth[window]).abs().mean()
