from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from models.face.camera import crop_camera, project, to_camera_space
from models.face.morphable import MorphableModel
from models.losses.likelihood import mirror_partners
from models.losses.needs import SOURCE_NEEDS
from models.losses.objective import TERMS, VALUES, Step, objective
from models.reconstruction.confidence import ConfidenceNetwork
from models.rendering.shade import vertex_normals
from models.training.person_memory import PersonMemory
from models.types import Batch, FaceCoefficients, Scan

SIZE_PX = 48


def predicted(count: int = 2, *, seed: int = 0) -> FaceCoefficients:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator)

    lighting = 0.1 * draw(9, 3)
    lighting[:, 0] += 0.8
    return FaceCoefficients(
        identity=0.5 * draw(4),
        expression=0.3 * draw(3).abs(),
        albedo=0.5 * draw(2),
        lighting=lighting,
        rotation=0.1 * draw(3),
        translation=torch.tensor([0.0, 0.0, 1000.0]) + 3 * draw(3),
    )


def step_of(face: MorphableModel, coefficients: FaceCoefficients, *, labelled: bool) -> Step:
    """A batch whose photos, landmarks and labels all come from another face than the predicted one."""
    truth = predicted(seed=1)
    vertices = face.vertices(truth.identity, truth.expression)
    seen = to_camera_space(vertices, rotation=truth.rotation, translation=truth.translation)
    camera = crop_camera(2, SIZE_PX)
    scan = Scan(vertices=vertices, normals=vertex_normals(vertices, face.triangles), landmarks=face.landmarks(vertices))
    generator = torch.Generator().manual_seed(2)
    batch = Batch(
        source="scans",
        sample_ids=("a", "b"),
        camera=camera,
        image=torch.rand(2, 3, SIZE_PX, SIZE_PX, generator=generator),
        mask=torch.ones(2, SIZE_PX, SIZE_PX, dtype=torch.bool),
        landmarks=project(face.landmarks(seen), camera),
        confidence=torch.ones(2, 68),
        person=torch.arange(2),
        scan=scan if labelled else None,
    )
    return Step(
        model=face,
        batch=batch,
        coefficients=coefficients,
        shape_weights=torch.ones(face.vertex_count),
        landmark_identity=torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 2.0, 0.5]]),
        identity_embedding=torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])),
        memory=memory(),
        confidence=ConfidenceNetwork(width=2, size_px=SIZE_PX),
        mirror=mirror_partners(face.mean),
    )


def memory() -> PersonMemory:
    """Of the two persons of the batch and a third."""
    made = PersonMemory(("a", "b", "c"), identity_size=4, center_rate=1.0)
    made.number(("a", "b", "c"))
    made.begin(torch.arange(3), torch.randn(3, 4, generator=torch.Generator().manual_seed(5)), torch.ones(3))
    made.begin_moments(0.5 * torch.randn(9, 4, generator=torch.Generator().manual_seed(6)) + 0.2)
    return made


def reached(face: MorphableModel, *terms: str) -> set[str]:
    """Names of the coefficients that get a gradient from some terms."""
    coefficients = predicted()
    for field in fields(coefficients):
        getattr(coefficients, field.name).requires_grad_()
    total, _ = objective(step_of(face, coefficients, labelled=True), dict.fromkeys(terms, 1.0))
    total.backward()
    gradients = {field.name: getattr(coefficients, field.name).grad for field in fields(coefficients)}
    return {name for name, gradient in gradients.items() if gradient is not None and bool(gradient.any())}


SHAPE, POSE = {"identity", "expression"}, {"rotation", "translation"}


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (("vertex",), SHAPE),
        (("normal",), SHAPE),
        (("vertex", "normal"), SHAPE),
        (("photo_on_scan",), POSE | {"albedo", "lighting"}),
        (("landmark_on_scan",), POSE),
        (("photo",), SHAPE | POSE | {"albedo", "lighting"}),
        (("landmark",), SHAPE | POSE),
        (("photo_likelihood",), SHAPE | POSE | {"albedo", "lighting"}),
        (("separation",), {"identity"}),
        (("distance_separation",), {"identity"}),
        (("center",), {"identity"}),
        (("distribution",), {"identity"}),
        (("identity_anchor",), {"identity"}),
        (("identity_prior",), {"identity"}),
        (("expression_prior",), {"expression"}),
        (("albedo_prior",), {"albedo"}),
        (("light_prior",), {"lighting"}),
        (("symmetry",), {"identity"}),
        (("albedo_variance",), {"albedo"}),
        (("skin_photo",), SHAPE | POSE | {"albedo", "lighting"}),
    ],
)
def test_each_term_reaches_exactly_its_coefficients(
    face: MorphableModel, terms: tuple[str, ...], expected: set[str]
) -> None:
    assert reached(face, *terms) == expected


