"""Networks that turn an image into features: our own slim one, and those that the library transformers builds.

The library is imported only for its own networks, since that takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

INPUT_MEAN, INPUT_DEVIATION = 0.5, 0.25
"""By which the encoder normalises images before a backbone sees them."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut. Source: He et al. 2016, the basic block."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.stride = stride
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D I J"]:
        """Half the resolution where the stride is 2."""
        # As a stride of the 1x1 convolution, whose gradient in oneDNN writes beyond its memory for eight channels.
        fewer = features[:, :, :: self.stride, :: self.stride]
        return torch.relu(self.main(features) + self.shortcut(fewer))


def slim_resnet(*, width: int, features: int) -> nn.Module:
    """A ResNet of one block per stage: 1/32 of the resolution, then the mean over the image."""
    widths = [width, 2 * width, 4 * width, 8 * width]
    stem = [nn.Conv2d(3, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    stages = [
        ResidualBlock(inputs, outputs, stride=2) for inputs, outputs in zip([width, *widths], widths, strict=False)
    ]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], features))


@dataclass(frozen=True)
class PublicBackbone:
    """How a network of transformers is built, and where its public weights lie."""

    kind: str
    """Prefix of its classes."""
    settings: dict[str, Any]
    features: int
    """Channels of its last layer."""
    weights: str
    """Name of the repository of its weights."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """What the public weights expect images to be normalised by."""


PUBLIC = {
    "resnet-18": PublicBackbone(
        kind="ResNet",
        settings={"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
        features=512,
        weights="microsoft/resnet-18",
    ),
    "resnet-50": PublicBackbone(kind="ResNet", settings={}, features=2048, weights="microsoft/resnet-50"),
    "mobilenet": PublicBackbone(
        kind="MobileNetV2",
        settings={},
        features=1280,
        weights="google/mobilenet_v2_1.0_224",
        mean=(0.5, 0.5, 0.5),
        deviation=(0.5, 0.5, 0.5),
    ),
    "convnext": PublicBackbone(kind="ConvNext", settings={}, features=768, weights="facebook/convnext-tiny-224"),
}
"""Published networks by name: He et al. 2016, Sandler et al. 2018, Liu et al. 2022 (tiny)."""

BACKBONES = ("resnet-slim", *PUBLIC)


class PublicNetwork(nn.Module):
    """A network of transformers, its mean over the image, and a linear layer to as many features as are wanted."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, name: str, *, features: int) -> None:
        super().__init__()
        known = PUBLIC[name]
        library = _transformers()
        config = getattr(library, f"{known.kind}Config")(**known.settings)
        self.name = name
        self.network: nn.Module = getattr(library, f"{known.kind}Model")(config)
        self.output = nn.Linear(known.features, features)
        # Not part of a checkpoint: the name tells them.
        self.register_buffer("mean", torch.tensor(known.mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(known.deviation)[:, None, None], persistent=False)

    def forward(self, image: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B N"]:
        """Image as the encoder normalises it."""
        seen = (image * INPUT_DEVIATION + INPUT_MEAN - self.mean) / self.deviation
        pooled: Tensor = self.network(seen).pooler_output
        return self.output(pooled.flatten(1))

    def load_public_weights(self) -> None:
        """Fetch the published weights, or take them from the library's cache.

        Raises: OSError in one line if there is neither.
        """
        repository = PUBLIC[self.name].weights
        kind = getattr(_transformers(), f"{PUBLIC[self.name].kind}Model")
        try:
            self.network.load_state_dict(kind.from_pretrained(repository).state_dict())
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise OSError(
                f"encoder.pretrained: the weights {repository} of {self.name} cannot be loaded ({reason[:160]}); "
                "set it to false, or run once where there is a network"
            ) from error


def build_backbone(name: str, *, width: int, features: int) -> nn.Module:
    """Module from (B, 3, S, S) to (B, features), with random weights; `width` counts for `resnet-slim` alone.

    Raises: ValueError for an unknown name.
    """
    if name == "resnet-slim":
        return slim_resnet(width=width, features=features)
    if name not in PUBLIC:
        raise ValueError(f"backbone {name!r} is unknown, expected one of {', '.join(BACKBONES)}")
    return PublicNetwork(name, features=features)


def load_public_weights(backbone: nn.Module) -> None:
    """Give a backbone its published weights.

    Raises: ValueError if it has none, OSError if they cannot be had.
    """
    if not isinstance(backbone, PublicNetwork):
        raise ValueError(f"encoder.pretrained: resnet-slim has no public weights, choose one of {', '.join(PUBLIC)}")
    backbone.load_public_weights()


def _transformers() -> Any:
    import transformers

    return transformers
