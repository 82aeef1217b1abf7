"""Small files in the layouts of the Basel Face Models, made from the procedural face with modes that are known."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io

from models.face.adapters.assemble import procedural_donor

MODES = 3


@dataclass(frozen=True)
class KnownFace:
    """What the files are made from, in our units, and what must come back."""

    mean: np.ndarray
    directions: np.ndarray
    """(3V, N) orthonormal."""
    sigma_mm: np.ndarray
    expression: np.ndarray
    """(E, V, 3) displacements."""
    colour: np.ndarray
    shades: np.ndarray
    """(3V, N) orthonormal."""
    sigma_colour: np.ndarray
    triangles: np.ndarray
    landmarks: np.ndarray

    @property
    def identity(self) -> np.ndarray:
        return modes(self.directions * self.sigma_mm)

    @property
    def albedo_modes(self) -> np.ndarray:
        return modes(self.shades * self.sigma_colour)


def modes(columns: np.ndarray) -> np.ndarray:
    return columns.T.reshape(columns.shape[1], -1, 3)


@cache
def known_face() -> KnownFace:
    donor = procedural_donor()
    stream = np.random.default_rng(3)
    size = 3 * donor.vertex_count
    return KnownFace(
        mean=donor.mean.numpy().astype(np.float64),
        directions=np.linalg.qr(stream.standard_normal((size, MODES)))[0],
        sigma_mm=np.array([150.0, 90.0, 40.0]),
        expression=donor.expression_basis[:2].numpy().astype(np.float64),
        colour=donor.albedo_mean.numpy().astype(np.float64),
        shades=np.linalg.qr(stream.standard_normal((size, MODES)))[0],
        sigma_colour=np.array([6.0, 3.0, 1.0]),
        triangles=donor.triangles.numpy(),
        landmarks=donor.landmark_vertices.numpy(),
    )


def full_2009() -> dict[str, Any]:
    """The arrays of `01_MorphableModel.mat`."""
    face = known_face()
    return {
        "shapeMU": (face.mean * 1e3).reshape(-1, 1).astype(np.float32),
        "shapePC": face.directions.astype(np.float32),
        "shapeEV": (face.sigma_mm * 1e3).reshape(-1, 1).astype(np.float32),
        "texMU": (face.colour * 255).reshape(-1, 1).astype(np.float32),
        "texPC": face.shades.astype(np.float32),
        "texEV": (face.sigma_colour * 255).reshape(-1, 1).astype(np.float32),
        # Clockwise seen from outside, as in the published file.
        "tl": (face.triangles[:, ::-1] + 1).astype(np.uint16),
        "segbin": np.ones((len(face.mean), 4), np.uint8),
    }


def front_2009() -> dict[str, Any]:
    """The arrays of `BFM_model_front.mat`."""
    face = known_face()
    expression = face.expression.reshape(len(face.expression), -1).T
    return {
        "meanshape": (face.mean / 100.0).reshape(1, -1),
        "idBase": (face.directions * face.sigma_mm / 100.0).astype(np.float32),
        "exBase": (expression / 100.0).astype(np.float32),
        "meantex": (face.colour * 255.0).reshape(1, -1),
        "texBase": (face.shades * face.sigma_colour * 255.0).astype(np.float32),
        "tri": (face.triangles + 1).astype(np.float64),
        "point_buf": np.ones((len(face.mean), 8), np.uint16),
        "tri_mask2": (face.triangles[:50] + 1).astype(np.int32),
        "keypoints": (face.landmarks + 1).reshape(1, -1).astype(np.uint16),
        "frontmask2_idx": np.arange(1, 11).reshape(-1, 1),
        "skinmask": np.zeros((1, len(face.mean)), np.uint8),
    }


def save_mat(path: Path, arrays: dict[str, Any], *, version_73: bool = False, **changes: Any) -> Path:
    """Write a MATLAB file; a change to None leaves the array out."""
    arrays = {key: value for key, value in (arrays | changes).items() if value is not None}
    if not version_73:
        scipy.io.savemat(path, arrays)
        return path
    with h5py.File(path, "w", userblock_size=512) as file:
        for key, value in arrays.items():
            file[key] = np.asarray(value).T
    with path.open("r+b") as stored:
        stored.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def statismo() -> dict[str, Any]:
    """The datasets of `model2017-1_bfm_nomouth.h5`, without metadata."""
    face = known_face()
    spread = np.linalg.norm(face.expression.reshape(len(face.expression), -1), axis=1)
    directions = face.expression.reshape(len(face.expression), -1).T / spread
    models = {
        "shape": (face.mean, face.directions, face.sigma_mm),
        "expression": (np.zeros_like(face.mean), directions, spread),
        "color": (face.colour, face.shades, face.sigma_colour),
    }
    data: dict[str, Any] = {
        "shape/representer/points": face.mean.T.astype(np.float32),
        "shape/representer/cells": face.triangles.T.astype(np.int32),
        "version/majorVersion": 0,
    }
    for name, (mean, basis, sigma) in models.items():
        data[f"{name}/model/mean"] = mean.reshape(-1).astype(np.float32)
        data[f"{name}/model/pcaBasis"] = basis.astype(np.float32)
        data[f"{name}/model/pcaVariance"] = (sigma**2).astype(np.float32)
        data[f"{name}/model/noiseVariance"] = np.float32(0.0)
    return data


def save_h5(path: Path, datasets: dict[str, Any], **changes: Any) -> Path:
    """Write an HDF5 file; a change to None leaves the dataset out."""
    with h5py.File(path, "w") as file:
        for key, value in (datasets | changes).items():
            if value is not None:
                file[key] = value
    return path


def save_landmarks(path: Path) -> Path:
    """The 68 vertices of the known face, counted from 0."""
    path.write_text("\n".join(str(vertex) for vertex in known_face().landmarks))
    return path
