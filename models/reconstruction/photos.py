"""From photos to 3D faces: every face is found, cropped, put through the network, and mapped back to the photo.

Nothing here reads or writes a file. A batch of photos goes through detector and network together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from models.face.camera import crop_camera
from models.face.crop import apply_affine, crop_affine, inside_photo, photo_camera, warp_crop
from models.face.morphable import MorphableModel
from models.landmarks.detector import Detection, LandmarkDetector, ProvidedDetector, detect_faces
from models.reconstruction.expression_bounds import ExpressionBounds
from models.reconstruction.reconstructor import Reconstructor
from models.types import Batch, FaceCoefficients, Reconstruction, map_tensors, to_device

Pixels = UInt8[np.ndarray, "_ _ 3"]

Which = Literal["all", "best"]
"""Faces of a photo that are wanted; the best is the largest that the detector is sure enough of."""

SMALLEST_FACE_PX = 24.0
"""Faces whose points span fewer pixels are left out where a photo has larger ones: nothing of them can be told."""

CROPS_AT_ONCE = 32


@dataclass(frozen=True)
class PhotoFace:
    """A face of one photo."""

    name: str
    """Of the photo."""
    photo: Pixels
    detection: Detection
    affine: Float[Tensor, "3 3"]
    """Crop pixels to photo pixels."""
    intrinsics: Float[Tensor, "3 3"]
    """Camera space to photo pixels."""
    batch: Batch
    """The crop with its landmarks, a batch of one."""
    reconstruction: Reconstruction

    @property
    def coefficients(self) -> FaceCoefficients:
        """Identity, expression, albedo, light and pose, a batch of one."""
        return self.reconstruction.coefficients


class PhotoReader:
    """A trained network with its detector.

    `detector`: or a function that opens one when the first photo without given points comes. Detection looks at photos
    reduced to `max_side_px`, as training did; the crop is cut from the full photo. Results lie on the processor,
    wherever the network runs, and the weights of ARKit's shapes between 0 and 1.
    """

    def __init__(
        self,
        reconstructor: Reconstructor,
        detector: LandmarkDetector | Callable[[], LandmarkDetector],
        *,
        max_side_px: int = 1024,
        device: str | torch.device = "cpu",
    ) -> None:
        self.reconstructor = reconstructor
        self.max_side_px = max_side_px
        self.device = torch.device(device)
        self._detector = detector
        self._network = reconstructor
        if self.device.type != "cpu":
            # A copy, because meshes and pictures are made by the face model on the processor.
            self._network = copy.deepcopy(reconstructor).to(self.device)

    @cached_property
    def detector(self) -> LandmarkDetector:
        """Opened when it is first asked for."""
        return self._detector if isinstance(self._detector, LandmarkDetector) else self._detector()

    @property
    def model(self) -> MorphableModel:
        """The face model, on the processor."""
        return self.reconstructor.model

    @cached_property
    def bounds(self) -> ExpressionBounds:
        """Of expressions; the network's answers are held within them."""
        return ExpressionBounds(self.model)

    @property
    def network(self) -> Reconstructor:
        """The network on its device."""
        return self._network

    def read(
        self,
        photos: Sequence[Pixels],
        *,
        names: Sequence[str] | None = None,
        points: Sequence[Float[np.ndarray, "68 2"] | None] | None = None,
        which: Which = "all",
    ) -> list[list[PhotoFace]]:
        """The faces of each photo (RGB, upright), largest first; an empty list where there is none.

        `points` of photos whose 68 landmarks are known, in pixels: these are taken instead of detecting.
        Raises: ValueError if given points coincide, or if points are needed and the detector finds none by itself.
        """
        called = names or [f"photo {number}" for number in range(1, len(photos) + 1)]
        found = self.detect(photos, points=points, which=which)
        places = [(row, one) for row, faces in enumerate(found) for one in faces]
        results: list[list[PhotoFace]] = [[] for _ in photos]
        for start in range(0, len(places), CROPS_AT_ONCE):
            some = places[start : start + CROPS_AT_ONCE]
            taken = [(photos[row], one, called[row]) for row, one in some]
            for (row, _), face in zip(some, self.reconstruct(taken), strict=True):
                results[row].append(face)
        return results

    def detect(
        self,
        photos: Sequence[Pixels],
        *,
        points: Sequence[Float[np.ndarray, "68 2"] | None] | None = None,
        which: Which = "all",
    ) -> list[list[Detection]]:
        """The detections that `read` starts from."""
        given = list(points) if points is not None else [None] * len(photos)
        found: list[list[Detection]] = [[] for _ in photos]
        wanted = [row for row, one in enumerate(given) if one is None]
        for row, one in enumerate(given):
            if one is not None:
                found[row] = [detection for detection in ProvidedDetector().detect([photos[row]], annotations=[one])
                              if detection is not None]  # fmt: skip
        if wanted:
            if isinstance(self.detector, ProvidedDetector):
                raise ValueError("the model has no detector of its own; give the 68 points of every photo")
            asked = [photos[row] for row in wanted]
            for row, faces in zip(wanted, detect_reduced(self.detector, asked, self.max_side_px, which), strict=True):
                found[row] = faces
        return found

    @torch.no_grad()
    def reconstruct(self, taken: Sequence[tuple[Pixels, Detection, str]]) -> list[PhotoFace]:
        """Faces that were detected, each with its photo and the photo's name, as one batch."""
        settings = self.reconstructor.settings
        crops = [
            crop_photo(photo, one, size_px=settings.crop_size_px, scale=settings.crop_scale, name=name)
            for photo, one, name in taken
        ]
        joined = join_batches([batch for batch, _ in crops])
        seen = to_device(joined, self.device)
        coefficients = to_device(self.network(seen.image, seen.landmarks, seen.confidence), "cpu")
        coefficients = replace(coefficients, expression=self.bounds.hold(coefficients.expression))
        faces = []
        for row, ((photo, one, name), (batch, affine)) in enumerate(zip(taken, crops, strict=True)):
            own = map_tensors(coefficients, lambda values, row=row: values[row : row + 1])
            faces.append(
                PhotoFace(
                    name=name,
                    photo=photo,
                    detection=one,
                    affine=affine[0],
                    intrinsics=photo_camera(batch.camera, affine)[0],
                    batch=batch,
                    reconstruction=self.reconstructor.reconstruct(own, batch.camera),
                )
            )
        return faces


