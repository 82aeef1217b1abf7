"""Meshes with a picture as OBJ, MTL and PNG, for programs that know nothing newer.

Convention: as models/export.py, model space in millimetres; u right, v up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from models.face.inner_shapes import Piece

SKIN, PLAIN = "skin", "skin_without_picture"


def write_textured_obj(
    path: Path,
    vertices: Float[np.ndarray, "V 3"],
    triangles: Int[np.ndarray, "F 3"],
    *,
    colours: Float[np.ndarray, "V 3"],
    uv: Float[np.ndarray, "V 2"],
    plain: Bool[np.ndarray, "F"],
    picture: str,
    header: Sequence[str] = (),
    inner: Float[np.ndarray, "P 3"] | None = None,
    pieces: Sequence[Piece] = (),
) -> None:
    """Write `<path>.obj` and, beside it, the `.mtl` that names the picture's file.

    `plain` triangles have no place in the picture and show the vertices' colours, which stand after the coordinates,
    where MeshLab and Blender read them. `pieces` of points `inner`, such as eyes, come after the face in colours of
    their own. `header` is repeated in both files as comments.
    Raises: ValueError if the arrays do not fit together.
    """
    count = len(vertices)
    if colours.shape != (count, 3) or uv.shape != (count, 2) or plain.shape != (len(triangles),):
        raise ValueError(
            f"{path.name}: colours {colours.shape}, uv {uv.shape} and {plain.shape} marks for {count} vertices and "
            f"{len(triangles)} triangles"
        )
    material = path.with_suffix(".mtl")
    comments = [f"# {' '.join(line.split())}" for line in header]
    lines = [*comments, f"mtllib {material.name}"]
    shown = np.clip(colours, 0.0, 1.0)
    lines += [
        f"v {x:.4f} {y:.4f} {z:.4f} {red:.4f} {green:.4f} {blue:.4f}"
        for (x, y, z), (red, green, blue) in zip(vertices.tolist(), shown.tolist(), strict=True)
    ]
    if inner is not None:
        lines += [f"v {x:.4f} {y:.4f} {z:.4f}" for x, y, z in inner.tolist()]
    lines += [f"vt {u:.6f} {v:.6f}" for u, v in uv.tolist()]
    lines.append(f"usemtl {SKIN}")
    lines += [f"f {a}/{a} {b}/{b} {c}/{c}" for a, b, c in (triangles[~plain] + 1).tolist()]
    if plain.any():
        lines.append(f"usemtl {PLAIN}")
        lines += [f"f {a} {b} {c}" for a, b, c in (triangles[plain] + 1).tolist()]
    for piece in pieces:
        lines += [f"g {piece.name}", f"usemtl {piece.name}"]
        lines += [f"f {a} {b} {c}" for a, b, c in (piece.triangles + count + 1).tolist()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    material.write_text(_material(comments, picture, with_plain=bool(plain.any()), pieces=pieces), encoding="utf-8")


def licence_lines(stamp: Mapping[str, str]) -> list[str]:
    """Name, licence and hashes of a face model as lines for a header."""
    return [f"face model {key}: {' '.join(value.split())}" for key, value in stamp.items() if value.strip()]


def _material(comments: Sequence[str], picture: str, *, with_plain: bool, pieces: Sequence[Piece]) -> str:
    shine = ["Ka 1 1 1", "Kd 1 1 1", "Ks 0 0 0", "illum 1"]
    lines = [*comments, f"newmtl {SKIN}", *shine, f"map_Kd {picture}"]
    if with_plain:
        lines += [f"newmtl {PLAIN}", *shine]
    for piece in pieces:
        red, green, blue = piece.colour
        lines += [f"newmtl {piece.name}", "Ka 1 1 1", f"Kd {red:.4f} {green:.4f} {blue:.4f}", "Ks 0 0 0", "illum 1"]
    return "\n".join(lines) + "\n"
