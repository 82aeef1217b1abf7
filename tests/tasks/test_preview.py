"""The sheet of a face model is one picture that shows the face, for models with and without colours and expressions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from tasks.preview import CAPTION_PX, COLUMNS, LANDMARK_COLOURS, LANDMARK_VIEWS, TILE_PX, draw_model_sheet

ROW_PX = TILE_PX + CAPTION_PX
LANDMARK_TILE_PX = COLUMNS * TILE_PX // len(LANDMARK_VIEWS)
FOOT_PX = LANDMARK_TILE_PX + 3 * CAPTION_PX
"""Landmarks with their caption, and two lines of stamp."""


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return procedural_face(identity_modes=6)


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jagged outlines are good enough here, and drawn four times faster."""
    monkeypatch.setattr("tasks.preview.FINER", 1)


@pytest.fixture(scope="module")
def sheet(model: MorphableModel, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The default sheet, whole."""
    path = tmp_path_factory.mktemp("sheet") / "sheet.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.preview.FINER", 1)
        draw_model_sheet(model, path)
    return read(path)


def changed(model: MorphableModel, **arrays: object) -> MorphableModel:
    """The same face with some arrays replaced."""
    keep = ("mean", "identity_basis", "expression_basis", "expression_names", "albedo_mean", "albedo_basis")
    keep += ("triangles", "landmark_vertices", "uv", "parts", "name", "licence")
    return MorphableModel(**{key: getattr(model, key) for key in keep} | arrays)  # type: ignore[arg-type]


def bare(model: MorphableModel) -> MorphableModel:
    """The same face without expressions and colour modes."""
    return changed(
        model,
        name="bare",
        expression_basis=model.expression_basis[:0],
        expression_names=(),
        albedo_mean=torch.full_like(model.albedo_mean, 0.6),
        albedo_basis=model.albedo_basis[:0],
    )


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def tile(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    return sheet[row * ROW_PX : row * ROW_PX + TILE_PX, column * TILE_PX : (column + 1) * TILE_PX]


def covered(picture: np.ndarray) -> np.ndarray:
    """Mask (H, W) of what is not background."""
    return np.abs(picture - picture[4, 4]).sum(2) > 20


def test_sheet_shows_every_section(sheet: np.ndarray) -> None:
    # Mean, two of identity modes, two of persons, two of expressions, two of albedo modes, one of poses.
    assert sheet.shape == (10 * ROW_PX + FOOT_PX, COLUMNS * TILE_PX, 3)
    front = tile(sheet, 0, 0)
    red, green, blue = front[TILE_PX // 3, TILE_PX // 2]
    assert red > green > blue, "the middle of the forehead is skin"
    assert np.ptp(front[4, 4]) == 0, "the corner is background"
    # Most of the tile's height is face.
    assert 0.7 * TILE_PX < covered(front).any(1).sum() < 0.9 * TILE_PX


def test_modes_stand_above_each_other(sheet: np.ndarray) -> None:
    """The first identity mode of the procedural face is size, the first albedo mode darkness."""
    sizes = [covered(tile(sheet, row, 0)).mean() for row in (1, 2)]
    assert max(sizes) > 1.5 * min(sizes)
    assert covered(tile(sheet, 1, 5)).any()
    assert (tile(sheet, 1, 6) == 255).all(), "the seventh mode does not exist"
    middle = slice(TILE_PX // 3, TILE_PX // 2)
    bright, dark = (tile(sheet, row, 0)[middle, middle].mean() for row in (7, 8))
    assert bright > dark + 50


def test_landmarks_are_drawn_where_they_are(sheet: np.ndarray) -> None:
    whole = sheet[10 * ROW_PX : 10 * ROW_PX + LANDMARK_TILE_PX]
    front, side = whole[:, :LANDMARK_TILE_PX], whole[:, 2 * LANDMARK_TILE_PX :]
    colours = {title: np.array(colour) for _, title, colour in LANDMARK_COLOURS}

    def dots(picture: np.ndarray, title: str) -> np.ndarray:
        found = np.argwhere((picture == colours[title]).all(2))
        return found[(found > 100).any(1)]

    brows, nose, jaw = (dots(front, title) for title in ("brows", "nose", "jaw"))
    assert brows[:, 0].max() < nose[:, 0].max() < jaw[:, 0].max()
    assert abs(nose[:, 1].mean() - LANDMARK_TILE_PX / 2) < 6
    assert jaw[:, 1].min() < brows[:, 1].min()
    assert jaw[:, 1].max() > brows[:, 1].max()
    # Of the side that is turned away nothing is drawn.
    assert len(dots(side, "eyes")) < 0.7 * len(dots(front, "eyes"))


def test_seed_chooses_the_persons(model: MorphableModel, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw_model_sheet(bare(model), tmp_path / f"{name}.png", seed=seed)
    first, again, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert first == again
    assert first != other


def test_model_without_expressions_and_colours(model: MorphableModel, tmp_path: Path) -> None:
    path = tmp_path / "images" / "sheet.png"
    draw_model_sheet(bare(model), path)
    assert len(read(path)) == 6 * ROW_PX + FOOT_PX
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]
    with Image.open(path) as image:
        assert image.info["face_model_hash"] == bare(model).content_hash()


def test_every_expression_by_its_name(model: MorphableModel, tmp_path: Path) -> None:
    draw_model_sheet(model, tmp_path / "sheet.png", every_expression=True)
    assert len(read(tmp_path / "sheet.png")) == (8 + -(-model.expression_size // COLUMNS)) * ROW_PX + FOOT_PX


def test_statistical_expressions_are_drawn_at_three_deviations(model: MorphableModel, tmp_path: Path) -> None:
    mode = model.expression_basis[model.expression_names.index("jawOpen")]
    named = changed(bare(model), expression_basis=mode[None], expression_names=("jawOpen",))
    numbered = changed(bare(model), expression_basis=mode[None] / 3.0, expression_names=("expression_00",))
    for name, face in (("named", named), ("numbered", numbered)):
        draw_model_sheet(face, tmp_path / f"{name}.png")
    first, second = (tile(read(tmp_path / f"{name}.png"), 5, 0) for name in ("named", "numbered"))
    assert np.abs(first - second).max() <= 2
    mean = tile(read(tmp_path / "named.png"), 0, 0)
    assert (np.abs(first - mean).sum(2) > 60).mean() > 0.01, "the jaw is open"


def test_named_expressions_come_before_statistical_ones(model: MorphableModel, tmp_path: Path) -> None:
    mode = model.expression_basis[model.expression_names.index("jawOpen")]
    pair = {"expression_basis": torch.stack([torch.zeros_like(mode), mode])}
    last = changed(bare(model), expression_names=("expression_00", "jawOpen"), **pair)
    draw_model_sheet(last, tmp_path / "sheet.png", every_expression=True)
    sheet = read(tmp_path / "sheet.png")
    assert np.abs(tile(sheet, 5, 1) - tile(sheet, 0, 0)).max() <= 2
    assert (np.abs(tile(sheet, 5, 0) - tile(sheet, 0, 0)).sum(2) > 60).mean() > 0.01, "the jaw is open"


def test_landmarks_that_are_no_face_are_still_shown(model: MorphableModel, tmp_path: Path) -> None:
    lost = changed(bare(model), landmark_vertices=torch.zeros(68, dtype=torch.int64))
    draw_model_sheet(lost, tmp_path / "sheet.png")
    assert 0.6 * TILE_PX < covered(tile(read(tmp_path / "sheet.png"), 0, 0)).any(1).sum() <= TILE_PX
