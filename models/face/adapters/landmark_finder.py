"""The 68 points of a face model that names none: the procedural face is laid over its mean and hands over its own.

First as a whole (position, scale, turn), then by the procedural face's own identity modes, then by a smooth
displacement of every vertex; at each step a vertex looks for the nearest point that faces the same way.
Source: Amberg, Romdhani and Vetter, Optimal Step Nonrigid ICP, CVPR 2007; differs in a second-order stiffness and in
the identity modes in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from models.face.adapters.assemble import INSIDE, NOSE_TIP, procedural_donor, vertex_normals
from models.types import PART_NAMES

NORMAL_WEIGHT_MM = 14.0
"""A surface turned by a radian counts as this much further away, so that lips and lids take their own side."""

REACH_MM = 170.0
"""What lies further from the tip of the nose is the back of a head or a shoulder."""

CENTRE_MM = 70.0
"""The middle of the face decides: ears, neck and forehead differ between models in what they cover."""

WHOLE_STEPS, MODE_STEPS = 15, 12
MODE_PRIOR = 0.4
"""Weight of a unit coefficient against one millimetre at every vertex."""

SLIDE = 0.1
"""Share of a vertex's way to its counterpart along the surface; the rest is taken along the normal only."""

STIFFNESSES = (50.0, 20.0, 10.0, 5.0)
STEPS_PER_STIFFNESS = 3
FIRST_ORDER = 0.2

GOOD_RESIDUAL_MM, MAX_RESIDUAL_MM = 6.0, 7.5
"""Median distance at which no other tip of the nose is tried, and above which it was no face. Measured with the donor
placed as a whole: 3.5 to 5.4 on ICT-FaceKit's persons, 6.0 on a mesh of 468 vertices, 8.2 and more beside the nose."""

CANDIDATES, CANDIDATE_SPACING_MM = 6, 25.0


@dataclass(frozen=True)
class _Donor:
    points: Float[np.ndarray, "N 3"]
    triangles: Int[np.ndarray, "F 3"]
    modes: Float[np.ndarray, "I N 3"]
    landmarks: Int[np.ndarray, "68"]
    centrality: Float[np.ndarray, "N"]
    stiffness: sparse.csc_matrix


@dataclass(frozen=True)
class _Surface:
    points: Float[np.ndarray, "M 3"]
    normals: Float[np.ndarray, "M 3"]
    border: Bool[np.ndarray, "M"]
    """Where the mesh ends: what has its nearest point there lies beyond."""
    tree: cKDTree


class NoFaceError(ValueError):
    """The surface does not look like a face."""

    def __init__(self, residual_mm: float) -> None:
        found = f"off by {residual_mm:.3g} mm" if np.isfinite(residual_mm) else "nothing faces +z as one does"
        super().__init__(f"no face was found for the 68 points, {found}; give their table as face_model.landmarks")


def locate_landmarks(mean: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "68 3"]:
    """Points near the surface where the 68 landmarks are.

    Convention: millimetres in our axes, the face looks along +z within about 20 degrees.
    Measured on ICT-FaceKit against its own table: median 3.1 mm, for points 17 to 67 median 2.7 and at most 6.6 mm.
    Along the jaw up to 23 mm, which is also how far ICT-FaceKit's two tables of the jaw are apart.
    Raises: ValueError if no face was found.
    """
    donor = _donor()
    surface, placed = _place(donor, _surface(mean.astype(np.float64), np.asarray(triangles, dtype=np.int64)))
    shape = donor.points
    for step in range(MODE_STEPS):
        places, weights = _counterparts(placed, donor, surface, reach=20.0 if step < 6 else 12.0)
        scale, rotation, shift = _similarity(shape, placed, donor.centrality)
        goal = (surface.points[places] - shift) @ rotation / scale
        shape = _fit_modes(donor, goal, surface.normals[places] @ rotation, weights * donor.centrality)
        placed = scale * shape @ rotation.T + shift
        placed = _align(shape, placed, donor, surface, reach=20.0)
    return _bend(placed, donor, surface)[donor.landmarks]


