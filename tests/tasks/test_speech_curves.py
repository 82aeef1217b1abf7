from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.animation.audio import speech_level_db
from models.face.procedural_expressions import ARKIT_NAMES
from tasks.artifacts import Workspace
from tasks.speech_candidates import SpeechCandidate, SpeechRefusal
from tasks.speech_curves import CurveError, arkit_curves, at_frames, read_curve_file, read_curves, read_mapping, shifted
from tasks.speech_params import CurvesSource, IngestSpeechParams
from tests.wav_files import hum, write_wav

JAW = ARKIT_NAMES.index("jawOpen")


def ramp(frames: int, fps: float) -> np.ndarray:
    return np.linspace(0.0, frames / fps / 4.0, frames, endpoint=False)  # a quarter per second


def live_link(path: Path, *, seconds: float = 2.0, fps: int = 60, start: int = 86_399, drop: int = 0) -> None:
    """As the app writes it: time code, number of shapes, 52 shapes in its own spelling, head and eyes."""
    names = [name[0].upper() + name[1:] for name in ARKIT_NAMES]
    lines = [",".join(["Timecode", "BlendShapeCount", *names, "HeadYaw", "HeadPitch"])]
    for frame in range(round(seconds * fps)):
        if drop and frame % drop == 1:
            continue
        at, rest = divmod(frame, fps)
        total = (start + at) % 86_400
        code = f"{total // 3600:02d}:{total // 60 % 60:02d}:{total % 60:02d}:{rest:02d}.250"
        shapes = [f"{frame / fps / 4.0:.6f}" if name == "JawOpen" else "0.1" for name in names]
        lines.append(",".join([code, "61", *shapes, "0.5", "-0.5"]))
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("drop", [0, 7])
def test_live_link_face_over_midnight_and_with_dropped_frames(tmp_path: Path, drop: int) -> None:
    live_link(tmp_path / "take.csv", drop=drop)
    raw = read_curve_file(tmp_path / "take.csv")
    assert raw.seconds == pytest.approx(2.0)
    values, known = arkit_curves(raw, None, name="take.csv")
    assert known.all()
    curves = at_frames(raw.times, values, raw.seconds)
    assert curves.shape == (100, 52)
    np.testing.assert_allclose(curves[:99, JAW], (np.arange(99) + 0.5) / 50 / 4.0, atol=1e-3)


def test_live_link_face_at_30_frames(tmp_path: Path) -> None:
    live_link(tmp_path / "take.csv", fps=30)
    assert read_curve_file(tmp_path / "take.csv").seconds == pytest.approx(2.0)


