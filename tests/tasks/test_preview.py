"""The sheet of a face model is one picture that shows the face, for models with and without colours and expressions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from tasks.preview import CAPTION_PX, COLUMNS, TILE_PX, draw_model_sheet


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return procedural_face(identity_modes=6)


def bare(model: MorphableModel) -> MorphableModel:
    """The same face without expressions and colour modes."""
    return MorphableModel(
        name="bare",
        licence=model.licence,
        mean=model.mean,
        identity_basis=model.identity_basis,
        expression_basis=model.expression_basis[:0],
        expression_names=(),
        albedo_mean=torch.full_like(model.albedo_mean, 0.6),
        albedo_basis=model.albedo_basis[:0],
        triangles=model.triangles,
        landmark_vertices=model.landmark_vertices,
        uv=model.uv,
        parts=model.parts,
    )


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_sheet_shows_every_section(model: MorphableModel, tmp_path: Path) -> None:
    path = tmp_path / "images" / "sheet.png"
    draw_model_sheet(model, path)
    sheet = read(path)
    assert sheet.shape == (7 * (TILE_PX + CAPTION_PX), COLUMNS * TILE_PX, 3)
    front = sheet[:TILE_PX, :TILE_PX]
    red, green, blue = front[TILE_PX // 3, TILE_PX // 2]
    assert red > green > blue, "the middle of the forehead is skin"
    assert np.ptp(front[4, 4]) == 0, "the corner is background"
    # Most of the tile's height is face.
    covered = (np.abs(front - front[4, 4]).sum(2) > 20).any(1)
    assert 0.7 * TILE_PX < covered.sum() < 0.9 * TILE_PX
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


def test_seed_chooses_the_persons(model: MorphableModel, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw_model_sheet(model, tmp_path / f"{name}.png", seed=seed)
    first, again, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert first == again
    assert first != other


def test_model_without_expressions_and_colours(model: MorphableModel, tmp_path: Path) -> None:
    draw_model_sheet(bare(model), tmp_path / "sheet.png")
    assert len(read(tmp_path / "sheet.png")) == 4 * (TILE_PX + CAPTION_PX)
