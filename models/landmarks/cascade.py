"""Our detector: boxes of faces, then the hierarchical network looks at each ever more closely.

Boxes come from the trained finder. Without one, or where none of its boxes shows a sure face, the network itself looks
at the whole photo, and at windows where it must.
Every pass frames the face by the points of the pass before, upright and tight, so the last one sees a face at the size
it was trained on. The last look is also taken in the mirror. All passes run over all faces of a batch of photos.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import nn

from models.landmarks.certainty import FIRST_LOOK_SHARE, are_doubtful, best_face, mean_confidence, without_doubtful
from models.landmarks.detector import Annotations, Detection, confidence_from_sigma
from models.landmarks.finder import FinderRun, find_faces, load_finder
from models.landmarks.framing import (
    FLIP_PERMUTATION,
    box_side,
    cut_frames,
    frame_affine,
    frame_distance,
    landmark_box,
    mirror_frames,
    tight_frame,
    transform_points,
)
from models.landmarks.guesses import MIN_POINT_SPREAD_PX, CropReader, CropReading, Guesses, without_duplicates
from models.landmarks.hierarchical import HierarchicalNetwork, LandmarkOutput, NetworkWidths
from models.landmarks.windows import cascade_windows, grid_windows, search_windows

REFINEMENTS = 2
"""Looks at a face after the one at its box, each framed by the points of the look before."""

SAME_FRAME = 0.1
"""A frame whose corners lie within this share of its side of another's shows what the other does."""

UNBOXED_REFINEMENTS = 3
"""The same where the first look was at a whole photo or a window, far from the frame that the network knows best."""

MIN_BOX_SCORE = 0.25
"""Boxes that the finder is less sure of are not looked at; what the network sees in the others decides."""

LIKELY_BOX_SCORE = 0.4
"""Others than these are looked at only in photos where these show no sure face: nearly all of them are for nothing."""

SURE_CONFIDENCE = 0.5
"""Mean confidence of the points from which on a face in a box is believed without a look at the whole photo."""

Boxes = Literal["auto", "finder", "windows", "opencv"]
"""Where boxes come from: `auto` is the finder, then the whole photo and windows of it where no face is sure."""

Convention = Literal["model", "annotated", "handmade"]
"""Points at the face model's vertices; where the photos of training were annotated; the first with the jaw where people
put it, on the visible outline."""

NO_OUTLINE = (
    "{}: this landmark network knows no outline, which points of convention handmade need; take annotated or model, or "
    "train it on photos with ingest.outlines: true"
)

ADDED_LATER = ("conventions.", "dense_head.")
"""Parts of the network that older checkpoints lack; they start as nothing."""


