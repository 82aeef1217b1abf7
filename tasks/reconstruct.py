"""Photos to coloured meshes, overlays, coefficients and cameras, by the registry's champion or by a checkpoint."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.export import camera_document, overlay, write_mesh
from models.face.camera import crop_camera
from models.face.crop import apply_affine, crop_affine, photo_camera, warp_crop
from models.face.formats import build_face_model
from models.face.morphable import MorphableModel
from models.landmarks.detector import Detection, LandmarkDetector, ProvidedDetector, build_detector
from models.reconstruction.reconstructor import Reconstructor, load_reconstructor
from models.types import Reconstruction
from tasks.annotations import AnnotationError, Annotations, read_landmark_table
from tasks.artifacts import Workspace, load_checkpoint, read_json, write_json
from tasks.detect import open_detector
from tasks.face_model import load_face_model, png_stamp
from tasks.images import ImageError, Pixels, decode, read_file, reduce
from tasks.params import Params, load_params
from tasks.promotion import CHAMPION
from tasks.register import PACKAGE_FILES, find_version
from tasks.tracking import tracking_client, tracking_uri

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
"""What is taken from a folder; a photo that is named by itself may be called as it likes."""

MESH_AXES = "x to the subject's left, y up, z out of the face, millimetres; with expression, facing the viewer"

UNREADABLE_REMEDY = "give a photo as JPEG or PNG"


class ReconstructionError(ValueError):
    """Some photos could not be reconstructed; each was reported when its turn came."""


class PhotoError(ValueError):
    """A photo that cannot be reconstructed; the message says why and what to do."""


@dataclass(frozen=True)
class FaceReader:
    """A trained model with its detector, ready for photos."""

    reconstructor: Reconstructor
    origin: dict[str, Any]
    """Where the weights come from, for the record."""
    max_image_bytes: int
    max_image_pixels: int
    max_side_px: int
    """Detection looks at photos reduced to this, as training did; the crop is cut from the full photo."""
    find_detector: Callable[[], LandmarkDetector]

    @cached_property
    def detector(self) -> LandmarkDetector:
        """Opened when the first photo without given landmarks comes."""
        return self.find_detector()


@dataclass(frozen=True)
class PhotoFace:
    """The face of one photo."""

    photo: Pixels
    detection: Detection
    affine: torch.Tensor
    """(3, 3) crop pixels to photo pixels."""
    intrinsics: torch.Tensor
    """(3, 3) camera space to photo pixels."""
    reconstruction: Reconstruction


def reconstruct_photos(
    photos: Sequence[Path],
    out: Path,
    *,
    workspace: Workspace,
    checkpoint: Path | None = None,
    landmarks: Path | None = None,
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
    for photo in found:
        try:
            first = taken.setdefault(photo.stem, photo)
            if first is not photo:
                raise PhotoError(f"its results would replace those of {first}; rename it or use another --out")
            face = read_face(reader, photo, _given_points(given, photo))
            written += write_face(face, photo, out, reader)
        except (PhotoError, AnnotationError, ImageError) as error:
            failed += 1
            remedy = f"; {UNREADABLE_REMEDY}" if isinstance(error, ImageError) else ""
            sys.stderr.write(f"{photo}: {error}{remedy}\n")
    if failed:
        others = f"; the others are in {out}" if failed < len(found) else ""
        photos_failed = f"{failed} of {len(found)} photos" if len(found) > 1 else "the photo"
        raise ReconstructionError(f"{photos_failed} could not be reconstructed, see above{others}")
    return written


def open_champion(params: Params, workspace: Workspace) -> FaceReader:
    """The model that the registry holds as champion, with the face model and detector that belong to it.

    Raises: FileNotFoundError if there is none.
    """
    name, uri = params.register.model_name, tracking_uri(params, workspace)
    local = params.register.tracking_uri is None
    version = None
    # Asking would create an empty registry in a workspace that has none.
    if not local or (workspace.root / "mlruns" / "mlflow.db").exists():
        client = tracking_client(params, workspace)
        version = find_version(client, name, CHAMPION)
    if version is None:
        raise FileNotFoundError(f"no champion of {name} in {uri}; run `make run` first or give --checkpoint")
    from mlflow.artifacts import download_artifacts

    location = client.get_model_version_download_uri(name, version.version)
    folder = Path(download_artifacts(artifact_uri=f"{location}/artifacts", tracking_uri=uri))
    settings = read_json(folder / PACKAGE_FILES["settings"])
    model = build_face_model("npz", path=folder / PACKAGE_FILES["face_model"], identity_modes=sys.maxsize)
    reconstructor = _load(folder / PACKAGE_FILES["reconstructor_checkpoint"], model)

    def find_detector() -> LandmarkDetector:
        kind = settings["landmarks"]
        if kind != "hierarchical":
            return build_detector(kind)
        path = folder / PACKAGE_FILES["detector_checkpoint"]
        content = load_checkpoint(path)
        with _fitting_weights(path):
            score = settings["detector"]["min_face_score"]
            return build_detector(kind, content=content, exported=folder, min_face_score=score)

    return FaceReader(
        reconstructor=reconstructor,
        origin={"name": name, "version": int(version.version), "alias": CHAMPION},
        max_image_bytes=settings["max_image_bytes"],
        max_image_pixels=settings["max_image_pixels"],
        max_side_px=settings["max_side_px"],
        find_detector=find_detector,
    )


def open_checkpoint(path: Path, params: Params, workspace: Workspace) -> FaceReader:
    """The model of a checkpoint file, or of the folder that holds one; face model and detector as the params say.

    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    path = path / "checkpoint.pt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; name one such as artifacts/refusion/checkpoint.pt")

    def find_detector() -> LandmarkDetector:
        with _fitting_weights(workspace.folder("train_detector") / "checkpoint.pt"):
            return open_detector(params, workspace)

    return FaceReader(
        reconstructor=_load(path, load_face_model(params, workspace)),
        origin={"checkpoint": str(path)},
        max_image_bytes=params.ingest.max_image_bytes,
        max_image_pixels=params.ingest.max_image_pixels,
        max_side_px=params.ingest.max_side_px,
        find_detector=find_detector,
    )


