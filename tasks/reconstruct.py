"""Photos to coloured meshes, overlays, coefficients and cameras, by the registry's champion or by a checkpoint."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.export import camera_document, overlay, write_mesh
from models.face.camera import crop_camera
from models.face.crop import apply_affine, crop_affine, inside_photo, photo_camera, warp_crop
from models.landmarks.detector import Detection, LandmarkDetector, ProvidedDetector
from models.reconstruction.photo_fit import ANCHOR, LANDMARK_STEPS, PHOTO_STEPS, refine_coefficients
from models.types import Batch, FaceCoefficients, Reconstruction, map_tensors
from tasks.annotations import AnnotationError, Annotations, read_landmark_table
from tasks.artifacts import Workspace, write_json
from tasks.face_model import png_stamp
from tasks.face_reader import FaceReader, open_champion, open_checkpoint
from tasks.images import ImageError, Pixels, decode, read_file, reduce
from tasks.params import load_params

REFINED_TOGETHER = 4
"""Photos of different persons that are refined as one batch: more hardly save time, and all are held in memory."""

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
"""What is taken from a folder; a photo that is named by itself may be called as it likes."""

MESH_AXES = "x to the subject's left, y up, z out of the face, millimetres; with expression, facing the viewer"

UNREADABLE_REMEDY = "give a photo as JPEG or PNG"


class ReconstructionError(ValueError):
    """Some photos could not be reconstructed; each was reported when its turn came."""


class PhotoError(ValueError):
    """A photo that cannot be reconstructed; the message says why and what to do."""


@dataclass(frozen=True)
class Refinement:
    """How photos are to be refined after the network has seen them."""

    photo_steps: int = PHOTO_STEPS
    landmark_steps: int = LANDMARK_STEPS
    same_person: bool = False
    """Whether all photos show one person, whose identity and albedo they then share."""


@dataclass(frozen=True)
class PhotoFace:
    """The face of one photo."""

    path: Path
    photo: Pixels
    detection: Detection
    affine: torch.Tensor
    """(3, 3) crop pixels to photo pixels."""
    intrinsics: torch.Tensor
    """(3, 3) camera space to photo pixels."""
    batch: Batch
    """The crop with its landmarks, a batch of one."""
    reconstruction: Reconstruction
    refinement: dict[str, Any] | None = None
    """How the network's coefficients were refined, for the record; None if they were not."""


def reconstruct_photos(
    photos: Sequence[Path],
    out: Path,
    *,
    workspace: Workspace,
    checkpoint: Path | None = None,
    landmarks: Path | None = None,
    refinement: Refinement | None = None,
) -> list[Path]:
    """Write `<photo>.obj`, `<photo>_overlay.png` and `<photo>.json` for every photo, and return their paths.

    A folder stands for the photos in it. Faults of single photos go to stderr, one line each, and the others go on.
    Raises: ReconstructionError at the end if there were any; ValueError or FileNotFoundError if nothing can be done.
    """
    params = load_params(workspace.params)
    given = Annotations()
    if landmarks is not None:
        read_landmark_table(landmarks, given)
    found = list(photo_paths(photos))
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder; name another one with --out")
    reader = open_champion(params, workspace) if checkpoint is None else open_checkpoint(checkpoint, params, workspace)
    written: list[Path] = []
    taken: dict[str, Path] = {}
    failed = 0
    together = 1 if refinement is None else len(found) if refinement.same_person else REFINED_TOGETHER
    for start in range(0, len(found), together):
        faces: list[PhotoFace] = []
        for photo in found[start : start + together]:
            try:
                first = taken.setdefault(photo.stem, photo)
                if first is not photo:
                    raise PhotoError(f"its results would replace those of {first}; rename it or use another --out")
                faces.append(read_face(reader, photo, _given_points(given, photo)))
            except (PhotoError, AnnotationError, ImageError) as error:
                failed += 1
                remedy = f"; {UNREADABLE_REMEDY}" if isinstance(error, ImageError) else ""
                sys.stderr.write(f"{photo}: {error}{remedy}\n")
        if refinement is not None and faces:
            faces = refine_faces(reader, faces, refinement)
        for face in faces:
            written += write_face(face, out, reader)
    if failed:
        others = f"; the others are in {out}" if failed < len(found) else ""
        photos_failed = f"{failed} of {len(found)} photos" if len(found) > 1 else "the photo"
        raise ReconstructionError(f"{photos_failed} could not be reconstructed, see above{others}")
    return written


