"""Annotated photos in memory, with the dense points that some of them have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tasks.annotated_photos import load_annotated
from tasks.artifacts import IMAGES, SAMPLES, Workspace, write_table
from tasks.images import encode
from tests.ingest_sources import params

RENDERED = {"kind": "synthetic", "name": "photos", "persons": 3}


def write_photos(workspace: Workspace, dense_points: list[int | None], *, outlines: Sequence[int] = ()) -> None:
    """Photos with a face of 150 pixels each; as many of its points are also its dense ones.

    `outlines`: photos whose outline is known, their jaw.
    """
    random = np.random.default_rng(0)
    rows, images = [], []
    for number, count in enumerate(dense_points):
        points = random.uniform(100, 250, (68, 2)).astype(np.float32)
        rows.append(
            {
                "sample_id": f"sample{number}",
                "source": "photos",
                "split": "train",
                "shard": "images-00000.parquet",
                "landmarks": points.ravel(),
                "rotation": [0.0, 0.1, 0.0],
                "dense": None if count is None else points[:count].ravel(),
                "outline": points[:17].ravel() if number in outlines else None,
            }
        )
        images.append({"sample_id": f"sample{number}", "image": encode(np.full((400, 400, 3), number, np.uint8))})
    write_table(workspace.folder("ingest") / "samples.parquet", rows, SAMPLES)
    write_table(workspace.folder("ingest") / "images-00000.parquet", images, IMAGES)


@pytest.mark.parametrize("size_px", [None, 64])
def test_dense_points_move_with_the_landmarks(tmp_path: Path, size_px: int | None) -> None:
    workspace = Workspace(tmp_path)
    write_photos(workspace, [10, None, 10])
    photos = load_annotated(params(RENDERED), workspace, "train", size_px=size_px)
    assert photos.points.shape == (3, 68, 2)
    assert photos.dense is not None
    assert photos.dense.shape == (3, 10, 2)
    assert np.isnan(photos.dense[1]).all()
    np.testing.assert_allclose(photos.dense[[0, 2]], photos.points[[0, 2], :10], atol=1e-3)
    assert np.ptp(photos.points, axis=1).max() == pytest.approx(size_px or 150, rel=0.05)
    for part in (photos.take(np.array([2])), photos.take(np.array([2, 1])).some(1, seed=1)):
        assert part.dense is not None
        assert part.dense.shape == (1, 10, 2)
    np.testing.assert_array_equal(photos.take(np.array([2])).dense, photos.dense[2:])


@pytest.mark.parametrize("dense", [10, None])
@pytest.mark.parametrize("size_px", [None, 64])
def test_outlines_move_with_the_landmarks(tmp_path: Path, size_px: int | None, dense: int | None) -> None:
    workspace = Workspace(tmp_path)
    write_photos(workspace, [dense, None, None], outlines=[1, 2])
    photos = load_annotated(params(RENDERED), workspace, "train", size_px=size_px)
    assert photos.outline is not None
    assert photos.outline.shape == (3, 17, 2)
    assert np.isnan(photos.outline[0]).all()
    np.testing.assert_allclose(photos.outline[1:], photos.points[1:, :17], atol=1e-3)
    assert (photos.dense is None) == (dense is None)
    part = photos.take(np.array([2, 0]))
    np.testing.assert_array_equal(part.outline, photos.outline[[2, 0]])


def test_no_dense_points(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_photos(workspace, [None, None])
    photos = load_annotated(params(RENDERED), workspace, "train", size_px=64)
    assert photos.dense is photos.of_face_model().dense is photos.outline is None


def test_dense_points_of_different_numbers(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_photos(workspace, [10, 12])
    with pytest.raises(ValueError, match=r"samples\.parquet: dense points of \[20, 24\] numbers.*run ingest again"):
        load_annotated(params(RENDERED), workspace, "train", size_px=None)
