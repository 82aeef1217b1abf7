"""The embedded default face model, built from code: no file to download, no licence to sign."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.face.morphable import MorphableModel
from models.face.procedural_appearance import albedo_modes, mean_albedo, part_labels
from models.face.procedural_expressions import ARKIT_NAMES, expression_fields
from models.face.procedural_identity import identity_modes as principal_identities
from models.face.procedural_layout import BROW_COLUMNS
from models.face.procedural_parts import FaceMesh, build_mesh

MILLIMETRE_DIGITS, COLOUR_DIGITS = 3, 5
"""Arrays are rounded to this many decimals, so that machines whose last bits differ build the same model."""


def procedural_face(*, identity_modes: int = 40) -> MorphableModel:
    """A face of about 3,500 vertices with 68 landmarks, 52 ARKit expressions and ten albedo modes.

    Convention: millimetres, as `MorphableModel`; the same on every call. Eyeballs, teeth and tongue are included.
    Raises: ValueError if `identity_modes` is more than the Gaussian process spans.
    """
    mesh = build_mesh()
    expressions = expression_fields(mesh)
    blink = expressions[ARKIT_NAMES.index("eyeBlinkLeft")] + expressions[ARKIT_NAMES.index("eyeBlinkRight")]
    return MorphableModel(
        name="procedural",
        licence="Apache-2.0",
        mean=_tensor(mesh.points),
        identity_basis=_tensor(principal_identities(mesh, count=identity_modes, lid_motion=blink)),
        expression_basis=_tensor(expressions),
        expression_names=ARKIT_NAMES,
        albedo_mean=_tensor(mean_albedo(mesh), COLOUR_DIGITS),
        albedo_basis=_tensor(albedo_modes(mesh), COLOUR_DIGITS),
        triangles=torch.from_numpy(mesh.triangles),
        landmark_vertices=torch.from_numpy(landmark_vertices(mesh)),
        uv=_tensor(mesh.uv, COLOUR_DIGITS),
        parts=torch.from_numpy(part_labels(mesh)),
    )


def _tensor(array: Float[np.ndarray, "..."], digits: int = MILLIMETRE_DIGITS) -> Float[Tensor, "..."]:
    # Adding zero turns the -0.0 that rounding leaves into 0.0, which hashes alike.
    return torch.from_numpy((np.round(array, digits) + 0.0).astype(np.float32))


def landmark_vertices(mesh: FaceMesh) -> Int[np.ndarray, "68"]:
    """The iBUG points as vertices: the subject's right stands at the image's left and comes first."""
    rows, mirror = mesh.rows, mesh.mirror
    jaw, lid = rows["jaw"], rows["lid"]
    bridge, wing = rows["midline_features"], rows["wing"]
    across = mesh.points[:, 0]

    # The third row runs a little above the brow's middle, where annotators click.
    brow_row = rows["brow"].reshape(-1, BROW_COLUMNS)[2]
    brow = brow_row[[np.abs(across[brow_row] - x).argmin() for x in (10.5, 21.0, 32.0, 42.5, 51.5)]]

    def along(row: str, x: float) -> int:
        return int(rows[row][np.abs(across[rows[row]] - x).argmin()])

    upper, lower = [along("upper_lip", x) for x in (5.6, 15.5)], [along("lower_lip", x) for x in (7.5, 16.5)]
    inner_upper, inner_lower = along("slit", 9.0), along("slit_lower", 9.0)
    corner, inner_corner = int(rows["upper_lip"][-1]), int(rows["slit"][-1])
    count = (len(lid) - 2) // 2
    third, two_thirds = round(count / 3), count + 1 - round(count / 3)
    # Inner canthus, upper inner, upper outer, outer canthus, lower outer, lower inner.
    eye = [0, third, two_thirds, count + 1, 2 * count + 2 - two_thirds, 2 * count + 2 - third]
    left_eye = lid[eye]
    nose_side, wing_foot = int(rows["nose_base"][0]), int(wing[0])
    nose = [*bridge[:4], mirror[wing_foot], mirror[nose_side], bridge[4], nose_side, wing_foot]
    top, bottom = int(rows["upper_lip"][0]), int(rows["lower_lip"][0])
    outer = [mirror[corner], mirror[upper[1]], mirror[upper[0]], top, upper[0], upper[1], corner]
    outer += [lower[1], lower[0], bottom, mirror[lower[0]], mirror[lower[1]]]
    inner = [mirror[inner_corner], mirror[inner_upper], rows["slit"][0], inner_upper, inner_corner]
    inner += [inner_lower, rows["slit_lower"][0], mirror[inner_lower]]
    right_eye = mirror[left_eye[[3, 2, 1, 0, 5, 4]]]
    return np.array(
        [*mirror[jaw[:0:-1]], *jaw, *mirror[brow[::-1]], *brow, *nose, *right_eye, *left_eye, *outer, *inner],
        dtype=np.int64,
    )
