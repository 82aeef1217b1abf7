"""Faces of a film, frame by frame: looked for in every fifth frame, followed by their landmarks in between.

Frames come and go; of each person stay the network's numbers, some crops that tell who it is, and the few frames that
show the face best from each side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8

from models.face.camera import angles_from_rotation
from models.landmarks.cascade import HierarchicalDetector
from models.landmarks.detector import Detection
from models.landmarks.following import follow_faces
from models.reconstruction.photos import PhotoFace, PhotoReader, Which
from models.reconstruction.video import FrameFace, crop_focal_px, link_faces
from models.types import Batch

KEY_EVERY = 5
"""Faces are looked for in one frame of so many, where the detector can follow them in between."""

FRAMES_AT_ONCE = 4 * KEY_EVERY

MAX_GAP_S = 2.0
"""Who is not seen for longer is another person when coming back."""

SAME_PLACE = 0.6
"""In face sizes: a face that is always so near to one that was seen longer is an error about that one."""

TELLING_FRAMES = 64
"""Crops that are kept to tell who a person is; when there are more, every second one is dropped."""

VIEW_EDGES_DEG = (-35.0, -12.0, 12.0, 35.0)
"""Turns of the head between which some frames each are kept for the texture."""

VIEWS_PER_SIDE = 2

Frame = UInt8[np.ndarray, "_ _ 3"]
Points = Float[np.ndarray, "68 2"]


@dataclass(frozen=True)
class View:
    """A frame that shows a person well from one side."""

    score: float
    frame: int
    face: PhotoFace


@dataclass
class Person:
    """Somebody in a film."""

    faces: list[FrameFace] = field(default_factory=list)
    views: dict[int, list[View]] = field(default_factory=dict)
    """The best few by side."""
    points: Points = field(default_factory=lambda: np.zeros((68, 2)))
    """Where the face was last seen."""
    seen_s: float = 0.0
    _telling_every: int = 1

    def add(self, face: PhotoFace, frame: int, time_s: float) -> None:
        """One more frame."""
        batch = face.batch
        telling = len(self.faces) % self._telling_every == 0
        self.faces.append(
            FrameFace(
                frame=frame,
                time_s=time_s,
                landmarks=face.detection.landmarks,
                confidence=face.detection.confidence,
                batch=batch if telling else without_image(batch),
                coefficients=face.coefficients,
                focal_px=crop_focal_px(face.affine, batch.image.shape[-1]),
            )
        )
        kept = [place for place, one in enumerate(self.faces) if one.batch.image.shape[-1]]
        if len(kept) > TELLING_FRAMES:
            self._telling_every *= 2
            for place in kept[1::2]:
                self.faces[place] = replace(self.faces[place], batch=without_image(self.faces[place].batch))
        self._keep_view(face, frame)

    def _keep_view(self, face: PhotoFace, frame: int) -> None:
        yaw = float(angles_from_rotation(face.coefficients.rotation)[0, 0].rad2deg())
        side = int(np.searchsorted(VIEW_EDGES_DEG, yaw))
        size = float(np.ptp(face.detection.landmarks, axis=0).max())
        # Sure points before many pixels.
        score = float(face.detection.confidence.mean()) ** 2 * size**0.5
        best = [*self.views.get(side, []), View(score, frame, face)]
        self.views[side] = sorted(best, key=lambda view: -view.score)[:VIEWS_PER_SIDE]


class FilmTracker:
    """Collects the persons of a film."""

    def __init__(self, reader: PhotoReader, *, which: Which = "all", name: str = "film") -> None:
        self.reader = reader
        self.which = which
        self.name = name
        self.persons: list[Person] = []
        self.faces = 0

    def run(self, frames: Iterable[tuple[float, Frame]]) -> Iterator[int]:
        """Take frames with their times; yields how many were taken, now and then."""
        follows = isinstance(self.reader.detector, HierarchicalDetector)
        every = KEY_EVERY if follows else 1
        waiting: list[tuple[int, float, Frame]] = []
        before: dict[int, Points] = {}
        count = 0
        for time_s, image in frames:
            waiting.append((count, time_s, image))
            count += 1
            # A block ends with a frame in which faces are looked for, so that the others lie between two such.
            if len(waiting) >= FRAMES_AT_ONCE and (count - 1) % every == 0:
                before = self._block(waiting, before, every)
                waiting = []
                yield count
        if waiting:
            self._block(waiting, before, every)
            yield count

    def _block(self, block: list[tuple[int, float, Frame]], before: dict[int, Points], every: int) -> dict[int, Points]:
        """Find the faces of consecutive frames; returns where the persons are at their end, as `before` is given."""
        keys = [row for row, (index, _, _) in enumerate(block) if index % every == 0 or row == len(block) - 1]
        found: list[tuple[int, int, Detection]] = []
        detected = self.reader.detect([block[row][2] for row in keys], which=self.which)
        last_row = -1
        for row, faces in zip(keys, detected, strict=True):
            after = self._linked(faces, block[row][1])
            found += [(row, person, face) for person, face in after.items()]
            points = {person: face.landmarks.astype(np.float64) for person, face in after.items()}
            found += self._between(block, last_row, row, before, points)
            before, last_row = points, row
        self._reconstruct(block, found)
        return before

    def _linked(self, faces: list[Detection], time_s: float) -> dict[int, Detection]:
        """Faces by person; those that nobody has yet are new persons."""
        active = [row for row, one in enumerate(self.persons) if time_s - one.seen_s <= MAX_GAP_S]
        links = link_faces([self.persons[row].points for row in active], [one.landmarks for one in faces])
        named: dict[int, Detection] = {}
        for face, link in zip(faces, links, strict=True):
            if link is None:
                self.persons.append(Person())
            number = len(self.persons) - 1 if link is None else active[link]
            named[number] = face
            self.persons[number].points = face.landmarks.astype(np.float64)
            self.persons[number].seen_s = time_s
        return named

    def _between(
        self,
        block: list[tuple[int, float, Frame]],
        start: int,
        end: int,
        before: dict[int, Points],
        after: dict[int, Points],
    ) -> list[tuple[int, int, Detection]]:
        """Rows, persons and faces of the frames between two in which faces were looked for."""
        detector = self.reader.detector
        if end - start < 2 or not isinstance(detector, HierarchicalDetector):
            return []
        wanted = []
        for row in range(start + 1, end):
            share = (row - start) / (end - start)
            for person in before.keys() | after.keys():
                # Who is seen at one end only is looked for near there.
                first = before.get(person, after.get(person))
                second = after.get(person, before.get(person))
                assert first is not None
                assert second is not None
                wanted.append((row, person, (1.0 - share) * first + share * second))
        images = [image for _, _, image in block]
        rows = np.array([row for row, _, _ in wanted], np.int64)
        about = np.array([points for _, _, points in wanted]).reshape(-1, 68, 2)
        followed = follow_faces(detector, images, rows, about)
        return [
            (row, person, face)
            for (row, person, points), face in zip(wanted, followed, strict=True)
            if face is not None and link_faces([points], [face.landmarks]) == [0]
        ]

    def _reconstruct(self, block: list[tuple[int, float, Frame]], found: list[tuple[int, int, Detection]]) -> None:
        ordered = sorted(found, key=lambda one: one[:2])
        for start in range(0, len(ordered), 32):
            some = ordered[start : start + 32]
            faces = self.reader.reconstruct([(block[row][2], face, self.name) for row, _, face in some])
            for (row, person, _), face in zip(some, faces, strict=True):
                self.persons[person].add(face, block[row][0], block[row][1])
        self.faces += len(ordered)


def without_shadows(persons: Sequence[Person]) -> list[Person]:
    """The persons, longest first, without tracks that lie on one that is longer: the detector was wrong for a while."""
    kept: list[Person] = []
    for person in sorted(persons, key=lambda one: -len(one.faces)):
        if not any(_lies_on(person, other) for other in kept):
            kept.append(person)
    return kept


def _lies_on(person: Person, other: Person) -> bool:
    times = np.array([face.time_s for face in other.faces])
    centres = np.array([face.landmarks.mean(0) for face in other.faces])
    near = 0
    for face in person.faces:
        if times[0] <= face.time_s <= times[-1]:
            there = [float(np.interp(face.time_s, times, centres[:, axis])) for axis in (0, 1)]
            size = float(np.ptp(face.landmarks, axis=0).max())
            near += float(np.hypot(*(face.landmarks.mean(0) - there))) <= SAME_PLACE * size
    return near > len(person.faces) / 2


def without_image(batch: Batch) -> Batch:
    """The landmarks of a crop, without its pixels."""
    count = len(batch.landmarks)
    return replace(batch, image=torch.zeros(count, 3, 0, 0), mask=torch.zeros(count, 0, 0, dtype=torch.bool))
