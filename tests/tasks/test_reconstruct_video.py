"""A small film through the whole way: files that open, agree with each other and name the licence."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from models.animation.gltf import read_glb
from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.face.lighting import ambient_light
from models.landmarks.detector import Detection
from models.reconstruction.film_tracker import FilmTracker, Person, without_shadows
from models.rendering.render import render
from tasks.artifacts import Workspace
from tasks.face_reader import FaceReader, open_checkpoint
from tasks.face_record import Palette
from tasks.film_outputs import time_code
from tasks.params import load_params
from tasks.reconstruct_video import reconstruct_video
from tasks.video_frames import VideoError, frame_count, read_frames
from tests.tasks.trained_workspace import trained_workspace
from tests.tiny_face import tiny_face

SIZE_PX, FRAMES, RATE = 128, 14, 20


class Marks:
    """Finds the faces where the film has them; a mark in the first pixels counts the frames."""

    def __init__(self, points: np.ndarray, missing: tuple[int, ...] = ()) -> None:
        self.points, self.missing = points, missing

    def detect(self, images: list[np.ndarray], *, annotations: object = None) -> list[Detection | None]:
        return [(faces or [None])[0] for faces in self.detect_all(images)]

    def detect_all(self, images: list[np.ndarray]) -> list[list[Detection]]:
        return [self._faces(round(float(image[:8, :8].mean()) / 8.0)) for image in images]

    def _faces(self, frame: int) -> list[Detection]:
        points = self.points[frame].astype(np.float32)
        box = np.concatenate([points.min(0), points.max(0)])
        return [] if frame in self.missing else [Detection(points, np.full(68, 0.9, np.float32), box, 1.0)]


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Frames and landmarks of the tiny face, which opens its mouth and turns."""
    model = tiny_face()
    turn, zero = torch.linspace(-0.3, 0.3, FRAMES), torch.zeros(FRAMES)
    expression = torch.stack([torch.linspace(0, 1, FRAMES), zero, zero], 1)
    vertices = model.vertices(torch.zeros(FRAMES, 4), expression)
    shift = torch.tensor([[0.0, 0.0, 1500.0]]).expand(FRAMES, -1)
    seen = to_camera_space(vertices, rotation=rotation_from_angles(turn, zero, zero), translation=shift)
    camera = crop_camera(FRAMES, SIZE_PX)
    image = render(
        seen,
        model.triangles,
        albedo=model.albedo_mean.expand_as(vertices),
        lighting=ambient_light(FRAMES),
        camera=camera,
    )
    pixels = (image.image.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy().copy()
    pixels[:, :8, :8] = 8 * np.arange(FRAMES)[:, None, None, None]
    return pixels, project(model.landmarks(seen), camera).numpy()


@pytest.fixture(scope="module")
def film(drawn: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "talk.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=RATE)
        video.width = video.height = SIZE_PX
        video.pix_fmt, video.bit_rate = "yuv420p", 4_000_000
        for picture in drawn[0]:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
    return path


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> FaceReader:
    root = tmp_path_factory.mktemp("workspace")
    trained_workspace(root)
    workspace = Workspace(root)
    return open_checkpoint(workspace.folder("refusion"), load_params(workspace.params), workspace)


def with_marks(reader: FaceReader, points: np.ndarray, missing: tuple[int, ...] = ()) -> FaceReader:
    return FaceReader(**{**vars(reader), "find_detector": lambda: Marks(points, missing)})


def test_every_file_of_a_film(
    reader: FaceReader, film: Path, drawn: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    known = with_marks(reader, drawn[1], missing=(6,))
    calls: list[tuple[int, int, int]] = []
    outputs = ("glb", "csv", "json", "overlay", "obj", "sheet")
    report = reconstruct_video(
        film,
        tmp_path / "out",
        known,
        palette=Palette(known.reconstructor.model, texture_px=64),
        outputs=outputs,
        progress=lambda *numbers: calls.append(numbers),
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in report.files}
    assert names == {
        *("talk.glb", "talk.csv", "talk.json", "talk_overlay.mp4"),
        *("talk.obj", "talk.mtl", "talk_texture.png", "contact_sheet.png"),
    }
    assert calls[-1] == (FRAMES, FRAMES, FRAMES - 1)
    assert report.persons[0]["frames"] == FRAMES - 1

    document = json.loads((tmp_path / "out" / "talk.json").read_text())
    assert document["face_model"]["licence"] == "CC0-1.0"
    assert document["frames"] == FRAMES
    assert document["fps"] == pytest.approx(RATE, rel=0.01)
    assert len(document["coefficients"]["identity"]) == 4
    expression = np.array(document["expression"])
    assert expression.shape == (FRAMES, 3)

    face, animation = read_glb(tmp_path / "out" / "talk.glb")
    assert animation is not None
    assert face.skin is not None
    assert np.allclose(animation.weights, expression, atol=1e-5)
    assert animation.times_s[-1] == pytest.approx((FRAMES - 1) / RATE, abs=0.01)

    with (tmp_path / "out" / "talk.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == FRAMES
    # The tiny face has not enough of ARKit's shapes, so its own stand in the table.
    assert [float(row["jawOpen"]) for row in rows] == pytest.approx(expression[:, 0].tolist(), abs=1e-5)
    assert rows[0]["FaceModelLicence"] == "CC0-1.0"
    yaw = np.array([float(row["yaw"]) for row in rows])
    assert yaw[-1] - yaw[0] > 0.3

    overlaid = [frame for _, frame in read_frames(tmp_path / "out" / "talk_overlay.mp4", max_seconds=9)]
    assert len(overlaid) == FRAMES
    assert frame_count(film) == FRAMES
    assert not list(tmp_path.glob("out/.reconstruct*"))


def test_a_film_without_a_face_or_picture_is_refused(
    reader: FaceReader, film: Path, drawn: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    palette = Palette(reader.reconstructor.model, texture_px=64)
    blind = with_marks(reader, drawn[1], missing=tuple(range(FRAMES)))
    with pytest.raises(VideoError, match="no face in 14 frames"):
        reconstruct_video(film, tmp_path / "out", blind, palette=palette, outputs=("glb",))
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(VideoError, match=r"text\.mp4: cannot be decoded"):
        reconstruct_video(tmp_path / "text.mp4", tmp_path / "out", blind, palette=palette, outputs=("glb",))
    with pytest.raises(VideoError, match="no such file"):
        reconstruct_video(tmp_path / "none.mp4", tmp_path / "out", blind, palette=palette, outputs=("glb",))
    assert not (tmp_path / "out").exists()


def test_faces_are_followed_between_the_frames_in_which_they_are_looked_for(
    reader: FaceReader, drawn: tuple[np.ndarray, np.ndarray]
) -> None:
    """The untrained network finds no face again, but it is asked in the right frames about the right places."""
    asked: list[tuple[int, np.ndarray]] = []
    detector = reader.detector
    tracker = FilmTracker(reader.photos)

    def detect_all(images: list[np.ndarray]) -> list[list[Detection]]:
        return Marks(drawn[1]).detect_all(images)

    def refine(images: list[np.ndarray], guesses: object, looks: int) -> object:
        assert looks == 1
        asked.extend(zip(guesses.photo.tolist(), guesses.points, strict=True))
        return guesses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "detect_all", detect_all)
        patch.setattr(detector, "_refine", refine)
        list(tracker.run((row / RATE, frame) for row, frame in enumerate(drawn[0])))
    assert sorted({row for row, _ in asked}) == [row for row in range(FRAMES) if row % 5 and row != FRAMES - 1]
    assert len(tracker.persons) == 1
    assert [face.frame for face in tracker.persons[0].faces] == list(range(FRAMES))
    for row, points in asked:
        assert np.abs(points - drawn[1][row]).max() < 2.0


def test_a_wrong_track_on_a_face_is_no_person(reader: FaceReader, drawn: tuple[np.ndarray, np.ndarray]) -> None:
    tracker = FilmTracker(reader.photos)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader.detector, "detect_all", Marks(drawn[1]).detect_all)
        patch.setattr(reader.detector, "_refine", lambda images, guesses, looks: guesses)
        list(tracker.run((row / RATE, frame) for row, frame in enumerate(drawn[0])))
    (whole,) = tracker.persons
    part = Person(faces=whole.faces[3:6])
    apart = Person(
        faces=[type(face)(**{**vars(face), "landmarks": face.landmarks + 300.0}) for face in whole.faces[3:6]]
    )
    assert without_shadows([part, whole, apart]) == [whole, apart]


def test_time_code() -> None:
    assert time_code(0, 25) == "00:00:00:00.000"
    assert time_code(25 * 61 + 7, 25) == "00:01:01:07.000"
