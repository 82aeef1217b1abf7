"""Files and drawings that leave the program."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from models.export import camera_document, overlay, write_mesh
from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.face.crop import apply_affine, photo_camera
from models.face.lighting import ambient_light
from models.face.morphable import MorphableModel

TRIANGLE = np.array([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0], [0.0, 20.0, -5.0]])
FACES = np.array([[0, 1, 2]])
COLOURS = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 2.0]])


def test_obj_value(tmp_path: Path) -> None:
    path = tmp_path / "mesh.obj"
    write_mesh(path, TRIANGLE, FACES, colours=COLOURS, comment="one\ntwo")
    assert path.read_text().splitlines() == [
        "# one",
        "# two",
        "v 0.0000 0.0000 0.0000 1.0000 0.0000 0.0000",
        "v 10.0000 0.0000 0.0000 0.0000 0.5000 0.0000",
        "v 0.0000 20.0000 -5.0000 0.0000 0.0000 1.0000",
        "f 1 2 3",
    ]


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".glb"])
def test_mesh_reads_back(tmp_path: Path, suffix: str, face: MorphableModel) -> None:
    path = tmp_path / f"face{suffix}"
    write_mesh(path, face.mean.numpy(), face.triangles.numpy(), colours=face.albedo_mean.numpy())
    mesh = trimesh.load(path, process=False, force="mesh")
    assert mesh.vertices == pytest.approx(face.mean.numpy(), abs=1e-4)
    assert np.array_equal(mesh.faces, face.triangles.numpy())
    assert mesh.visual.vertex_colors[:, :3] / 255.0 == pytest.approx(face.albedo_mean.numpy(), abs=0.003)


STAMP = {"name": "ict", "licence": "MIT\nLicense", "hash": "0123", "source_sha256": ""}


def stamped(path: Path) -> Path:
    write_mesh(path, TRIANGLE, FACES, colours=COLOURS, comment="face of J\u00f6rg.png", stamp=STAMP)
    return path


def test_obj_and_ply_say_whose_face_it_is(tmp_path: Path) -> None:
    lines = ["face model name: ict", "face model licence: MIT License", "face model hash: 0123"]
    text = stamped(tmp_path / "mesh.obj").read_text(encoding="utf-8")
    assert text.splitlines()[:5] == [f"# {line}" for line in ("face of J\u00f6rg.png", *lines)] + [
        "v 0.0000 0.0000 0.0000 1.0000 0.0000 0.0000"
    ]
    header = stamped(tmp_path / "mesh.ply").read_bytes().split(b"end_header")[0].decode("ascii").splitlines()
    assert header[:6] == ["ply", "format binary_little_endian 1.0"] + [
        f"comment {line}" for line in ("face of J?rg.png", *lines)
    ]
    assert np.allclose(trimesh.load(tmp_path / "mesh.ply", process=False).vertices, TRIANGLE)


def test_glb_says_whose_face_it_is(tmp_path: Path) -> None:
    content = stamped(tmp_path / "mesh.glb").read_bytes()
    length = int.from_bytes(content[12:16], "little")
    asset = json.loads(content[20 : 20 + length])["asset"]
    assert asset["version"] == "2.0"
    assert asset["copyright"] == "face model ict: MIT License"
    assert asset["extras"] == {
        "comment": "face of J\u00f6rg.png",
        "face_model": {"name": "ict", "licence": "MIT License", "hash": "0123"},
    }
    assert np.allclose(trimesh.load(tmp_path / "mesh.glb", process=False, force="mesh").vertices, TRIANGLE)


@pytest.mark.parametrize(
    ("name", "faces", "message"),
    [
        ("mesh.stl", FACES, r"expected one of \.obj"),
        ("mesh.obj", FACES + 1, "name vertices 1 to 3 of 3"),
    ],
)
def test_mesh_exception(tmp_path: Path, name: str, faces: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_mesh(tmp_path / name, TRIANGLE, faces, colours=COLOURS)
    assert not (tmp_path / name).exists()


def test_camera_document_projects_like_the_camera(face: MorphableModel) -> None:
    rotation = rotation_from_angles(torch.tensor([0.5]), torch.tensor([-0.2]), torch.tensor([0.3]))
    translation = torch.tensor([[5.0, -3.0, 900.0]])
    affine = torch.tensor([[[2.5, 0.0, 31.0], [0.0, 2.5, -7.0], [0.0, 0.0, 1.0]]])
    camera = crop_camera(1, 64)
    seen = to_camera_space(face.mean[None], rotation=rotation, translation=translation)
    expected = apply_affine(affine, project(seen, camera))[0].numpy()
    found = camera_document(
        photo_camera(camera, affine)[0], size=(480, 640), rotation=rotation[0], translation=translation[0]
    )
    pixels = (face.mean.numpy() @ np.array(found["R"]).T + np.array(found["t_mm"])) @ np.array(found["K"]).T
    assert pixels[:, :2] / pixels[:, 2:] == pytest.approx(expected, abs=1e-2)
    assert (found["width_px"], found["height_px"]) == (640, 480)


def square(*, shift_mm: float = 0.0) -> dict[str, torch.Tensor]:
    """A grey square of 100 mm, a metre away, under light of 1: 100 px wide under a focal length of 1000 px."""
    x, y = torch.tensor([-50.0, 50.0, 50.0, -50.0]), torch.tensor([-50.0, -50.0, 50.0, 50.0])
    light = torch.zeros(9, 3)
    light[0] = 1.0
    return {
        "vertices": torch.stack([x + shift_mm, y, torch.full((4,), 1000.0)], 1),
        "triangles": torch.tensor([[0, 2, 1], [0, 3, 2]]),
        "albedo": torch.full((4, 3), 0.5),
        "lighting": light,
        "intrinsics": torch.tensor([[1000.0, 0.0, 100.0], [0.0, 1000.0, 80.0], [0.0, 0.0, 1.0]]),
    }


def test_overlay_value() -> None:
    photo = np.full((160, 200, 3), 10, np.uint8)
    drawn = overlay(photo, **square())
    assert photo.max() == 10, "the photo itself is not touched"
    inside = np.zeros((160, 200), bool)
    inside[30:130, 50:150] = True
    assert np.abs(drawn[inside].astype(int) - 128).max() <= 1
    assert (drawn[~inside] == 10).all()
    half = overlay(photo, opacity=0.5, **square())
    assert np.abs(half[inside].astype(int) - 69).max() <= 1


def test_overlay_outside_the_photo() -> None:
    photo = np.full((160, 200, 3), 10, np.uint8)
    assert np.array_equal(overlay(photo, **square(shift_mm=900.0)), photo)
    part = overlay(photo, **square(shift_mm=100.0))
    assert (part[60, 151:199] > 100).all()
    assert (part[60, :149] == 10).all()


def test_large_overlay_is_drawn_smaller() -> None:
    photo = np.zeros((4000, 4000, 3), np.uint8)
    scene = square()
    scene["intrinsics"] = torch.tensor([[30000.0, 0.0, 2000.0], [0.0, 30000.0, 2000.0], [0.0, 0.0, 1.0]])
    drawn = overlay(photo, **scene)
    assert (np.abs(drawn[510:3490, 510:3490].astype(int) - 128) <= 1).all()
    assert drawn[:490].max() == 0


def test_light_reaches_the_overlay(face: MorphableModel) -> None:
    camera = crop_camera(1, 64)
    seen = to_camera_space(face.mean[None], rotation=torch.zeros(1, 3), translation=torch.tensor([[0.0, 0.0, 1100.0]]))
    bright, dim = (
        overlay(
            np.zeros((64, 64, 3), np.uint8),
            vertices=seen[0],
            triangles=face.triangles,
            albedo=face.albedo_mean,
            lighting=strength * ambient_light(1)[0],
            intrinsics=photo_camera(camera, torch.eye(3)[None])[0],
        )
        for strength in (0.8, 0.4)
    )
    lit = dim > 20
    assert lit.sum() > 1000
    assert bright[lit] / dim[lit] == pytest.approx(2.0, rel=0.06)