class HierarchicalDetector:
    """`LandmarkDetector` around a trained `HierarchicalNetwork`, run by torch or by anything else.

    `finder`: a trained `FaceFinder`, or what runs one. `outlined`: whether a reader that is no network finds outlines.
    Raises: ValueError if the boxes are to come from a finder and there is none, or handmade points from a network that
    knows no outline.
    """

    def __init__(
        self,
        network: nn.Module | CropReader,
        *,
        input_size_px: int,
        mean_shape: Float[np.ndarray, "68 2"],
        sigma_scale: float = 1.0,
        min_face_score: float = 0.5,
        batch_size: int = 64,
        half_precision: bool = False,
        device: str = "cpu",
        finder: nn.Module | FinderRun | None = None,
        boxes: Boxes = "auto",
        convention: Convention = "model",
        outlined: bool = False,
    ) -> None:
        if boxes == "finder" and finder is None:
            raise ValueError("landmark detector: boxes: finder, but no finder was trained; train again, or boxes: auto")
        self.outlined = network.outline_head is not None if isinstance(network, HierarchicalNetwork) else outlined
        if convention == "handmade" and not self.outlined:
            raise ValueError(NO_OUTLINE.format("landmark detector"))
        self.read_crops: CropReader
        if isinstance(network, nn.Module):
            self.read_crops = _torch_reader(network, device, half_precision=half_precision)
        else:
            self.read_crops = network
        self.finder = finder.eval().to(device) if isinstance(finder, nn.Module) else finder
        self.input_size_px = input_size_px
        self.mean_shape = mean_shape
        self.sigma_scale = sigma_scale
        self.min_face_score = min_face_score
        self.batch_size = batch_size
        self.boxes = boxes
        self.convention = convention

    def detect(
        self,
        images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
        *,
        annotations: Annotations | None = None,  # noqa: ARG002
    ) -> list[Detection | None]:
        """The best face of each photo, None where none scores `min_face_score`; annotations are not read.

        Best is the largest that is sure enough, see `best_face`; without a finder it is the surest.
        """
        if self._finds_boxes():
            return [best_face(faces) for faces in self.detect_all(images)]
        found: list[Detection | None] = [None] * len(images)
        whole = self._refine(images, self._whole(images, np.arange(len(images))), UNBOXED_REFINEMENTS)
        missed = self._accept(whole, found)
        if len(missed):
            self._accept(self._refine(images, self._search(images, missed), UNBOXED_REFINEMENTS), found)
        return found

    def detect_all(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[list[Detection]]:
        """Every face of each photo, largest first; no face is an empty list."""
        guesses = self._in_boxes(images) if self._finds_boxes() else self._in_windows(images)
        guesses = guesses.take(self._shows_face(guesses))
        guesses = guesses.take(without_duplicates(guesses))
        found: list[list[Detection]] = [[] for _ in images]
        for row in np.argsort(-box_side(guesses.points), kind="stable").tolist():
            found[int(guesses.photo[row])].append(self._detection(guesses, row))
        return [without_doubtful(faces) for faces in found]

    def _finds_boxes(self) -> bool:
        return self.boxes in ("finder", "opencv") or (self.boxes == "auto" and self.finder is not None)

    def _in_boxes(self, images: Sequence[np.ndarray]) -> Guesses:
        """Faces in the boxes of the finder or of OpenCV; with `auto`, all of a photo without a sure one is searched."""
        if self.boxes == "opencv" or self.finder is None:
            rows = [
                (index, *window, 0.0, 1.0) for index, image in enumerate(images) for window in cascade_windows(image)
            ]
            table = np.array(rows, np.float64).reshape(-1, 6)
        else:
            found = find_faces(self.finder, images, min_score=MIN_BOX_SCORE, batch_size=self.batch_size)
            columns = [
                np.column_stack([np.full(len(boxes), index), boxes.centre, boxes.side, boxes.angle, boxes.score])
                for index, boxes in enumerate(found)
            ]
            table = np.concatenate(columns) if columns else np.zeros((0, 6))
        likely = table[:, 5] >= LIKELY_BOX_SCORE
        guesses = self._look_at_boxes(images, table[likely])
        sure = self._sure(guesses)
        unlikely = table[~likely & ~np.isin(table[:, 0], guesses.photo[sure])]
        if len(unlikely):
            guesses = Guesses.join([guesses, self._look_at_boxes(images, unlikely)])
            sure = self._sure(guesses)
        without = np.setdiff1d(np.arange(len(images)), guesses.photo[sure])
        if self.boxes != "auto" or not len(without):
            return guesses
        guesses = Guesses.join([guesses, self._refine(images, self._whole(images, without), UNBOXED_REFINEMENTS)])
        without = np.setdiff1d(without, guesses.photo[self._sure(guesses)])
        return Guesses.join([guesses, self._sure_in_windows(images, without)])

    def _sure_in_windows(self, images: Sequence[np.ndarray], photos: Int[np.ndarray, "N"]) -> Guesses:
        """Faces that the finder did not see; many looks find much that resembles one, so only sure ones count."""
        if not len(photos):
            return Guesses.none()
        first = self._look_at_windows(images, photos, grid_windows)
        first = first.take(self._shows_face(first))
        first = first.take(~are_doubtful(first, share=FIRST_LOOK_SHARE))
        found = self._refine(images, first.take(without_duplicates(first)), UNBOXED_REFINEMENTS)
        return found.take(self._sure(found))

    def _look_at_boxes(self, images: Sequence[np.ndarray], table: Float[np.ndarray, "N 6"]) -> Guesses:
        """Faces in boxes, rows of photo, centre, side, angle and score."""
        which = table[:, 0].astype(np.int64)
        affine = self._affine(table[:, 1:3], np.maximum(table[:, 3], MIN_POINT_SPREAD_PX), table[:, 4])
        first = self._look(images, which, affine)
        # Most boxes too many show no face at the first look, or one that another box shows better.
        first = first.take(self._shows_face(first))
        first = first.take(~are_doubtful(first, share=FIRST_LOOK_SHARE))
        return self._refine(images, first.take(without_duplicates(first)), REFINEMENTS)

    def _sure(self, guesses: Guesses) -> Bool[np.ndarray, "N"]:
        """A box around a part of a face shows a face, too, but not one whose points are found well."""
        return self._shows_face(guesses) & (mean_confidence(guesses) >= SURE_CONFIDENCE)

    def _in_windows(self, images: Sequence[np.ndarray]) -> Guesses:
        """Faces in whole photos and in windows of them."""
        photos = np.arange(len(images))
        first = Guesses.join([self._whole(images, photos), self._look_at_windows(images, photos)])
        first = first.take(self._shows_face(first))
        return self._refine(images, first.take(without_duplicates(first)), UNBOXED_REFINEMENTS)

    def _shows_face(self, guesses: Guesses) -> Bool[np.ndarray, "N"]:
        return (guesses.presence >= self.min_face_score) & (box_side(guesses.points) >= MIN_POINT_SPREAD_PX)

    def _accept(self, guesses: Guesses, found: list[Detection | None]) -> Int[np.ndarray, "M"]:
        """Note the guesses that show a face; return the photos whose guess does not."""
        good = self._shows_face(guesses)
        for row in np.flatnonzero(good).tolist():
            found[int(guesses.photo[row])] = self._detection(guesses, row)
        return guesses.photo[~good]

    def _detection(self, guesses: Guesses, row: int) -> Detection:
        of_convention = {"annotated": guesses.annotated, "model": guesses.points}
        chosen = guesses.handmade() if self.convention == "handmade" else of_convention[self.convention]
        points = chosen[row].astype(np.float32)
        dense = guesses.dense[row].astype(np.float32) if guesses.dense.shape[1] else None
        return Detection(
            landmarks=points,
            confidence=confidence_from_sigma(guesses.sigma[row]).astype(np.float32),
            box=landmark_box(points[None])[0],
            face_score=float(guesses.presence[row]),
            dense=dense,
            dense_confidence=None if dense is None else _dense_confidence(guesses, row),
            outline=guesses.outline[row].astype(np.float32) if self.outlined else None,
        )

    def _whole(self, images: Sequence[np.ndarray], photos: Int[np.ndarray, "N"]) -> Guesses:
        sizes = np.array([images[index].shape[:2] for index in photos], np.float64).reshape(-1, 2)
        return self._look(images, photos, self._affine(sizes[:, ::-1] / 2.0, sizes.max(1)))

    def _search(self, images: Sequence[np.ndarray], photos: Int[np.ndarray, "N"]) -> Guesses:
        """Best window of each photo."""
        guesses = self._look_at_windows(images, photos)
        rank = guesses.rank()
        best = [rows[rank[rows].argmax()] for rows in (np.flatnonzero(guesses.photo == index) for index in photos)]
        return guesses.take(np.array(best))

    def _look_at_windows(
        self,
        images: Sequence[np.ndarray],
        photos: Int[np.ndarray, "N"],
        windows_of: Callable[[np.ndarray], list[tuple[float, float, float]]] = search_windows,
    ) -> Guesses:
        """Looks at a grid of overlapping squares and at the boxes of OpenCV's face cascade."""
        windows = [(int(index), *window) for index in photos for window in windows_of(images[index])]
        table = np.array(windows, np.float64).reshape(-1, 4)
        return self._look(images, table[:, 0].astype(np.int64), self._affine(table[:, 1:3], table[:, 3]))

    def _refine(self, images: Sequence[np.ndarray], guesses: Guesses, looks: int) -> Guesses:
        """Look at each guess again, at most so many times; the last time straight and in the mirror.

        Whatever is framed as in its last look already goes straight to the last one: it would show the same.
        """
        affine = self._framed(guesses)
        for _ in range(looks - 1):
            moved = np.flatnonzero(frame_distance(guesses.frame, affine, size_px=self.input_size_px) > SAME_FRAME)
            if not len(moved):
                break
            guesses = guesses.replace(moved, self._look(images, guesses.photo[moved], affine[moved]))
            affine = self._framed(guesses)
        photos, mirrored = guesses.photo, mirror_frames(affine, size_px=self.input_size_px)
        # Both in one batch: for a single face that is faster than one after the other.
        both = self._look(images, np.tile(photos, 2), np.concatenate([affine, mirrored]), mirrored=len(photos))
        return both.take(np.arange(len(photos))).average(both.take(np.arange(len(photos), 2 * len(photos))))

    def _framed(self, guesses: Guesses) -> Float[np.ndarray, "N 3 3"]:
        """Tight frames around the points of guesses."""
        centre, side, angle = tight_frame(guesses.points, self.mean_shape)
        return self._affine(centre, np.maximum(side, MIN_POINT_SPREAD_PX), angle)

    def _affine(
        self, centre: np.ndarray, side: np.ndarray, angle: np.ndarray | None = None
    ) -> Float[np.ndarray, "N 3 3"]:
        return frame_affine(centre, side, np.zeros(len(side)) if angle is None else angle, size_px=self.input_size_px)

    def _look(
        self,
        images: Sequence[np.ndarray],
        which: Int[np.ndarray, "N"],
        affine: Float[np.ndarray, "N 3 3"],
        *,
        mirrored: int | None = None,
    ) -> Guesses:
        """Read frames of photos; those from row `mirrored` on are mirrored."""
        if not len(which):
            return Guesses.none()
        parts = []
        for start in range(0, len(which), self.batch_size):
            part = slice(start, start + self.batch_size)
            parts.append(self.read_crops(cut_frames(images, which[part], affine[part], size_px=self.input_size_px)))
        found = CropReading(*(np.concatenate(arrays).astype(np.float64) for arrays in zip(*parts, strict=True)))
        relative = self.sigma_scale / np.maximum(box_side(found.points), MIN_POINT_SPREAD_PX)[:, None]
        points, annotated = transform_points(affine, found.points), transform_points(affine, found.annotated)
        sigma = np.exp(found.log_sigma) * relative
        turned = slice(len(which) if mirrored is None else mirrored, None)
        outline = transform_points(affine, found.outline)
        for values in (points, annotated, sigma, outline):
            values[turned] = values[turned][:, FLIP_PERMUTATION[: values.shape[1]]]
        return Guesses(
            photo=which,
            points=points,
            annotated=annotated,
            sigma=sigma,
            presence=1.0 / (1.0 + np.exp(-found.presence)),
            dense=transform_points(affine, found.dense),
            dense_sigma=np.exp(found.dense_log_sigma) * relative,
            outline=outline,
            frame=affine,
        )


def _dense_confidence(guesses: Guesses, row: int) -> Float[np.ndarray, "D"]:
    return confidence_from_sigma(guesses.dense_sigma[row]).astype(np.float32)


def _torch_reader(network: nn.Module, device: str, *, half_precision: bool) -> CropReader:
    network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def read(crops: UInt8[np.ndarray, "N S S 3"]) -> CropReading:
        pixels = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float() / 255.0
        with torch.autocast(device, torch.bfloat16, enabled=half_precision):
            output: LandmarkOutput = network(pixels)
        return CropReading(*(getattr(output, name).float().cpu().numpy() for name in CropReading._fields))

    return read


def detector_content(
    network: HierarchicalNetwork,
    *,
    mean_shape: Float[np.ndarray, "68 2"],
    sigma_scale: float,
    finder: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint must hold for `load_hierarchical`; `finder` as `finder_content` makes it."""
    return {
        "kind": "hierarchical",
        "weights": network.state_dict(),
        "widths": network.widths.to_dict(),
        "attention": network.attention,
        "dense_points": network.dense_points,
        "conventions": len(network.conventions),
        "outline": network.outline_head is not None,
        "input_size_px": network.input_size_px,
        "mean_shape": torch.from_numpy(np.asarray(mean_shape, np.float64)),
        "sigma_scale": float(sigma_scale),
        **({} if finder is None else {"finder": finder}),
    }


def load_network(content: dict[str, Any]) -> HierarchicalNetwork:
    """The landmark network of a checkpoint, in evaluation mode; checkpoints of older networks are welcome.

    Raises: ValueError if the content is not that of a landmark network.
    """
    if content.get("kind") != "hierarchical":
        raise ValueError(
            f"landmark checkpoint: kind {content.get('kind')!r}, expected 'hierarchical'; run train_detector again"
        )
    network = HierarchicalNetwork(
        content["input_size_px"],
        widths=NetworkWidths(**content["widths"]),
        attention=content.get("attention", "linear"),
        dense_points=content.get("dense_points", 0),
        conventions=content.get("conventions", 1),
        outline=content.get("outline", False),
    )
    weights = content["weights"]
    added = {
        name: value
        for name, value in network.state_dict().items()
        if name not in weights and name.startswith(ADDED_LATER)
    }
    network.load_state_dict({**added, **weights})
    return network.eval()


def load_hierarchical(content: dict[str, Any], **options: Any) -> HierarchicalDetector:
    """Detector from the content of its checkpoint, run by torch; options as in `HierarchicalDetector`.

    Raises: ValueError if the content is not that of a landmark network.
    """
    network = load_network(content)
    if "finder" in content:
        options.setdefault("finder", load_finder(content["finder"]))
    return HierarchicalDetector(
        network,
        input_size_px=content["input_size_px"],
        mean_shape=content["mean_shape"].numpy(),
        sigma_scale=content["sigma_scale"],
        **options,
    )
