from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from models.animation.phonemes import BILABIALS
from models.face.procedural_expressions import ARKIT_NAMES
from tasks import ingest_speech as stage
from tasks.artifacts import QUARANTINE, Workspace, read_json, read_table
from tasks.ingest_speech import SpeechGateError, ingest_speech
from tasks.params import Params, parse_params
from tasks.speech_clips import CLIPS, read_clips
from tests.tiny_workspace import Recorder
from tests.wav_files import hum, write_wav

FRAMES = 90  # three seconds at 30 per second


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "track", Recorder().track)


def make_params(repository: Path, sources: list[dict[str, Any]], **section: Any) -> Params:
    data = yaml.safe_load((repository / "params.yaml").read_text(encoding="utf-8"))
    data["ingest_speech"] = {"sources": sources, "shard_clips": 3, **section}
    return parse_params(data)


def take(folder: Path, name: str, *, pitch: float = 150.0, **columns: np.ndarray) -> None:
    """Three seconds of sound with a jaw that opens when it swells."""
    jaw = 0.25 - 0.25 * np.cos(2 * np.pi * 3 * np.arange(FRAMES) / 30)
    write_wav(folder / f"{name}.wav", hum(3.0, pitch=pitch))
    shapes = {"jawOpen": jaw, "mouthClose": 0.1 * jaw, **columns}
    length = len(next(iter(shapes.values()))) if not columns else max(len(values) for values in shapes.values())
    weights = np.stack([np.resize(values, length) for values in shapes.values()], 1)
    np.savez(folder / f"{name}.npz", weights=weights, names=list(shapes), fps=30.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Workspace:
    """Synthetic speech and takes, good ones and bad ones."""
    pytest.importorskip("espeakng_loader")
    root = tmp_path_factory.mktemp("speech")
    folder = root / "takes"
    for number in range(4):
        take(folder, f"good{number}", pitch=140.0 + 10 * number)
    take(folder, "still", pitch=200.0, jawOpen=np.full(FRAMES, 0.3), mouthClose=np.zeros(FRAMES))
    take(folder, "longer", pitch=205.0, tongueOut=np.zeros(FRAMES + 30))
    take(folder, "percent", pitch=210.0, jawOpen=100.0 * np.linspace(0, 1, FRAMES))
    take(folder, "broken", pitch=215.0, jawOpen=np.where(np.arange(FRAMES) == 40, np.nan, 0.2))
    take(folder, "twin", pitch=140.0)
    take(folder, "zz_elsewhere", pitch=150.0, tongueOut=np.linspace(0, 0.5, FRAMES))
    (folder / "clips.csv").write_text(
        "file,split\ngood0.wav,train\ngood1.wav,train\ngood2.wav,validation\ngood3.wav,test\ntwin.wav,train\n"
        "zz_elsewhere.wav,test\n",
        encoding="utf-8",
    )
    (folder / "noise.wav").write_bytes(b"no sound at all")
    np.savez(folder / "noise.npz", weights=np.zeros((3, 1)), names=["jawOpen"], fps=30.0)
    workspace = Workspace(root)
    sources = [
        {"kind": "synthetic", "name": "said", "sentences": 4, "readings": 1, "speakers": 3, "held_out_speakers": 1},
        {"kind": "curves", "name": "takes", "path": "takes"},
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "track", Recorder().track)
        ingest_speech(make_params(repository, sources, max_failed_share=0.6), workspace)
    return workspace


def test_every_clip_is_accepted_or_quarantined_with_a_reason(made: Workspace) -> None:
    folder = made.folder("ingest_speech")
    clips = read_table(folder / "clips.parquet", CLIPS).to_pylist()
    quarantine = read_table(folder / "quarantine.parquet", QUARANTINE).to_pylist()
    assert {row["path"]: row["reason"] for row in quarantine} == {
        "still.wav": "mouth_still",
        "longer.wav": "length_differs",
        "percent.wav": "curves_out_of_range",
        "broken.wav": "curves_not_finite",
        "twin.wav": "duplicate",
        "zz_elsewhere.wav": "sound_in_two_splits",
        "noise.wav": "not_audio",
    }
    assert sorted(row["path"] for row in clips if row["source"] == "takes") == [f"good{n}.wav" for n in range(4)]
    assert sum(row["source"] == "said" for row in clips) == 4
    details = {row["path"]: row["detail"] for row in quarantine}
    assert "expected: sound and curves differ in length by at most 0.25 s" in details["longer.wav"]
    summary = read_json(folder / "summary.json")
    assert (summary["in"], summary["clean"], summary["quarantined"]) == (15, 8, 7)
    assert summary["sources"]["takes"]["clips_by_split"] == {"train": 2, "validation": 1, "test": 1}


def test_clips_come_back_as_they_went_in(made: Workspace) -> None:
    clips = {clip.clip_id: clip for clip in read_clips(made.folder("ingest_speech"), splits=("train", "test"))}
    jaw = ARKIT_NAMES.index("jawOpen")
    for clip in clips.values():
        assert len(clip.audio) == 320 * len(clip.coefficients)
        assert clip.coefficients.shape[1] == 52
        assert len(clip.phonemes) == len(clip.coefficients)
    takes = [clip for clip in clips.values() if clip.source == "takes"]
    assert {clip.split for clip in takes} == {"train", "test"}
    for clip in takes:
        assert clip.known.sum() == 2
        assert (clip.phonemes == -1).all()
        level = np.sqrt(np.square(clip.audio.reshape(-1, 320)).mean(1))
        assert np.corrcoef(level, clip.coefficients[:, jaw])[0, 1] > 0.95
        assert clip.held_out == ("clips" if clip.split == "test" else None)
    said = [clip for clip in clips.values() if clip.source == "said"]
    assert all(np.isin(clip.phonemes, BILABIALS).any() for clip in said)
    only = list(read_clips(made.folder("ingest_speech"), splits=("test",), sources=("takes",)))
    assert [clip.source for clip in only] == ["takes"]


def test_documents_and_picture_are_written(made: Workspace) -> None:
    folder = made.folder("ingest_speech")
    page = (folder / "data_docs" / "index.html").read_text(encoding="utf-8")
    assert "Speech: what was validated" in page
    assert "mouth_still" in page
    assert "mean label quality" not in page
    assert (folder / "examples.png").read_bytes().startswith(b"\x89PNG")


def test_too_many_failures_stop_and_leave_the_earlier_output(made: Workspace, repository: Path) -> None:
    before = (made.folder("ingest_speech") / "clips.parquet").read_bytes()
    params = make_params(repository, [{"kind": "curves", "name": "takes", "path": "takes"}])
    with pytest.raises(SpeechGateError, match=r"ingest_speech: 63.6% of 11 clips failed, expected at most 20.0%"):
        ingest_speech(params, made)
    assert (made.folder("ingest_speech") / "clips.parquet").read_bytes() == before
    kept = made.root / ".mien" / "failed" / "ingest_speech"
    assert len(read_table(kept / "quarantine.parquet", QUARANTINE)) == 7
    assert (kept / "data_docs" / "index.html").is_file()


def test_where_nothing_can_be_read_the_gate_says_so(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "takes").mkdir()
    (tmp_path / "takes" / "a.wav").touch()
    params = make_params(repository, [{"kind": "curves", "name": "takes", "path": "takes"}], max_failed_share=1.0)
    with pytest.raises(SpeechGateError, match=r"100.0% of 1 clips failed, .* and a clip left; mostly no_curves \(1\)"):
        ingest_speech(params, Workspace(tmp_path))
    assert not (tmp_path / "artifacts" / "ingest_speech").exists()


def test_missing_shards_are_named(made: Workspace, tmp_path: Path) -> None:
    folder = made.folder("ingest_speech")
    (tmp_path / "clips.parquet").write_bytes((folder / "clips.parquet").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"clips-00000\.parquet: missing; run the stage ingest_speech again"):
        list(read_clips(tmp_path, splits=("train",)))


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"validation_share": 0.9}, "validation_share and test_share leave nothing to train on"),
        ({"sources": []}, "ingest_speech.sources"),
        (
            {"sources": [{"kind": "synthetic", "name": "a", "speakers": 2, "held_out_speakers": 2}]},
            "fewer than speakers",
        ),
        ({"sources": [{"kind": "curves", "name": "a", "path": "x"}] * 2}, "source names repeat: a, a"),
        ({"sources": [{"kind": "video", "name": "a"}]}, "ingest_speech.sources.0.path: missing"),
        ({"sources": [{"kind": "video", "name": "a", "path": "x", "emotion": "Very happy"}]}, "emotion = 'Very happy'"),
    ],
)
def test_params_that_cannot_be(repository: Path, section: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        make_params(repository, **{"sources": [{"kind": "synthetic", "name": "a"}], **section})
