"""Registration of a scan of any topology to the face model: the scan's shape in the model's vertices.

Landmarks give the similarity; the model's coefficients and the pose then follow by point-to-plane Gauss–Newton with
their priors; what the model cannot express is left to a smooth deformation whose stiffness falls from step to step.
Correspondences lead from model to scan; those that are far, turned away, or at a border of the scan do not count.
Source: optimal-step non-rigid ICP, Amberg et al. 2007; differs in that the displacement is smoothed as a thin plate
instead of an affine map per vertex, which has a twelfth of the unknowns, and starts from the model's best fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu
from scipy.spatial.transform import Rotation

from models.face.alignment import rigid_alignment
from models.face.mesh_operators import cotangent_laplacian, mesh_normals, vertex_areas
from models.face.morphable import MorphableModel
from models.face.nearest import NearestSurface, SurfacePoints
from models.face.sampling import is_arkit_shape
from models.face.surface import now_crop
from models.types import JAW_COUNT, LANDMARK_COUNT, PART_NAMES

Values = NDArray[np.float64]

ACTIVATION_SIGMA = 0.3
"""Spread of ARKit-named shapes around rest, which is 0; they stay within [0, 1]. Statistical modes have σ = 1."""

JAW_WEIGHT = 0.05
"""Weight of the jaw points beside the others: people put them on the outline that they see, not on a place of skin."""

MIN_LANDMARKS = 8
"""Of the points that are not on the jaw."""

MAX_LANDMARK_MM = 12.0
"""RMS distance from the mean face beyond which landmarks are not those of this mesh, or not in this order."""

SIZE_RANGE = (0.75, 1.33)
"""Size of a face relative to the mean face, by landmarks; beyond it the unit is wrong, not the person."""

LANDMARK_SIGMA_MM = 3.0
SURFACE_SIGMA_MM = 1.0
SURFACE_POINTS = 600.0
"""As so many independent measurements the surface counts against the prior, however fine the model's mesh is."""

MODEL_REACH_MM = (30.0, 20.0, 15.0, 12.0, 10.0, 8.0, 8.0, 8.0, 6.0, 6.0, 6.0, 6.0)
"""Distance beyond which scan and model have nothing to do with each other, one Gauss–Newton step each."""

STIFFNESS_MM = (40.0, 28.0, 20.0, 14.0, 10.0, 7.0, 5.0, 3.5, 2.5)
"""Wavelength below which a displacement is smoothed away, one solve each."""

LANDMARK_AREA_MM2 = 60.0
"""A landmark pulls like so much surface at the first stiffness, and less with its square."""

TRIM = 0.95
"""Share of the correspondences that counts, those with the least distance."""

MIN_COSINE = 0.6
"""Between the normals of corresponding points."""

FREEDOM_MM = 3.0
FREEDOM_RATIO = 6.0
"""A displacement may be so large, or so many times the median distance between the fitted model and the scan. What lies
further off is not skin but hair, a cap or a collar."""

VALID_MM = 2.0
"""Distance from the scan up to which a registered vertex is measured, not guessed."""


class RegistrationError(ValueError):
    """A scan that cannot be registered; `reason` is a short code, `detail` says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Registration:
    """A scan in the model's topology, in model space."""

    vertices: Float[np.ndarray, "V 3"]
    """Millimetres; where the scan has nothing, the fitted model."""
    valid: Bool[np.ndarray, "V"]
    """Whether a vertex lies on the scan."""
    residual_mm: float
    """RMS distance of the valid vertices of the face from the scan."""
    coverage: float
    """Share of the face's area, within the crop of the NoW protocol, that is valid."""
    model_residual_mm: float
    """The same as `residual_mm` for the coefficients alone, before the deformation."""
    landmark_error_mm: float
    """RMS distance of the registered landmarks from those of the scan, without the jaw."""
    identity: Float[np.ndarray, "I"]
    expression: Float[np.ndarray, "E"]
    rotation: Float[np.ndarray, "3 3"]
    """With translation and scale: from the scan's coordinates to model space, s R x + t."""
    translation: Float[np.ndarray, "3"]
    scale: float