def test_every_term_is_covered_above() -> None:
    # What parameters are checked by, and what is computed.
    assert list(TERMS) == list(VALUES)
    assert set(TERMS) == {
        *("vertex", "normal", "photo_on_scan", "landmark_on_scan", "photo", "landmark"),
        *("photo_likelihood", "separation", "distance_separation", "center", "distribution"),
        *("identity_anchor", "identity_prior", "expression_prior", "albedo_prior", "light_prior"),
        *("symmetry", "albedo_variance", "skin_photo"),
    }


def test_only_mesh_terms_need_a_scan() -> None:
    needy = {name for name, term in TERMS.items() if "scan" in term.needs}
    assert needy == {"vertex", "normal", "photo_on_scan", "landmark_on_scan"}


def test_the_objective_is_the_weighted_sum_of_means(face: MorphableModel) -> None:
    step = step_of(face, predicted(), labelled=True)
    weights = {"landmark": 0.5, "identity_prior": 3.0, "vertex": 0.25}
    total, means = objective(step, weights)
    assert list(means) == list(weights)
    torch.testing.assert_close(total, sum(weights[name] * TERMS[name].value(step).mean() for name in weights))
    torch.testing.assert_close(means["identity_prior"], step.coefficients.identity.square().sum(1).mean())


def test_the_identity_anchor_is_a_squared_distance_in_millimetres(face: MorphableModel) -> None:
    coefficients = replace(predicted(), identity=torch.zeros(2, 4))
    found = TERMS["identity_anchor"].value(step_of(face, coefficients, labelled=False))
    assert found.tolist() == [1.0, (2 * 1) ** 2 + (3 * 2) ** 2 + (4 * 0.5) ** 2]


def test_the_truth_has_no_loss(face: MorphableModel) -> None:
    step = step_of(face, predicted(seed=1), labelled=True)
    step = replace(step, batch=replace(step.batch, image=step.draw(step.seen).image))
    _, means = objective(step, dict.fromkeys(["photo", "landmark", "vertex", "normal"], 1.0))
    assert means["landmark"] < 1e-4
    assert means["vertex"] < 1e-3
    assert means["normal"] < 1e-4
    # The ε under the root remains.
    assert means["photo"].item() == pytest.approx(1e-3, rel=1e-3)


def test_the_label_is_drawn_under_the_predicted_pose(face: MorphableModel) -> None:
    # With the true pose the label's landmarks fall on the photo's, whatever shape is predicted.
    truth = predicted(seed=1)
    same_shape = step_of(face, truth, labelled=True)
    other_shape = step_of(face, replace(truth, identity=truth.identity + 0.3), labelled=True)
    near = TERMS["landmark_on_scan"].value(same_shape)
    assert near.max() < 1e-4
    # The label follows the prediction's seven points, so a rest remains; the predicted shape itself is further off.
    assert (TERMS["landmark_on_scan"].value(other_shape) < TERMS["landmark"].value(other_shape)).all()


