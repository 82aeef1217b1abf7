"""Further points of a face model beside the 68: vertices spread over the front of the face, in mirrored pairs."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from models.face.camera import crop_camera, to_camera_space
from models.face.morphable import MorphableModel
from models.rendering.visibility import visible_vertices

OUTSIDE = ("skin", "lips", "brows")
"""Parts whose vertices may be chosen, as far as a model tells its parts."""

OPENINGS = (range(36, 42), range(42, 48), range(60, 68))
"""Landmarks around the eyes and between the lips: what lies inside moves by itself, or is not seen."""

FOREHEAD = 0.35
"""How far the face goes on above the brows, in heights of the box of the 68 points."""

MIDLINE = 0.01
"""Vertices closer to their mirrored place than this share of the face lie on the midline."""

MIRROR_TOLERANCE = 0.03
"""Share of the face by which a partner may miss the mirrored place; farther away it is another spot of the face."""

VIEW_PX = 256
VIEW_MM = 1500.0
"""Side of the image and distance from which the front of the face is looked at."""

NOSE_TIP = 30


def dense_vertices(model: MorphableModel, count: int) -> tuple[Int[np.ndarray, "D"], Int[np.ndarray, "D"]]:
    """Well-spread vertices of the front of the mean face, and the place among them of each one's mirror image.

    Farthest points, each with its partner: the vertex nearest to its mirrored place, of which it is the nearest in
    turn; on the midline itself. D is `count`, or one less where only a pair would be left.
    Raises: ValueError if the model has fewer vertices that can be chosen.
    """
    points = model.mean.double().cpu().numpy()
    landmarks = model.landmark_mean.double().cpu().numpy()
    candidates = np.flatnonzero(face_front(model))
    candidates, partner = _mirrored_pairs(points, candidates, landmarks)
    if not 0 < count <= len(candidates):
        raise ValueError(
            f"face model {model.name}: {len(candidates)} vertices for {count} dense points, expected at least one and "
            "no more than there are; change ingest.dense_points"
        )
    places = points[candidates]
    distance = np.full(len(places), np.inf)
    alone = partner == np.arange(len(places))
    chosen: list[int] = []
    pick = int(np.linalg.norm(places - landmarks[NOSE_TIP], axis=1).argmin())
    while len(chosen) < count:
        if len(chosen) == count - 1 and not alone[pick]:
            # Room for one more: only what is its own mirror image fits.
            pick = int(np.where(alone, distance, 0.0).argmax())
            if not alone[pick] or distance[pick] <= 0.0:
                break
        for place in dict.fromkeys((pick, int(partner[pick]))):
            chosen.append(place)
            distance = np.minimum(distance, np.linalg.norm(places - places[place], axis=1))
        pick = int(distance.argmax())
    order = {place: index for index, place in enumerate(chosen)}
    mirror = np.array([order[int(partner[place])] for place in chosen], np.int64)
    return candidates[chosen], mirror


def face_front(model: MorphableModel) -> Bool[np.ndarray, "V"]:
    """Which vertices lie on the skin between jaw and forehead and are seen from the front on the mean face."""
    seen = to_camera_space(
        model.mean[None] - model.landmark_mean.mean(0),
        rotation=torch.zeros(1, 3),
        translation=torch.tensor([[0.0, 0.0, VIEW_MM]]),
    )
    camera = crop_camera(1, VIEW_PX)
    front = visible_vertices(seen, model.triangles, camera)[0].cpu().numpy()
    front &= np.any([model.part(name).cpu().numpy() for name in OUTSIDE], axis=0)
    landmarks = model.landmark_mean[:, :2].float().cpu().numpy()
    rise = np.array([0.0, FOREHEAD * np.ptp(landmarks[:, 1])])
    rows = np.flatnonzero(front)
    places = model.mean[rows, :2].float().cpu().numpy()
    inside = _in_hull(places, np.concatenate([landmarks, landmarks[17:27] + rise]))
    for opening in OPENINGS:
        inside &= ~_in_hull(places, landmarks[list(opening)])
    front[rows] = inside
    return np.asarray(front)


def _mirrored_pairs(
    points: Float[np.ndarray, "V 3"], candidates: Int[np.ndarray, "C"], landmarks: Float[np.ndarray, "68 3"]
) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
    """Those candidates that have a mirror image among them, and its place in that list."""
    if not len(candidates):
        return candidates, candidates
    places, size = points[candidates], np.ptp(landmarks[:, :2], axis=0).max()
    across = 2.0 * (landmarks[:, 0].mean() - places[:, 0])
    gap, partner = cKDTree(places).query(places + across[:, None] * [1.0, 0.0, 0.0])
    own = np.arange(len(places))
    partner = np.where(np.abs(across) <= MIDLINE * size, own, partner)
    paired = (partner[partner] == own) & (gap <= MIRROR_TOLERANCE * size)
    number = np.cumsum(paired) - 1
    return candidates[paired], number[partner[paired]]


def _in_hull(places: Float[np.ndarray, "N 2"], corners: Float[np.ndarray, "K 2"]) -> Bool[np.ndarray, "N"]:
    hull = cv2.convexHull(np.asarray(corners, np.float32))
    return np.array([cv2.pointPolygonTest(hull, place, measureDist=False) > 0 for place in places.tolist()], bool)
