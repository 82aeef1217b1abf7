"""Identity modes of the procedural face: a Gaussian process over the head plus the proportions in which people differ.

Both are written as generators, displacement fields with independent standard normal weights; the modes are the
principal axes of their sum. Every field depends smoothly on position alone, so parts that touch stay together;
the eyeballs move rigidly and take their lids along.
Source: Gerig et al., Morphable Face Models - An Open Framework, 2018 (Gaussian-process face models, sums of kernels);
differs in the explicit proportions and in mirror-symmetric and antisymmetric kernels.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist

from models.face.procedural_parts import LAYERS, FaceMesh
from models.face.procedural_shape import EYE_CENTRE, Points, eye_margin, smooth_step

Fields = Float[np.ndarray, "G V 3"]

KERNEL_SCALES_MM = (15.0, 35.0, 80.0)
KERNEL_AMPLITUDES_MM = (0.58, 1.3, 2.5)
ASYMMETRY = 0.22
"""Amplitude of the antisymmetric process as a share of the symmetric one."""
RIGID_SHARE = 0.5
"""Share of the generators' rigid motion that stays, as registration leaves some in scanned models too."""
INDUCING_POINTS = 150
PROCESS_MODES = 60

# Relative growth of the head along x, y, z per standard deviation.
PROPORTIONS = ((0.034, 0.034, 0.034), (0.030, -0.010, 0.0), (0.0, 0.028, 0.0), (0.0, 0.0, 0.036))

# Centre, radii and displacement of the left half's spot, mirrored onto the right unless it lies on the midline.
SPOTS: tuple[tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]], ...] = (
    ((52.0, -44.0, -36.0), (26.0, 24.0, 36.0), (2.8, 0.0, 0.0)),  # width of the jaw
    ((0.0, -78.0, 28.0), (34.0, 22.0, 40.0), (0.0, -2.8, 0.0)),  # height of the chin
    ((0.0, -66.0, 34.0), (20.0, 16.0, 26.0), (0.0, 0.0, 2.4)),  # chin forward
    ((15.0, -70.0, 30.0), (12.0, 12.0, 20.0), (1.6, 0.0, 0.3)),  # width of the chin
    ((52.0, 8.0, 4.0), (16.0, 14.0, 24.0), (1.5, 0.0, 1.2)),  # cheekbones
    ((46.0, -24.0, 4.0), (20.0, 22.0, 30.0), (2.2, -0.4, 2.0)),  # fullness of the cheeks
    ((0.0, -10.0, 48.0), (17.0, 11.0, 24.0), (0.0, -1.8, 0.0)),  # length of the nose
    ((0.0, -8.0, 54.0), (12.0, 12.0, 18.0), (0.0, 0.0, 2.2)),  # projection of the nose
    ((13.0, -8.0, 44.0), (7.5, 9.0, 14.0), (1.7, 0.0, 0.0)),  # width of the nose
    ((0.0, 25.0, 42.0), (11.0, 12.0, 16.0), (0.0, 0.0, 1.7)),  # height of the bridge
    ((0.0, 12.0, 50.0), (8.0, 8.0, 14.0), (0.0, 0.0, 1.1)),  # hump
    ((0.0, -9.0, 56.0), (10.0, 7.0, 9.0), (0.0, 1.3, 0.3)),  # tip up
    ((8.0, 16.0, 42.0), (7.0, 14.0, 14.0), (0.8, 0.0, 0.0)),  # width of the bridge
    ((25.0, -36.0, 28.0), (11.0, 10.0, 20.0), (1.9, 0.0, -0.3)),  # width of the mouth
    ((0.0, -29.0, 42.0), (19.0, 3.2, 14.0), (0.0, 0.9, 0.5)),  # thickness of the upper lip
    ((0.0, -45.0, 40.0), (19.0, 4.5, 14.0), (0.0, -1.1, 0.6)),  # thickness of the lower lip
    ((0.0, -36.0, 40.0), (22.0, 10.0, 24.0), (0.0, 0.0, 1.5)),  # lips forward
    ((0.0, -37.0, 36.0), (30.0, 11.0, 40.0), (0.0, 1.3, 0.0)),  # height of the mouth
    ((32.0, 49.0, 28.0), (24.0, 9.0, 24.0), (0.0, 1.5, 0.0)),  # height of the brows
    ((24.0, 45.0, 34.0), (20.0, 7.0, 16.0), (0.0, -0.3, 1.3)),  # brow ridge
    ((0.0, 96.0, 22.0), (60.0, 36.0, 50.0), (0.0, 0.0, -3.0)),  # slope of the forehead
    ((62.0, 76.0, -20.0), (26.0, 30.0, 40.0), (2.2, 0.0, 0.0)),  # width of the forehead
    ((31.0, 31.0, 20.0), (15.0, 14.0, 20.0), (0.9, 0.0, 0.0)),  # distance of the eyes
    ((31.0, 31.0, 20.0), (17.0, 14.0, 20.0), (0.0, 0.9, 0.0)),  # height of the eyes
    ((31.0, 31.0, 20.0), (17.0, 14.0, 20.0), (0.0, 0.0, 1.1)),  # depth of the eyes
)
CROOKED = (
    ((0.0, -4.0, 50.0), (14.0, 18.0, 24.0), (0.7, 0.0, 0.0)),  # nose to one side
    ((0.0, -66.0, 30.0), (40.0, 30.0, 60.0), (0.9, 0.0, 0.0)),  # chin to one side
)