def register_scan(
    model: MorphableModel,
    vertices: Float[np.ndarray, "N 3"],
    triangles: Int[np.ndarray, "F 3"],
    landmarks: Float[np.ndarray, "68 3"],
    *,
    free_scale: bool = False,
) -> Registration:
    """The scan's shape in the vertices of the model.

    Convention: the scan is in millimetres, in any pose; missing landmarks are not a number. With `free_scale` its unit
    is unknown, and it gets the most probable size. Triangles may have either winding, but one and the same.
    Degenerate: where nothing of the scan is near, vertices follow the model's coefficients and their neighbours.
    Raises: RegistrationError if landmarks are too few, are not the mesh's own, or tell of another unit; or if the
    registered mesh has no valid vertex.
    """
    fit = _Fit.start(model, vertices, triangles, landmarks, free_scale=free_scale)
    for reach in MODEL_REACH_MM:
        fit.step(reach)
    shape = fit.mesh()
    face = _face_region(model)
    before = _match(fit, shape, reach=MODEL_REACH_MM[-1], trim=1.0)
    model_residual = _rms(before.nearest.distance[(before.weight > 0) & face])
    shape = _deform(fit, shape)
    after = _match(fit, shape, reach=VALID_MM, trim=1.0)
    valid = after.weight > 0
    if not (valid & face).any():
        raise RegistrationError("registration_failed", "no point of the face lies on the scan after the registration")
    area = vertex_areas(shape, fit.triangles)
    found = np.einsum("lc,lcd->ld", fit.landmark_weights, shape[fit.landmark_corners]) - fit.landmarks
    inner = fit.landmark_known & (np.arange(LANDMARK_COUNT) >= JAW_COUNT)
    return Registration(
        vertices=shape,
        valid=valid,
        residual_mm=_rms(after.nearest.distance[valid & face]),
        coverage=float(area[valid & face].sum() / area[face].sum()),
        model_residual_mm=model_residual,
        landmark_error_mm=_rms(np.linalg.norm(found[inner], axis=1)),
        identity=fit.shape[: model.identity_size],
        expression=fit.shape[model.identity_size :],
        rotation=fit.rotation,
        translation=fit.translation,
        scale=fit.scale,
    )


@dataclass
class _Fit:
    """The model's coefficients and the scan's place while both move."""

    surface: NearestSurface
    """In the scan's own coordinates."""
    landmarks: Values
    """Of the scan, in model space as it is placed now."""
    landmark_known: NDArray[np.bool_]
    mean: Values
    basis: Values
    """(K, V, 3): identity, then expression."""
    precision: Values
    low: Values
    high: Values
    triangles: NDArray[np.int64]
    landmark_corners: NDArray[np.int64]
    landmark_weights: Values
    counts: Values
    """Weight of each vertex by its part: eyeballs and the inside of the mouth are not on scans."""
    shape: Values
    rotation: Values
    translation: Values
    scale: float
    free_scale: bool

    @staticmethod
    def start(
        model: MorphableModel, vertices: Values, triangles: NDArray[np.int64], landmarks: Values, *, free_scale: bool
    ) -> _Fit:
        known = np.asarray(np.isfinite(landmarks).all(1))
        if known[JAW_COUNT:].sum() < MIN_LANDMARKS:
            raise RegistrationError(
                "landmarks_too_few",
                f"{int(known[JAW_COUNT:].sum())} landmarks besides the jaw, expected {MIN_LANDMARKS} or more",
            )
        mean_landmarks = model.landmark_mean.double().numpy()
        rotation, translation, scale = _place(landmarks, mean_landmarks, known, free_scale=free_scale)
        surface = NearestSurface(vertices, triangles)
        moved = np.where(known[:, None], scale * np.nan_to_num(landmarks) @ rotation.T + translation, 0.0)
        normals = mesh_normals(model.mean.double().numpy(), model.triangles.numpy())
        outside = normals[model.landmark_vertices.numpy()[known]] @ rotation
        if (outside * surface.query(landmarks[known]).normals).sum(1).mean() < 0:
            surface = NearestSurface(surface.vertices, surface.triangles[:, ::-1])
        bounded = np.array(
            [False] * model.identity_size + [is_arkit_shape(name) for name in model.expression_names], bool
        )
        inside = [PART_NAMES.index("eyes"), PART_NAMES.index("mouth")]
        return _Fit(
            surface=surface,
            landmarks=moved,
            landmark_known=known,
            mean=model.mean.double().numpy(),
            basis=np.concatenate([model.identity_basis.double().numpy(), model.expression_basis.double().numpy()]),
            precision=np.where(bounded, ACTIVATION_SIGMA**-2, 1.0),
            low=np.where(bounded, 0.0, -np.inf),
            high=np.where(bounded, 1.0, np.inf),
            triangles=model.triangles.numpy(),
            landmark_corners=model.landmark_corners.numpy(),
            landmark_weights=model.landmark_weights.double().numpy(),
            counts=np.where(np.isin(model.parts.numpy(), inside), 0.0, 1.0),
            shape=np.zeros(len(bounded)),
            rotation=rotation,
            translation=translation,
            scale=scale,
            free_scale=free_scale,
        )

    def mesh(self) -> Values:
        """Vertices (V, 3) of the present coefficients."""
        return self.mean + np.tensordot(self.shape, self.basis, 1)

    def nearest(self, points: Values) -> SurfacePoints:
        """The scan's nearest points to points of model space, in model space."""
        found = self.surface.query((points - self.translation) @ self.rotation / self.scale)
        return SurfacePoints(
            points=self.scale * found.points @ self.rotation.T + self.translation,
            normals=found.normals @ self.rotation.T,
            distance=self.scale * found.distance,
            at_border=found.at_border,
        )

    def step(self, reach: float) -> None:
        """One Gauss–Newton step of coefficients and pose on landmarks and surface."""
        mesh = self.mesh()
        match = _match(self, mesh, reach=reach)
        rows = np.flatnonzero(match.weight)
        weight = match.weight[rows] * SURFACE_POINTS / (SURFACE_SIGMA_MM**2 * max(match.weight.sum(), 1e-9))
        # Points that are near nothing must not make the few that are near something count for all of the face.
        weight *= min(1.0, 2.0 * match.weight.sum() / vertex_areas(mesh, self.triangles).sum())
        normals, points = match.nearest.normals[rows], match.nearest.points[rows]
        gap = ((mesh[rows] - points) * normals).sum(1)
        by_shape = np.einsum("kvd,vd->vk", self.basis[:, rows], normals)
        jacobian = np.concatenate([by_shape, _by_motion(points, normals, self.free_scale)], 1)
        normal, gradient = (weight[:, None] * jacobian).T @ jacobian, jacobian.T @ (weight * gap)
        pull = np.where(np.arange(LANDMARK_COUNT) < JAW_COUNT, JAW_WEIGHT, 1.0) * self.landmark_known
        pull = pull / LANDMARK_SIGMA_MM**2
        bases = np.einsum("lc,klcd->kld", self.landmark_weights, self.basis[:, self.landmark_corners])
        seen = np.einsum("lc,lcd->ld", self.landmark_weights, mesh[self.landmark_corners])
        for axis in range(3):
            direction = np.eye(3)[axis] + np.zeros((LANDMARK_COUNT, 3))
            rows_of_axis = np.concatenate(
                [bases[:, :, axis].T, _by_motion(self.landmarks, direction, self.free_scale)], 1
            )
            normal += (pull[:, None] * rows_of_axis).T @ rows_of_axis
            gradient += rows_of_axis.T @ (pull * (seen - self.landmarks)[:, axis])
        count = len(self.shape)
        normal[:count, :count] += np.diag(self.precision)
        gradient[:count] += self.precision * self.shape
        change = _bounded_step(normal, gradient, self.low - self.shape, self.high - self.shape)
        self.shape = (self.shape + change[:count]).clip(self.low, self.high)
        turn, shift = Rotation.from_rotvec(change[count : count + 3]).as_matrix(), change[count + 3 : count + 6]
        self._move(turn, shift, float(np.exp(change[count + 6])) if self.free_scale else 1.0)

    def _move(self, turn: Values, shift: Values, factor: float) -> None:
        self.landmarks = factor * self.landmarks @ turn.T + shift
        self.rotation = turn @ self.rotation
        self.translation = factor * turn @ self.translation + shift
        self.scale *= factor


