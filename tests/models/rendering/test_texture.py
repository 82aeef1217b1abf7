from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.face.formats import build_face_model
from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.rendering.texture import (
    FILLED,
    FULL_COSINE,
    LEAST_COSINE,
    MIRRORED,
    OUTSIDE,
    SEEN,
    Texture,
    attribute_texture,
    continue_smoothly,
    draw_texture,
    extract_texture,
    mirror_fill,
)
from models.rendering.texture_chart import MirrorMap, TextureChart, mirror_map, texture_chart
from models.types import Camera
from tests.sheet_face import filling_camera, in_front, sheet, sheet_face

SIZE = 32


def charted(count: int = 5, size_px: int = SIZE) -> tuple[MorphableModel, TextureChart, MirrorMap]:
    face = sheet_face(*sheet(count))
    chart = texture_chart(face, size_px)
    return face, chart, mirror_map(face, chart)


def ripples(size_px: int, count: int = 1) -> Tensor:
    """A smooth colourful texture, another one for every image of a batch."""
    y, x = torch.meshgrid(*[torch.linspace(0, 6.28, size_px)] * 2, indexing="ij")
    waves = [torch.sin(2 * x + image) * torch.cos(3 * y + phase) for image in range(count) for phase in (0.0, 1.0, 2.0)]
    return 0.5 + 0.3 * torch.stack(waves).view(count, 3, size_px, size_px)


def inner(mask: Tensor) -> Tensor:
    """Without the texels beside which the photo ends."""
    return mask[..., 1:-1, 1:-1]


def test_a_sheet_that_fills_the_photo_has_it_as_texture() -> None:
    face, chart, _ = charted()
    photo = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    texture = extract_texture(photo, in_front(face.mean), chart=chart, camera=filling_camera(SIZE))
    torch.testing.assert_close(inner(texture.colour), inner(photo), atol=1e-3, rtol=0)
    assert inner(texture.mask).all()
    torch.testing.assert_close(inner(texture.weight), torch.ones(1, SIZE - 2, SIZE - 2))


def test_colours_between_pixels_are_blended() -> None:
    face, chart, _ = charted(size_px=16)
    # Twice as many pixels as texels, and a centre that lies on a pixel's corner: the mean of four.
    photo = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    texture = extract_texture(photo, in_front(face.mean), chart=chart, camera=filling_camera(32))
    assert texture.mask.all()
    torch.testing.assert_close(texture.colour, functional.avg_pool2d(photo, 2), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("turn_deg", "seen"), [(0.0, True), (60.0, True), (75.0, True), (83.0, False), (100.0, False)])
def test_the_weight_falls_with_the_angle(turn_deg: float, seen: bool) -> None:
    face, chart, _ = charted()
    photo = torch.ones(1, 3, 256, 256)
    texture = extract_texture(photo, in_front(face.mean, turn_deg=turn_deg), chart=chart, camera=filling_camera(256))
    middle = texture.weight[0, 16, 14:18].mean().item()
    assert bool(texture.mask[0, 16, 16]) is seen
    cosine = torch.tensor(turn_deg).deg2rad().cos().item()
    share = min(max((cosine - LEAST_COSINE) / (FULL_COSINE - LEAST_COSINE), 0.0), 1.0)
    assert middle == pytest.approx(share**2 * (3 - 2 * share), abs=0.02)


def test_what_is_hidden_is_not_taken() -> None:
    behind, uv, triangles = sheet(5)
    # A strip 20 mm before the sheet, from x = -20 mm to 10 mm, in its own corner of the texture.
    before = behind * torch.tensor([0.3, 1.2, 1.0]) + torch.tensor([-5.0, 0.0, 20.0])
    face = sheet_face(
        torch.cat([behind, before]), torch.cat([0.8 * uv, 0.1 * uv + 0.85]), torch.cat([triangles, triangles + 25])
    )
    chart = texture_chart(face, 100)
    vertices, camera = in_front(face.mean), filling_camera(160)
    across = project(vertices, camera)[0, :, 0]
    left, right = across[25:].min(), across[25:].max()
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 160, 160).clone()
    column = torch.arange(160) + 0.5
    red[:, :, (column > left) & (column < right)] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    texture = extract_texture(red[None], vertices, chart=chart, camera=camera)
    # Columns of the sheet behind: texel c shows pixel 2 (c + 0.5). Half a pixel beside the strip colours still mix.
    places = 2.0 * (torch.arange(80) + 0.5)
    hidden, shown = (places > left - 0.4) & (places < right + 0.4), (places < left - 1.6) | (places > right + 1.6)
    rows = texture.mask[0, 22:98, :80]
    assert not rows[:, hidden].any()
    assert rows[:, shown & (places > 1) & (places < 159)].all()
    assert 20 < int(hidden.sum()) < 30
    colour = texture.colour[0, :, 22:98, :80]
    torch.testing.assert_close(colour[0][rows], torch.ones(int(rows.sum())))
    assert not colour[2].any()
    assert not texture.colour[0, :, 22:98, :80][:, ~rows].any()
    assert (texture.origin[0, 22:98, :80][~rows] == FILLED).all()
    assert (texture.origin[0, :15, :80] == OUTSIDE).all()


