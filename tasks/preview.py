"""A sheet that shows what a face model can do: mean, modes, random persons, expressions, poses and landmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from models.face.camera import FOCAL_PER_SIZE, crop_camera, project, rotation_from_angles, to_camera_space
from models.face.lighting import irradiance_basis
from models.face.morphable import MorphableModel
from models.rendering.render import render
from tasks.artifacts import replace_file
from tasks.face_model import png_stamp

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
SHAPE_SIGMAS = (-3.0, 3.0)
ALBEDO_SIGMAS = (-2.0, 2.0)
NUMBERED_MODE_SIGMA = 3.0
"""At which statistical expression modes are drawn; one standard deviation is hard to see."""

MAX_EXPRESSIONS = 8 * COLUMNS
LANDMARK_VIEWS = (("68 landmarks", 0.0), ("", -45.0), ("near side", 90.0))
"""Captions and yaws."""

LANDMARK_COLOURS = (
    (range(17), "jaw", (35, 95, 200)),
    (range(17, 27), "brows", (120, 60, 170)),
    (range(27, 36), "nose", (0, 130, 110)),
    (range(36, 48), "eyes", (200, 30, 60)),
    (range(48, 60), "outer lips", (190, 95, 0)),
    (range(60, 68), "inner lips", (60, 110, 20)),
)
NUMBERS_AROUND = {"eyes": ((range(36, 42), range(36, 42)), (range(42, 48), range(42, 48))),
                  "nose": ((range(27, 31), range(30, 31)), (range(31, 36), range(30, 31)))}  # fmt: skip
"""Groups whose numbers point away from more than one middle: points, and points that the middle is the mean of."""

MIDDLE = [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]
"""Landmarks in the plane of symmetry."""
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


def draw_model_sheet(model: MorphableModel, path: Path, *, seed: int = 0, every_expression: bool = False) -> None:
    """Write one PNG with the mean, modes, random persons, expressions, poses and numbered landmarks of a face model.

    `seed` chooses the random persons. Expressions are a selection of telling ones where the model has ARKit's names;
    `every_expression` shows each mode by its name, at most `MAX_EXPRESSIONS`, statistical ones last.
    """
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sections = _sections(model, stream, every_expression=every_expression)
        rows = [tiles[start : start + COLUMNS] for tiles in sections for start in range(0, len(tiles), COLUMNS)]
        bands = [_band(model, row, side_px=TILE_PX) for row in rows]
        bands.append(_band(model, _landmark_tiles(model), side_px=COLUMNS * TILE_PX // len(LANDMARK_VIEWS)))
    bands.append(_stamp_band(model))
    sheet = Image.new("RGB", (COLUMNS * TILE_PX, sum(band.height for band in bands)), PAPER)
    top = 0
    for band in bands:
        sheet.paste(band, (0, top))
        top += band.height
    with replace_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True, pnginfo=png_stamp(model))


def _sections(model: MorphableModel, stream: torch.Generator, *, every_expression: bool) -> Iterator[list[_Tile]]:
    mean, skin = model.mean, model.albedo_mean
    clay = torch.full_like(skin, CLAY)
    yield [
        _Tile("mean", mean, skin),
        _Tile("", mean, skin, yaw_deg=-40.0),
        _Tile("", mean, skin, yaw_deg=90.0),
        _Tile("shape", mean, clay),
        _Tile("", mean, clay, yaw_deg=40.0),
        _Tile("", mean, clay, yaw_deg=15.0, pitch_deg=25.0),
        _Tile("", mean, clay, yaw_deg=-90.0),
        _Tile("parts", mean, torch.tensor(PART_COLOURS)[model.parts]),
    ]
    for sigma in SHAPE_SIGMAS:
        # Turned a little, so that width, height and depth all show.
        yield [
            _Tile(f"identity {place + 1}: {sigma:+.0f} SD", mean + sigma * mode, clay, yaw_deg=25.0)
            for place, mode in enumerate(model.identity_basis[:COLUMNS])
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
    chosen = [] if every_expression else [_Tile(caption, vertices, skin) for caption, vertices in _expressions(model)]
    named = [_Tile(caption, vertices, skin) for caption, vertices in _expression_modes(model)]
    yield chosen[: 2 * COLUMNS] or named[: MAX_EXPRESSIONS if every_expression else 2 * COLUMNS]
    for sigma in ALBEDO_SIGMAS:
        coefficients = sigma * torch.eye(model.albedo_size)[:COLUMNS]
        yield [
            _Tile(f"albedo {mode + 1}: {sigma:+.0f} SD", mean, albedo)
            for mode, albedo in enumerate(model.albedo(coefficients))
        ]
    yield [_Tile(f"yaw {yaw:+.0f}°", shapes[0], colours[0], yaw_deg=yaw) for yaw in YAWS_DEG]


def _landmark_tiles(model: MorphableModel) -> list[_Tile]:
    clay = torch.full_like(model.albedo_mean, CLAY)
    return [_Tile(caption, model.mean, clay, yaw_deg=yaw, shows_landmarks=True) for caption, yaw in LANDMARK_VIEWS]


def _expressions(model: MorphableModel) -> Iterator[tuple[str, Tensor]]:
    for caption, activations in EXPRESSIONS:
        known = {name: value for name, value in activations.items() if name in model.expression_names}
        if not known:
            continue
        offsets = [value * model.expression_basis[model.expression_names.index(name)] for name, value in known.items()]
        yield caption, model.mean + torch.stack(offsets).sum(0)


def _expression_modes(model: MorphableModel) -> Iterator[tuple[str, Tensor]]:
    modes = dict(zip(model.expression_names, model.expression_basis, strict=True))
    # A statistical mode has a number for a name, and a coefficient of 1 is a standard deviation.
    for name in sorted(modes, key=lambda name: name[-1:].isdigit()):
        if name[-1:].isdigit():
            yield f"{name}: {NUMBERED_MODE_SIGMA:+.0f} SD", model.mean + NUMBERED_MODE_SIGMA * modes[name]
        elif name == "mouthClose" and "jawOpen" in modes:
            # It closes the lips of an open jaw, and alone it pushes them through each other.
            yield "mouthClose + jawOpen", model.mean + modes["jawOpen"] + modes[name]
        else:
            yield name, model.mean + modes[name]


def _band(model: MorphableModel, row: Sequence[_Tile], *, side_px: int) -> Image.Image:
    """Tiles of `side_px` beside each other with their captions below."""
    band = Image.new("RGB", (COLUMNS * TILE_PX, side_px + CAPTION_PX), PAPER)
    draw = ImageDraw.Draw(band)
    font = ImageFont.load_default(size=11)
    for across, (tile, image) in enumerate(zip(row, _render_row(model, row, side_px=side_px), strict=True)):
        band.paste(image, (across * side_px, 0))
        middle = (across * side_px + side_px // 2, side_px + CAPTION_PX // 2)
        draw.text(middle, tile.caption, fill=INK, font=font, anchor="mm")
    return band


def _stamp_band(model: MorphableModel) -> Image.Image:
    """Two lines that say whose faces these are."""
    band = Image.new("RGB", (COLUMNS * TILE_PX, 2 * CAPTION_PX), PAPER)
    found = model.stamp()
    sizes = f"{model.vertex_count:,} vertices, {model.identity_size} identity, {model.expression_size} expression, "
    lines = (
        f"{found['name']}: {sizes}{model.albedo_size} albedo modes; hash {found['hash']}",
        " ".join(found["licence"].split()),
    )
    font = ImageFont.load_default(size=11)
    for line, text in enumerate(lines):
        ImageDraw.Draw(band).text((6, (line + 0.5) * CAPTION_PX), text, fill=INK, font=font, anchor="lm")
    return band


def _render_row(model: MorphableModel, row: Sequence[_Tile], *, side_px: int) -> list[Image.Image]:
    vertices = torch.stack([tile.vertices for tile in row])
    angles = torch.tensor([[tile.yaw_deg, tile.pitch_deg, 0.0] for tile in row]).deg2rad()
    centre, height = _frame(model)
    distance = FOCAL_PER_SIZE * 1.22 * height
    in_camera = to_camera_space(
        vertices - centre,
        rotation=rotation_from_angles(*angles.unbind(1)),
        translation=torch.tensor([0.0, 0.0, distance]).expand(len(row), 3),
    )
    camera = crop_camera(len(row), side_px * FINER)
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
    landmarks = model.landmarks(in_camera)
    points = project(landmarks, camera) / FINER
    images = [Image.fromarray(tile) for tile in pixels]
    for index, tile in enumerate(row):
        if tile.shows_landmarks:
            depth = landmarks[index, :, 2]
            # Seen from the side, the points of the far side would lie over those of the near one.
            hidden = (depth > depth[MIDDLE].max() + 1.0) & (abs(tile.yaw_deg) > 60.0)
            _draw_landmarks(images[index], points[index], hidden=hidden.tolist())
    return images


def _frame(model: MorphableModel) -> tuple[Tensor, float]:
    """Centre (3,) and height in mm of what all tiles show alike, so that sizes can be compared."""
    points = model.landmark_mean
    chin, brows = points[8], points[17:27].mean(0)
    ears, tip = points[[0, 16]].mean(0), points[30]
    low, high = model.mean.amin(0), model.mean.amax(0)
    height = 1.52 * float((brows - chin)[1])
    if height < 0.3 * float((high - low)[1]):
        # Landmarks that are no face's still have to be seen.
        return (low + high) / 2.0, 1.1 * float((high - low).max())
    # Of a neck or a whole head no more is shown than fits beside the face.
    bottom, top = torch.maximum(low[1], chin[1] - 0.15 * height), torch.minimum(high[1], chin[1] + 1.15 * height)
    return torch.stack([torch.zeros(()), 0.5 * (bottom + top), 0.5 * (ears + tip)[2]]), height


def _studio_light() -> Tensor:
    """Light (1, 9, 3) of a few lamps: the bands of a clamped cosine in the units of models/face/lighting.py."""
    bands = torch.tensor([0.25] + 3 * [0.375] + 5 * [1.0])
    directions = torch.nn.functional.normalize(torch.tensor([direction for direction, _ in LIGHTS]), dim=1)
    strengths = torch.tensor([strength for _, strength in LIGHTS])
    light = (strengths[:, None] * irradiance_basis(directions) * bands).sum(0)
    light[0] += AMBIENT
    return light[None, :, None].expand(1, 9, 3)


def _draw_landmarks(image: Image.Image, points: Tensor, *, hidden: Sequence[bool]) -> None:
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=10)
    for line, (group, title, colour) in enumerate(LANDMARK_COLOURS):
        draw.text((6, 6 + 13 * line), f"{title} {group[0]}-{group[-1]}", fill=colour, font=font)
        for part, around in NUMBERS_AROUND.get(title, ((group, group),)):
            middle = points[list(around)].mean(0)
            for place in part:
                if hidden[place]:
                    continue
                x, y = points[place].tolist()
                draw.ellipse((x - 2.0, y - 2.0, x + 2.0, y + 2.0), fill=colour)
                # Closed lips lie on each other, and so would the numbers.
                if title != "inner lips":
                    across, down = (9.0 * torch.nn.functional.normalize(points[place] - middle, dim=0)).tolist()
                    draw.text((x + across, y + down), str(place), fill=colour, font=font, anchor="mm")