def crop_photo(
    photo: Pixels, detection: Detection, *, size_px: int, scale: float, name: str
) -> tuple[Batch, Float[Tensor, "1 3 3"]]:
    """The crop around a detected face as a batch of one, and its affine, crop pixels to photo pixels.

    Raises: ValueError if all landmarks coincide.
    """
    found = torch.from_numpy(detection.landmarks.astype(np.float32))[None]
    affine = crop_affine(found, size_px=size_px, scale=scale)
    crop = torch.from_numpy(warp_crop(photo, affine[0].double().numpy(), size_px))
    photo_size = torch.tensor([[float(photo.shape[1]), float(photo.shape[0])]])
    batch = Batch(
        source="photo",
        sample_ids=(name,),
        camera=crop_camera(1, size_px),
        image=crop.permute(2, 0, 1)[None].float() / 255.0,
        mask=inside_photo(affine, photo_size=photo_size, size_px=size_px),
        landmarks=apply_affine(torch.linalg.inv(affine), found),
        confidence=torch.from_numpy(detection.confidence.astype(np.float32))[None],
        person=torch.zeros(1, dtype=torch.int64),
    )
    return batch, affine


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Crops of one size as one batch, each a person of its own."""
    image = torch.cat([batch.image for batch in batches])
    return Batch(
        source=batches[0].source,
        sample_ids=tuple(name for batch in batches for name in batch.sample_ids),
        camera=crop_camera(len(image), batches[0].camera.size[0]),
        image=image,
        mask=torch.cat([batch.mask for batch in batches]),
        landmarks=torch.cat([batch.landmarks for batch in batches]),
        confidence=torch.cat([batch.confidence for batch in batches]),
        person=torch.arange(len(image)),
    )


def detect_reduced(
    detector: LandmarkDetector, photos: Sequence[Pixels], max_side_px: int, which: Which = "best"
) -> list[list[Detection]]:
    """What a detector finds in photos that are reduced as in training, in pixels of the photos themselves."""
    reduced = [_reduced(photo, max_side_px) for photo in photos]
    if which == "all":
        found = detect_faces(detector, reduced)
    else:
        found = [[] if one is None else [one] for one in detector.detect(reduced)]
    return [
        _large_enough([_enlarged(one, photo, small) for one in faces if _is_face(one)])
        for photo, small, faces in zip(photos, reduced, found, strict=True)
    ]


def _is_face(found: Detection) -> bool:
    return bool(np.isfinite(found.landmarks).all()) and float(np.ptp(found.landmarks, axis=0).max()) > 0.0


def _large_enough(faces: list[Detection]) -> list[Detection]:
    large = [one for one in faces if float(np.ptp(one.landmarks, axis=0).max()) >= SMALLEST_FACE_PX]
    return large or faces


def _reduced(photo: Pixels, max_side_px: int) -> Pixels:
    height, width = photo.shape[:2]
    scale = max_side_px / max(height, width)
    if scale >= 1.0:
        return photo
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _enlarged(found: Detection, photo: Pixels, reduced: Pixels) -> Detection:
    if reduced is photo:
        return found
    scale = np.array([photo.shape[1] / reduced.shape[1], photo.shape[0] / reduced.shape[0]], np.float32)
    return Detection(found.landmarks * scale, found.confidence, found.box * np.tile(scale, 2), found.face_score)
