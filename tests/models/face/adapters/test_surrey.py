from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest

from models.face.adapters import partial_landmarks, surrey
from models.face.adapters.assemble import FaceModelArrays, assemble
from models.face.adapters.surrey import KNOWN_VERTICES, PUBLIC_VERTICES, read_surrey
from tests.basel_files import known_face, save_landmarks

EMPTY = (np.zeros((0, 1)), np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((0, 3)))
"""The colours of a model of shapes only, as the public file has them."""


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """Files are read by people without shape checking, so messages are tested without it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def matrix(values: np.ndarray) -> bytes:
    return struct.pack("<ii", *values.shape) + values.T.astype("<f4").tobytes()


def rows(values: np.ndarray, kind: str) -> bytes:
    return struct.pack("<Q", len(values)) + values.astype(kind).tobytes()


def principal_model(mean: np.ndarray, basis: np.ndarray, variance: np.ndarray, triangles: np.ndarray) -> bytes:
    return matrix(mean) + matrix(basis) + matrix(variance) + rows(triangles, "<i4")


def shape(mean: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    face = known_face()
    flat = (face.mean if mean is None else mean).reshape(-1, 1)
    return flat, face.directions, (face.sigma_mm**2).reshape(-1, 1), face.triangles


def save(path: Path, *, version: int = 1, colours: Any = EMPTY, uv: np.ndarray | None = None, **changes: Any) -> Path:
    """A file as `eos::morphablemodel::save_model` wrote version 1."""
    coordinates = np.zeros((0, 2)) if uv is None else uv
    model = principal_model(*shape(**changes)) + principal_model(*colours)
    path.write_bytes(struct.pack("<I", version) + model + rows(coordinates, "<f8"))
    return path


def save_blendshapes(path: Path, names: list[str], shapes: np.ndarray) -> Path:
    content = struct.pack("<Q", len(names))
    for name, values in zip(names, shapes, strict=True):
        content += rows(np.frombuffer(name.encode(), np.uint8), "u1") + matrix(values.reshape(-1, 1))
    path.write_bytes(content)
    return path


def read(folder: Path, **options: Any) -> FaceModelArrays:
    path = save(folder / "sfm_shape.bin", **options)
    return read_surrey(path, landmarks=save_landmarks(folder / "points.txt"))


def close(found: np.ndarray | None, expected: np.ndarray) -> None:
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=3e-7 * np.abs(expected).max())


def test_the_model_comes_back_with_one_sigma_and_its_blendshapes(tmp_path: Path) -> None:
    face = known_face()
    blendshapes = tmp_path / f"expression_blendshapes_{len(face.mean)}.bin"
    save_blendshapes(blendshapes, ["anger", "joy"], face.expression)
    found = read(tmp_path)
    close(found.mean, face.mean)
    close(found.identity_basis, face.identity)
    close(found.expression_basis, face.expression)
    assert np.array_equal(found.triangles, face.triangles)
    assert found.expression_names == ("anger", "joy")
    assert found.name == "surrey"
    assert assemble(found).albedo_size == 10


def test_without_blendshapes_beside_it_expressions_are_borrowed(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert found.name == "surrey, expressions borrowed"
    assert "expressions borrowed" in found.licence
    assert len(found.expression_names) == 52


def test_the_stamp_covers_the_blendshapes(tmp_path: Path) -> None:
    face = known_face()
    path = tmp_path / f"expression_blendshapes_{len(face.mean)}.bin"
    stamps = set()
    for name in ("anger", "joy"):
        save_blendshapes(path, [name], face.expression[:1])
        stamps.add(read(tmp_path).source_sha256)
    assert len(stamps) == 2


def test_colours_and_texture_coordinates_are_read_where_they_are(tmp_path: Path) -> None:
    face = known_face()
    stream = np.random.default_rng(0)
    uv = stream.uniform(size=(len(face.mean), 2))
    variance = (face.sigma_colour**2).reshape(-1, 1)
    found = read(tmp_path, colours=(face.colour.reshape(-1, 1), face.shades, variance, face.triangles), uv=uv)
    close(found.albedo_mean, face.colour)
    close(found.albedo_basis, face.albedo_modes)
    close(found.uv, np.stack([uv[:, 0], 1.0 - uv[:, 1]], 1))


def test_known_vertices_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    face = known_face()
    known = {point: int(face.landmarks[point]) for point in (8, 30, 36, 45)}
    monkeypatch.setattr(surrey, "KNOWN_VERTICES", known)
    monkeypatch.setattr(surrey, "PUBLIC_VERTICES", len(face.mean))
    monkeypatch.setattr(partial_landmarks, "find_landmarks", lambda mean, triangles: (face.landmarks + 1) % len(mean))
    found = read_surrey(save(tmp_path / "sfm.bin"))
    assert {point: int(found.landmark_vertices[point]) for point in known} == known


def test_the_table_of_known_vertices_fits_the_public_model() -> None:
    assert len(set(KNOWN_VERTICES.values())) == len(KNOWN_VERTICES) == 50
    assert max(KNOWN_VERTICES.values()) < PUBLIC_VERTICES
    # The sides of the jaw and the inner corners of the mouth.
    assert set(range(68)) - set(KNOWN_VERTICES) == {*range(8), *range(9, 17), 60, 64}


def test_a_mirrored_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="axis x does not point the subject's left"):
        assemble(read(tmp_path, mean=known_face().mean * [-1, 1, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "4 bytes announced at byte 0, but 0 are left"),
        (
            lambda content: content[: len(content) // 2],
            "bytes announced at byte .* are left; not a file of eos, or cut off",
        ),
        (lambda content: content[:-1], "bytes announced at byte"),
        (lambda content: content + b"\0\0", "2 bytes too many; not a file of eos"),
        (lambda content: struct.pack("<I", 4) + content[4:], "version 4 of a model of eos, expected 1"),
        (lambda content: b"<html>please register</html>", r"version \d+ of a model of eos, expected 1"),
        (lambda content: content[:4] + struct.pack("<i", -3) + content[8:], "a matrix of -3 × 1 at byte 12"),
        (lambda content: content[:8] + struct.pack("<i", 2**30) + content[12:], "bytes announced at byte 12"),
    ],
)
@pytest.mark.usefixtures("as_a_user")
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, change: Any, message: str) -> None:
    path = save(tmp_path / "sfm.bin")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        read_surrey(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("as_a_user")
def test_blendshapes_of_another_resolution_are_refused(tmp_path: Path) -> None:
    face = known_face()
    save_blendshapes(tmp_path / f"expression_blendshapes_{len(face.mean)}.bin", ["joy"], np.zeros((1, 30)))
    with pytest.raises(ValueError, match=r"'joy' has shape \(30, 1\), expected \(10632, 1\)"):
        read(tmp_path)


@pytest.mark.usefixtures("as_a_user")
def test_texture_coordinates_of_another_mesh_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 texture coordinates, expected 3544"):
        read(tmp_path, uv=np.zeros((5, 2)))
