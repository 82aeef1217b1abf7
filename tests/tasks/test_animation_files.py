from __future__ import annotations

import csv
import json
from pathlib import Path

import av
import numpy as np
import pytest

from models.animation.gltf import MorphFace
from models.face.procedural_expressions import ARKIT_NAMES
from tasks.animation_files import (
    FILM_PX,
    film_frames,
    live_link_names,
    time_code,
    write_curves,
    write_film,
    write_live_link,
)
from tasks.faces_to_animate import open_face
from tests.speaking_face import speaking_face
from tests.wav_files import hum


def curves(frames: int = 50) -> np.ndarray:
    found = np.zeros((frames, 52), np.float32)
    found[:, ARKIT_NAMES.index("jawOpen")] = 0.5 - 0.5 * np.cos(np.linspace(0, 2 * np.pi, frames))
    found[:, ARKIT_NAMES.index("jawLeft")] = 0.25
    return found


def face() -> MorphFace:
    return open_face(None, speaking_face())[0]


def test_live_link_columns_and_times(tmp_path: Path) -> None:
    write_live_link(tmp_path / "a.csv", curves())
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert list(rows[0])[:3] == ["Timecode", "BlendshapeCount", "EyeBlinkLeft"]
    assert list(rows[0]).index("JawRight") + 1 == list(rows[0]).index("JawLeft")
    assert (rows[0]["Timecode"], rows[59]["Timecode"]) == ("00:00:00:00.000", "00:00:00:59.000")
    assert {row["BlendshapeCount"] for row in rows} == {"61"}
    assert float(rows[30]["JawOpen"]) == pytest.approx(1.0, abs=0.01)
    assert {(row["JawLeft"], row["JawRight"]) for row in rows} == {("0.25000", "0.00000")}
    assert sorted(name.lower() for name in live_link_names()) == sorted(name.lower() for name in ARKIT_NAMES)
    assert time_code(60 * 3725 + 7) == "01:02:05:07.000"


def test_curves_as_json(tmp_path: Path) -> None:
    write_curves(tmp_path / "a.json", curves(), {"speech": "a.wav"})
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["fps"], found["frames"], found["names"][:1]) == (50, 50, [ARKIT_NAMES[0]])
    assert np.allclose(found["weights"], curves(), atol=1e-5)


def test_the_film_has_pictures_and_sound(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mp4", face(), curves(), hum(1.0))
    with av.open(str(tmp_path / "a.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(tmp_path / "a.mp4")) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert len(frames) == 30
    assert frames[0].shape == (FILM_PX, FILM_PX, 3)
    difference = np.abs(frames[0].astype(int) - frames[15]).max(2) > 40
    assert np.nonzero(difference.any(1))[0].min() > FILM_PX // 2
    assert len(sound) == pytest.approx(16_000, abs=2_048)
    assert float(np.abs(sound).max()) > 0.05


def test_film_frames_follow_the_curves() -> None:
    drawn = list(film_frames(face(), curves(10)))
    assert len(drawn) == 6
    assert not np.array_equal(drawn[0], drawn[3])
