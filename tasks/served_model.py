"""The registered model: photos in, 3D faces out. MLflow keeps this file with the model and runs it wherever that is.

`tasks/served_bundle.py` makes one file of it and of its two parts, so they import nothing of ours but each other: only
numpy, onnxruntime, pandas and Pillow. A row of the answer describes one photo; see `FaceReconstructor.predict`.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnxruntime
import pandas
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from tasks.served_finder import Face, FaceFinder
from tasks.served_photos import PhotoError, crop_affine, cut_crop, decode_photo

LANDMARK_COUNT = 68


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
