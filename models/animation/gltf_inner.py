"""Eyes, teeth and mouth in binary glTF: primitives of the face's own mesh, so that one set of weights moves all.

Each group of pieces is a primitive with a material of its name and colours of its vertices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from models.animation.gltf_container import (
    FLOAT,
    INDEX_DATA,
    MM_PER_M,
    UNSIGNED_INT,
    UNSIGNED_SHORT,
    VERTEX_DATA,
    BufferWriter,
    displayed_colours,
    linear_colours,
    read_array,
)
from models.face.inner_parts import InnerParts
from models.face.inner_shapes import Piece


def add_inner_parts(
    tree: dict[str, Any],
    buffer: BufferWriter,
    inner: InnerParts,
    *,
    normals: Float[np.ndarray, "P 3"],
) -> list[dict[str, Any]]:
    """Store the parts; returns their primitives and adds their materials to the tree."""
    primitives = []
    for group in dict.fromkeys(piece.group for piece in inner.pieces):
        own = [piece for piece in inner.pieces if piece.group == group]
        places, corners = np.unique(np.concatenate([piece.triangles for piece in own]), return_inverse=True)
        attributes = {
            "POSITION": buffer.add(inner.vertices[places] / MM_PER_M, "VEC3", FLOAT, target=VERTEX_DATA, bounds=True),
            "NORMAL": buffer.add(normals[places], "VEC3", FLOAT, target=VERTEX_DATA),
            "COLOR_0": buffer.add(
                linear_colours(inner.colours[places]), "VEC4", UNSIGNED_SHORT, target=VERTEX_DATA, scaled=True
            ),
        }
        # Normals are left as they are: the parts turn little, and it halves what they need.
        targets = [
            {"POSITION": buffer.add_displacements(moved[places] / MM_PER_M, bounds=True)} for moved in inner.targets
        ]
        primitive = {
            "attributes": attributes,
            "indices": buffer.add(corners.reshape(-1), "SCALAR", UNSIGNED_INT, target=INDEX_DATA),
            "material": len(tree["materials"]),
        }
        primitives.append(primitive | ({"targets": targets} if targets else {}))
        surface = {"metallicFactor": 0.0, "roughnessFactor": min(piece.roughness for piece in own)}
        tree["materials"].append({"name": group, "doubleSided": True, "pbrMetallicRoughness": surface})
    return primitives


def read_inner_parts(
    tree: Mapping[str, Any], binary: bytes, primitives: Sequence[Mapping[str, Any]], *, count: int, scale: float
) -> InnerParts | None:
    """Parts that were stored so, of a mesh with `count` morph targets; None if there are none."""
    vertices, targets, colours, pieces, start = [], [], [], [], 0
    for primitive in primitives:
        material = tree.get("materials", [{}])[primitive["material"]] if "material" in primitive else {}
        stored = "COLOR_0" in primitive["attributes"] and "indices" in primitive
        if not stored or len(primitive.get("targets", ())) != count or "TEXCOORD_0" in primitive["attributes"]:
            continue
        points = read_array(tree, binary, primitive["attributes"]["POSITION"]).astype(np.float64) * scale
        corners: Int[np.ndarray, "_"] = read_array(tree, binary, primitive["indices"]).reshape(-1, 3).astype(np.int64)
        if corners.size and corners.max() >= len(points):
            raise ValueError(f"triangles name vertex {corners.max()} of {len(points)}; export it again")
        moved = [read_array(tree, binary, target["POSITION"]) * scale for target in primitive.get("targets", ())]
        if any(one.shape != points.shape for one in moved):
            raise ValueError(f"morph targets of other sizes than their {len(points)} vertices; export it again")
        shown = displayed_colours(read_array(tree, binary, primitive["attributes"]["COLOR_0"])[:, :3])
        if shown.shape != points.shape:
            raise ValueError(f"{len(shown)} colours for {len(points)} vertices; export it again")
        name = str(material.get("name", "part"))
        roughness = float(material.get("pbrMetallicRoughness", {}).get("roughnessFactor", 1.0))
        mean = shown.mean(0) if len(shown) else np.zeros(3)
        colour = (float(mean[0]), float(mean[1]), float(mean[2]))
        pieces.append(Piece(name, name, colour, roughness, corners + start))
        vertices.append(points)
        targets.append(np.stack(moved) if moved else np.zeros((0, *points.shape)))
        colours.append(shown)
        start += len(points)
    if not pieces:
        return None
    return InnerParts(
        vertices=np.concatenate(vertices).astype(np.float32),
        targets=np.concatenate(targets, 1).astype(np.float32),
        colours=np.concatenate(colours).astype(np.float32),
        pieces=tuple(pieces),
    )
