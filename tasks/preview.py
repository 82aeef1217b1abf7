"""A sheet that shows what a face model can do: mean, random persons, expressions, tones and poses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from models.face.camera import FOCAL_PER_SIZE, crop_camera, project, rotation_from_angles, to_camera_space
from models.face.lighting import irradiance_basis
from models.face.morphable import MorphableModel
from models.rendering.render import render
from tasks.artifacts import replace_file

TILE_PX = 168
COLUMNS = 8
CAPTION_PX = 16
FINER = 2
"""Tiles are rendered this many times finer and averaged: the renderer's silhouettes are hard."""

BACKGROUND = 0.91
PAPER = (255, 255, 255)
INK = (60, 60, 66)
CLAY = 0.70
PART_COLOURS = ((0.70, 0.70, 0.72), (0.82, 0.30, 0.36), (0.35, 0.30, 0.58), (0.40, 0.70, 0.82), (0.80, 0.68, 0.25))
"""In the order of `models.types.PART_NAMES`."""

# Towards the lights in camera space, and their strengths: a key from above left, a weak one from the right.
LIGHTS = (((-0.42, -0.52, -0.74), 0.72), ((0.80, -0.05, -0.60), 0.18))
AMBIENT = 0.40

YAWS_DEG = (-90.0, -60.0, -40.0, -20.0, 20.0, 40.0, 60.0, 90.0)
TONES = (-2.0, -1.4, -0.8, -0.2, 0.4, 1.0, 1.6, 2.2)
# Caption and activations; an expression whose names the model lacks is left out.
EXPRESSIONS: tuple[tuple[str, dict[str, float]], ...] = (
    ("jawOpen", {"jawOpen": 1.0}),
    ("jawOpen + mouthClose", {"jawOpen": 1.0, "mouthClose": 1.0}),
    ("eyeBlinkLeft", {"eyeBlinkLeft": 1.0}),
    ("mouthSmile", {"mouthSmileLeft": 1.0, "mouthSmileRight": 1.0}),
    ("mouthFrown", {"mouthFrownLeft": 1.0, "mouthFrownRight": 1.0}),
    ("mouthPucker", {"mouthPucker": 1.0}),
    ("mouthFunnel", {"mouthFunnel": 1.0}),
    ("mouthUpperUp", {"mouthUpperUpLeft": 1.0, "mouthUpperUpRight": 1.0}),
    ("browInnerUp", {"browInnerUp": 1.0, "browInnerUpLeft": 1.0, "browInnerUpRight": 1.0}),
    ("browDown", {"browDownLeft": 1.0, "browDownRight": 1.0}),
    ("browOuterUpLeft", {"browOuterUpLeft": 1.0}),
    ("cheekPuff", {"cheekPuff": 1.0, "cheekPuffLeft": 1.0, "cheekPuffRight": 1.0}),
    ("noseSneer", {"noseSneerLeft": 1.0, "noseSneerRight": 1.0}),
    ("eyeWide + jawOpen", {"eyeWideLeft": 1.0, "eyeWideRight": 1.0, "jawOpen": 0.45}),
    ("gaze to the left", {"eyeLookOutLeft": 0.8, "eyeLookInRight": 0.8}),
    ("jawLeft", {"jawLeft": 1.0}),
    ("tongueOut + jawOpen", {"tongueOut": 1.0, "jawOpen": 0.4}),
)


@dataclass(frozen=True)
class _Tile:
    caption: str
    vertices: Tensor
    """(V, 3) in model space."""
    albedo: Tensor
    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    shows_landmarks: bool = False


