"""Faces in films: who is who from frame to frame, one identity per person, steady expression and pose.

Convention: a film has one camera, see `film_camera`, in which all poses are given; times in seconds.
Method: what the network says of single frames is put together to one identity (models/reconstruction/aggregate.py);
with that identity fixed, every frame's expression and pose are fitted to its landmarks again, near what the network
said; the One-Euro filter steadies both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

from models.face.camera import FOCAL_PER_SIZE, project, to_camera_space
from models.face.morphable import MorphableModel
from models.face.sampling import is_arkit_shape
from models.reconstruction.aggregate import aggregate
from models.reconstruction.fit import FittedFaces, fit_face, fit_pose
from models.reconstruction.one_euro import OneEuro, one_euro, one_euro_rotations
from models.reconstruction.photo_fit import ANCHOR, LANDMARK_STEPS, landmark_precision
from models.reconstruction.photos import join_batches
from models.types import Batch, Camera, FaceCoefficients

IDENTITY_FRAMES = 32
"""Frames that tell who somebody is, spread over the track: more hardly add anything."""

FRAMES_AT_ONCE = 256

LINK_DISTANCE = 0.6
"""In face sizes: how far a face may move from one frame to the next one looked at."""
LINK_SCALE = 1.35
"""By how much its size may change."""

NEIGHBOURS = 7
"""Frames before and after with which a frame's face is compared."""
SUDDEN_SCALE = 1.25
"""A face is no such multiple of its neighbours' median size: there the detector was wrong."""
DOUBTFUL_ERROR = 3.0
"""Median errors beyond which landmarks do not fit the person, and beyond …"""
DOUBTFUL_FLOOR = 0.03
"""… this share of the face's size."""

SMOOTH_EXPRESSION = OneEuro(min_cutoff_hz=2.0, speed_gain=1.5)
SMOOTH_ROTATION = OneEuro(min_cutoff_hz=1.5, speed_gain=8.0)
SMOOTH_TRANSLATION = OneEuro(min_cutoff_hz=1.0, speed_gain=0.01)
"""Speeds are per second: of weights, of unit quaternions, in millimetres."""


@dataclass(frozen=True)
class FrameFace:
    """A face in one frame, as the network saw it."""

    frame: int
    time_s: float
    landmarks: Float[np.ndarray, "68 2"]
    """Pixels of the frame."""
    confidence: Float[np.ndarray, "68"]
    batch: Batch
    """Its crop, a batch of one; without the image where the frame does not tell who it is."""
    coefficients: FaceCoefficients
    """In the camera of its crop."""
    focal_px: float
    """Of that camera, in pixels of the frame."""


@dataclass(frozen=True)
class FilmFace:
    """A person in a film, frame by frame where the person was seen."""

    frames: Int[np.ndarray, "T"]
    times_s: Float[np.ndarray, "T"]
    coefficients: FaceCoefficients
    """One identity and albedo throughout; pose in the camera of the film."""
    camera: Camera


def link_faces(
    tracks: Sequence[Float[np.ndarray, "68 2"]], found: Sequence[Float[np.ndarray, "68 2"]]
) -> list[int | None]:
    """For every face found, which of the tracks (by their latest points) it goes on with; None starts a new one.

    The nearest pairs first; every track at most once.
    """
    pairs = []
    for row, points in enumerate(found):
        for track, before in enumerate(tracks):
            size, old = _size(points), _size(before)
            distance = float(np.linalg.norm(points.mean(0) - before.mean(0))) / max(size, old)
            if distance <= LINK_DISTANCE and max(size, old) <= LINK_SCALE * min(size, old):
                pairs.append((distance, row, track))
    links: list[int | None] = [None] * len(found)
    used: set[int] = set()
    for _, row, track in sorted(pairs):
        if links[row] is None and track not in used:
            links[row] = track
            used.add(track)
    return links


def film_camera(size: tuple[int, int], focals_px: Sequence[float]) -> Camera:
    """One camera for a film of frames (H, W): as long as the network's own crops suggest, and no wider than 53°."""
    focal = max(float(np.median(focals_px)), float(max(size)))
    return Camera(
        focal_px=torch.tensor([focal]), principal_px=torch.tensor([[size[1] / 2.0, size[0] / 2.0]]), size=size
    )


def crop_focal_px(affine: Float[Tensor, "3 3"], crop_size_px: int) -> float:
    """Focal length of a crop's camera in pixels of the photo."""
    return float(affine[0, 0]) * FOCAL_PER_SIZE * crop_size_px


