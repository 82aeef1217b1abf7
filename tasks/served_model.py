"""The registered model: photos in, 3D faces out. MLflow keeps this file with the model and runs it wherever that is.
So it imports nothing of ours: numpy, onnxruntime and Pillow do what torch and OpenCV do in training, and a test holds
the two against each other. A row of the answer describes one photo; see `FaceReconstructor.predict`.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from typing import Any

import numpy as np
import onnxruntime
import pandas
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
MATTE = 128
"""Grey level that shows through transparent pixels."""

LANDMARK_COUNT = 68

WINDOW_SCALES = (1.0, 0.7, 0.5, 0.35)
"""Sides of the search windows relative to the shorter side of the photo."""

MAX_CELLS, SAME_OVERLAP, INSIDE_OVERLAP, SURE_CONFIDENCE, SURE_SHARE = 400, 0.35, 0.7, 0.6, 0.5
"""How cells become boxes and which face is taken, as in models/landmarks/finder.py and cascade.py."""

Face = tuple[np.ndarray, np.ndarray, float]
"""Points (68, 2) in photo pixels, confidence (68,) and score of a face; while searching, expected errors of several."""


class PhotoError(ValueError):
    """A photo that cannot be used; the message becomes the row's `error`."""


def decode_photo(value: Any, *, max_pixels: int) -> np.ndarray:
    """Upright uint8 RGB (H, W, 3) of an encoded photo (bytes, or the same in base64) or of pixels.

    Raises: PhotoError.
    """
    if isinstance(value, np.ndarray) or (isinstance(value, list) and value and isinstance(value[0], list)):
        return _check_pixels(np.asarray(value), max_pixels)
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise PhotoError("image: neither image bytes nor base64 of them") from None
    if not isinstance(value, (bytes, bytearray)) or not value:
        raise PhotoError(f"image: {type(value).__name__} without content, expected image bytes, base64 or RGB pixels")
    try:
        with Image.open(io.BytesIO(value), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise PhotoError(f"image: {image.width} x {image.height}, expected at most {max_pixels} pixels")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image) or image)
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError(f"image: not an image, expected {', '.join(FORMATS)}") from None
    except Exception as error:  # noqa: BLE001 - Pillow raises errors of many kinds for broken files
        raise PhotoError(f"image: cannot be decoded ({type(error).__name__}: {str(error)[:120]})") from None


def _check_pixels(pixels: np.ndarray, max_pixels: int) -> np.ndarray:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise PhotoError(f"image: array of shape {pixels.shape}, expected (H, W, 3)")
    whole = np.issubdtype(pixels.dtype, np.integer)
    if not whole or pixels.min() < 0 or pixels.max() > 255:
        raise PhotoError(f"image: array of {pixels.dtype}, expected uint8 RGB")
    if pixels.shape[0] * pixels.shape[1] > max_pixels:
        raise PhotoError(f"image: {pixels.shape[1]} x {pixels.shape[0]}, expected at most {max_pixels} pixels")
    return np.ascontiguousarray(pixels, dtype=np.uint8)


