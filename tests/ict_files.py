"""ICT-FaceKit's layouts with the procedural face in them: the public folder of OBJ files, and the `.npz`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from models.face.adapters.assemble import procedural_donor

SHAPES = ("browInnerUp_L", "browInnerUp_R", "jawOpen", "mouthSmile_L", "mouthSmile_R", "tongueCurl")
IDENTITIES = 3


def known_arrays() -> dict[str, Any]:
    """Centimetres; two loose triangles' vertices beyond the face, as ICT-FaceKit has the neck there."""
    donor = procedural_donor()
    stream = np.random.default_rng(0)
    mean = donor.mean.numpy().astype(np.float64) / 10
    beyond = np.array([[9.0, 9.0, -9.0], [9.5, 9.0, -9.0], [9.0, 9.5, -9.0]])
    count = len(mean) + len(beyond)
    return {
        "mean": np.concatenate([mean, beyond]).astype(np.float32),
        "identity_basis": (0.1 * stream.normal(size=(IDENTITIES, count, 3))).astype(np.float32),
        "expression_basis": (0.1 * stream.normal(size=(len(SHAPES), count, 3))).astype(np.float32),
        "arkit52_names": np.array(["jawOpen", "browInnerUp"]),
        "arkit52_to_expression": np.array([[0, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]], dtype=np.float32),
        "triangles": np.concatenate([donor.triangles.numpy(), [[count - 3, count - 2, count - 1]]]).astype(np.int32),
        "landmarks68": donor.landmark_vertices.numpy().astype(np.int32),
        "uv_per_vertex": stream.random((count, 2)).round(6).astype(np.float32),
        "n_narrow_face_vertices": np.int64(len(mean)),
        "license": np.array("MIT License\n\nCopyright …"),
    }


def write_folder(folder: Path, arrays: dict[str, Any]) -> Path:
    """The folder FaceXModel: whole faces, `v`, then `vt`, then faces with both."""
    folder.mkdir()
    uv = "".join(f"vt {u:.6f} {v:.6f}\n" for u, v in arrays["uv_per_vertex"])
    faces = "".join("f " + " ".join(f"{i}/{i}" for i in triangle) + "\n" for triangle in arrays["triangles"] + 1)

    def write(name: str, vertices: np.ndarray) -> None:
        lines = "".join(f"v {x:.9f} {y:.9f} {z:.9f}\n" for x, y, z in vertices)
        (folder / f"{name}.obj").write_text(f"mtllib Material.mtl\n{lines}{uv}usemtl Face\n{faces}")

    mean = arrays["mean"].astype(np.float64)
    write("generic_neutral_mesh", mean)
    for place, mode in enumerate(arrays["identity_basis"]):
        write(f"identity{place:03d}", mean + mode)
    for name, shape in zip(SHAPES, arrays["expression_basis"], strict=True):
        write(name, mean + shape)
    index = {"expressions": list(SHAPES), "idx_to_landmark_verts": arrays["landmarks68"].tolist()}
    (folder / "vertex_indices.json").write_text(json.dumps(index))
    return folder
