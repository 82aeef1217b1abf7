"""A picture of many photos at once, for people who want to see what came in."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq

from tasks.artifacts import replace_file
from tasks.images import Pixels, encode_png, folder_batches

CELL_PX = 160
COLUMNS = 8
PHOTOS = 48


def write_contact_sheet(folder: Path) -> None:
    """Draw photos from all sources of an `ingest` folder into `examples.png`; every second one with its landmarks."""
    table = pq.read_table(folder / "samples.parquet", columns=["sample_id", "source", "landmarks"]).to_pydict()
    chosen = _spread(table["source"], PHOTOS)
    ids = [table["sample_id"][row] for row in chosen]
    landmarks = {table["sample_id"][row]: table["landmarks"][row] for row in chosen}
    cells: dict[str, Pixels] = {}
    for batch_ids, images in folder_batches(folder, batch_size=16, sample_ids=ids):
        for sample_id, image in zip(batch_ids, images, strict=True):
            points = landmarks[sample_id] if ids.index(sample_id) % 2 else None
            cells[sample_id] = _cell(image, None if points is None else np.float32(points).reshape(-1, 2))
    rows = -(-len(ids) // COLUMNS)
    sheet = np.zeros((rows * CELL_PX, min(COLUMNS, len(ids)) * CELL_PX, 3), np.uint8)
    for place, sample_id in enumerate(ids):
        top, left = place // COLUMNS * CELL_PX, place % COLUMNS * CELL_PX
        sheet[top : top + CELL_PX, left : left + CELL_PX] = cells[sample_id]
    with replace_file(folder / "examples.png") as temporary:
        temporary.write_bytes(encode_png(sheet))


def _spread(sources: list[str], count: int) -> list[int]:
    """Rows that show every source alike, evenly over each."""
    by_source: dict[str, list[int]] = {}
    for row, source in enumerate(sources):
        by_source.setdefault(source, []).append(row)
    share = -(-count // max(1, len(by_source)))
    chosen: list[int] = []
    for rows in by_source.values():
        places = np.linspace(0, len(rows) - 1, min(share, len(rows))).round().astype(int)
        chosen += [rows[place] for place in places]
    return chosen[:count]


def _cell(image: Pixels, points: np.ndarray | None) -> Pixels:
    scale = CELL_PX / max(image.shape[:2])
    method = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR
    small = np.ascontiguousarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=method))[:CELL_PX, :CELL_PX]
    if points is not None:
        for x, y in np.clip(points * scale, -1000.0, 1000.0):
            cv2.circle(small, (int(x), int(y)), 1, (0, 255, 0), -1, cv2.LINE_AA)
    cell = np.zeros((CELL_PX, CELL_PX, 3), np.uint8)
    cell[: small.shape[0], : small.shape[1]] = small
    return cell