def _place(donor: _Donor, whole: _Surface) -> tuple[_Surface, Float[np.ndarray, "N 3"]]:
    """The surface around the nose, and the donor scaled, turned and moved onto it.

    Each of the points that reach furthest is tried as the tip of the nose, because a chin or a neck may reach further.
    """
    best: tuple[float, _Surface, Float[np.ndarray, "N 3"]] = (np.inf, whole, donor.points)
    for nose in _protruding(whole.points):
        surface = _around(whole, nose)
        placed = donor.points + nose - donor.points[donor.landmarks[NOSE_TIP]]
        try:
            for step in range(WHOLE_STEPS):
                placed = _align(donor.points, placed, donor, surface, reach=40.0 if step < 5 else 20.0)
        except NoFaceError:
            continue
        residual = _residual(placed, donor, surface)
        if residual < best[0]:
            best = residual, surface, placed
        if residual < GOOD_RESIDUAL_MM:
            break
    # Checked before the donor is bent, because afterwards it fits a neck as well.
    if best[0] > MAX_RESIDUAL_MM:
        raise NoFaceError(best[0])
    return best[1:]


def _align(
    shape: Float[np.ndarray, "N 3"],
    placed: Float[np.ndarray, "N 3"],
    donor: _Donor,
    surface: _Surface,
    *,
    reach: float,
) -> Float[np.ndarray, "N 3"]:
    """One step of ICP: the shape moved as its counterparts ask, found from where it was placed."""
    places, weights = _counterparts(placed, donor, surface, reach=reach)
    scale, rotation, shift = _similarity(shape, surface.points[places], weights * donor.centrality)
    return scale * shape @ rotation.T + shift


def _residual(placed: Float[np.ndarray, "N 3"], donor: _Donor, surface: _Surface) -> float:
    """Median distance of the middle of the face to the surface, a turned normal counting as distance."""
    return float(np.median(surface.tree.query(_with_normals(placed, donor))[0][donor.centrality > 0.5]))


def _protruding(points: Float[np.ndarray, "M 3"]) -> list[Float[np.ndarray, "3"]]:
    """The points that reach furthest along +z, each outside the neighbourhood of those before."""
    left = points[points[:, 2].argsort()[::-1]]
    found: list[Float[np.ndarray, "3"]] = []
    while len(left) and len(found) < CANDIDATES:
        found.append(left[0])
        left = left[np.linalg.norm(left - left[0], axis=1) > CANDIDATE_SPACING_MM]
    return found


@cache
def _donor() -> _Donor:
    model = procedural_donor()
    skin = ~np.isin(model.parts.numpy(), [PART_NAMES.index(name) for name in INSIDE])
    new = np.cumsum(skin) - 1
    triangles = model.triangles.numpy()
    triangles = new[triangles[skin[triangles].all(1)]]
    points = model.mean.numpy()[skin].astype(np.float64)
    landmarks = new[model.landmark_vertices.numpy()]
    distance = np.linalg.norm(points - points[landmarks[NOSE_TIP]], axis=1)
    edges, _ = _edges(triangles)
    rows = np.arange(len(edges))
    difference = sparse.csr_matrix(
        (np.repeat([1.0, -1.0], len(edges)), (np.tile(rows, 2), edges.T.ravel())), shape=(len(edges), len(points))
    )
    laplacian = difference.T @ difference
    return _Donor(
        points=points,
        triangles=triangles,
        modes=model.identity_basis.numpy()[:, skin].astype(np.float64),
        landmarks=landmarks,
        centrality=np.exp(-(distance**2) / (2 * CENTRE_MM**2)),
        stiffness=(laplacian.T @ laplacian + FIRST_ORDER * laplacian).tocsc(),
    )


def _surface(mean: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]) -> _Surface:
    """All vertices that belong to a triangle."""
    used = np.unique(triangles)
    border = np.zeros(len(mean), dtype=bool)
    edges, counts = _edges(triangles)
    border[edges[counts == 1]] = True
    return _searchable(mean[used], vertex_normals(mean, triangles)[used], border[used])


def _around(surface: _Surface, nose: Float[np.ndarray, "3"]) -> _Surface:
    near = np.linalg.norm(surface.points - nose, axis=1) < REACH_MM
    return _searchable(surface.points[near], surface.normals[near], surface.border[near])