@torch.no_grad()
def read_face(reader: FaceReader, path: Path, points: np.ndarray | None = None) -> PhotoFace:
    """Reconstruct the face of one photo; its 68 points are detected where they are not given.

    Raises: ImageError or PhotoError.
    """
    content = read_file(path, max_bytes=reader.max_image_bytes)
    photo = decode(content, max_bytes=reader.max_image_bytes, max_pixels=reader.max_image_pixels)
    detection = _detect(reader, photo, points)
    settings = reader.reconstructor.settings
    try:
        batch, affine = crop_photo(
            photo, detection, size_px=settings.crop_size_px, scale=settings.crop_scale, name=path.name
        )
    except ValueError as error:
        raise PhotoError(str(error)) from None
    coefficients = reader.reconstructor(batch.image, batch.landmarks, batch.confidence)
    return PhotoFace(
        path=path,
        photo=photo,
        detection=detection,
        affine=affine[0],
        intrinsics=photo_camera(batch.camera, affine)[0],
        batch=batch,
        reconstruction=reader.reconstructor.reconstruct(coefficients, batch.camera),
    )


def crop_photo(
    photo: Pixels, detection: Detection, *, size_px: int, scale: float, name: str
) -> tuple[Batch, torch.Tensor]:
    """The crop around a detected face as a batch of one, and its affine (1, 3, 3), crop pixels to photo pixels.

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


def refine_faces(reader: FaceReader, faces: Sequence[PhotoFace], refinement: Refinement) -> list[PhotoFace]:
    """The same faces after per-photo optimisation from the network's coefficients."""
    count = len(faces)
    joined: dict[str, Any] = {
        name: torch.cat([getattr(face.batch, name) for face in faces])
        for name in ("image", "mask", "landmarks", "confidence")
    }
    batch = replace(
        faces[0].batch,
        sample_ids=tuple(face.path.name for face in faces),
        camera=crop_camera(count, reader.reconstructor.settings.crop_size_px),
        person=torch.zeros(count, dtype=torch.int64) if refinement.same_person else torch.arange(count),
        **joined,
    )
    start = FaceCoefficients(
        **{
            field.name: torch.cat([getattr(face.reconstruction.coefficients, field.name) for face in faces])
            for field in fields(FaceCoefficients)
        }
    )
    refined = refine_coefficients(
        reader.reconstructor.model,
        batch,
        start,
        anchor=ANCHOR,
        person=batch.person,
        landmark_steps=refinement.landmark_steps,
        photo_steps=refinement.photo_steps,
    )
    done = []
    for place, face in enumerate(faces):
        own = map_tensors(refined, lambda values, place=place: values[place : place + 1])
        record = {
            "landmark_steps": refinement.landmark_steps,
            "photo_steps": refinement.photo_steps,
            "same_person_as": [other.path.name for other in faces if refinement.same_person and other is not face],
        }
        with torch.no_grad():
            reconstruction = reader.reconstructor.reconstruct(own, face.batch.camera)
        done.append(replace(face, reconstruction=reconstruction, refinement=record))
    return done


@torch.no_grad()
def write_face(face: PhotoFace, out: Path, reader: FaceReader) -> list[Path]:
    """Write mesh, overlay and document of a face, all of them or none; returns their paths."""
    path, how = face.path, "not refined" if face.refinement is None else "refined"
    model, coefficients = reader.reconstructor.model, face.reconstruction.coefficients
    vertices = model.vertices(coefficients.identity, coefficients.expression)[0].numpy()
    albedo = model.albedo(coefficients.albedo)[0]
    names = [f"{path.stem}.obj", f"{path.stem}_overlay.png", f"{path.stem}.json"]
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".reconstruct-", dir=out))
    try:
        write_mesh(
            scratch / names[0],
            vertices,
            model.triangles.numpy(),
            colours=albedo.numpy(),
            comment=f"face of {path.name}, {how}; {MESH_AXES}",
            stamp=model.stamp(),
        )
        drawn = overlay(
            face.photo,
            vertices=face.reconstruction.mesh.vertices[0],
            triangles=model.triangles,
            albedo=albedo,
            lighting=coefficients.lighting[0],
            intrinsics=face.intrinsics,
        )
        stamp = png_stamp(model)
        stamp.add_text("face", how)
        Image.fromarray(drawn).save(scratch / names[1], pnginfo=stamp)
        write_json(scratch / names[2], document(face, reader, mesh=names[0]))
        for name in names:
            (scratch / name).replace(out / name)
    finally:
        shutil.rmtree(scratch)
    return [out / name for name in names]


