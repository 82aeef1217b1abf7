from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.reconstruction import backbones
from models.reconstruction.backbones import BACKBONES, PUBLIC, PublicNetwork, build_backbone, load_public_weights


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    """Every network once: the large ones take a while to draw their weights."""
    torch.manual_seed(0)
    return {name: build_backbone(name, width=4, features=10) for name in BACKBONES}


@pytest.mark.parametrize("name", BACKBONES)
def test_an_image_becomes_features(networks: dict[str, nn.Module], name: str) -> None:
    network = networks[name].train()
    found = network(torch.rand(2, 3, 64, 64))
    assert found.shape == (2, 10)
    found.square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) > 0.9 * len(gradients)


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet-18", 11.2), ("resnet-50", 23.5), ("mobilenet", 2.2), ("convnext", 27.8)]
)
def test_sizes_are_the_published_ones(networks: dict[str, nn.Module], name: str, millions: float) -> None:
    network = networks[name]
    assert isinstance(network, PublicNetwork)
    count = sum(parameter.numel() for parameter in network.network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_public_networks_see_images_as_their_weights_expect(networks: dict[str, nn.Module]) -> None:
    network = networks["resnet-18"]
    assert isinstance(network, PublicNetwork)
    seen: list[Tensor] = []
    handle = network.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    grey = torch.tensor([0.485, 0.456, 0.406])[:, None, None].expand(1, 3, 32, 32)
    network.eval()((grey - 0.5) / 0.25)
    handle.remove()
    torch.testing.assert_close(seen[0], torch.zeros(1, 3, 32, 32), atol=1e-6, rtol=0)


def test_normalisation_is_not_part_of_a_checkpoint(networks: dict[str, nn.Module]) -> None:
    assert all(name.startswith(("network.", "output.")) for name in networks["mobilenet"].state_dict())


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"backbone 'vgg' is unknown, expected one of resnet-slim, resnet-18"):
        build_backbone("vgg", width=4, features=10)


def test_the_slim_network_has_no_public_weights(networks: dict[str, nn.Module]) -> None:
    with pytest.raises(ValueError, match="resnet-slim has no public weights, choose one of resnet-18"):
        load_public_weights(networks["resnet-slim"])


class Library:
    """Stands in for transformers where there is no network."""

    class ResNetModel:
        @staticmethod
        def from_pretrained(name: str) -> nn.Module:
            raise OSError(f"We couldn't connect to load {name}.\nCheck your connection.")


def test_weights_that_cannot_be_had_are_an_error_of_one_line(
    networks: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "_transformers", lambda: Library)
    with pytest.raises(
        OSError, match=r"encoder.pretrained: the weights microsoft/resnet-18 .* connect .* false"
    ) as error:
        load_public_weights(networks["resnet-18"])
    assert "\n" not in str(error.value)


def test_public_weights_are_taken_over(networks: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    network = networks["resnet-18"]
    assert isinstance(network, PublicNetwork)
    torch.manual_seed(1)
    other = build_backbone("resnet-18", width=4, features=10)
    assert isinstance(other, PublicNetwork)

    class Fetched:
        class ResNetModel:
            @staticmethod
            def from_pretrained(name: str) -> nn.Module:
                assert name == PUBLIC["resnet-18"].weights
                return other.network

    monkeypatch.setattr(backbones, "_transformers", lambda: Fetched)
    load_public_weights(network)
    pairs = zip(network.network.parameters(), other.network.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