def _searchable(
    points: Float[np.ndarray, "M 3"], normals: Float[np.ndarray, "M 3"], border: Bool[np.ndarray, "M"]
) -> _Surface:
    tree = cKDTree(np.concatenate([points, NORMAL_WEIGHT_MM * normals], 1))
    return _Surface(points=points, normals=normals, border=border, tree=tree)


def _edges(triangles: Int[np.ndarray, "F 3"]) -> tuple[Int[np.ndarray, "E 2"], Int[np.ndarray, "E"]]:
    sides = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    edges, counts = np.unique(sides, axis=0, return_counts=True)
    return edges, counts


def _with_normals(placed: Float[np.ndarray, "N 3"], donor: _Donor) -> Float[np.ndarray, "N 6"]:
    return np.concatenate([placed, NORMAL_WEIGHT_MM * vertex_normals(placed, donor.triangles)], 1)


def _counterparts(
    placed: Float[np.ndarray, "N 3"], donor: _Donor, surface: _Surface, *, reach: float
) -> tuple[Int[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Nearest point of the surface to each vertex, and 1 where it is to be believed."""
    query = _with_normals(placed, donor)
    places = np.asarray(surface.tree.query(query)[1])
    same_way = np.einsum("nc,nc->n", query[:, 3:], surface.normals[places]) > 0.5 * NORMAL_WEIGHT_MM
    close = np.linalg.norm(surface.points[places] - placed, axis=1) < reach
    believed = same_way & close & ~surface.border[places]
    if believed.sum() < 100:
        raise NoFaceError(np.inf)
    return places, believed.astype(np.float64)


def _similarity(
    source: Float[np.ndarray, "N 3"], target: Float[np.ndarray, "N 3"], weights: Float[np.ndarray, "N"]
) -> tuple[float, Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """Scale, rotation and shift of least squares (Umeyama 1991)."""
    share = weights[:, None] / weights.sum()
    source_mean, target_mean = (share * source).sum(0), (share * target).sum(0)
    centred = source - source_mean
    left, singular, right = np.linalg.svd((share * (target - target_mean)).T @ centred)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    rotation = left @ np.diag(signs) @ right
    scale = float((singular * signs).sum() / (share * centred**2).sum())
    return scale, rotation, target_mean - scale * rotation @ source_mean


def _fit_modes(
    donor: _Donor,
    goal: Float[np.ndarray, "N 3"],
    normals: Float[np.ndarray, "N 3"],
    weights: Float[np.ndarray, "N"],
) -> Float[np.ndarray, "N 3"]:
    """The shape among the donor's that comes closest, mostly along the normals of the goal."""
    gap = goal - donor.points
    along = np.einsum("inc,nc->in", donor.modes, normals)
    flat = donor.modes.reshape(len(donor.modes), -1)
    spread = SLIDE * np.repeat(weights, 3)
    system = (along * weights) @ along.T + (flat * spread) @ flat.T
    right = (along * weights) @ np.einsum("nc,nc->n", gap, normals) + (flat * spread) @ gap.ravel()
    system += MODE_PRIOR * len(gap) * np.eye(len(system))
    return donor.points + np.einsum("i,inc->nc", np.linalg.solve(system, right), donor.modes)


def _bend(placed: Float[np.ndarray, "N 3"], donor: _Donor, surface: _Surface) -> Float[np.ndarray, "N 3"]:
    """Move every vertex smoothly onto the surface, more freely from step to step."""
    motion = np.zeros_like(placed)
    for stiffness in STIFFNESSES:
        for _ in range(STEPS_PER_STIFFNESS):
            places, weights = _counterparts(placed + motion, donor, surface, reach=10.0)
            way, normals = surface.points[places] - placed - motion, surface.normals[places]
            along = np.einsum("nc,nc->n", way, normals)[:, None] * normals
            goal = motion + SLIDE * way + (1.0 - SLIDE) * along
            system = sparse.diags(weights + 1e-6) + stiffness * donor.stiffness
            motion = splu(system.tocsc()).solve(weights[:, None] * goal)
    return placed + motion
