"""The default face: sizes that anthropometry gives, identities that differ as people do, colours that are colours."""

from __future__ import annotations

import pytest
import torch

from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face

IDENTITIES = 60

# iBUG point under the mirror image.
FLIPPED = [
    *range(16, -1, -1),
    *range(26, 16, -1),
    *(27, 28, 29, 30, 35, 34, 33, 32, 31),
    *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
    *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),
    *(64, 63, 62, 61, 60, 67, 66, 65),
]


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return procedural_face()


@pytest.fixture(scope="module")
def points(model: MorphableModel) -> torch.Tensor:
    return model.landmarks(model.mean[None])[0]


def random_faces(model: MorphableModel, seed: int) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    return model.vertices(torch.randn(IDENTITIES, model.identity_size, generator=stream))


def align_rigidly(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Kabsch: rotation and translation without scale."""
    moving, fixed = moving - moving.mean(0), fixed - fixed.mean(0)
    left, _, right = torch.linalg.svd(moving.T @ fixed)
    sign = torch.ones(3)
    sign[2] = torch.linalg.det(left @ right).sign()
    return moving @ (left @ torch.diag(sign) @ right) - fixed


def rms(difference: torch.Tensor) -> torch.Tensor:
    return difference.square().sum(-1).mean(-1).sqrt()


# Smoke


def test_sizes_and_names(model: MorphableModel) -> None:
    assert 2000 <= model.vertex_count <= 4000
    assert (model.identity_size, model.expression_size, model.albedo_size) == (40, 52, 10)
    assert (model.name, model.licence) == ("procedural", "Apache-2.0")


def test_fewer_modes_are_the_first_of_more(model: MorphableModel) -> None:
    few = procedural_face(identity_modes=5)
    torch.testing.assert_close(few.identity_basis, model.identity_basis[:5])


def test_every_build_is_the_same(model: MorphableModel) -> None:
    assert procedural_face().content_hash() == model.content_hash()


# Shape


@pytest.mark.parametrize(
    ("name", "first", "second", "expected_mm", "tolerance_mm"),
    [
        ("face height n-gn", 27, 8, 118.0, 3.0),
        ("intercanthal en-en", 42, 39, 32.0, 1.0),
        ("biocular ex-ex", 45, 36, 90.0, 2.0),
        ("nose height n-sn", 27, 33, 52.0, 2.0),
        ("mouth width ch-ch", 48, 54, 52.0, 2.0),
        ("philtrum sn-ls", 33, 51, 15.0, 1.5),
        ("nose protrusion sn-prn", 33, 30, 19.5, 2.5),
    ],
)
def test_distances_follow_anthropometry(
    points: torch.Tensor, name: str, first: int, second: int, expected_mm: float, tolerance_mm: float
) -> None:
    assert float((points[first] - points[second]).norm()) == pytest.approx(expected_mm, abs=tolerance_mm), name


def test_widths_follow_anthropometry(model: MorphableModel) -> None:
    x, y, z = model.mean[model.part("skin")].T
    # The zygion lies in front of the ear; behind it the mesh goes on to the tragus, about 140 mm from side to side.
    zygoma = x[(z > -30.0) & (y > 0.0) & (y < 35.0)]
    assert float(zygoma.max() - zygoma.min()) == pytest.approx(135.0, abs=3.0)
    wings = x[(z > 42.0) & (y > -14.0) & (y < -2.0)]
    assert float(wings.max() - wings.min()) == pytest.approx(34.0, abs=3.0)


def test_pupils_look_ahead_at_the_mean_distance(model: MorphableModel) -> None:
    eyes = model.mean[model.part("eyes")]
    left, right = eyes[eyes[:, 0] > 0.0], eyes[eyes[:, 0] < 0.0]
    pupils = torch.stack([left[left[:, 2].argmax()], right[right[:, 2].argmax()]])
    assert float((pupils[0] - pupils[1]).norm()) == pytest.approx(63.0, abs=1.0)


def test_landmarks_mirror_each_other(points: torch.Tensor) -> None:
    torch.testing.assert_close(points[FLIPPED] * torch.tensor([-1.0, 1.0, 1.0]), points)
    assert len({tuple(point) for point in points[:60].tolist()}) == 60


def test_landmarks_lie_where_ibug_has_them(points: torch.Tensor) -> None:
    x, y, z = points.T
    assert (x[:8] < 0.0).all(), "the image's left is the subject's right"
    assert (x[9:17] > 0.0).all()
    assert (x[:17].diff() > 0.0).all()
    assert int(y[:17].argmin()) == 8
    assert float((y[[0, 16]] - y[36:48].mean()).abs().max()) < 8.0, "the contour starts at eye level"
    assert int(z.argmax()) == 30, "the tip of the nose is the foremost point"
    assert (y[[37, 38, 43, 44]] > y[[41, 40, 47, 46]]).all()
    assert (y[17:27] > y[36:48].max()).all()
    assert (y[48:68] < y[31:36].min()).all()
    assert float((points[61:64] - points[[67, 66, 65]]).norm(dim=1).max()) < 0.5, "lips are closed at rest"


def test_parts_are_where_they_belong(model: MorphableModel) -> None:
    for name, least in (("skin", 1500), ("lips", 80), ("brows", 60), ("eyes", 200), ("mouth", 150)):
        assert int(model.part(name).sum()) >= least, name
    inside, lips = model.mean[model.part("mouth")], model.mean[model.part("lips")]
    assert float(inside[:, 2].max()) < float(lips[:, 2].max())
    assert model.part("lips")[model.landmark_vertices[48:68]].all()
    assert model.part("brows")[model.landmark_vertices[18:26]].all()


def test_texture_coordinates_lie_in_the_unit_square(model: MorphableModel) -> None:
    assert float(model.uv.min()) >= 0.0
    assert float(model.uv.max()) <= 1.0


# Identity


def test_random_people_differ_by_millimetres(model: MorphableModel) -> None:
    distance = rms(random_faces(model, 1) - random_faces(model, 2))
    assert 6.0 <= float(distance.mean()) <= 9.0


def test_people_differ_in_shape_not_only_in_place(model: MorphableModel) -> None:
    aligned = torch.stack([rms(align_rigidly(face, model.mean)) for face in random_faces(model, 3)])
    assert 2.5 <= float(aligned.mean()) <= 6.0


def test_modes_come_by_falling_variance_and_do_not_overlap(model: MorphableModel) -> None:
    flat = model.identity_basis.double().flatten(1)
    lengths = flat.norm(dim=1)
    assert (lengths.diff() <= 1e-6).all()
    cosine = (flat / lengths[:, None]) @ (flat / lengths[:, None]).T
    assert float((cosine - torch.eye(len(flat))).abs().max()) < 0.05


def test_faces_stay_nearly_symmetric(model: MorphableModel) -> None:
    faces = model.landmarks(random_faces(model, 4))
    mirrored = faces[:, FLIPPED] * torch.tensor([-1.0, 1.0, 1.0])
    asymmetry = torch.stack([rms(align_rigidly(face, other)) for face, other in zip(faces, mirrored, strict=True)])
    assert 0.2 <= float(asymmetry.mean()) <= 2.0


def test_eyeballs_stay_balls_and_behind_their_lids(model: MorphableModel) -> None:
    left_eye = torch.nonzero(model.part("eyes") & (model.mean[:, 0] > 0.0))[:, 0]
    for face in random_faces(model, 5):
        assert float(rms(align_rigidly(face[left_eye], model.mean[left_eye]))) < 0.6
        lid = face[model.landmark_vertices[[43, 44]]]
        nearest = torch.cdist(lid[:, :2], face[left_eye][:, :2]).argmin(1)
        assert (lid[:, 2] > face[left_eye][nearest, 2]).all(), "an eyeball pokes through its lid"


def test_lips_do_not_cross(model: MorphableModel) -> None:
    points = model.landmarks(random_faces(model, 6))
    for upper, lower in ((61, 67), (62, 66), (63, 65)):
        assert float((points[:, upper] - points[:, lower]).norm(dim=1).max()) < 0.5
    assert (points[:, 51, 1] > points[:, 62, 1] + 2.0).all()
    assert (points[:, 57, 1] < points[:, 66, 1] - 2.0).all()


# Colour


def test_mean_colours_are_colours(model: MorphableModel) -> None:
    assert float(model.albedo_mean.min()) >= 0.0
    assert float(model.albedo_mean.max()) <= 1.0
    red, green, blue = model.albedo_mean[model.part("skin")].mean(0).tolist()
    assert 0.3 < blue < green < red < 0.8
    brow, skin = model.albedo_mean[model.part("brows")].mean(), model.albedo_mean[model.part("skin")].mean()
    assert float(brow) < 0.65 * float(skin)


def test_first_mode_runs_from_pale_to_very_dark(model: MorphableModel) -> None:
    tones = torch.zeros(3, model.albedo_size)
    tones[:, 0] = torch.tensor([-2.0, 0.0, 2.0])
    pale, mean, dark = model.albedo(tones)[:, model.part("skin")].mean((1, 2)).tolist()
    assert pale > 0.72
    assert 0.4 < mean < 0.6
    assert 0.15 < dark < 0.3
    strength = model.albedo_basis[:, model.part("skin")].square().sum((1, 2))
    assert int(strength.argmax()) == 0


def test_some_modes_colour_iris_lips_and_brows_alone(model: MorphableModel) -> None:
    for name in ("lips", "brows", "eyes"):
        part = model.part(name)
        inside = model.albedo_basis[:, part].square().sum((1, 2))
        outside = model.albedo_basis[:, ~part].square().sum((1, 2))
        assert (inside > 2.0 * outside).any(), name


# Exception


def test_too_many_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="ask for fewer"):
        procedural_face(identity_modes=10_000)