def test_npz_says_its_rate(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", weights=ramp(60, 30)[:, None], names=np.array(["jawOpen"]), fps=30.0)
    raw = read_curve_file(tmp_path / "a.npz")
    values, known = arkit_curves(raw, None, name="a.npz")
    assert known.sum() == 1
    assert known[JAW]
    assert at_frames(raw.times, values, raw.seconds)[50, JAW] == pytest.approx(50.5 / 50 / 4.0, abs=1e-5)


def test_csv_with_seconds(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("time,jawOpen\n0.0,0\n0.5,0.5\n1.0,1\n", encoding="utf-8")
    raw = read_curve_file(tmp_path / "a.csv")
    assert raw.seconds == pytest.approx(1.5)
    assert raw.names == ("jawOpen",)


def test_mapping_takes_the_largest_and_leaves_out_what_is_invalid(tmp_path: Path) -> None:
    table = tmp_path / "map.csv"
    table.write_text(
        'ARKIT,Shape,Status\nmouthFunnel,"max(funnel_l, funnel_r)",valid\njawopen,stretch,valid\n'
        "eyeBlinkLeft,blink,Invalid\ntongueOut,Invalid\nNote: anything\n",
        encoding="utf-8",
    )
    mapping = read_mapping(table)
    assert mapping == {"mouthFunnel": ("funnel_l", "funnel_r"), "jawOpen": ("stretch",)}
    np.savez(tmp_path / "a.npz", weights=np.array([[0.1, 0.4, 0.2]]), names=["funnel_l", "funnel_r", "Stretch"], fps=30)
    values, known = arkit_curves(read_curve_file(tmp_path / "a.npz"), mapping, name="a.npz")
    assert values[0, ARKIT_NAMES.index("mouthFunnel")] == pytest.approx(0.4)
    assert values[0, JAW] == pytest.approx(0.2)
    assert known.sum() == 2
    table.write_text("a,b\nc,d\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no row with an ARKit name"):
        read_mapping(table)


def test_values_beside_their_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", weights=np.array([[0.0, 0.7, 0.2]]), names=["jawOpen", "mouthClose", "other"], fps=30)
    raw = shifted(read_curve_file(tmp_path / "a.npz"), 1)
    assert raw.names == ("jawOpen", "mouthClose")
    assert raw.values.tolist() == [[0.7, 0.2]]
    assert shifted(raw, 0).values.tolist() == raw.values.tolist()


def text(content: str) -> Callable[[Path], None]:
    return lambda path: path.with_suffix(".csv").write_text(content, encoding="utf-8") and None


def arrays(**content: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path.with_suffix(".npz"), **content)


@pytest.mark.parametrize(
    ("write", "reason", "message"),
    [
        (text(""), "not_curves", "0 columns"),
        (text("jawOpen,x\n1,2\n"), "no_frame_rate", "set the source's fps"),
        (text("time,jawOpen\n0,a\n"), "not_curves", "could not convert string to float: 'a', expected numbers"),
        (text("time,jawOpen\n0,1,2\n"), "not_curves", "1 rows with another number of columns"),
        (text("time,jawOpen\n1,0\n0,1\n"), "curves_times", "times do not rise"),
        (text("time,jawOpen\n"), "no_curves", "no rows"),
        (text("Timecode,jawOpen\nnoon,1\n"), "curves_times", "time code 'noon', expected such as"),
        (text("Timecode,jawOpen\n1:1:1:99.0,1\n"), "no_frame_rate", "frame 99 in a time code"),
        (arrays(weights=np.zeros((3, 2)), names=["a"]), "not_curves", "with 1 names"),
        (arrays(weights=np.zeros((3, 1)), names=["a"], fps=0.0), "no_frame_rate", "frame rate is 0.0"),
        (arrays(other=np.zeros(3)), "not_curves", "weights are nothing"),
        (arrays(weights=np.array([["a"]]), names=["a"], fps=30), "not_curves", "weights are <U1"),
        (arrays(weights=np.array([[object()]]), names=["a"], fps=30), "not_curves", "not an NPZ file of numbers"),
        (lambda path: path.with_suffix(".npz").write_bytes(b"PK\x03\x04") and None, "not_curves", "BadZipFile"),
    ],
)
def test_files_that_hold_no_curves(tmp_path: Path, write: Callable[[Path], None], reason: str, message: str) -> None:
    write(tmp_path / "a")
    (path,) = tmp_path.iterdir()
    with pytest.raises(CurveError, match=message) as caught:
        read_curve_file(path)
    assert caught.value.reason == reason


def test_names_that_nobody_knows(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", weights=np.zeros((3, 1)), names=["smile_amount"], fps=30)
    with pytest.raises(CurveError, match=r"none of its columns \(smile_amount …\) is ARKit's; give a mapping"):
        arkit_curves(read_curve_file(tmp_path / "a.npz"), None, name="a.npz")


def source(folder: Path, **changes: Any) -> CurvesSource:
    return CurvesSource.model_validate({"kind": "curves", "name": "takes", "path": folder, **changes})


def items(folder: Path, **changes: Any) -> list[SpeechCandidate | SpeechRefusal]:
    made = source(folder, **changes)
    return list(read_curves(made, folder, IngestSpeechParams(), workspace=Workspace(folder.parent)))


def test_a_folder_of_takes(tmp_path: Path) -> None:
    folder = tmp_path / "takes"
    for name in ("good", "table", "sub/deep"):
        write_wav(folder / f"{name}.wav", hum(2.0))
        live_link(folder / f"{name}.csv")
    write_wav(folder / "alone.wav", hum(2.0))
    write_wav(folder / "quiet.wav", np.zeros(32_000))
    live_link(folder / "quiet.csv")
    live_link(folder / "soundless.csv")
    (folder / "clips.csv").write_text(
        "file,speaker,emotion,style,split\ntable.wav,Ann,Joy,lively,test\nnone.wav,,,,\n../up.wav,,,,\n"
        "sub/deep.wav,,very happy,,\n",
        encoding="utf-8",
    )
    found = items(folder, emotion="neutral", style="captured")
    good = {item.path: item for item in found if isinstance(item, SpeechCandidate)}
    assert set(good) == {"good.wav", "table.wav"}
    clip = good["table.wav"]
    assert (clip.speaker, clip.emotion, clip.style, clip.split) == ("takes/Ann", "joy", "lively", "test")
    assert (good["good.wav"].speaker, good["good.wav"].style) == ("takes/file:good.wav", "captured")
    assert speech_level_db(clip.audio) == pytest.approx(-23.0, abs=0.01)
    refused = {(item.path, item.reason) for item in found if isinstance(item, SpeechRefusal)}
    assert refused == {
        ("alone.wav", "no_curves"),
        ("quiet.wav", "silent"),
        ("soundless.csv", "no_sound"),
        ("none.wav", "missing_file"),
        ("../up.wav", "unsafe_path"),
        ("sub/deep.wav", "bad_label"),
    }
    assert all("\n" not in item.detail for item in found if isinstance(item, SpeechRefusal))


def test_held_out_files_and_channels(tmp_path: Path) -> None:
    folder = tmp_path / "takes"
    for name in ("a", "b"):
        write_wav(folder / f"{name}.wav", hum(2.0))
        live_link(folder / f"{name}.csv")
    found = items(folder, hold_out=["b.wav", "c.wav"], channels=["jawOpen"], speaker="ann")
    clips = {item.path: item for item in found if isinstance(item, SpeechCandidate)}
    assert clips["b.wav"].split == "test"
    assert clips["a.wav"].split is None
    assert clips["a.wav"].known.sum() == 1
    assert {clip.speaker for clip in clips.values()} == {"takes/ann"}
    assert [item.path for item in found if isinstance(item, SpeechRefusal)] == ["c.wav"]
    with pytest.raises(ValueError, match="channels jawwide, expected ARKit's names"):
        items(folder, channels=["jawWide"])


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        items(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no sound in"):
        items(tmp_path / "empty")


def test_facegood_moves_with_its_sound(shared_data: Path) -> None:
    folder = shared_data / "speech" / "facegood"
    raw = read_curve_file(folder / "1114_3_16_bs.npz")
    mapping = read_mapping(folder / "facegood_to_arkit.csv")
    values, known = arkit_curves(shifted(raw, 1), mapping, name="facegood")
    assert known.sum() == 27
    assert values[:, JAW].std() > 0.1
    left, right = (values[:, ARKIT_NAMES.index(f"mouthUpperUp{side}")] for side in ("Left", "Right"))
    assert np.corrcoef(left, right)[0, 1] > 0.95
    unshifted, _ = arkit_curves(raw, mapping, name="facegood")
    assert unshifted[:, JAW].std() == 0.0