def identity_modes(mesh: FaceMesh, *, count: int, lid_motion: Points) -> Float[np.ndarray, "I V 3"]:
    """The first `count` principal axes, by falling variance, each one standard deviation long.

    `lid_motion` is the field that closes both eyes; a small share of it, either way, opens eyes more or less widely.
    Raises: ValueError if more modes are asked for than the generators span.
    """
    generators = np.concatenate([_process(mesh), _proportions(mesh), 0.10 * lid_motion[None]])
    generators = _without_rigid_motion(mesh, generators)
    if count > len(generators):
        raise ValueError(f"identity_modes: {count} asked for, the process spans {len(generators)}; ask for fewer")
    # Rounding in between keeps the last bits, which differ between machines and thread counts, from growing.
    flat = np.round(generators.reshape(len(generators), -1), 4)
    _, axes = np.linalg.eigh(np.round(flat @ flat.T, 2))
    modes = (axes[:, ::-1][:, :count].T @ flat).reshape(count, -1, 3)
    # The sign of an eigenvector is arbitrary. Its largest entry has a mirror partner of equal size, so the first
    # large one decides.
    size = np.abs(modes.reshape(count, -1))
    first = (size >= 0.5 * size.max(1, keepdims=True)).argmax(1)
    return modes * np.sign(modes.reshape(count, -1)[np.arange(count), first])[:, None, None]


def _with_eyes(mesh: FaceMesh, fields: Fields, at_eyes: Float[np.ndarray, "G 2 3"]) -> Fields:
    """Move the eyeballs with the field at their centres (left, right), and the lids mostly with the balls."""
    skin_like = np.isin(mesh.layer, [LAYERS.index("skin"), LAYERS.index("rim")])
    for number, sign in enumerate((1.0, -1.0)):
        here = mesh.points[:, 0] * sign > 0.0
        ball = here & (mesh.layer == LAYERS.index("eye"))
        fields[:, ball] = at_eyes[:, number, None]
        front = np.stack([sign * mesh.points[:, 0], mesh.points[:, 1]], 1)
        distance = cdist(front, eye_margin(30)).min(1) * skin_like
        for axis, held in enumerate((0.7, 0.7, 1.0)):
            weight = held * (1.0 - smooth_step(distance, 2.0, 13.0)) * (here & skin_like)
            fields[:, :, axis] += weight * (at_eyes[:, number, None, axis] - fields[:, :, axis])
    return fields