@dataclass(frozen=True)
class _Match:
    nearest: SurfacePoints
    weight: Values
    """Area of the vertex where the correspondence counts, else zero."""


def _match(fit: _Fit, mesh: Values, *, reach: float, trim: float = TRIM) -> _Match:
    """The scan's nearest point to each vertex, and whether the two can be the same point of the face."""
    nearest = fit.nearest(mesh)
    normals = mesh_normals(mesh, fit.triangles)
    fits = (nearest.distance < reach) & ~nearest.at_border & ((normals * nearest.normals).sum(1) > MIN_COSINE)
    weight = np.where(fits, fit.counts * vertex_areas(mesh, fit.triangles), 0.0)
    if trim < 1.0 and weight.any():
        weight[nearest.distance > np.quantile(nearest.distance[weight > 0], trim)] = 0.0
    return _Match(nearest, weight)


def _deform(fit: _Fit, base: Values) -> Values:
    """Move the fitted model onto the scan by a displacement that is a thin plate, the less stiff the further it gets.

    Minimises, over the surface, |displacement - target|² where the scan is near, plus stiffness⁴ |Laplacian|².
    """
    area = vertex_areas(base, fit.triangles)
    laplacian = cotangent_laplacian(base, fit.triangles)
    bending = laplacian @ sparse.diags_array(1.0 / np.maximum(area, 1e-3)) @ laplacian
    rows = np.repeat(np.arange(LANDMARK_COUNT), 3)
    shape = (LANDMARK_COUNT, len(base))
    to_landmarks = sparse.csr_array((fit.landmark_weights.ravel(), (rows, fit.landmark_corners.ravel())), shape=shape)
    wanted = fit.landmark_known & (np.arange(LANDMARK_COUNT) >= JAW_COUNT)
    to_landmarks = to_landmarks[wanted]
    pull_to = fit.landmarks[wanted] - to_landmarks @ base
    first = _match(fit, base, reach=MODEL_REACH_MM[-1], trim=1.0)
    typical = float(np.median(first.nearest.distance[first.weight > 0])) if first.weight.any() else 0.0
    freedom = max(FREEDOM_MM, FREEDOM_RATIO * typical)
    moved: Values = base
    for stiffness in STIFFNESS_MM:
        match = _match(fit, moved, reach=max(VALID_MM, min(stiffness, MODEL_REACH_MM[-1])), trim=1.0)
        wanted_move = match.nearest.points - base
        near = np.where(np.linalg.norm(wanted_move, axis=1) < freedom, match.weight, 0.0)
        pull = LANDMARK_AREA_MM2 * (stiffness / STIFFNESS_MM[0]) ** 2
        # A trace of the area everywhere keeps pieces of the mesh solvable that are near nothing.
        data = sparse.diags_array(near + 1e-6 * area) + pull * to_landmarks.T @ to_landmarks
        target = near[:, None] * wanted_move + pull * to_landmarks.T @ pull_to
        system = sparse.csc_array(data + stiffness**4 * bending)
        moved = base + splu(system, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(target)
    return moved


def _place(
    landmarks: Values, mean: Values, known: NDArray[np.bool_], *, free_scale: bool
) -> tuple[Values, Values, float]:
    """Rotation, translation and scale that bring the scan to the mean face by its landmarks."""
    inner = np.arange(LANDMARK_COUNT) >= JAW_COUNT
    weights = torch.from_numpy(np.where(inner, 1.0, JAW_WEIGHT)[known])[None]
    source, target = torch.from_numpy(landmarks[known])[None].double(), torch.from_numpy(mean[known])[None]
    rotation, translation, scale = rigid_alignment(source, target, weights=weights, scale=True)
    moved = scale * source[0] @ rotation[0].T + translation
    error = _rms(np.linalg.norm((moved - target[0]).numpy()[inner[known]], axis=1))
    # Not "greater", so that what is not a number fails too: points that all lie in one place have no scale.
    if not error <= MAX_LANDMARK_MM:
        raise RegistrationError(
            "landmarks_disagree",
            f"the landmarks lie {error:.0f} mm from the mean face's after alignment, expected at most "
            f"{MAX_LANDMARK_MM:.0f}; are they in iBUG order, on this mesh, and is it not mirrored?",
        )
    if not free_scale:
        size = 1.0 / float(scale)
        if not SIZE_RANGE[0] < size < SIZE_RANGE[1]:
            raise RegistrationError(
                "mesh_wrong_scale", f"the face is {size:.3g} times the size of the mean face; correct the unit"
            )
        rotation, translation, scale = rigid_alignment(source, target, weights=weights)
    return rotation[0].numpy(), translation[0].numpy(), float(scale)


def _bounded_step(normal: Values, gradient: Values, low: Values, high: Values) -> Values:
    """Minimiser of the quadratic with its first coefficients within bounds: those that would leave are held there."""
    ridge = normal + 1e-9 * np.diag(np.diagonal(normal)) + 1e-9 * np.eye(len(normal))
    held: Values = np.full(len(normal), np.nan)
    change = np.asarray(np.linalg.solve(ridge, -gradient), np.float64)
    for _ in range(10):
        first = change[: len(low)]
        leaving = np.isnan(held[: len(low)]) & ((first < low - 1e-9) | (first > high + 1e-9))
        if not leaving.any():
            break
        held[: len(low)] = np.where(leaving, first.clip(low, high), held[: len(low)])
        free = np.isnan(held)
        fixed = np.nan_to_num(held)
        change = fixed.copy()
        change[free] = np.linalg.solve(ridge[np.ix_(free, free)], -gradient[free] - ridge[free] @ fixed)
    return change


def _by_motion(points: Values, normals: Values, free_scale: bool) -> Values:
    """Derivative of n · (v - p) by a small turn, shift and, where it is free, growth of the scan's point p."""
    columns = [-np.cross(points, normals), -normals]
    if free_scale:
        columns.append(-(points * normals).sum(1, keepdims=True))
    return np.concatenate(columns, 1)


def _face_region(model: MorphableModel) -> NDArray[np.bool_]:
    """Vertices of the face proper: within the crop that the NoW protocol measures, but not eyeballs or mouth."""
    inside = [PART_NAMES.index("eyes"), PART_NAMES.index("mouth")]
    crop = now_crop(model.mean.double().numpy(), model.landmark_mean.double().numpy())
    return np.asarray(crop & ~np.isin(model.parts.numpy(), inside))


def _rms(values: Values) -> float:
    return float(np.sqrt(np.square(values).mean())) if len(values) else float("nan")