def solve_track(
    model: MorphableModel, faces: Sequence[FrameFace], camera: Camera, *, smooth: bool = True
) -> FilmFace:  # fmt: skip
    """A person's film from single frames; frames in which the detector was plainly wrong are left out.

    Raises: ValueError if there is no frame with an image.
    """
    kept = [face for face, sudden in zip(faces, sudden_frames(faces), strict=True) if not sudden]
    person = _who(model, kept)
    own = personal_model(model, person.identity[0])
    fits = [_fit(own, kept[start : start + FRAMES_AT_ONCE], camera) for start in range(0, len(kept), FRAMES_AT_ONCE)]
    expression, rotation, translation, error = (torch.cat(column) for column in zip(*fits, strict=True))
    good = error <= max(DOUBTFUL_ERROR * float(error.median()), DOUBTFUL_FLOOR)
    expression, rotation, translation = expression[good], rotation[good], translation[good]
    kept = [face for face, fine in zip(kept, good.tolist(), strict=True) if fine]
    times = torch.tensor([face.time_s for face in kept], dtype=torch.float64)
    if smooth:
        expression, rotation, translation = steadied(model, times, expression, rotation, translation)
    count = len(kept)
    return FilmFace(
        frames=np.array([face.frame for face in kept]),
        times_s=times.numpy(),
        coefficients=FaceCoefficients(
            identity=person.identity.expand(count, -1),
            expression=expression,
            albedo=person.albedo.expand(count, -1),
            lighting=torch.cat([face.coefficients.lighting for face in kept]),
            rotation=rotation,
            translation=translation,
        ),
        camera=camera,
    )


def sudden_frames(faces: Sequence[FrameFace]) -> Bool[np.ndarray, "T"]:
    """Which faces are much larger or smaller than those of the frames around them."""
    sizes = np.array([_size(face.landmarks) for face in faces])
    usual = np.array(
        [np.median(sizes[max(0, row - NEIGHBOURS) : row + NEIGHBOURS + 1]) for row in range(len(sizes))]
    )  # fmt: skip
    ratio = np.maximum(sizes, usual) / np.minimum(sizes, usual)
    sudden = ratio > SUDDEN_SCALE
    return sudden if not sudden.all() else np.zeros(len(sizes), bool)


def steadied(
    model: MorphableModel,
    times_s: Float[Tensor, "T"],
    expression: Float[Tensor, "T E"],
    rotation: Float[Tensor, "T 3"],
    translation: Float[Tensor, "T 3"],
) -> tuple[Float[Tensor, "T E"], Float[Tensor, "T 3"], Float[Tensor, "T 3"]]:
    """Expression and pose after the One-Euro filter.

    A head turns about its middle, not about the model's origin, so it is the middle whose place is filtered.
    """
    middle = model.landmark_mean.mean(0).double()
    kept = expression.dtype
    turn = one_euro_rotations(rotation.double(), times_s, SMOOTH_ROTATION)
    centre = translation.double() + _turned(middle, rotation.double())
    shift = one_euro(centre, times_s, SMOOTH_TRANSLATION, together=True) - _turned(middle, turn)
    steady = one_euro(expression.double(), times_s, SMOOTH_EXPRESSION)
    return steady.to(kept), turn.to(kept), shift.to(kept)


def personal_model(model: MorphableModel, identity: Float[Tensor, "I"]) -> MorphableModel:
    """The face model of one person: this identity is its mean, and there is no other."""
    return MorphableModel(
        name=model.name,
        licence=model.licence,
        mean=model.vertices(identity[None])[0],
        identity_basis=model.identity_basis[:0],
        expression_basis=model.expression_basis,
        expression_names=model.expression_names,
        albedo_mean=model.albedo_mean,
        albedo_basis=model.albedo_basis,
        triangles=model.triangles,
        landmark_vertices=model.landmark_corners,
        landmark_weights=model.landmark_weights,
        uv=model.uv,
        parts=model.parts,
        source_sha256=model.source_sha256,
    )


