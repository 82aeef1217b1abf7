"""A hand-made face model that is small enough for tests, a bumpy patch with a nose, and rendered crops of it."""

from __future__ import annotations

import torch
from torch import Tensor

from models.face.camera import angles_from_rotation, crop_camera, project, to_camera_space
from models.face.morphable import MorphableModel
from models.face.sampling import sample_rotation
from models.rendering.render import render
from models.training.data import CropSet
from models.types import FaceCoefficients

ROWS, COLUMNS = 15, 14


def tiny_face() -> MorphableModel:
    """Four identity modes, three expressions with ARKit names, two albedo modes; nothing about it is symmetric."""
    generator = torch.Generator().manual_seed(7)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, ROWS), torch.linspace(-1, 1, COLUMNS), indexing="ij")
    up, left = rows.flatten(), columns.flatten()
    nose = torch.exp(-8 * (left - 0.05).square() - 5 * (up + 0.1).square())
    depth = 30 * nose - 35 * left.square() - 20 * up.square() + 3 * torch.sin(5 * left + 2 * up)
    mean = torch.stack([70 * left, 90 * up, depth], 1)
    mean = mean + 0.5 * torch.randn(mean.shape, generator=generator)
    lower, eye_left, eye_right = (
        torch.exp(-4 * (up + 0.8).square()),
        torch.exp(-20 * ((left - 0.4).square() + (up - 0.3).square())),
        torch.exp(-20 * ((left + 0.4).square() + (up - 0.3).square())),
    )
    none = torch.zeros_like(up)
    identity = torch.stack(
        [
            torch.stack([5 * left, none, none], 1),
            torch.stack([none, none, 5 * nose], 1),
            torch.stack([none, 6 * up * left.square(), none], 1),
            torch.stack([2 * torch.sin(3 * up), none, 4 * torch.cos(3 * left)], 1),
        ]
    )
    expression = torch.stack(
        [
            torch.stack([none, -20 * lower, -6 * lower], 1),
            torch.stack([none, -6 * eye_left, none], 1),
            torch.stack([none, -6 * eye_right, none], 1),
        ]
    )
    albedo = torch.stack([torch.full((len(up), 3), 0.08), torch.stack([0.05 * left, -0.03 * left, none], 1)])
    index = torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    triangles = torch.cat([torch.stack([a, b, c], 2).view(-1, 3), torch.stack([a, c, d], 2).view(-1, 3)])
    parts = torch.zeros(len(up), dtype=torch.int64)
    parts[(up + 0.5).abs() < 0.1] = 1
    parts[(up - 0.5).abs() < 0.1] = 2
    parts[(eye_left + eye_right) > 0.6] = 3
    parts[-2:] = 4
    return MorphableModel(
        name="tiny",
        licence="CC0-1.0",
        mean=mean,
        identity_basis=identity,
        expression_basis=expression,
        expression_names=["jawOpen", "eyeBlinkLeft", "eyeBlinkRight"],
        albedo_mean=0.5 + 0.15 * torch.rand(len(up), 3, generator=generator),
        albedo_basis=albedo,
        triangles=triangles,
        landmark_vertices=torch.linspace(0, ROWS * COLUMNS - 1, 68).long(),
        uv=torch.stack([(left + 1) / 2, (up + 1) / 2], 1),
        parts=parts,
    )


def tiny_crops(face: MorphableModel, count: int, *, size_px: int, seed: int = 0) -> CropSet:
    """Rendered crops with full truth: sources photos and scans by turns, two crops of each person, one mesh a crop."""
    coefficients, vertices, landmarks, image = tiny_photos(face, count, size_px=size_px, seed=seed)
    return CropSet(
        sample_ids=tuple(f"sample-{place}" for place in range(count)),
        source=tuple("scans" if place % 2 else "photos" for place in range(count)),
        images=image,
        landmarks=landmarks,
        confidence=torch.ones(count, 68),
        annotation=landmarks.clone(),
        person=torch.arange(count) // 2,
        affine=torch.eye(3).expand(count, 3, 3).clone(),
        photo_size=torch.full((count, 2), float(size_px)),
        rotation=coefficients.rotation,
        yaw_deg=angles_from_rotation(coefficients.rotation)[:, 0].rad2deg(),
        quality=torch.linspace(0.2, 1.0, count),
        mesh_index=torch.arange(count).flip(0),
        vertices=vertices.flip(0),
        neutral=face.vertices(coefficients.identity).flip(0),
    )


def tiny_photos(
    face: MorphableModel, count: int, *, size_px: int, seed: int
) -> tuple[FaceCoefficients, Tensor, Tensor, Tensor]:
    """Coefficients, label vertices, landmarks in pixels and images uint8 (N, 3, S, S) of random faces."""
    generator = torch.Generator().manual_seed(seed)
    lighting = 0.05 * torch.randn(count, 9, 3, generator=generator)
    lighting[:, 0] += 0.8
    coefficients = FaceCoefficients(
        identity=torch.randn(count, 4, generator=generator),
        expression=torch.rand(count, 3, generator=generator),
        albedo=torch.randn(count, 2, generator=generator),
        lighting=lighting,
        rotation=sample_rotation(count, max_yaw_deg=40.0, generator=generator),
        translation=torch.tensor([0.0, 0.0, 1000.0]) + 3 * torch.randn(count, 3, generator=generator),
    )
    vertices = face.vertices(coefficients.identity, coefficients.expression)
    seen = to_camera_space(vertices, rotation=coefficients.rotation, translation=coefficients.translation)
    camera = crop_camera(count, size_px)
    drawn = render(
        seen, face.triangles, albedo=face.albedo(coefficients.albedo), lighting=coefficients.lighting, camera=camera
    )
    image = (drawn.image.clamp(0, 1) * 255).round().byte()
    return coefficients, vertices, project(face.landmarks(seen), camera), image