def _without_rigid_motion(mesh: FaceMesh, fields: Fields) -> Fields:
    """Take most of translation and rotation out of fields: where the head stands is the pose's business."""
    axes = np.eye(3)
    motions = [np.tile(axis, (len(mesh.points), 1)) for axis in axes] + [np.cross(axis, mesh.points) for axis in axes]
    basis, _ = np.linalg.qr(np.stack([motion.ravel() for motion in motions], 1))
    flat = fields.reshape(len(fields), -1)
    return (flat - (1.0 - RIGID_SHARE) * (flat @ basis) @ basis.T).reshape(fields.shape)


def _kernel(first: Points, second: Points) -> Float[np.ndarray, "N M"]:
    squared = cdist(first, second, "sqeuclidean")
    kernel = np.zeros_like(squared)
    for amplitude, scale in zip(KERNEL_AMPLITUDES_MM, KERNEL_SCALES_MM, strict=True):
        kernel += amplitude**2 * np.exp(-squared / (2.0 * scale**2))
    return kernel


def _process(mesh: FaceMesh) -> Fields:
    """Karhunen-Loeve fields of the process, one component each, symmetric ones and antisymmetric ones."""
    flip = np.array([-1.0, 1.0, 1.0])
    eyes = np.stack([EYE_CENTRE, EYE_CENTRE * flip])
    everywhere = np.concatenate([mesh.points, eyes])
    left = mesh.points[(mesh.points[:, 0] >= 0.0) & (mesh.layer == LAYERS.index("skin"))]
    inducing = left[_farthest(left, INDUCING_POINTS)]
    direct, crossed = _kernel(everywhere, inducing), _kernel(everywhere, inducing * flip)
    among, among_crossed = _kernel(inducing, inducing), _kernel(inducing, inducing * flip)
    fields = []
    for sign in (1.0, -1.0):
        values, vectors = np.linalg.eigh(0.5 * (among + sign * among_crossed))
        values, vectors = values[::-1][:PROCESS_MODES], vectors[:, ::-1][:, :PROCESS_MODES]
        vectors = np.round(vectors, 5)
        functions = 0.5 * (direct + sign * crossed) @ vectors / np.sqrt(values) * np.sqrt(2.0)
        for axis in range(3):
            # A symmetric face has an odd field along x and even ones along y and z.
            amplitude = 1.0 if (sign > 0.0) == (axis > 0) else ASYMMETRY
            field = np.zeros((functions.shape[1], len(everywhere), 3))
            field[:, :, axis] = amplitude * functions.T
            fields.append(field)
    stacked = np.concatenate(fields)
    return _with_eyes(mesh, stacked[:, :-2], stacked[:, -2:])


def _farthest(points: Points, count: int) -> Int[np.ndarray, "M"]:
    chosen = [int(points[:, 2].argmax())]
    distance = np.full(len(points), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(distance.argmax()))
    return np.array(chosen)


def _proportions(mesh: FaceMesh) -> Fields:
    flip = np.array([-1.0, 1.0, 1.0])
    everywhere = np.concatenate([mesh.points, np.stack([EYE_CENTRE, EYE_CENTRE * flip])])
    fields = [everywhere * np.array(growth) for growth in PROPORTIONS]
    for centre, radii, step in SPOTS + CROOKED:
        field = np.zeros_like(everywhere)
        for side in (np.ones(3), flip):
            weight = np.exp(-0.5 * (((everywhere - np.array(centre) * side) / np.array(radii)) ** 2).sum(1))
            field += weight[:, None] * np.array(step) * side
            if centre[0] == 0.0:
                break
        fields.append(field)
    stacked = np.stack(fields)
    return _with_eyes(mesh, stacked[:, :-2], stacked[:, -2:])
