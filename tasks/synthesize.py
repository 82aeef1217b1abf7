"""Rendered photos of random persons with full ground truth, and new photos of labelled meshes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from torch import Tensor

from models.face.camera import FOCAL_PER_SIZE, project, rotation_from_angles, to_camera_space
from models.face.lighting import irradiance_basis
from models.face.morphable import MorphableModel
from models.face.outline import FaceRegion, face_region, outline_points
from models.rendering.render import render
from models.types import Camera
from tasks.backdrops import Backdrops
from tasks.disturb import degrade, draw_glasses, draw_occluder
from tasks.images import Pixels
from tasks.randomize import SUPERSAMPLING, Faces, StrongLook
from tasks.scenery import HeadOutline, background, draw_behind, draw_hair, draw_openings, smooth_edge
from tasks.source_params import RerenderedSource, SyntheticSource
from tasks.subjects import Shot, Subject, draw_shot, draw_subject, draw_varied_shot, person_stream

BATCH_SIZE = 16
"""Photos rendered together. Not a parameter: it bounds the memory and has no part in the result."""

SKULL_POINTS = 240

MESH_GRID_MM = 1.0 / 1024.0
"""Vertices lie on this grid, far below any accuracy that matters: they compress better, and the rounding of matrix
products, which depends on the batch and on the machine, leaves no trace."""

# A directional light in spherical harmonics: its clamped cosine, band by band, in units of models/face/lighting.py.
_LIGHT_BANDS = torch.tensor([0.25] + [0.375] * 3 + [1.0] * 5)


@dataclass(frozen=True)
class Photo:
    """One rendered photo and what is true about it."""

    name: str
    person: str
    content: bytes
    """JPEG."""
    landmarks: NDArray[np.float32]
    """(68, 2) pixels."""
    rotation: NDArray[np.float32]
    """(3,) axis-angle."""
    vertices: NDArray[np.float32]
    """(V, 3) model space, mm, with expression."""
    neutral: NDArray[np.float32] | None
    """(V, 3) the same person without expression, where known."""
    mesh_id: str
    dense: NDArray[np.float32] | None = None
    """(D, 2) pixels of further vertices, where they were asked for."""
    outline: NDArray[np.float32] | None = None
    """(17, 2) pixels of the jaw points where people put them, where they were asked for; NaN where that is unclear."""


@dataclass(frozen=True)
class LabelMesh:
    """A mesh that further photos are rendered of."""

    mesh_id: str
    person: str
    vertices: NDArray[np.float32]


@dataclass(frozen=True)
class _Job:
    name: str
    person: str
    subject: Subject
    shot: Shot
    mesh: LabelMesh | None = None


def synthesize(
    source: SyntheticSource,
    face_model: MorphableModel,
    *,
    seed: int,
    backdrops: Backdrops | None = None,
    dense: NDArray[np.int64] | None = None,
    outlines: bool = False,
    persons: range | None = None,
) -> Iterator[Photo]:
    """Photos of `source.persons` random persons or some, one by one; `backdrops` serve strong randomisation only.

    `dense`: (D,) vertices whose places in the photos are wanted beside the landmarks.
    `outlines`: whether the jaw points are wanted where people put them as well.
    """

    def jobs() -> Iterator[_Job]:
        for number in persons or range(source.persons):
            stream = person_stream(seed, source.name, number)
            subject = draw_subject(stream, identity_size=face_model.identity_size, albedo_size=face_model.albedo_size)
            for photo in range(source.photos_per_person):
                yield _Job(f"{number:06d}-{photo}", f"{number:06d}", subject, _shot(stream, source, face_model))

    look = StrongLook(face_model, backdrops=backdrops) if source.randomization == "strong" else None
    yield from _photos(jobs(), face_model, source, look, dense, outlines=outlines)


def rerender(
    source: RerenderedSource,
    face_model: MorphableModel,
    meshes: Iterable[LabelMesh],
    *,
    seed: int,
    dense: NDArray[np.int64] | None = None,
    outlines: bool = False,
) -> Iterator[Photo]:
    """`source.copies` photos of each mesh under new skin, pose, light and background; the rest as in `synthesize`."""

    def jobs() -> Iterator[_Job]:
        for mesh in meshes:
            stream = person_stream(seed, source.name, mesh.mesh_id)
            for number in range(source.copies):
                subject = draw_subject(stream, identity_size=0, albedo_size=face_model.albedo_size)
                yield _Job(f"{mesh.mesh_id}-{number}", mesh.person, subject, _shot(stream, source, face_model), mesh)

    yield from _photos(jobs(), face_model, source, dense=dense, outlines=outlines)


def _shot(stream: np.random.Generator, source: SyntheticSource | RerenderedSource, face_model: MorphableModel) -> Shot:
    strong = isinstance(source, SyntheticSource) and source.randomization == "strong"
    return (draw_varied_shot if strong else draw_shot)(
        stream,
        expression_names=face_model.expression_names,
        max_yaw_deg=source.max_yaw_deg,
        occluder_share=source.occluder_share,
    )


def _photos(
    jobs: Iterator[_Job],
    face_model: MorphableModel,
    source: SyntheticSource | RerenderedSource,
    look: StrongLook | None = None,
    dense: NDArray[np.int64] | None = None,
    *,
    outlines: bool = False,
) -> Iterator[Photo]:
    studio = _Studio(face_model, source.size_px, look, dense, face_region(face_model) if outlines else None)
    # While one batch is drawn and encoded here, the next is rendered beside it.
    with ThreadPoolExecutor(max_workers=1) as beside:
        ahead: Future[_Exposures] | None = None
        while batch := list(islice(jobs, BATCH_SIZE)):
            current, ahead = ahead, beside.submit(studio.expose, batch)
            if current is not None:
                yield from studio.develop(current.result(), source.name)
        if ahead is not None:
            yield from studio.develop(ahead.result(), source.name)


@dataclass(frozen=True)
class _Exposures:
    """A rendered batch."""

    jobs: Sequence[_Job]
    faces: Pixels
    """(B, S, S, 3)"""
    masks: NDArray[np.bool_]
    heads: Sequence[HeadOutline]
    rotation: NDArray[np.float32]
    vertices: NDArray[np.float32]
    neutral: NDArray[np.float32] | None
    dense: NDArray[np.float32] | None
    outline: NDArray[np.float32] | None
    drawn: Faces | None
    """More about the faces, with strong randomisation."""


class _Studio:
    """Renders jobs in batches; with a strong look, larger than the photos will be."""

    def __init__(
        self,
        face_model: MorphableModel,
        size_px: int,
        look: StrongLook | None = None,
        dense: NDArray[np.int64] | None = None,
        region: FaceRegion | None = None,
    ) -> None:
        self.look = look
        self.dense = dense
        self.region = region
        self.scale = SUPERSAMPLING if look else 1
        self.size_px = self.scale * size_px
        self.face_model = face_model
        # In double precision, products of different batch sizes agree beyond the grid of the vertices.
        self.exact = copy.deepcopy(face_model).double()
        self.has_eyes = bool(face_model.part("eyes").any())
        self.skull = _sphere(SKULL_POINTS)
        self.skull_triangles = torch.from_numpy(ConvexHull(self.skull.numpy()).simplices).long()

    @torch.no_grad()
    def expose(self, jobs: Sequence[_Job]) -> _Exposures:
        """Render the faces."""
        shots = [job.shot for job in jobs]
        vertices, neutral = self._shapes(jobs)
        albedo = self.exact.albedo(_stack([job.subject.albedo for job in jobs])).float()
        rotation = rotation_from_angles(*_stack([shot.angles for shot in shots]).unbind(1)).float()
        camera, translation = self._place(self.face_model.landmarks(vertices), rotation, shots)
        in_camera = to_camera_space(
            vertices.double(), rotation=rotation.double(), translation=translation.double()
        ).float()
        light = lighting(shots, brightness=albedo.mean((1, 2)))
        drawn = None
        if self.look is None:
            rendering = render(in_camera, self.face_model.triangles, albedo=albedo, lighting=light, camera=camera)
            faces = (rendering.image.clamp(0.0, 1.0) * 255.0).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
            masks = skins = rendering.mask.numpy()
        else:
            subjects = [job.subject for job in jobs]
            drawn = self.look.faces(
                in_camera, albedo=albedo, lighting=light, camera=camera, subjects=subjects, shots=shots
            )
            faces, masks, skins = drawn.image, drawn.mask, drawn.bare
        landmarks = project(self.face_model.landmarks(in_camera), camera).numpy()
        heads = self._heads(
            jobs, self.face_model.landmarks(vertices), rotation, translation, camera, landmarks, faces, skins
        )
        return _Exposures(
            jobs=jobs,
            faces=faces,
            masks=masks,
            heads=heads,
            rotation=rotation.numpy(),
            vertices=vertices.numpy(),
            neutral=None if neutral is None else neutral.numpy(),
            dense=None if self.dense is None else project(in_camera[:, self.dense], camera).numpy(),
            outline=None
            if self.region is None
            else outline_points(self.region, project(in_camera[:, self.region.vertices], camera).numpy(), landmarks),
            drawn=drawn,
        )

    def develop(self, exposures: _Exposures, source: str) -> Iterator[Photo]:
        """Draw everything else and encode."""
        for row, job in enumerate(exposures.jobs):
            head = exposures.heads[row]
            yield Photo(
                name=job.name,
                person=job.person,
                content=self._compose(exposures, row),
                landmarks=(head.landmarks / self.scale).astype(np.float32),
                rotation=exposures.rotation[row],
                vertices=exposures.vertices[row],
                neutral=None if exposures.neutral is None else exposures.neutral[row],
                mesh_id=job.mesh.mesh_id if job.mesh else f"{source}/{job.name}",
                dense=None if exposures.dense is None else (exposures.dense[row] / self.scale).astype(np.float32),
                outline=None if exposures.outline is None else exposures.outline[row] / self.scale,
            )

    def _shapes(self, jobs: Sequence[_Job]) -> tuple[Tensor, Tensor | None]:
        if jobs[0].mesh is not None:
            return torch.from_numpy(np.stack([job.mesh.vertices for job in jobs if job.mesh])), None
        identity = _stack([job.subject.identity for job in jobs])
        expression = _stack([job.shot.expression for job in jobs])
        neutral = self.exact.vertices(identity)
        shape = self.exact.vertices(identity, expression)
        return _on_grid(shape), _on_grid(neutral)

    def _place(self, points: Tensor, rotation: Tensor, shots: Sequence[Shot]) -> tuple[Camera, Tensor]:
        """Camera and translation that give the landmarks' box the size and the place that the shot asks for."""
        size = float(self.size_px)
        focal = _stack([[shot.focal_factor * FOCAL_PER_SIZE * size] for shot in shots])
        fill = _stack([[shot.fill] for shot in shots])
        offset = _stack([shot.offset for shot in shots])
        camera = Camera(
            focal_px=focal[:, 0].float(),
            principal_px=torch.full((len(shots), 2), size / 2.0),
            size=(self.size_px, self.size_px),
        )
        turned = to_camera_space(
            points.double(), rotation=rotation.double(), translation=torch.zeros(len(shots), 3).double()
        )
        extent = (turned[..., :2].amax(1) - turned[..., :2].amin(1)).amax(1, keepdim=True)
        depth = focal * extent / (fill * size)
        # Keeps the box inside the photo, whatever the offset.
        room = ((1.0 - fill) / 2.0 - 0.02).clamp_min(0.0)
        # Or so much of it that the face can still be told.
        room = room + 0.35 * fill * _stack([[float(shot.may_leave)] for shot in shots])
        target = torch.maximum(torch.minimum(offset, room), -room) * size
        middle = (turned[..., :2].amax(1) + turned[..., :2].amin(1)) / 2.0
        sideways = target * depth / focal - middle
        return camera, torch.cat([sideways, depth - turned[..., 2].mean(1, keepdim=True)], 1).float()

    def _heads(
        self,
        jobs: Sequence[_Job],
        points: Tensor,
        rotation: Tensor,
        translation: Tensor,
        camera: Camera,
        landmarks: NDArray[np.float32],
        faces: Pixels,
        skins: NDArray[np.bool_],
    ) -> list[HeadOutline]:
        """Places of skull, hair and neck, guessed from the landmarks and seen by the same camera."""
        ears = (points[:, 0] + points[:, 16]) / 2.0
        width = (points[:, 16] - points[:, 0]).norm(dim=1)
        brows = points[:, 17:27].mean(1)
        up, back = points.new_tensor([0.0, 1.0, 0.0]), points.new_tensor([0.0, 0.0, -1.0])
        centre = ears + width[:, None] * (0.22 * up + 0.12 * back)
        neck = ears + width[:, None] * (-0.5 * up + 0.15 * back)
        volume = points.new_tensor([max(1.0, job.subject.hair_volume) for job in jobs])
        stretch = points.new_tensor([0.57, 0.72, 0.68])
        hair = self.skull * stretch * (volume * width)[:, None, None] + centre[:, None]
        all_points = torch.cat([hair, centre[:, None], neck[:, None]], 1)
        seen = to_camera_space(all_points, rotation=rotation, translation=translation)
        pixels = project(seen, camera).numpy()
        hairline = brows[:, 1] + width * points.new_tensor([job.subject.hairline for job in jobs])
        # The hair's edge is level over the forehead and falls from the temples to the nape.
        behind_temples = brows[:, None, 2] - hair[..., 2] - 0.35 * width[:, None]
        edge = hairline[:, None] - 1.4 * behind_temples.clamp_min(0.0)
        hairy = (hair[..., 1] > edge)[:, self.skull_triangles].all(2).numpy()
        facing = (seen[:, :-2, 2] < seen[:, -2:-1, 2])[:, self.skull_triangles].all(2).numpy()
        hair_pixels = pixels[:, self.skull_triangles.numpy()]
        heads = []
        for row, job in enumerate(jobs):
            visible = faces[row][skins[row]]
            heads.append(
                HeadOutline(
                    hair=hair_pixels[row, hairy[row]],
                    hair_facing=facing[row, hairy[row]],
                    centre=pixels[row, -2],
                    neck=pixels[row, -1],
                    landmarks=landmarks[row],
                    width_px=float(width[row] * camera.focal_px[row] / translation[row, 2]),
                    roll=float(job.shot.angles[2]),
                    skin=visible.mean(0) if len(visible) else np.full(3, 128.0),
                )
            )
        return heads

    def _compose(self, exposures: _Exposures, row: int) -> bytes:
        face, mask, head, job = exposures.faces[row], exposures.masks[row], exposures.heads[row], exposures.jobs[row]
        if self.look is not None and exposures.drawn is not None:
            return self.look.photo(exposures.drawn, row, head=head, subject=job.subject, shot=job.shot)
        stream, yaw = job.shot.scenery, float(job.shot.angles[0])
        image = background(stream, self.size_px)
        draw_behind(image, head, job.subject, stream)
        if not self.has_eyes:
            draw_openings(image, head, stream, yaw=yaw)
        np.copyto(image, face, where=mask[..., None])
        image = smooth_edge(image, mask)
        if job.subject.wears_glasses:
            draw_glasses(image, head, stream, yaw=yaw)
        draw_hair(image, head, job.subject, stream)
        if job.shot.occluded:
            draw_occluder(image, head, stream)
        return degrade(image, stream)


