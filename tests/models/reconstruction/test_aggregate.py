from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from models.face.camera import crop_camera, project, rotation_distance, to_camera_space
from models.face.morphable import MorphableModel
from models.reconstruction.aggregate import (
    aggregate,
    fuse_identities,
    landmark_evidence,
    left_open,
    photo_trust,
    weighted_evidence,
    without_outliers,
)
from models.reconstruction.set_confidence import SetConfidence
from models.types import Batch, FaceCoefficients
from tests.tiny_face import tiny_photos

SIZE_PX = 64
ONE = torch.eye(2, dtype=torch.float64)


def photos_of_one(face: MorphableModel, count: int, *, seed: int = 0) -> tuple[Batch, FaceCoefficients]:
    """Photos of one person with exact landmarks, and their true coefficients."""
    coefficients, _, _, image = tiny_photos(face, count, size_px=SIZE_PX, seed=seed)
    coefficients = replace(
        coefficients,
        identity=coefficients.identity[:1].repeat(count, 1),
        albedo=coefficients.albedo[:1].repeat(count, 1),
        rotation=torch.stack([torch.zeros(count), torch.linspace(-0.7, 0.7, count), torch.zeros(count)], 1),
    )
    batch = Batch(
        source="photo",
        sample_ids=tuple(map(str, range(count))),
        camera=crop_camera(count, SIZE_PX),
        image=image.float() / 255.0,
        mask=torch.ones(count, SIZE_PX, SIZE_PX, dtype=torch.bool),
        landmarks=seen_landmarks(face, coefficients),
        confidence=torch.full((count, 68), 0.8),
        person=torch.zeros(count, dtype=torch.int64),
    )
    return batch, coefficients


def seen_landmarks(face: MorphableModel, found: FaceCoefficients) -> torch.Tensor:
    vertices = face.vertices(found.identity, found.expression)
    seen = to_camera_space(vertices, rotation=found.rotation, translation=found.translation)
    return project(face.landmarks(seen), crop_camera(len(vertices), SIZE_PX))


def test_one_photo_keeps_its_identity() -> None:
    identity = torch.tensor([[0.3, -1.2], [2.0, 0.1]])
    information = torch.stack([3.0 * ONE, 0.1 * ONE])
    fused, covariance = fuse_identities(identity, information, torch.ones(2), torch.tensor([0, 1]))
    torch.testing.assert_close(fused, identity)
    torch.testing.assert_close(covariance[0], torch.eye(2) / 4.0)


def test_the_prior_counts_once() -> None:
    # Two photos with evidence 1 say 0.5 each: both heard "1" and were drawn half way to the mean face. Together they
    # are drawn a third: (1 + 1) * 0.5 * 2 / (1 + 2) = 2 / 3.
    identity = torch.full((2, 2), 0.5)
    group, trust, information = torch.zeros(2, dtype=torch.int64), torch.ones(2), ONE.repeat(2, 1, 1)
    fused, covariance = fuse_identities(identity, information, trust, group, common_error=0.0)
    torch.testing.assert_close(fused, torch.full((1, 2), 2.0 / 3.0))
    torch.testing.assert_close(covariance[0], torch.eye(2) / 3.0)
    # Where half of the error is common to both, they are worth 2 / 1.5 photos: 4 / 3 / (1 + 4 / 3).
    fused, _ = fuse_identities(identity, information, trust, group, common_error=0.5)
    torch.testing.assert_close(fused, torch.full((1, 2), 4.0 / 7.0))