def _to_rgb(image: Any) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(image, dtype=np.float64)
        limits = (65535.0, 2.0**31 - 1.0) if image.mode.startswith("I") else (1.0, 255.0, 65535.0)
        white = next((limit for limit in limits if grey.max() <= limit), float(grey.max()))
        return np.repeat(np.rint(grey.clip(0.0) * (255.0 / white)).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = np.asarray(image.convert("RGBA"), dtype=np.float32)
        alpha = layered[..., 3:] / 255.0
        blended: np.ndarray = np.rint(layered[..., :3] * alpha + MATTE * (1.0 - alpha)).astype(np.uint8)
        return blended
    return np.array(image.convert("RGB"), dtype=np.uint8)


def crop_affine(landmarks: np.ndarray, *, size_px: int, scale: float) -> np.ndarray:
    """Crop pixels to photo pixels (3, 3) for the upright square around the landmarks' box.

    Raises: PhotoError if the points have no extent.
    """
    low, high = landmarks.min(0), landmarks.max(0)
    side = float((high - low).max()) * scale
    if not side > 0.0:
        raise PhotoError("landmarks: all points coincide, expected a face with extent")
    affine = np.eye(3)
    affine[0, 0] = affine[1, 1] = side / size_px
    affine[:2, 2] = (low + high) / 2.0 - side / 2.0
    return affine


def cut_crop(photo: np.ndarray, affine: np.ndarray, size_px: int) -> np.ndarray:
    """Pixels (S, S, 3) of an upright crop, black outside; averaged where it is smaller than its piece of the photo."""
    rows, row_range = _axis_weights(affine[1, 1], affine[1, 2], size_px, photo.shape[0])
    columns, column_range = _axis_weights(affine[0, 0], affine[0, 2], size_px, photo.shape[1])
    piece = photo[row_range, column_range].astype(np.float32)
    crop = np.einsum("sh,hwc->swc", rows, piece, optimize=True)
    crop = np.einsum("tw,swc->stc", columns, crop, optimize=True)
    pixels: np.ndarray = np.rint(crop).clip(0, 255).astype(np.uint8)
    return pixels


def cut_frame(photo: np.ndarray, affine: np.ndarray, size_px: int) -> np.ndarray:
    """Pixels (S, S, 3) of a tilted frame, bilinear, black outside; reduced by whole blocks first where it shrinks."""
    linear, shift = affine[:2, :2], affine[:2, 2]
    factor = int(np.sqrt(abs(np.linalg.det(linear))))
    if factor >= 2:
        height, width = photo.shape[0] // factor, photo.shape[1] // factor
        if not (height and width):
            return np.zeros((size_px, size_px, 3), dtype=np.uint8)
        blocks = photo[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
        photo = np.rint(blocks.mean((1, 3), dtype=np.float32)).astype(np.uint8)
        linear, shift = linear / factor, shift / factor
    centres = np.arange(size_px) + 0.5
    grid = np.stack(np.meshgrid(centres, centres), 2)
    places = grid @ linear.T + shift - 0.5
    first = np.floor(places).astype(np.int64)
    share = places - first
    crop = np.zeros((size_px, size_px, 3))
    for right in (0, 1):
        for down in (0, 1):
            x, y = first[..., 0] + right, first[..., 1] + down
            weight = np.abs(1 - right - share[..., 0]) * np.abs(1 - down - share[..., 1])
            inside = (x >= 0) & (x < photo.shape[1]) & (y >= 0) & (y < photo.shape[0])
            crop[inside] += weight[inside, None] * photo[y[inside], x[inside]]
    return np.rint(crop).astype(np.uint8)


def search_windows(height: int, width: int) -> list[tuple[float, float, float]]:
    """Squares (centre x, centre y, side) that cover the photo with half overlap, in several sizes."""
    windows = []
    for scale in WINDOW_SCALES:
        side = scale * min(height, width)
        windows += [(x, y, side) for y in _steps(height, side) for x in _steps(width, side)]
    return windows


def _steps(extent: float, side: float) -> list[float]:
    count = 1 + int(np.ceil(max(0.0, extent - side) / (0.5 * side)))
    return np.linspace(side / 2.0, extent - side / 2.0, count).tolist() if count > 1 else [extent / 2.0]


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _axis_weights(step: float, start: float, size_px: int, length: int) -> tuple[np.ndarray, slice]:
    """Bilinear samples on a grid fine enough to skip no pixel, averaged per crop pixel: one matrix per axis."""
    finer = max(1, int(np.ceil(step)))
    places = start + step / finer * (np.arange(size_px * finer) + 0.5) - 0.5
    first = np.floor(places).astype(np.int64)
    share = places - first
    low = int(np.clip(first.min(), 0, length - 1))
    high = int(np.clip(first.max() + 2, low + 1, length))
    weights = np.zeros((size_px, high - low), dtype=np.float32)
    target = np.arange(size_px * finer) // finer
    for offset, weight in ((0, 1.0 - share), (1, share)):
        index = first + offset
        inside = (index >= low) & (index < high)
        np.add.at(weights, (target[inside], index[inside] - low), weight[inside] / finer)
    return weights, slice(low, high)


def find_boxes(session: onnxruntime.InferenceSession, photo: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """Squares around faces, the likely first: centre x, y, side, angle, score; see models/landmarks/finder.py."""
    height, width = photo.shape[:2]
    factor = settings["longest_px"] / max(height, width)
    size = [max(1, round(extent * min(1.0, factor))) for extent in (width, height)]
    reduced = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX), dtype=np.float32)
    stride, multiple = settings["stride"], settings["size_multiple"]
    pixels = np.full((1, 3, *(max(2, -(-extent // multiple)) * multiple for extent in size[::-1])), 0.5, np.float32)
    pixels[0, :, : size[1], : size[0]] = reduced.transpose(2, 0, 1) / 255.0
    found = session.run(["score", "offset", "log_side", "turn"], {"image": pixels})
    logit, offset, log_side, turn = (values[0].astype(np.float64) for values in found)
    cells = []
    for level in range(settings["levels"]):
        rows, columns = (-(-(extent >> level) // stride) for extent in pixels.shape[2:])
        y, x = np.divmod(np.arange(rows * columns), columns)
        cells.append(2.0**level * np.stack([x * stride + 0.5, y * stride + 0.5, np.ones(len(x))], 1))
    order = np.argsort(-logit, kind="stable")[:MAX_CELLS]
    order = order[logit[order] >= np.log(settings["min_score"] / (1.0 - settings["min_score"]))]
    cell = np.concatenate(cells)[order]
    centre = cell[:, :2] + offset[order] * settings["offset_unit"] * cell[:, 2:]
    side = settings["reference_side"] * cell[:, 2] * np.exp(log_side[order])
    kept: list[int] = []
    for row in range(len(side)):
        # Elsewhere the squares of a face are averaged; the surest is as good to start from.
        reach = (side[kept, None] + side[row]) / 2.0 - np.abs(centre[kept] - centre[row])
        common = np.minimum(reach.clip(0.0), np.minimum(side[kept], side[row])[:, None]).prod(1)
        same = common > SAME_OVERLAP * (side[kept] ** 2 + side[row] ** 2 - common)
        if not (same | ((common > INSIDE_OVERLAP * side[row] ** 2) & (side[kept] >= side[row]))).any():
            kept.append(row)
    boxes: np.ndarray = np.column_stack([centre, side, np.arctan2(*turn[order].T[::-1]), logit[order]])[kept]
    boxes[:, :3] *= np.array([width, height, width]) / np.array(size)[[0, 1, 0]]
    boxes[:, 4] = 1.0 / (1.0 + np.exp(-boxes[:, 4]))
    return boxes[np.lexsort((-boxes[:, 2], boxes[:, 4] < settings["likely_score"]))]


class FaceFinder:
    """The detector of models/landmarks/cascade.py on one photo; without boxes it looks at more windows than that."""

    def __init__(self, session: Any, settings: dict[str, Any], boxes: Any = None) -> None:
        self.session, self.settings, self.boxes = session, settings, boxes
        self.size_px: int = settings["input_size_px"]
        self.mean_shape = np.array(settings["mean_shape"])

    def find(self, photo: np.ndarray) -> Face | None:
        """The largest face that is sure enough, or the surest where there are no boxes."""
        height, width = photo.shape[:2]
        looks = self.settings["unboxed_refinements"]
        finder, faces, sure = self.settings["finder"], [], False
        for row in [] if self.boxes is None else find_boxes(self.boxes, photo, finder):
            if sure and row[4] < finder["likely_score"]:
                break
            face = self._refine(photo, row[None, :3], float(row[3]), self.settings["refinements"])
            faces += [] if face is None else [face]
            sure = sure or (face is not None and face[1].mean() >= SURE_CONFIDENCE)
        if not sure:
            whole = self._refine(photo, np.array([[width / 2.0, height / 2.0, max(height, width)]]), 0.0, looks)
            faces += [] if whole is None else [whole]
        if not faces and self.boxes is None:
            return self._refine(photo, np.array(search_windows(height, width)), 0.0, looks)
        best = max((face[2] * face[1].mean() for face in faces), default=0.0)
        good = (face for face in faces if face[2] * face[1].mean() >= SURE_SHARE * best)
        return max(good, key=lambda face: float(np.ptp(face[0], axis=0).max()), default=None)

    def _refine(self, photo: np.ndarray, squares: np.ndarray, angle: float, looks: int) -> Face | None:
        guesses = self._look(photo, self._affine(squares[:, :2], squares[:, 2], angle))
        # Sure of a face, and sure of its points, which favours windows that fit tightly.
        rank = np.log(guesses[2] + 1e-6) - 0.5 * np.log(guesses[1].mean(1) + 1e-6)
        points, sigma, score = (values[rank.argmax()] for values in guesses)
        for _ in range(looks):
            centre, side, angle = self._tight_frame(points)
            affine = self._affine(centre[None], np.array([side]), angle)
            points, sigma, score = (values[0] for values in self._look(photo, affine))
        # The last look is also taken from right to left.
        flip = np.array([[-1.0, 0.0, self.size_px], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        mirrored, order = self._look(photo, affine @ flip), self.settings["mirror_order"]
        points, sigma = (points + mirrored[0][0][order]) / 2.0, (sigma + mirrored[1][0][order]) / 2.0
        score = (score + mirrored[2][0]) / 2.0
        if score < self.settings["min_face_score"] or np.ptp(points, axis=0).max() < 1.0:
            return None
        return points, 1.0 / (1.0 + (sigma / self.settings["confidence_sigma"]) ** 2), float(score)

    def _look(self, photo: np.ndarray, affines: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        crops = np.stack([cut_frame(photo, affine, self.size_px) for affine in affines])
        pixels = crops.transpose(0, 3, 1, 2).astype(np.float32) / 255.0
        points, log_sigma, presence = self.session.run(["points", "log_sigma", "presence"], {"image": pixels})
        points = points.astype(np.float64)
        side = np.maximum(np.ptp(points, axis=1).max(1), 1.0)
        sigma = np.exp(log_sigma.astype(np.float64)) * self.settings["sigma_scale"] / side[:, None]
        photo_points = points @ affines[:, :2, :2].transpose(0, 2, 1) + affines[:, None, :2, 2]
        return photo_points, sigma, 1.0 / (1.0 + np.exp(-presence.astype(np.float64)))

    def _affine(self, centre: np.ndarray, side: np.ndarray, angle: float = 0.0) -> np.ndarray:
        linear = _rotation(angle)[None] * (side / self.size_px)[:, None, None]
        affine = np.zeros((len(side), 3, 3))
        affine[:, :2, :2] = linear
        affine[:, :2, 2] = centre - linear.sum(2) * (self.size_px / 2.0)
        affine[:, 2, 2] = 1.0
        return affine

    def _tight_frame(self, points: np.ndarray) -> tuple[np.ndarray, float, float]:
        middle = points.mean(0)
        centred, reference = points - middle, self.mean_shape - self.mean_shape.mean(0)
        sine = (reference[:, 0] * centred[:, 1] - reference[:, 1] * centred[:, 0]).sum()
        angle = float(np.arctan2(sine, (reference * centred).sum()))
        upright = centred @ _rotation(angle)
        low, high = upright.min(0), upright.max(0)
        side = max(self.settings["frame_scale"] * float((high - low).max()), 1.0)
        return middle + _rotation(angle) @ ((low + high) / 2.0), side, angle


class FaceReconstructor(PythonModel):  # type: ignore[misc]
    """Landmarks, crop, coefficients and mesh of the best face in each photo."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the graphs and read what the face model's consumer needs."""
        with open(context.artifacts["settings"], encoding="utf-8") as file:  # noqa: PTH123 - a path from MLflow
            self.settings: dict[str, Any] = json.load(file)
        self.reconstructor = _session(context.artifacts["reconstructor"])
        self.outputs = [output.name for output in self.reconstructor.get_outputs()]
        self.finder = None
        if "detector" in context.artifacts:
            boxes = _session(context.artifacts["finder"]) if "finder" in context.artifacts else None
            self.finder = FaceFinder(_session(context.artifacts["detector"]), self.settings["detector"], boxes)
        with np.load(context.artifacts["face_model"], allow_pickle=False) as file:
            self.triangles = file["triangles"].astype(np.int32)

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - MLflow finds out by the names what to pass
        model_input: pandas.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """One row per photo.

        Input columns: `image` (bytes of a JPEG or PNG, the same in base64, or uint8 RGB pixels (H, W, 3)); `landmarks`
        (136 numbers x0, y0 … in photo pixels, centres at +0.5), needed only if the model came without a detector, and
        taken instead of detecting where given. Parameter `triangles`: add the mesh's triangles to every row.
        Convention: millimetres; `model_vertices` in model space (+x the subject's left, +y up, +z out of the face),
        `vertices` in camera space (x right, y down, z forward), which `intrinsics` (3, 3) project to photo pixels.
        A photo without a usable face has its reason in `error`, and None elsewhere.
        """
        with_triangles = bool((params or {}).get("triangles", False))
        given = model_input["landmarks"] if "landmarks" in model_input.columns else [None] * len(model_input)
        photos = zip(model_input["image"], given, strict=True)
        return [self._row(image, points, with_triangles) for image, points in photos]

    def _row(self, image: Any, given: Any, with_triangles: bool) -> dict[str, Any]:
        try:
            return self._reconstruct(image, given, with_triangles)
        except PhotoError as error:
            names = ("size", "landmarks_detected", "confidence", "face_score", "affine", "intrinsics", *self.outputs)
            row = dict.fromkeys(names) | ({"triangles": None} if with_triangles else {})
            return {"error": str(error), **row}

    def _reconstruct(self, image: Any, given: Any, with_triangles: bool) -> dict[str, Any]:
        settings = self.settings
        photo = decode_photo(image, max_pixels=settings["max_image_pixels"])
        if given is None or (isinstance(given, float) and np.isnan(given)):
            landmarks, confidence, score = self._detect(photo)
        else:
            landmarks, score = _check_landmarks(given), 1.0
            confidence = np.full(LANDMARK_COUNT, settings["provided_confidence"], np.float32)
        size = settings["crop_size_px"]
        affine = crop_affine(landmarks, size_px=size, scale=settings["crop_scale"])
        crop = cut_crop(photo, affine, size)
        in_crop = (landmarks - affine[:2, 2]) / affine[[0, 1], [0, 1]]
        feed = {
            "image": crop.transpose(2, 0, 1)[None].astype(np.float32) / 255.0,
            "landmarks": in_crop[None].astype(np.float32),
            "confidence": confidence[None].astype(np.float32),
        }
        found = dict(zip(self.outputs, self.reconstructor.run(None, feed), strict=True))
        row = {name: value[0] for name, value in found.items()}
        row["landmarks_projected"] = row["landmarks_projected"] * affine[[0, 1], [0, 1]] + affine[:2, 2]
        focal = settings["focal_per_size"] * size
        camera = np.array([[focal, 0.0, size / 2.0], [0.0, focal, size / 2.0], [0.0, 0.0, 1.0]])
        return {
            "error": None,
            "size": list(photo.shape[:2]),
            "landmarks_detected": landmarks,
            **{"confidence": confidence, "face_score": float(score), "affine": affine, "intrinsics": affine @ camera},
            **(row | ({"triangles": self.triangles} if with_triangles else {})),
        }

    def _detect(self, photo: np.ndarray) -> Face:
        if self.finder is None:
            raise PhotoError("landmarks: missing, and this model came without a detector; give 136 numbers per photo")
        # Faces were trained on photos of limited size; the crop is cut from the full one again.
        factor = -(-max(photo.shape[:2]) // self.settings["max_side_px"])
        height, width = photo.shape[0] // factor, photo.shape[1] // factor
        reduced = photo
        if factor > 1 and height and width:
            blocks = photo[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
            reduced = np.rint(blocks.mean((1, 3), dtype=np.float32)).astype(np.uint8)
        found = self.finder.find(reduced)
        if found is None:
            raise PhotoError("no face was found; give its landmarks, or a photo that shows one face larger")
        points, confidence, score = found
        return points * factor, confidence, score


def _check_landmarks(given: Any) -> np.ndarray:
    try:
        points = np.asarray(given, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise PhotoError("landmarks: not numbers, expected 136 numbers x0, y0 …") from None
    if points.size != 2 * LANDMARK_COUNT:
        raise PhotoError(f"landmarks: {points.size} numbers, expected {2 * LANDMARK_COUNT}")
    if not np.isfinite(points).all():
        raise PhotoError("landmarks: numbers that are not finite")
    return points.reshape(LANDMARK_COUNT, 2)


def _session(path: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


set_model(FaceReconstructor())
