"""The head that says how much photos of a set deserve to be heard."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator

from models.losses.coefficients import geometry_embedding
from models.reconstruction.geometry_branch import LandmarkNoise, SimulatedFaces, simulate_faces
from models.reconstruction.reconstructor import Reconstructor
from models.training.loop import build_fabric
from tasks.learn_sets import SimulatedSets, learn_set_confidence
from tasks.train_geometry import reconstructor_settings
from tests.tiny_face import tiny_face
from tests.tiny_workspace import SIZE_PX, tiny_params

FACE = tiny_face()
EMBEDDING = geometry_embedding(FACE.identity_basis, FACE.mean)


def simulate(count: int, size: int, generator: Generator) -> SimulatedFaces:
    noise = LandmarkNoise.build(
        covariance=torch.eye(136).repeat(2, 1, 1),
        bias=torch.zeros(2, 136),
        response=torch.zeros(2, 136, 136),
        sigma=torch.full((2, 68), 0.01),
        large=torch.tensor([False, True]),
    )
    return simulate_faces(
        FACE,
        count,
        expressions=torch.rand(32, 3, generator=Generator().manual_seed(0)),
        noise=noise,
        size_px=SIZE_PX,
        crop_scale=1.35,
        max_yaw_deg=45.0,
        generator=generator,
        photos_per_person=size,
    )


def reconstructor() -> Reconstructor:
    torch.manual_seed(0)
    return Reconstructor(FACE, reconstructor_settings(tiny_params())).eval()


def test_learning_helps_and_never_harms(tmp_path: Path) -> None:
    """A branch that is not trained says nothing about identity, so the best is to hear it less than its landmarks."""
    network = reconstructor()
    found = learn_set_confidence(
        network,
        simulate,
        embedding=EMBEDDING,
        fabric=build_fabric(device="cpu", precision="32-true"),
        steps=12,
        seed=0,
        progress_folder=tmp_path / "progress",
        fingerprint="one",
        sizes=(2, 4),
    )
    errors = [row["value"] for row in found.curve if (row["split"], row["name"]) == ("validation", "set_error_mm")]
    assert found.best["set_error_mm"] == min(errors)
    assert min(errors) < errors[0]
    assert network.sets is not None
    assert (network.set_confidence(torch.rand(3, 68, 2) * SIZE_PX, torch.rand(3, 68)) > 0).all()
    assert list((tmp_path / "progress").iterdir()) == []


def test_error_is_that_of_the_fused_shape() -> None:
    network = reconstructor()
    sets = SimulatedSets(network, simulate(6, 3, Generator().manual_seed(1)), size=3)
    assert sets.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert sets.truth.shape == (2, 4)
    assert sets.trust.view(2, 3).amax(1).tolist() == [1.0, 1.0]
    # Of photos that are hardly heard only the prior is left: what they say, times what they cannot tell.
    silent = sets.squared_error(torch.full((6, 4), 1e-9), EMBEDDING)
    heard = (sets.trust[:, None] * sets.identity).view(2, 3, 4).sum(1)
    weight = sets.trust.view(2, 3)
    photos = weight.sum(1).square() / weight.square().sum(1)
    expected = heard / (1.0 + 0.1 * (photos - 1.0))[:, None]
    torch.testing.assert_close(silent, ((expected - sets.truth) @ EMBEDDING).square().sum(1), rtol=1e-3, atol=1e-3)