@torch.inference_mode()
def read_face(reader: FaceReader, path: Path, points: np.ndarray | None = None) -> PhotoFace:
    """Reconstruct the face of one photo; its 68 points are detected where they are not given.

    Raises: ImageError or PhotoError.
    """
    content = read_file(path, max_bytes=reader.max_image_bytes)
    photo = decode(content, max_bytes=reader.max_image_bytes, max_pixels=reader.max_image_pixels)
    detection = _detect(reader, photo, points)
    settings = reader.reconstructor.settings
    size = settings.crop_size_px
    found = torch.from_numpy(detection.landmarks.astype(np.float32))[None]
    try:
        affine = crop_affine(found, size_px=size, scale=settings.crop_scale)
    except ValueError as error:
        raise PhotoError(str(error)) from None
    crop = torch.from_numpy(warp_crop(photo, affine[0].double().numpy(), size))
    confidence = torch.from_numpy(detection.confidence.astype(np.float32))[None]
    coefficients = reader.reconstructor(
        crop.permute(2, 0, 1)[None].float() / 255.0, apply_affine(torch.linalg.inv(affine), found), confidence
    )
    camera = crop_camera(1, size)
    return PhotoFace(
        photo=photo,
        detection=detection,
        affine=affine[0],
        intrinsics=photo_camera(camera, affine)[0],
        reconstruction=reader.reconstructor.reconstruct(coefficients, camera),
    )


@torch.inference_mode()
def write_face(face: PhotoFace, path: Path, out: Path, reader: FaceReader) -> list[Path]:
    """Write mesh, overlay and document of a face, all of them or none; returns their paths."""
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
            comment=f"face of {path.name}; {MESH_AXES}",
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
        Image.fromarray(drawn).save(scratch / names[1], pnginfo=png_stamp(model))
        write_json(scratch / names[2], document(face, path, reader, mesh=names[0]))
        for name in names:
            (scratch / name).replace(out / name)
    finally:
        shutil.rmtree(scratch)
    return [out / name for name in names]


def document(face: PhotoFace, path: Path, reader: FaceReader, *, mesh: str) -> dict[str, Any]:
    """Coefficients, camera, landmarks and origin of a face as plain data."""
    model, found = reader.reconstructor.model, face.reconstruction.coefficients
    projected = apply_affine(face.affine[None], face.reconstruction.landmarks)[0]
    return {
        "photo": path.name,
        "model": reader.origin,
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


def _load(path: Path, model: MorphableModel) -> Reconstructor:
    content = load_checkpoint(path)
    with _fitting_weights(path):
        return load_reconstructor(content, model)


@contextmanager
def _fitting_weights(path: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, KeyError, TypeError):  # what torch and dataclasses say of weights and settings that differ
        raise ValueError(
            f"{path}: made by another version of Mien; train again, or check out the code of its run"
        ) from None


def _detect(reader: FaceReader, photo: Pixels, points: np.ndarray | None) -> Detection:
    if points is not None:
        (detection,) = ProvidedDetector().detect([photo], annotations=[points])
    elif isinstance(reader.detector, ProvidedDetector):
        raise PhotoError("the model has no detector of its own; give the photo's 68 points with --landmarks")
    else:
        reduced = reduce(photo, max_side_px=reader.max_side_px)
        (detection,) = reader.detector.detect([reduced])
        if detection is not None and reduced is not photo:
            scale = np.array([photo.shape[1] / reduced.shape[1], photo.shape[0] / reduced.shape[0]], np.float32)
            detection = Detection(
                detection.landmarks * scale,
                detection.confidence,
                detection.box * np.tile(scale, 2),
                detection.face_score,
            )
    if detection is None:
        raise PhotoError("no face was found; cut the photo closer to the face or give its points with --landmarks")
    return detection


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
