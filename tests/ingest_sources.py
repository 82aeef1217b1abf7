"""Small sources for the stage `ingest`, and a look at what it made of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.artifacts import QUARANTINE, SAMPLES, Workspace, read_table
from tasks.params import Params, parse_params

TINY = {"kind": "npz", "path": "tiny.npz"}
HEADER = ",".join(["file", *(f"{axis}{point}" for point in range(68) for axis in "xy")])


def params(*sources: dict[str, Any], face_model: dict[str, Any] | None = None, seed: int = 0, **ingest_: Any) -> Params:
    training = {
        "init": "train_geometry",
        "steps": 1,
        "sources": [{"source": sources[0]["name"], "share": 1.0, "losses": {"photo": 1.0}}],
    }
    return parse_params(
        {
            "project": {"seed": seed},
            "face_model": face_model or {},
            "ingest": {"sources": list(sources), **ingest_},
            **{f"train_{stage}": training for stage in ("self_supervised", "supervised", "fused")},
        }
    )


def photos(**changes: Any) -> dict[str, Any]:
    return {"kind": "photos", "name": "album", "path": "album"} | changes


def picture(number: int, height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)


def content(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def row_of(file: str, points: np.ndarray) -> str:
    return ",".join([file, *(f"{value:.3f}" for value in points.ravel())])


POINTS = np.random.default_rng(1).uniform(5, 55, (68, 2))


def put(workspace: Workspace, files: dict[str, bytes | str], folder: str = "album") -> None:
    for name, data in files.items():
        path = workspace.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)


def samples(workspace: Workspace) -> list[dict[str, Any]]:
    return read_table(workspace.folder("ingest") / "samples.parquet", SAMPLES).to_pylist()


def quarantine(workspace: Workspace) -> dict[str, str]:
    rows = read_table(workspace.folder("ingest") / "quarantine.parquet", QUARANTINE).to_pylist()
    assert all(row["detail"] for row in rows)
    return {row["path"]: row["reason"] for row in rows}


def summary(workspace: Workspace) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace.folder("ingest") / "summary.json").read_text(encoding="utf-8"))
    return found


def one_line(function: Callable[[], None], kind: type[Exception], *words: str) -> None:
    with pytest.raises(kind) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