def test_masked_pixels_are_not_taken() -> None:
    face, chart, _ = charted()
    mask = torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    mask[:, :, :10] = False
    texture = extract_texture(
        torch.ones(1, 3, SIZE, SIZE), in_front(face.mean), chart=chart, camera=filling_camera(SIZE), photo_mask=mask
    )
    assert not texture.mask[..., :10].any()
    assert texture.mask[:, 1:-1, 11:-1].all()


@pytest.fixture(scope="module")
def whole_face() -> MorphableModel:
    return procedural_face(identity_modes=2)


def turned(face: MorphableModel, yaw_deg: tuple[float, ...]) -> Tensor:
    yaw = torch.tensor(yaw_deg).deg2rad()
    rotation = rotation_from_angles(yaw, torch.zeros_like(yaw), torch.zeros_like(yaw))
    translation = torch.tensor([0.0, 0.0, 1000.0]).expand(len(yaw), 3)
    return to_camera_space(face.mean.expand(len(yaw), -1, -1), rotation=rotation, translation=translation)


def round_trip(face: MorphableModel, yaw_deg: tuple[float, ...]) -> tuple[TextureChart, Tensor, Tensor, Texture]:
    chart = texture_chart(face, 128)
    painted = ripples(128, len(yaw_deg))
    camera = crop_camera(len(yaw_deg), 224)
    photo = draw_texture(painted, turned(face, yaw_deg), chart=chart, camera=camera)
    # A background that would show wherever it is taken for the face.
    photo = torch.where((photo == 0).all(1, keepdim=True), torch.tensor([3.0, -3.0, 3.0])[:, None, None], photo)
    return chart, painted, photo, extract_texture(photo, turned(face, yaw_deg), chart=chart, camera=camera)


def test_a_texture_survives_being_drawn_and_extracted(whole_face: MorphableModel) -> None:
    _, painted, _, texture = round_trip(whole_face, (-40.0, 0.0, 20.0))
    for image in range(3):
        difference = (texture.colour[image] - painted[image]).abs().amax(0)[texture.mask[image]]
        assert difference.mean() < 0.003
        assert difference.quantile(0.99) < 0.015
        # Lid and eye touch within the tolerance, so a texel or two of one takes the other's colour.
        assert (difference > 0.1).sum() <= 4
    share = texture.mask.float().mean((1, 2))
    assert share.min() > 0.3
    # Turned to the right, the photo shows the left of the face: u is larger there.
    assert texture.mask[0, 30:60, 64:].float().mean() > texture.mask[0, 30:60, :64].float().mean() + 0.3


def test_every_image_of_a_batch_is_its_own(whole_face: MorphableModel) -> None:
    chart, _, photo, together = round_trip(whole_face, (-40.0, 20.0))
    mirror = mirror_map(whole_face, chart)
    albedo = attribute_texture(whole_face.albedo_mean[None], chart)
    filled = mirror_fill(together, chart=chart, mirror=mirror, fallback=albedo.expand(2, -1, -1, -1))
    for image, yaw_deg in enumerate((-40.0, 20.0)):
        one = slice(image, image + 1)
        alone = extract_texture(photo[one], turned(whole_face, (yaw_deg,)), chart=chart, camera=crop_camera(1, 224))
        torch.testing.assert_close(alone.colour, together.colour[one])
        assert torch.equal(alone.origin, together.origin[one])
        again = mirror_fill(alone, chart=chart, mirror=mirror, fallback=albedo)
        torch.testing.assert_close(again.colour, filled.colour[one], atol=1e-4, rtol=0)
        assert torch.equal(again.origin, filled.origin[one])


