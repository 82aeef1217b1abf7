"""Training crops and their points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.landmarks.augment import Augmentation, faceless_crops, jitter_colours, tight_crops, wide_crops
from models.landmarks.framing import FRAME_SCALE, box_side
from models.landmarks.learning import LandmarkSamples

STILL = Augmentation(
    tight_angle_rad=0.0,
    tight_scale=0.0,
    tight_shift=0.0,
    cutout_share=0.0,
    grey_share=0.0,
    brightness=0.0,
    contrast=0.0,
    colour=0.0,
)


def mouth_colour(images: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Pixels under the middle of the mouth."""
    places = np.floor(points[:, 60:].mean(1)).astype(int)
    return np.array([image[y, x] for image, (x, y) in zip(images, places, strict=True)])


@pytest.mark.parametrize("kind", ["tight", "wide"])
def test_points_follow_the_pixels(drawn_faces: LandmarkSamples, kind: str) -> None:
    which = np.arange(12)
    flip = which % 2 == 1
    random = np.random.default_rng(0)
    if kind == "tight":
        batch = tight_crops(
            drawn_faces.images,
            drawn_faces.points,
            which,
            shape=drawn_faces.mean_shape,
            size_px=64,
            flip=flip,
            augmentation=Augmentation(),
            generator=random,
        )
    else:
        batch = wide_crops(
            drawn_faces.images,
            drawn_faces.points,
            which,
            size_px=64,
            flip=flip,
            augmentation=Augmentation(),
            generator=random,
        )
    assert batch.images.shape == (12, 64, 64, 3)
    np.testing.assert_allclose(mouth_colour(batch.images, batch.points), np.tile([160, 40, 50], (12, 1)), atol=12)
    # Mirrored or not, the subject's right eye stands on the left.
    assert (batch.points[:, 36, 0] < batch.points[:, 45, 0]).all()


def test_tight_crop_without_noise_is_the_frame(drawn_faces: LandmarkSamples) -> None:
    batch = tight_crops(
        drawn_faces.images,
        drawn_faces.points,
        np.arange(6),
        shape=drawn_faces.mean_shape,
        size_px=80,
        flip=np.zeros(6, bool),
        augmentation=STILL,
        generator=np.random.default_rng(0),
    )
    np.testing.assert_allclose(box_side(batch.points), 80 / FRAME_SCALE, rtol=1e-4)


def test_wide_crops_hold_the_face_at_all_sizes(drawn_faces: LandmarkSamples) -> None:
    which = np.arange(200) % 24
    batch = wide_crops(
        drawn_faces.images,
        drawn_faces.points,
        which,
        size_px=64,
        flip=np.zeros(200, bool),
        augmentation=Augmentation(),
        generator=np.random.default_rng(0),
    )
    share = box_side(batch.points) / 64
    assert share.min() < 0.42
    assert share.max() > 0.9


def test_faceless_crops_do_not_show_the_mouth(drawn_faces: LandmarkSamples) -> None:
    crops = faceless_crops(
        drawn_faces.images, drawn_faces.points, np.arange(24), size_px=64, generator=np.random.default_rng(0)
    )
    assert crops.shape == (24, 64, 64, 3)
    assert len(np.unique(crops.reshape(24, -1), axis=0)) == 24


def test_colours_stay_in_range_and_still_is_still(drawn_faces: LandmarkSamples) -> None:
    pixels = torch.from_numpy(np.stack(drawn_faces.images[:6]))
    random = np.random.default_rng(0)
    jittered = jitter_colours(pixels, augmentation=Augmentation(), generator=random)
    assert jittered.shape == (6, 3, 96, 96)
    assert float(jittered.min()) >= 0.0
    assert float(jittered.max()) <= 1.0
    assert float((jittered - pixels.permute(0, 3, 1, 2) / 255).abs().mean()) > 0.02
    still = jitter_colours(pixels, augmentation=STILL, generator=random)
    torch.testing.assert_close(still, pixels.permute(0, 3, 1, 2) / 255)


def test_same_seed_same_batch(drawn_faces: LandmarkSamples) -> None:
    pixels = torch.from_numpy(np.stack(drawn_faces.images[:6]))
    first, second = (
        jitter_colours(pixels, augmentation=Augmentation(), generator=np.random.default_rng(4)) for _ in range(2)
    )
    assert torch.equal(first, second)
