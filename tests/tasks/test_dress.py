"""Hair and clothes: where they belong, and not over the face."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tasks.dress import draw_back, draw_clothes, draw_front_hair
from tasks.subjects import Subject, draw_subject, person_stream
from tests.outlines import head_outline

SIZE, HEIGHT = 200, 360


def subject(**changes: object) -> Subject:
    drawn = draw_subject(person_stream(0, "photos", 0), identity_size=0, albedo_size=0)
    return dataclasses.replace(drawn, hair_volume=1.1, **changes)


def canvas() -> np.ndarray:
    return np.full((HEIGHT, SIZE, 3), (10, 200, 10), np.uint8)


def touched(image: np.ndarray) -> np.ndarray:
    return (image != canvas()).any(2)


@pytest.mark.parametrize("number", range(3))
def test_clothes_lie_below_the_chin_and_behind_the_face(number: int) -> None:
    image, hidden = canvas(), np.zeros((HEIGHT, SIZE), bool)
    hidden[:, : SIZE // 3] = True
    neck = np.zeros_like(hidden)
    draw_clothes(image, head_outline(size_px=SIZE), np.random.default_rng(number), face=hidden, neck=neck)
    drawn = touched(image)
    assert not drawn[hidden].any()
    assert not drawn[: SIZE // 2].any()
    assert drawn[-5:, SIZE // 2 :].mean() > 0.9


@pytest.mark.parametrize("roll", [0.0, 0.6])
def test_front_hair_covers_the_top_in_the_hair_s_colour(roll: float) -> None:
    image, head = canvas(), head_outline(size_px=SIZE, roll=roll)
    draw_front_hair(image, head, subject(hair_colour=np.array([200.0, 40.0, 40.0])), np.random.default_rng(0))
    drawn = touched(image)
    row, column = head.hair.mean((0, 1))[::-1].astype(int)
    assert drawn[row - 3 : row + 4, column - 3 : column + 4].all()
    assert image[drawn][:, 0].mean() > 1.5 * image[drawn][:, 2].mean()
    assert not drawn[SIZE:].any()


def test_bald_heads_get_none() -> None:
    image = canvas()
    bald = dataclasses.replace(subject(), hair_volume=0.0)
    draw_front_hair(image, head_outline(size_px=SIZE), bald, np.random.default_rng(0))
    draw_back(image, head_outline(size_px=SIZE), bald, np.random.default_rng(0), has_neck=True)
    assert not touched(image).any()
    draw_back(image, head_outline(size_px=SIZE), bald, np.random.default_rng(0), has_neck=False)
    assert touched(image)[150, 100]


def test_long_hair_falls_beside_the_face() -> None:
    short, long = canvas(), canvas()
    for image, length in ((short, 0.0), (long, 1.2)):
        draw_back(
            image, head_outline(size_px=SIZE), subject(hair_length=length), np.random.default_rng(1), has_neck=True
        )
    assert touched(long)[120:, :].sum() > touched(short)[120:, :].sum() + 500