def test_a_filled_face_looks_the_same_from_the_other_side(whole_face: MorphableModel) -> None:
    # Lit evenly and symmetric, so that the mirror image is the truth.
    chart = texture_chart(whole_face, 128)
    painted = attribute_texture(whole_face.albedo_mean[None], chart)
    camera = crop_camera(1, 192)
    photo = draw_texture(painted, turned(whole_face, (35.0,)), chart=chart, camera=camera)
    texture = extract_texture(photo, turned(whole_face, (35.0,)), chart=chart, camera=camera)
    filled = mirror_fill(texture, chart=chart, mirror=mirror_map(whole_face, chart), fallback=painted)
    other = turned(whole_face, (-35.0,))
    truth = draw_texture(painted, other, chart=chart, camera=camera)
    bare = draw_texture(texture.colour, other, chart=chart, camera=camera)
    drawn = draw_texture(filled.colour, other, chart=chart, camera=camera)
    assert (drawn - truth).abs().mean() < 0.004
    assert (bare - truth).abs().mean() > 0.05
    assert (filled.origin == MIRRORED).float().mean() > 0.15


def seen_by_half(colour: Tensor, chart: TextureChart, columns: slice) -> Texture:
    """As if the photo had shown these columns of the texture squarely, and nothing else."""
    seen = torch.zeros(colour.shape[0], SIZE, SIZE, dtype=torch.bool)
    seen[..., columns] = True
    seen &= chart.inside
    origin = torch.where(seen, SEEN, torch.where(chart.inside, FILLED, OUTSIDE))
    return Texture(colour=colour * seen[:, None], weight=seen.float(), origin=origin)