def test_each_direction_comes_from_the_photo_that_sees_it() -> None:
    information = torch.stack([torch.diag(torch.tensor([1e4, 0.0])), torch.diag(torch.tensor([0.0, 1e4]))]).double()
    identity = torch.tensor([[1.5, 0.0], [0.0, -0.7]])
    fused, _ = fuse_identities(identity, information, torch.ones(2), torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(fused, torch.tensor([[1.5, -0.7]]), rtol=0, atol=1e-3)


def test_an_untrusted_photo_is_not_heard() -> None:
    identity = torch.tensor([[1.0, 1.0], [-9.0, 9.0], [0.4, 0.4]])
    information = ONE.repeat(3, 1, 1)
    group = torch.tensor([0, 0, 1])
    fused, _ = fuse_identities(identity, information, torch.tensor([1.0, 0.0, 1.0]), group)
    torch.testing.assert_close(fused, identity[[0, 2]])


def test_fusing_is_the_posterior_of_a_simulation() -> None:
    """Many persons with a unit prior, photos with known noise: no other weights come closer."""
    generator = torch.Generator().manual_seed(0)
    people, photos = 4000, 3
    truth = torch.randn(people, 2, generator=generator, dtype=torch.float64)
    precision = torch.diag_embed(torch.tensor([[4.0, 0.2], [0.5, 1.0], [0.1, 3.0]], dtype=torch.float64))
    noise = torch.randn(people, photos, 2, generator=generator, dtype=torch.float64)
    seen = truth[:, None] + noise / precision.diagonal(dim1=1, dim2=2).sqrt()
    single = torch.linalg.solve(ONE + precision, (precision @ seen[..., None]))[..., 0]
    group = torch.arange(people).repeat_interleave(photos)
    information = precision.repeat(people, 1, 1)
    trust = torch.ones(len(group))
    fused, covariance = fuse_identities(single.flatten(0, 1), information, trust, group, common_error=0.0)
    error = (fused - truth).square().mean(0)
    expected = 1.0 / (1.0 + precision.sum(0).diagonal())
    torch.testing.assert_close(error, expected, rtol=0.06, atol=0)
    torch.testing.assert_close(covariance[0].diagonal(), expected, rtol=1e-6, atol=0)
    assert error.sum() < 0.8 * (single.mean(1) - truth).square().mean(0).sum()


def test_evidence_is_what_a_change_of_identity_does_to_landmarks(face: MorphableModel) -> None:
    batch, truth = photos_of_one(face, 3)
    evidence = landmark_evidence(face, batch, truth)
    assert torch.linalg.eigvalsh(evidence.information).min() > -1e-6
    # Twice the precision of the points is at least as much evidence, and no more than twice.
    more = landmark_evidence(face, batch, truth, temper=0.5).information
    gain = torch.linalg.eigvalsh(more - evidence.information)
    assert gain.min() > -1e-6 * gain.max()
    assert torch.linalg.eigvalsh(2.0 * evidence.information - more).min() > -1e-6 * gain.max()
    # A profile says more of depth (modes of the nose) than a frontal photo does.
    assert evidence.information[0, 1, 1] > 2.0 * evidence.information[1, 1, 1]
    # What no point shows has no evidence.
    blind = landmark_evidence(face, replace(batch, confidence=torch.full((3, 68), 1e-9)), truth)
    assert blind.information.abs().max() < 1e-3


def shrunken(face: MorphableModel, batch: Batch, truth: FaceCoefficients, *, seed: int) -> FaceCoefficients:
    """What an ideal network says: for every photo the middle of what its landmarks leave possible."""
    information = landmark_evidence(face, batch, truth).information
    factor = torch.linalg.cholesky(information + 1e-9 * torch.eye(4, dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(information), 4, 1, generator=generator, dtype=torch.float64)
    heard = information @ truth.identity.double()[..., None] + factor @ noise
    identity = torch.linalg.solve(torch.eye(4, dtype=torch.float64) + information, heard)[..., 0]
    return replace(truth, identity=identity.float())


@pytest.mark.parametrize("method", ["mean", "analytic", "learned"])
def test_photos_of_a_person_get_one_identity_and_keep_their_landmarks(face: MorphableModel, method: str) -> None:
    batch, truth = photos_of_one(face, 6)
    guessed = shrunken(face, batch, truth, seed=1)
    guessed = replace(guessed, albedo=truth.albedo + (guessed.identity - truth.identity)[:, :2])
    # Photos 0 to 3 are one person, 4 and 5 another.
    person = torch.tensor([7, 7, 7, 7, 3, 3])
    found = aggregate(face, batch, guessed, method=method, person=person, confidence=torch.ones(6, 4))
    for values in (found.coefficients.identity, found.coefficients.albedo, found.covariance):
        assert (values[:4] == values[0]).all()
        assert (values[4:] == values[4]).all()
        assert not torch.allclose(values[0], values[4])
    torch.testing.assert_close(found.weight[:4].sum(), torch.tensor(1.0))
    torch.testing.assert_close(found.weight[4:].sum(), torch.tensor(1.0))
    assert found.kept.all()
    # Expression and pose answer: with the identity alone exchanged the points would miss by more.
    answered, exchanged = (
        (seen_landmarks(face, values) - seen_landmarks(face, guessed)).norm(dim=2).mean()
        for values in (found.coefficients, replace(guessed, identity=found.coefficients.identity))
    )
    assert answered < 0.7 * exchanged
    assert found.coefficients.expression.min() >= 0.0
    assert found.coefficients.expression.max() <= 1.0


def test_evidence_beats_the_mean_and_the_mean_beats_one_photo(face: MorphableModel) -> None:
    errors = []
    for seed in range(12):
        batch, truth = photos_of_one(face, 5, seed=seed)
        guessed = shrunken(face, batch, truth, seed=seed)
        both = [aggregate(face, batch, guessed, method=name).coefficients for name in ("mean", "analytic")]
        errors.append([(one.identity - truth.identity).norm(dim=1).mean() for one in (guessed, *both)])
    single, mean, analytic = torch.tensor(errors).mean(0)
    assert mean < single
    assert analytic < 0.9 * mean


def test_light_follows_albedo_so_that_skin_keeps_its_colour(face: MorphableModel) -> None:
    batch, truth = photos_of_one(face, 2)
    guessed = replace(truth, albedo=torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    found = aggregate(face, batch, guessed, method="mean").coefficients
    skin = face.part("skin")
    before, after = (
        face.albedo(values.albedo)[:, skin].mean(1)[:, None] * values.lighting for values in (guessed, found)
    )
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(found.albedo, torch.zeros(2, 2), rtol=0, atol=1e-6)


def test_shrinkage_says_how_much_photos_disagree(face: MorphableModel) -> None:
    batch, truth = photos_of_one(face, 2)
    agreed = aggregate(face, batch, truth, method="mean")
    torch.testing.assert_close(agreed.shrinkage, torch.ones(2))
    apart = replace(truth, identity=torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
    found = aggregate(face, batch, apart, method="mean")
    torch.testing.assert_close(found.shrinkage, torch.full((2,), 0.5**0.5))
    torch.testing.assert_close(found.norm_ratio, found.shrinkage)
    # Equal photos together are surer than each: the face moves away from the mean.
    assert (aggregate(face, batch, truth, method="analytic").norm_ratio > 1.0).all()


def test_somebody_else_is_left_out(face: MorphableModel) -> None:
    identity = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(7, 1)
    identity += 0.05 * torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    identity[2] = torch.tensor([-2.0, 1.0, 0.0, 1.0])
    embedding = 3.0 * torch.eye(4)
    group = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    kept = without_outliers(identity, embedding, group)
    assert kept.tolist() == [True, True, False, True, True, True, True]
    # Of three photos nobody knows which is the odd one, and photos that agree to a hair are all kept.
    assert without_outliers(identity[:3], embedding, torch.zeros(3, dtype=torch.int64)).all()
    alike = 1e-3 * identity
    assert without_outliers(alike, embedding, torch.zeros(7, dtype=torch.int64)).all()


def test_trust_falls_where_no_face_explains_the_landmarks(face: MorphableModel) -> None:
    batch, truth = photos_of_one(face, 3)
    truth = replace(truth, expression=torch.zeros(3, 3))
    landmarks = seen_landmarks(face, truth)
    exact = replace(batch, landmarks=landmarks)
    group = torch.zeros(3, dtype=torch.int64)
    trust = photo_trust(exact, truth, landmark_evidence(face, exact, truth).misfit, group)
    torch.testing.assert_close(trust, torch.ones(3))
    landmarks = landmarks.clone()
    landmarks[1, ::2] += 4.0
    astray = replace(batch, landmarks=landmarks)
    misfit = landmark_evidence(face, astray, truth).misfit
    # Half of the points are 4 px off in both coordinates; a confidence of 0.8 means σ = 1 % of the face's side.
    side = (landmarks[1].amax(0) - landmarks[1].amin(0)).max()
    torch.testing.assert_close(misfit[1], 0.5 * (4.0 / (0.01 * side)) ** 2, rtol=1e-3, atol=0)
    assert photo_trust(astray, truth, misfit, group)[1] < 0.01


def test_grimaces_and_cut_faces_are_trusted_less(face: MorphableModel) -> None:
    batch, truth = photos_of_one(face, 3)
    expression = torch.zeros(3, 3)
    expression[1, 0] = 1.5
    mask = batch.mask.clone()
    mask[2, SIZE_PX // 2 :] = False
    trust = photo_trust(
        replace(batch, mask=mask), replace(truth, expression=expression), torch.zeros(3), torch.tensor([4, 4, 4])
    )
    torch.testing.assert_close(trust, torch.tensor([1.0, math.exp(-0.5), 0.5]))


def test_head_begins_with_the_evidence_as_it_is() -> None:
    head = SetConfidence(features=5, identity_size=2)
    confidence = head(torch.randn(3, 5))
    torch.testing.assert_close(confidence, torch.ones(3, 2))
    information = torch.tensor([[[4.0, 1.0], [1.0, 9.0]]], dtype=torch.float64)
    found = weighted_evidence(information, torch.tensor([[4.0, 0.25]]))
    torch.testing.assert_close(found, torch.tensor([[[16.0, 1.0], [1.0, 2.25]]], dtype=torch.float64))


def test_unknown_methods_and_missing_confidences_are_refused(face: MorphableModel) -> None:
    batch, truth = photos_of_one(face, 2)
    with pytest.raises(ValueError, match="aggregation 'median' is unknown, expected one of mean, analytic, learned"):
        aggregate(face, batch, truth, method="median")
    with pytest.raises(ValueError, match="'learned' needs the confidences of a trained head"):
        aggregate(face, batch, truth, method="learned")


def test_pose_answers_as_a_rotation(face: MorphableModel) -> None:
    batch, truth = photos_of_one(face, 2)
    found = aggregate(face, batch, truth, method="mean").coefficients
    assert rotation_distance(found.rotation, truth.rotation).max() < 2e-3
    torch.testing.assert_close(found.translation, truth.translation, rtol=0, atol=1e-2)


def map_of_identities() -> tuple[torch.Tensor, torch.Tensor]:
    matrix, offset = torch.diag(torch.tensor([3.0, 0.5, 1.0, 2.0])), torch.tensor([0.1, 0.0, -0.2, 0.0])
    matrix[0, 1] = 0.4
    return matrix, offset


@pytest.mark.parametrize(("method", "photos"), [("mean", 4), ("analytic", 1)])
def test_evidence_is_put_together_before_the_map_of_identities(face: MorphableModel, method: str, photos: int) -> None:
    batch, truth = photos_of_one(face, photos)
    guessed = shrunken(face, batch, truth, seed=2)
    plain = aggregate(face, batch, guessed, method=method)
    matrix, offset = map_of_identities()
    mapped = replace(guessed, identity=guessed.identity @ matrix.T + offset)
    found = aggregate(face, batch, mapped, method=method, identity_map=(matrix, offset))
    expected = plain.coefficients.identity @ matrix.T + offset
    torch.testing.assert_close(found.coefficients.identity, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.coefficients.expression, plain.coefficients.expression, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.weight, plain.weight, rtol=1e-3, atol=1e-4)


def test_the_more_photos_tell_the_less_the_map_takes_away(face: MorphableModel) -> None:
    matrix, offset = map_of_identities()
    shares = []
    for photos in (1, 2, 4, 8):
        batch, truth = photos_of_one(face, photos)
        guessed = shrunken(face, batch, truth, seed=2)
        plain = aggregate(face, batch, guessed, method="analytic").coefficients.identity[0]
        mapped = replace(guessed, identity=guessed.identity @ matrix.T + offset)
        found = aggregate(face, batch, mapped, method="analytic", identity_map=(matrix, offset)).coefficients
        whole = matrix @ plain + offset - plain
        shares.append(float((found.identity[0] - plain).norm() / whole.norm()))
    assert shares[0] == pytest.approx(1.0, abs=1e-3)
    assert all(later < before - 0.02 for before, later in pairwise(shares)), shares
    assert shares[-1] > 0.0


def test_the_map_stays_where_no_photo_tells_anything(face: MorphableModel) -> None:
    """Evidence of one direction of shape alone; the others are as open with eight photos as with one."""
    information = torch.zeros(8, face.identity_size, face.identity_size, dtype=torch.float64)
    information[:, 0, 0] = 5.0
    group = torch.zeros(8, dtype=torch.long)
    _, covariance = fuse_identities(torch.zeros(8, face.identity_size), information, torch.ones(8), group)
    share = left_open(information, covariance, group)[0]
    assert share[0, 0] < 0.5
    torch.testing.assert_close(share[1:, 1:], torch.eye(face.identity_size - 1, dtype=torch.float64))