def filled_frames(film: FilmFace, times_s: Float[np.ndarray, "N"]) -> tuple[FilmFace, Bool[np.ndarray, "N"]]:
    """The person at all times of a film, and when the person was seen.

    Between two sightings along straight lines, before the first and after the last as there.
    """
    seen = np.isin(np.arange(len(times_s)), film.frames)
    found = film.coefficients

    def spread(values: Tensor) -> Tensor:
        flat = values.flatten(1).double().numpy()
        columns = [np.interp(times_s, film.times_s, column) for column in flat.T]
        shaped = np.stack(columns, 1) if columns else np.zeros((len(times_s), 0))
        return torch.from_numpy(shaped).to(values).unflatten(1, values.shape[1:])

    coefficients = FaceCoefficients(
        identity=found.identity[:1].expand(len(times_s), -1),
        expression=spread(found.expression),
        albedo=found.albedo[:1].expand(len(times_s), -1),
        lighting=spread(found.lighting),
        rotation=_spread_rotations(found.rotation, film.times_s, times_s),
        translation=spread(found.translation),
    )
    return FilmFace(np.arange(len(times_s)), times_s, coefficients, film.camera), seen


def _who(model: MorphableModel, faces: Sequence[FrameFace]) -> FaceCoefficients:
    """Identity and albedo of the person, a batch of one."""
    telling = [face for face in faces if face.batch.image.shape[-1] > 0]
    if not telling:
        raise ValueError("a track without a frame that shows the face, expected one at least")
    places = np.unique(np.linspace(0, len(telling) - 1, IDENTITY_FRAMES).round().astype(int))
    chosen = [telling[place] for place in places]
    batch = join_batches([face.batch for face in chosen])
    joined = _joined([face.coefficients for face in chosen])
    one = torch.zeros(len(chosen), dtype=torch.int64)
    found = aggregate(model, batch, joined, method="analytic", person=one).coefficients
    return _joined([found], rows=slice(0, 1))


def _fit(
    own: MorphableModel, faces: Sequence[FrameFace], camera: Camera
) -> tuple[Float[Tensor, "T E"], Float[Tensor, "T 3"], Float[Tensor, "T 3"], Float[Tensor, "T"]]:
    """Expression, rotation and translation of a person's frames, and the median error as a share of the face's size."""
    count = len(faces)
    landmarks = torch.from_numpy(np.stack([face.landmarks for face in faces]).astype(np.float32))
    confidence = torch.from_numpy(np.stack([face.confidence for face in faces]).astype(np.float32))
    seen = Camera(camera.focal_px.expand(count), camera.principal_px.expand(count, -1), camera.size)
    precision = landmark_precision(landmarks, confidence)
    nothing = torch.zeros(count, 0)
    expression = torch.cat([face.coefficients.expression for face in faces])
    rotation, translation = fit_pose(
        own.landmark_points(nothing, expression), landmarks, confidence=precision, camera=seen
    )
    fitted = fit_face(
        own,
        landmarks,
        confidence=precision,
        camera=seen,
        sigma_px=1.0,
        iterations=LANDMARK_STEPS,
        start=FittedFaces(nothing, expression, rotation, translation),
        anchor=ANCHOR,
    )
    low = torch.tensor([0.0 if is_arkit_shape(name) else -torch.inf for name in own.expression_names])
    points = own.landmark_points(nothing, fitted.expression)
    shown = project(to_camera_space(points, rotation=fitted.rotation, translation=fitted.translation), seen)
    size = (landmarks.amax(1) - landmarks.amin(1)).amax(1).clamp_min(1.0)
    error = (shown - landmarks).norm(dim=2).median(1).values / size
    return torch.maximum(fitted.expression, low), fitted.rotation, fitted.translation, error


def _joined(parts: Sequence[FaceCoefficients], *, rows: slice = slice(None)) -> FaceCoefficients:
    names = ("identity", "expression", "albedo", "lighting", "rotation", "translation")
    return FaceCoefficients(**{name: torch.cat([getattr(part, name) for part in parts])[rows] for name in names})


def _turned(point: Float[Tensor, "3"], rotation: Float[Tensor, "T 3"]) -> Float[Tensor, "T 3"]:
    """Where a model point lies in camera axes after the turn, without the translation."""
    return to_camera_space(
        point.expand(len(rotation), 1, 3), rotation=rotation, translation=torch.zeros_like(rotation)
    )[:, 0]  # fmt: skip


def _spread_rotations(
    rotation: Float[Tensor, "T 3"], known_s: Float[np.ndarray, "T"], wanted_s: Float[np.ndarray, "N"]
) -> Float[Tensor, "N 3"]:
    turns = Rotation.from_rotvec(rotation.double().numpy())
    if len(known_s) == 1:
        return rotation.expand(len(wanted_s), -1)
    between = Slerp(known_s, turns)(np.clip(wanted_s, known_s[0], known_s[-1]))
    return torch.from_numpy(between.as_rotvec()).to(rotation)


def _size(points: Float[np.ndarray, "68 2"]) -> float:
    return max(float(np.ptp(points, axis=0).max()), 1.0)