def test_the_mirrored_half_is_the_flipped_other_half() -> None:
    _, chart, mirror = charted()
    painted = ripples(SIZE)
    filled = mirror_fill(seen_by_half(painted, chart, slice(SIZE // 2, None)), chart=chart, mirror=mirror)
    torch.testing.assert_close(filled.colour[..., SIZE // 2 :], painted[..., SIZE // 2 :])
    torch.testing.assert_close(filled.colour, filled.colour.flip(3), atol=2e-3, rtol=0)
    expected = torch.full((1, SIZE, SIZE), SEEN)
    expected[..., : SIZE // 2] = MIRRORED
    assert torch.equal(filled.origin, expected)


def test_mirror_images_meet_the_photo_without_a_step() -> None:
    _, chart, mirror = charted()
    # Even colour under a light that falls to the left; the photo shows all but the left quarter.
    lit = torch.linspace(0.3, 0.9, SIZE).expand(1, 3, SIZE, SIZE)
    filled = mirror_fill(seen_by_half(lit, chart, slice(SIZE // 4, None)), chart=chart, mirror=mirror)
    # Taken as it is, the mirror image of the far side would be lighter by 0.3.
    step = filled.colour.diff(dim=3).abs()
    assert step.max() < 0.05
    torch.testing.assert_close(filled.colour[..., SIZE // 4 + 2 :], lit[..., SIZE // 4 + 2 :])
    assert (filled.origin[..., : SIZE // 4] == MIRRORED).all()


def test_what_neither_side_shows_is_the_fallback_under_the_photos_light() -> None:
    _, chart, mirror = charted()
    pattern = ripples(SIZE)
    strip = slice(SIZE // 2 + 6, SIZE // 2 + 10)
    filled = mirror_fill(seen_by_half(0.5 * pattern, chart, strip), chart=chart, mirror=mirror, fallback=pattern)
    counts = [int((filled.origin == origin).sum()) for origin in (OUTSIDE, SEEN, MIRRORED, FILLED)]
    assert counts == [0, 4 * SIZE, 4 * SIZE, (SIZE - 8) * SIZE]
    # Half the light: exact but for the constant that keeps black dividable.
    right = filled.colour[..., SIZE // 2 + 10 :]
    assert (right - 0.5 * pattern[..., SIZE // 2 + 10 :]).abs().max() < 0.05
    assert (right - pattern[..., SIZE // 2 + 10 :]).abs().mean() > 0.2


def test_without_a_fallback_the_colours_go_on() -> None:
    _, chart, mirror = charted()
    colour = torch.tensor([0.2, 0.4, 0.8])[None, :, None, None].expand(1, 3, SIZE, SIZE)
    filled = mirror_fill(seen_by_half(colour, chart, slice(20, 24)), chart=chart, mirror=mirror)
    torch.testing.assert_close(filled.colour, colour)
    nothing = mirror_fill(seen_by_half(colour, chart, slice(0, 0)), chart=chart, mirror=mirror)
    assert (nothing.origin == FILLED).all()
    assert not nothing.colour.any()


def test_colours_reach_beyond_the_surface() -> None:
    vertices, uv, triangles = sheet(5)
    face = sheet_face(vertices, 0.25 + 0.5 * uv, triangles)
    chart = texture_chart(face, SIZE)
    colour = torch.full((1, 3, SIZE, SIZE), 0.6)
    filled = mirror_fill(seen_by_half(colour, chart, slice(0, SIZE)), chart=chart, mirror=mirror_map(face, chart))
    torch.testing.assert_close(filled.colour, colour)
    assert torch.equal(filled.origin == OUTSIDE, ~chart.inside[None])


def test_drawing_between_texels_is_bilinear_and_empty_pixels_are_zero() -> None:
    face, chart, _ = charted(size_px=4)
    texture = torch.arange(4.0).expand(1, 1, 4, 4) + 1.0
    camera = filling_camera(8)
    wider = Camera(camera.focal_px / 2, camera.principal_px, camera.size)
    drawn = draw_texture(texture, in_front(face.mean), chart=chart, camera=wider)[0, 0]
    torch.testing.assert_close(drawn[2:6, 2:6], texture[0, 0])
    assert not drawn[:2].any()
    assert not drawn[:, 6:].any()
    fine = draw_texture(texture, in_front(face.mean), chart=chart, camera=camera)[0, 0]
    torch.testing.assert_close(fine[3], torch.tensor([1.0, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4.0]))


def test_triangles_without_texels_show_vertex_colours() -> None:
    vertices, uv, triangles = sheet(2)
    face = sheet_face(
        torch.cat([vertices, vertices + torch.tensor([0.0, 0.0, 5.0])]),
        torch.cat([uv, uv + torch.tensor([2.0, 0.0])]),
        torch.cat([triangles, triangles + 4]),
    )
    chart = texture_chart(face, 8)
    colours = torch.full((1, 8, 3), 0.25)
    drawn = draw_texture(
        torch.ones(1, 3, 8, 8), in_front(face.mean), chart=chart, camera=filling_camera(8), uncharted_colours=colours
    )
    torch.testing.assert_close(drawn, torch.full((1, 3, 8, 8), 0.25))


def test_gradients_of_drawing() -> None:
    face, chart, _ = charted(count=3, size_px=4)
    camera = Camera(torch.tensor([40.0]).double(), torch.tensor([[2.6, 2.4]]).double(), (5, 5))
    vertices = in_front(face.mean, turn_deg=20.0).double()
    texture = ripples(4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: draw_texture(t, vertices, chart=chart, camera=camera), (texture,))


def test_continuing_keeps_what_is_known_and_invents_no_extremes() -> None:
    generator = torch.Generator().manual_seed(4)
    values = torch.rand(2, 3, 13, 22, generator=generator)
    known = (torch.rand(2, 1, 13, 22, generator=generator) < 0.1).float()
    smooth = continue_smoothly(values, known)
    there = known.expand_as(values) > 0
    assert torch.equal(smooth[there], values[there])
    for image in range(2):
        for channel in range(3):
            given = values[image, channel][there[image, channel]]
            assert smooth[image, channel].min() >= given.min() - 1e-6
            assert smooth[image, channel].max() <= given.max() + 1e-6


def test_continuing_is_a_membrane() -> None:
    values = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
    known = torch.zeros(1, 1, 16, 16)
    known[..., 0] = known[..., -1] = 1.0
    # Between two walls a membrane is a ramp.
    torch.testing.assert_close(continue_smoothly(values, known), values, atol=0.06, rtol=0)


def test_the_ict_face_is_extracted_and_filled(shared_data: Path) -> None:
    path = shared_data / "face_models" / "ict_facekit_face.npz"
    face = build_face_model("npz", path=path, identity_modes=1)
    _, painted, _, texture = round_trip(face, (30.0,))
    assert (texture.colour - painted).abs()[:, :, texture.mask[0]].mean() < 0.005
    assert texture.mask.float().mean() > 0.25