def draw_model_sheet(model: MorphableModel, path: Path, *, seed: int = 0) -> None:
    """Write one PNG with the mean, random persons, expressions, skin tones and poses of a face model.

    Colours are encoded as sRGB: the model's albedo is linear reflectance. `seed` chooses the random persons.
    """
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sections = _sections(model, stream)
        rows = [tiles[start : start + COLUMNS] for tiles in sections for start in range(0, len(tiles), COLUMNS)]
        pictures = [_render_row(model, row) for row in rows]
    sheet = Image.new("RGB", (COLUMNS * TILE_PX, len(rows) * (TILE_PX + CAPTION_PX)), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    for down, (row, images) in enumerate(zip(rows, pictures, strict=True)):
        top = down * (TILE_PX + CAPTION_PX)
        for across, (tile, image) in enumerate(zip(row, images, strict=True)):
            sheet.paste(Image.fromarray(image), (across * TILE_PX, top))
            middle = (across * TILE_PX + TILE_PX // 2, top + TILE_PX + CAPTION_PX // 2)
            draw.text(middle, tile.caption, fill=INK, font=font, anchor="mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def _sections(model: MorphableModel, stream: torch.Generator) -> Iterator[list[_Tile]]:
    mean, skin = model.mean, model.albedo_mean
    clay = torch.full_like(skin, CLAY)
    yield [
        _Tile("mean", mean, skin),
        _Tile("", mean, skin, yaw_deg=-40.0),
        _Tile("", mean, skin, yaw_deg=90.0),
        _Tile("shape", mean, clay),
        _Tile("", mean, clay, yaw_deg=40.0),
        _Tile("", mean, clay, yaw_deg=15.0, pitch_deg=25.0),
        _Tile("68 landmarks", mean, clay, shows_landmarks=True),
        _Tile("parts", mean, torch.tensor(PART_COLOURS)[model.parts]),
    ]
    count = 2 * COLUMNS
    shapes = model.vertices(torch.randn(count, model.identity_size, generator=stream))
    colours = model.albedo(torch.randn(count, model.albedo_size, generator=stream))
    yield [
        _Tile(
            "random persons" if index == 0 else "", shapes[index], colours[index], yaw_deg=(0.0, 25.0, -25.0)[index % 3]
        )
        for index in range(count)
    ]
    expressions = [_Tile(caption, vertices, skin) for caption, vertices in _expressions(model)]
    if expressions:
        yield expressions[: 2 * COLUMNS]
    if model.albedo_size:
        coefficients = torch.zeros(len(TONES), model.albedo_size)
        coefficients[:, 0] = torch.tensor(TONES)
        tones = model.albedo(coefficients)
        yield [_Tile(f"tone {value:+.1f} SD", mean, tone) for value, tone in zip(TONES, tones, strict=True)]
    yield [_Tile(f"yaw {yaw:+.0f}°", shapes[0], colours[0], yaw_deg=yaw) for yaw in YAWS_DEG]


def _expressions(model: MorphableModel) -> Iterator[tuple[str, Tensor]]:
    identity = torch.zeros(1, model.identity_size)
    for caption, activations in EXPRESSIONS:
        known = {name: value for name, value in activations.items() if name in model.expression_names}
        if not known:
            continue
        coefficients = torch.zeros(1, model.expression_size)
        for name, value in known.items():
            coefficients[0, model.expression_names.index(name)] = value
        yield caption, model.vertices(identity, coefficients)[0]


def _render_row(model: MorphableModel, row: Sequence[_Tile]) -> list[NDArray[np.uint8]]:
    vertices = torch.stack([tile.vertices for tile in row])
    angles = torch.tensor([[tile.yaw_deg, tile.pitch_deg, 0.0] for tile in row]).deg2rad()
    # All tiles frame the mean face alike, so that sizes can be compared.
    points = model.landmark_mean
    chin, brows = points[8], points[17:27].mean(0)
    ears, tip = points[[0, 16]].mean(0), points[30]
    height = 1.52 * (brows - chin)[1]
    centre = torch.stack([torch.zeros(()), chin[1] + 0.5 * height, 0.5 * (ears + tip)[2]])
    distance = FOCAL_PER_SIZE * 1.22 * height
    in_camera = to_camera_space(
        vertices - centre,
        rotation=rotation_from_angles(*angles.unbind(1)),
        translation=torch.stack([torch.zeros(()), torch.zeros(()), distance]).expand(len(row), 3),
    )
    camera = crop_camera(len(row), TILE_PX * FINER)
    rendering = render(
        in_camera,
        model.triangles,
        albedo=torch.stack([tile.albedo for tile in row]),
        lighting=_studio_light().expand(len(row), 9, 3),
        camera=camera,
    )
    image = torch.where(rendering.mask[:, None], rendering.image, BACKGROUND)
    # Albedo is display-referred, see MorphableModel: what is rendered is what is shown.
    image = torch.nn.functional.avg_pool2d(image, FINER).clamp(0.0, 1.0)
    pixels = (image * 255.0).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    points = project(model.landmarks(in_camera), camera) / FINER
    return [
        _with_points(pixels[index], points[index]) if tile.shows_landmarks else pixels[index]
        for index, tile in enumerate(row)
    ]


def _studio_light() -> Tensor:
    """Light (1, 9, 3) of a few lamps: the bands of a clamped cosine in the units of models/face/lighting.py."""
    bands = torch.tensor([0.25] + 3 * [0.375] + 5 * [1.0])
    directions = torch.nn.functional.normalize(torch.tensor([direction for direction, _ in LIGHTS]), dim=1)
    strengths = torch.tensor([strength for _, strength in LIGHTS])
    light = (strengths[:, None] * irradiance_basis(directions) * bands).sum(0)
    light[0] += AMBIENT
    return light[None, :, None].expand(1, 9, 3)


def _with_points(pixels: NDArray[np.uint8], points: Tensor) -> NDArray[np.uint8]:
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for x, y in points.tolist():
        draw.ellipse((x - 1.6, y - 1.6, x + 1.6, y + 1.6), fill=(205, 30, 60))
    return np.asarray(image)