def test_pixels_outside_the_photo_do_not_count(face: MorphableModel) -> None:
    step = step_of(face, predicted(), labelled=False)
    mask = step.batch.mask.clone()
    mask[:, :, : SIZE_PX // 2] = False
    image = torch.where(mask[:, None], step.batch.image, 7.0)
    masked = replace(step, batch=replace(step.batch, mask=mask))
    wrong = replace(step, batch=replace(step.batch, mask=mask, image=image))
    torch.testing.assert_close(TERMS["photo"].value(masked), TERMS["photo"].value(wrong))


def test_an_unknown_term_is_an_error(face: MorphableModel) -> None:
    with pytest.raises(KeyError, match="perceptual"):
        objective(step_of(face, predicted(), labelled=False), {"perceptual": 1.0})


@pytest.mark.parametrize("term", ["vertex", "normal", "photo_on_scan", "landmark_on_scan"])
def test_a_mesh_term_without_labels_names_the_source(face: MorphableModel, term: str) -> None:
    with pytest.raises(ValueError, match="source scans: has no labelled meshes"):
        objective(step_of(face, predicted(), labelled=False), {term: 1.0})


def test_a_step_draws_by_its_rasterizer(face: MorphableModel) -> None:
    step = step_of(face, predicted(), labelled=False)
    expected = step.draw(step.seen).image
    assert torch.equal(replace(step, rasterizer="torch").draw(step.seen).image, expected)
    with pytest.raises(ValueError, match="rasterizer 'none' is unknown"):
        replace(step, rasterizer="none").draw(step.seen)


def test_what_only_some_sources_have_is_what_params_check() -> None:
    needy = {name: set(term.needs) for name, term in TERMS.items() if term.needs & set(SOURCE_NEEDS)}
    assert needy == {
        **{key: {"scan"} for key in ("vertex", "normal", "photo_on_scan", "landmark_on_scan")},
        **{key: {"person"} for key in ("separation", "distance_separation", "center", "distribution")},
    }


@pytest.mark.parametrize("term", ["separation", "distance_separation", "center", "distribution"])
def test_a_term_of_persons_without_a_memory_names_the_source(face: MorphableModel, term: str) -> None:
    step = replace(step_of(face, predicted(), labelled=False), memory=None)
    with pytest.raises(ValueError, match="source scans: no persons are remembered"):
        objective(step, {term: 1.0})


def test_the_centre_is_that_of_the_person(face: MorphableModel) -> None:
    step = step_of(face, predicted(), labelled=False)
    swapped = replace(step, batch=replace(step.batch, person=torch.tensor([1, 0])))
    assert step.memory is not None
    expected = 0.5 * (step.embedding - step.memory.centers[:2]).square().sum(1)
    torch.testing.assert_close(TERMS["center"].value(step), expected)
    assert not torch.allclose(TERMS["center"].value(swapped), expected)


def test_class_weights_learn_from_separation_alone(face: MorphableModel) -> None:
    step = step_of(face, predicted(), labelled=False)
    assert step.memory is not None
    objective(step, {"separation": 1.0, "center": 1.0, "distribution": 1.0})[0].requires_grad_().backward()
    assert step.memory.class_weights.grad is not None
    assert (step.memory.class_weights.grad.norm(dim=1) > 0).all()
    assert not step.memory.centers.requires_grad


def test_a_step_notes_what_its_terms_keep(face: MorphableModel) -> None:
    step = step_of(face, predicted(), labelled=False)
    assert step.memory is not None
    before = {name: value.clone() for name, value in step.memory.state_dict().items()}
    step.note({"center": 1.0})
    step.memory.settle()
    after = step.memory.state_dict()
    assert not torch.equal(after["centers"][:2], before["centers"][:2])
    assert torch.equal(after["centers"][2], before["centers"][2])
    assert torch.equal(after["mean"], before["mean"])
    step.note({"distribution": 1.0, "separation": 1.0})
    step.memory.settle()
    assert not torch.equal(step.memory.mean, before["mean"])


def test_the_likelihood_sees_the_skin_and_its_mirror_image(face: MorphableModel) -> None:
    step = step_of(face, predicted(), labelled=False)
    bare = replace(step, confidence=None)
    with pytest.raises(ValueError, match="source scans: a loss needs the network of confidence"):
        objective(bare, {"photo_likelihood": 1.0})
    own, mirrored = step.draw(step.seen), step.draw(step.seen, mirrored=True)
    assert torch.equal(own.mask, mirrored.mask)
    assert not torch.allclose(own.image, mirrored.image)
    assert step.confidence is not None
    found = TERMS["photo_likelihood"].value(step)
    found.sum().backward()
    assert step.confidence.head.bias.grad is not None
    assert (step.confidence.head.bias.grad.abs() > 0).all()


def test_priors_of_symmetry_and_skin_reach_what_they_are_about(face: MorphableModel) -> None:
    coefficients = predicted()
    for values in (coefficients.identity, coefficients.albedo, coefficients.lighting):
        values.requires_grad_()
    step = step_of(face, coefficients, labelled=False)
    reached = {
        "symmetry": (True, False, False),
        "albedo_variance": (False, True, False),
        "skin_photo": (True, True, True),
    }
    for name, expected in reached.items():
        value, _ = objective(step, {name: 1.0})
        assert value > 0.0
        found = torch.autograd.grad(
            value,
            (coefficients.identity, coefficients.albedo, coefficients.lighting),
            allow_unused=True,
            retain_graph=True,
        )
        assert tuple(one is not None and bool(one.abs().max() > 0) for one in found) == expected, name
