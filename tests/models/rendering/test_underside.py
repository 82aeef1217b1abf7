"""The skin beneath the jaw: a collar in the photo does not stay there, and the face above does."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.face.lighting import ambient_light
from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.rendering.photo_texture import TexturePainter
from models.rendering.render import render
from models.rendering.texture import FILLED, SEEN, Texture
from models.rendering.texture_chart import texture_chart
from models.rendering.underside import find_underside, mend_underside
from tests.sheet_face import sheet, sheet_face

SKIN, COLLAR = (0.72, 0.53, 0.44), (40, 60, 150)
TEXTURE_PX, PHOTO_PX = 192, 320


@pytest.fixture(scope="module")
def plain() -> MorphableModel:
    model = deepcopy(procedural_face(identity_modes=2))
    model.albedo_mean = torch.tensor(SKIN).expand(model.vertex_count, 3).clone()
    return model


@pytest.fixture(scope="module")
def painter(plain: MorphableModel) -> TexturePainter:
    return replace(TexturePainter.build(plain, TEXTURE_PX), lids=())


def painted(model: MorphableModel, painter: TexturePainter, *, collar: bool, up_rad: float = 0.35) -> Texture:
    """The texture from a photo whose lower part, from a little above the chin's edge on, shows something else."""
    seen = to_camera_space(
        model.mean[None],
        rotation=rotation_from_angles(torch.zeros(1), torch.tensor([up_rad]), torch.zeros(1)),
        translation=torch.tensor([[0.0, 0.0, 1250.0]]),
    )
    camera, lighting = crop_camera(1, PHOTO_PX), ambient_light(1)
    drawn = render(seen, model.triangles, albedo=model.albedo_mean[None], lighting=lighting, camera=camera)
    photo = (drawn.image[0].clamp(0.0, 1.0) * 255.0).byte().permute(1, 2, 0).numpy().copy()
    if collar:
        chin = project(model.landmarks(seen), camera)[0, 8, 1]
        photo[int(chin) - 1 :] = COLLAR
    focal, (x, y) = float(camera.focal_px[0]), camera.principal_px[0].tolist()
    return painter.paint(
        photo,
        seen[0],
        intrinsics=torch.tensor([[focal, 0.0, x], [0.0, focal, y], [0.0, 0.0, 1.0]]),
        albedo=model.albedo_mean,
        lighting=lighting[0],
    )


def tint(colour: torch.Tensor) -> torch.Tensor:
    """Blue by red."""
    return colour[2] / colour[0].clamp_min(0.02)


def test_a_collar_does_not_stay_on_the_skin(plain: MorphableModel, painter: TexturePainter) -> None:
    assert painter.underside is not None
    bare = painted(plain, replace(painter, underside=None), collar=True).colour[0]
    found = painted(plain, painter, collar=True).colour[0]
    under = painter.underside.share[0, 0] > 0.95
    assert under.sum() > 100
    assert (tint(bare)[under] > 1.0).float().mean() > 0.2
    assert (tint(found)[under] > 1.0).float().mean() < 0.01
    expected = SKIN[2] / SKIN[0]
    assert (tint(found)[under] - expected).abs().mean() < 0.25 * (tint(bare)[under] - expected).abs().mean()


def test_the_face_above_stays(plain: MorphableModel, painter: TexturePainter) -> None:
    assert painter.underside is not None
    bare, found = (painted(plain, one, collar=True) for one in (replace(painter, underside=None), painter))
    off = (functional.max_pool2d(painter.underside.share, 5, 1, 2)[0, 0] == 0.0) & painter.chart.inside
    assert off.sum() > 0.5 * painter.chart.inside.sum()
    assert torch.allclose(bare.colour[0][:, off], found.colour[0][:, off], atol=1e-6)


def test_skin_that_was_seen_keeps_its_shadow(plain: MorphableModel, painter: TexturePainter) -> None:
    assert painter.underside is not None
    painters = (replace(painter, underside=None), painter)
    bare, found = (painted(plain, one, collar=False, up_rad=1.0) for one in painters)
    squarely = (painter.underside.share[0, 0] > 0.5) & (bare.weight[0] > 0.6)
    assert squarely.sum() > 20
    assert (bare.colour[0] - found.colour[0])[:, squarely].abs().mean() < 0.04


def test_it_lies_below_and_behind_the_jaw(plain: MorphableModel, painter: TexturePainter) -> None:
    assert painter.underside is not None
    points = painter.chart.image(painter.chart.interpolate(plain.mean[None]))[0]
    marks = plain.landmarks(plain.mean[None])[0]
    under = points[:, painter.underside.share[0, 0] > 0.5]
    assert (under[1] < marks[4, 1]).all()
    assert not ((under[1] > marks[8, 1] + 6.0) & (under[0].abs() < 8.0)).any(), "not on the chin"
    assert not (painter.underside.around[0, 0] & (painter.underside.share[0, 0] > 0.5)).any()


def test_without_skin_or_jaw_nothing_changes(painter: TexturePainter) -> None:
    flat = sheet_face(*sheet())
    assert find_underside(flat, texture_chart(flat, 16)) is None
    size = (1, TEXTURE_PX, TEXTURE_PX)
    for kind, value in ((SEEN, 0.0), (FILLED, 0.4)):
        texture = Texture(torch.full((1, 3, *size[1:]), value), torch.ones(size), torch.full(size, kind))
        assert mend_underside(texture, None) is texture
        found = mend_underside(texture, painter.underside)
        assert np.isfinite(found.colour.numpy()).all()
