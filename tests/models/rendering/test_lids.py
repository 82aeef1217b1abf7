"""Lids in textures: brows, lashes and eyes of the photo do not stay on them, and the rest of the face does."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.face.camera import crop_camera, to_camera_space
from models.face.inner_parts import find_openings
from models.face.lighting import ambient_light
from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.rendering.lids import find_lids, mend_lids, upper_rim
from models.rendering.photo_texture import TexturePainter
from models.rendering.render import render
from models.rendering.texture import FILLED, SEEN, Texture, attribute_texture
from models.rendering.texture_chart import texture_chart
from tests.sheet_face import sheet, sheet_face

SKIN, BROW = (0.72, 0.53, 0.44), (0.12, 0.08, 0.06)
TEXTURE_PX, PHOTO_PX = 192, 320


@pytest.fixture(scope="module")
def mask() -> MorphableModel:
    """The procedural face with holes for eyes and mouth, plain skin, and broad dark brows close above the lids."""
    model = deepcopy(procedural_face(identity_modes=2))
    inner = model.part("eyes") | model.part("mouth")
    model.triangles = model.triangles[~inner[model.triangles].any(1)]
    model.albedo_mean = torch.tensor(SKIN).expand(model.vertex_count, 3).clone()
    marks, place = model.landmarks(model.mean[None])[0], model.mean
    low, high = marks[36:48, 1].max() + 4.5, marks[17:27, 1].max() + 4.0
    brows = (place[:, 1] > low) & (place[:, 1] < high) & (place[:, 0].abs() > 12.0) & (place[:, 2] > 0.0)
    model.albedo_mean[brows] = torch.tensor(BROW)
    return model


@pytest.fixture(scope="module")
def painter(mask: MorphableModel) -> TexturePainter:
    return TexturePainter.build(mask, TEXTURE_PX)


def painted(mask: MorphableModel, painter: TexturePainter, *, down_px: int) -> Texture:
    """The texture from a photo in which the face lies lower than the network said; its eyes are dark holes."""
    seen = to_camera_space(
        mask.mean[None], rotation=torch.zeros(1, 3), translation=torch.tensor([[0.0, 0.0, 1250.0]])
    )  # fmt: skip
    camera, lighting = crop_camera(1, PHOTO_PX), ambient_light(1)
    drawn = render(seen, mask.triangles, albedo=mask.albedo_mean[None], lighting=lighting, camera=camera)
    photo = (drawn.image[0].clamp(0.0, 1.0) * 255.0).byte().permute(1, 2, 0).numpy()
    focal, (x, y) = float(camera.focal_px[0]), camera.principal_px[0].tolist()
    return painter.paint(
        np.roll(photo, down_px, axis=0),
        seen[0],
        intrinsics=torch.tensor([[focal, 0.0, x], [0.0, focal, y], [0.0, 0.0, 1.0]]),
        albedo=mask.albedo_mean,
        lighting=lighting[0],
    )


@pytest.mark.parametrize("down_px", [3, -3])
def test_lids_are_skin_although_the_photo_is_off(mask: MorphableModel, painter: TexturePainter, down_px: int) -> None:
    bare = painted(mask, replace(painter, lids=()), down_px=down_px).colour[0]
    found = painted(mask, painter, down_px=down_px).colour[0]
    truth = torch.tensor(SKIN)[:, None, None]
    for eye in painter.lids:
        # Without the lashes, and in ratios of colours, for the light on a lid is not worked out here.
        lid = (eye.share[0, 0] > 0.9) & (eye.lashes[0, 0] < 0.2)
        assert lid.sum() > 30

        def darker(colour: torch.Tensor, lid: torch.Tensor = lid) -> torch.Tensor:
            return (1.0 - colour / truth).abs().amax(0)[lid]

        assert darker(bare).quantile(0.95) > 0.4, "brows and eyes lie on the lids"
        assert darker(found).quantile(0.95) < 0.25
        assert darker(found).mean() < 0.5 * darker(bare).mean()


def test_the_rest_of_the_face_stays(mask: MorphableModel, painter: TexturePainter) -> None:
    bare, found = (painted(mask, one, down_px=0) for one in (replace(painter, lids=()), painter))
    off = painter.chart.inside.clone()
    for eye in painter.lids:
        near = torch.maximum(eye.share, eye.around.float())
        off &= functional.max_pool2d(near, 9, 1, 4)[0, 0] == 0.0
    assert 0.8 < off.sum() / painter.chart.inside.sum() < 0.995
    assert torch.equal(bare.colour[0][:, off], found.colour[0][:, off])
    assert torch.equal(bare.weight, found.weight)
    brows = attribute_texture(mask.albedo_mean[None], painter.chart)[0, 0] < 0.2
    brows &= painter.chart.inside & (found.weight[0] > 0.9)
    assert brows.sum() > 50
    assert (found.colour[0][0][brows] < 0.4).float().mean() > 0.8, "brows stay where they are"


def test_lids_lie_at_the_eyes(mask: MorphableModel, painter: TexturePainter) -> None:
    assert len(painter.lids) == 2
    marks = mask.landmarks(mask.mean[None])[0]
    points = painter.chart.image(painter.chart.interpolate(mask.mean[None]))[0]
    for eye, eyelid in zip(painter.lids, (slice(42, 48), slice(36, 42)), strict=True):
        lid = eye.share[0, 0] > 0.5
        centre = marks[eyelid].mean(0)
        away = (points[:, lid] - centre[:, None]).norm(dim=0)
        assert away.max() < 30.0
        assert not (lid & eye.around[0, 0]).any()
        lashes = points[:, eye.lashes[0, 0] > 0.9]
        assert lashes.shape[1] > 3
        assert (lashes[1] > centre[1]).all(), "on the upper lid alone"


def test_the_rim_of_a_thick_lid_lies_before_its_edge() -> None:
    turn = np.linspace(0.0, 2.0 * np.pi, 16, endpoint=False)

    def ring(wide: float, high: float, depth: float) -> np.ndarray:
        return np.stack([wide * np.cos(turn), high * np.sin(turn), np.full(16, depth)], 1)

    # The edge lies inside, the rim lower and before it, then the lid goes up again.
    mean = np.concatenate([ring(14.0, 6.0, 0.0), ring(14.0, 5.0, 2.0), ring(15.0, 7.0, 3.0), ring(16.0, 9.0, 3.0)])
    rows = np.arange(64).reshape(4, 16)
    quads = [
        (rows[k, i], rows[k, (i + 1) % 16], rows[k + 1, (i + 1) % 16], rows[k + 1, i])
        for k in range(3)
        for i in range(16)
    ]
    triangles = np.array([corner for a, b, c, d in quads for corner in ((a, b, c), (a, c, d))])
    rim = upper_rim(mean, triangles, rows[0])
    assert np.allclose(rim[:, 2], 2.0)
    assert (rim[:, 1] > 0.0).all()
    assert (np.diff(rim[:, 0]) > 0.0).all()


def test_where_no_skin_is_known_nothing_changes(painter: TexturePainter) -> None:
    black = torch.zeros(1, 3, TEXTURE_PX, TEXTURE_PX)
    noise = torch.rand(1, 3, TEXTURE_PX, TEXTURE_PX, generator=torch.Generator().manual_seed(0)).round()
    origin = torch.where(painter.chart.inside, SEEN, 0)[None]
    for colour in (black, noise):
        texture = Texture(colour=colour, weight=torch.ones(1, TEXTURE_PX, TEXTURE_PX), origin=origin)
        found = mend_lids(texture, painter.lids)
        assert torch.isfinite(found.colour).all()
        assert (found.colour >= 0.0).all()
        assert (found.colour <= 1.0).all()
    unseen = Texture(
        colour=black, weight=torch.zeros(1, TEXTURE_PX, TEXTURE_PX), origin=torch.full_like(origin, FILLED)
    )
    assert torch.isfinite(mend_lids(unseen, painter.lids).colour).all()


def test_models_that_do_not_blink_have_no_lids() -> None:
    model = sheet_face(*sheet())
    assert find_lids(model, texture_chart(model, 16)) == ()


def test_a_model_with_eyes_of_its_own_has_lids_too() -> None:
    model = procedural_face(identity_modes=2)
    assert not find_openings(model).any
    own = TexturePainter.build(model, 96)
    assert len(own.lids) == 2
    eyes = own.chart.image(own.chart.interpolate(model.part("eyes").float()[None, :, None]))[0, 0] > 0.5
    assert not any((eye.share[0, 0][eyes] > 0.0).any() for eye in own.lids)


def test_lashes_beside_the_lids_go_and_wrinkles_stay(painter: TexturePainter) -> None:
    skin = torch.tensor(SKIN).view(1, 3, 1, 1).expand(1, 3, TEXTURE_PX, TEXTURE_PX)
    origin = torch.where(painter.chart.inside, SEEN, 0)[None]
    spot = torch.stack([(eye.corners > 0.6) & (eye.share == 0.0) for eye in painter.lids]).any(0)
    assert spot.sum() > 10
    for darkness, least, most in ((0.3, 0.0, 0.4), (0.9, 0.7, 1.0)):
        texture = Texture(torch.where(spot, darkness * skin, skin), torch.ones(1, TEXTURE_PX, TEXTURE_PX), origin)
        found = mend_lids(texture, painter.lids)
        left = (skin - found.colour).clamp_min(0.0)[spot.expand(1, 3, -1, -1)].mean()
        was = (skin - texture.colour)[spot.expand(1, 3, -1, -1)].mean()
        assert least <= left / was <= most + 1e-4