def document(face: PhotoFace, reader: FaceReader, *, mesh: str) -> dict[str, Any]:
    """Coefficients, camera, landmarks and origin of a face as plain data."""
    model, found = reader.reconstructor.model, face.reconstruction.coefficients
    projected = apply_affine(face.affine[None], face.reconstruction.landmarks)[0]
    return {
        "photo": face.path.name,
        "model": reader.origin,
        "refinement": face.refinement,
        "face_model": model.stamp(),
        "mesh": {"file": mesh, "axes": MESH_AXES, "vertices": model.vertex_count, "triangles": len(model.triangles)},
        "coefficients": {
            "identity": _numbers(found.identity[0]),
            "expression": dict(zip(model.expression_names, _numbers(found.expression[0]), strict=True)),
            "albedo": _numbers(found.albedo[0]),
            "lighting": _numbers(found.lighting[0]),
        },
        "camera": camera_document(
            face.intrinsics,
            size=(face.photo.shape[0], face.photo.shape[1]),
            rotation=found.rotation[0],
            translation=found.translation[0],
        ),
        "crop": {"size_px": reader.reconstructor.settings.crop_size_px, "to_photo": _numbers(face.affine)},
        "landmarks": {
            "detected_px": _numbers(face.detection.landmarks),
            "confidence": _numbers(face.detection.confidence),
            "projected_px": _numbers(projected),
            "face_score": round(face.detection.face_score, 4),
        },
    }


def _detect(reader: FaceReader, photo: Pixels, points: np.ndarray | None) -> Detection:
    if points is not None:
        (detection,) = ProvidedDetector().detect([photo], annotations=[points])
    elif isinstance(reader.detector, ProvidedDetector):
        raise PhotoError("the model has no detector of its own; give the photo's 68 points with --landmarks")
    else:
        detection = detect_reduced(reader.detector, photo, max_side_px=reader.max_side_px)
    if detection is None:
        raise PhotoError("no face was found; cut the photo closer to the face or give its points with --landmarks")
    return detection


def detect_reduced(detector: LandmarkDetector, photo: Pixels, *, max_side_px: int) -> Detection | None:
    """What a detector finds in a photo that is reduced as in training, in pixels of the photo itself."""
    reduced = reduce(photo, max_side_px=max_side_px)
    (detection,) = detector.detect([reduced])
    if detection is None or reduced is photo:
        return detection
    scale = np.array([photo.shape[1] / reduced.shape[1], photo.shape[0] / reduced.shape[0]], np.float32)
    return Detection(
        detection.landmarks * scale, detection.confidence, detection.box * np.tile(scale, 2), detection.face_score
    )


def photo_paths(photos: Sequence[Path]) -> Iterator[Path]:
    """The photos; a folder stands for those in it.

    Raises: FileNotFoundError if a folder holds none.
    """
    for path in photos:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in PHOTO_SUFFIXES and entry.is_file())
        if not inside:
            raise FileNotFoundError(f"{path}: no photos in this folder, expected {', '.join(PHOTO_SUFFIXES)}")
        yield from inside


def _given_points(given: Annotations, photo: Path) -> np.ndarray | None:
    points = given.landmarks.get(photo.name, given.landmarks.get(photo.as_posix()))
    if isinstance(points, AnnotationError):
        raise points
    return points


def _numbers(values: torch.Tensor | np.ndarray) -> Any:
    return np.round(np.asarray(values, dtype=np.float64), 6).tolist()