def lighting(shots: Sequence[Shot], *, brightness: Tensor) -> Tensor:
    """Spherical-harmonics light (B, 9, 3) of the shots, exposed so that the face is neither black nor white.

    Shape: `brightness` (B,) is the mean albedo of each face.
    """
    directions = _stack([shot.light_directions for shot in shots]).float()
    colours = _stack([shot.light_colours for shot in shots]).float()
    light = torch.einsum("bkn,bkc->bnc", irradiance_basis(directions) * _LIGHT_BANDS, colours)
    light[:, 0] += _stack([shot.ambient for shot in shots]).float()
    normals = _sphere(64)
    level = (irradiance_basis(normals[normals[:, 2] < -0.3]) @ light).mean((1, 2))
    exposure = _stack([[shot.exposure] for shot in shots])[:, 0].float()
    exposure = (brightness * exposure).clamp(0.15, 0.7) / brightness.clamp_min(1e-3)
    return light * (exposure / level.clamp_min(1e-3))[:, None, None]


def _sphere(count: int) -> Tensor:
    """Points (N, 3) spread evenly over the unit sphere."""
    number = torch.arange(count, dtype=torch.float64) + 0.5
    height = 1.0 - 2.0 * number / count
    turn = math.pi * (3.0 - math.sqrt(5.0)) * number
    radius = (1.0 - height**2).sqrt()
    return torch.stack([radius * turn.cos(), height, radius * turn.sin()], 1).float()


def _on_grid(vertices: Tensor) -> Tensor:
    return ((vertices / MESH_GRID_MM).round() * MESH_GRID_MM).float()


def _stack(rows: Sequence[NDArray[np.float64] | Sequence[float]]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(row, np.float64) for row in rows]))
