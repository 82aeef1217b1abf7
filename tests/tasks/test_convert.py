"""Face models of others become ours: what is written, what is said about them, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from models.face.adapters.assemble import FaceModelArrays, assemble
from models.face.formats import build_face_model, save_face_model
from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from tasks import convert
from tasks.convert import borrowed_from_procedural, convert_face_model, describe_face_model, face_size, read_model_file
from tests.tiny_face import tiny_face


@pytest.fixture(scope="module")
def procedural() -> MorphableModel:
    return procedural_face(identity_modes=3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.npz"
    save_face_model(tiny_face(), path)
    return path


def foreign(procedural: MorphableModel, **known: np.ndarray) -> MorphableModel:
    """A larger copy of the procedural face as an adapter hands it over, without what is not in `known`."""
    return assemble(
        FaceModelArrays(
            name="foreign",
            licence="for tests",
            source_sha256="ab" * 32,
            mean=1.1 * procedural.mean.numpy(),
            identity_basis=procedural.identity_basis.numpy(),
            expression_basis=procedural.expression_basis.numpy(),
            expression_names=procedural.expression_names,
            triangles=procedural.triangles.numpy(),
            landmark_vertices=procedural.landmark_vertices.numpy(),
            **known,  # type: ignore[arg-type]
        )
    )


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_what_is_written_is_the_same_model(source: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "converted" / f"face{suffix}"
    model, rows = convert_face_model(source, out)
    written = build_face_model("npz", path=out, identity_modes=None)
    assert written.stamp() == model.stamp()
    assert written.content_hash() == tiny_face().content_hash()
    assert dict(rows)["read from"] == str(source)
    assert dict(rows)["hash"] == model.content_hash()
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_file_that_reads_back_differently_is_not_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny_face()
    other.mean[0, 0] += 1.0
    monkeypatch.setattr(convert, "save_face_model", lambda _, path: save_face_model(other, path))
    with pytest.raises(ValueError, match=r"face\.npz: does not read back as it was written"):
        convert_face_model(source, tmp_path / "face.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.npz"]


def test_what_the_reader_remarks_stands_in_the_table(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remarking(kind: str, **_: object) -> MorphableModel:
        warnings.warn("landmarks were found,\nnot given", stacklevel=1)
        return tiny_face()

    monkeypatch.setattr(convert, "build_face_model", remarking)
    _, rows = read_model_file(source, landmarks=tmp_path / "points.txt")
    assert ("note", "landmarks were found, not given") in rows
    assert ("landmarks from", str(tmp_path / "points.txt")) in rows


def test_the_table_counts_and_measures(procedural: MorphableModel) -> None:
    rows = dict(describe_face_model(procedural))
    assert rows["vertices, triangles"] == f"{procedural.vertex_count:,}, {len(procedural.triangles):,}"
    assert rows["identity modes"] == "3"
    assert rows["expressions"].startswith("52: ")
    assert "jawOpen" in rows["expressions"]
    assert rows["parts"].split(", ")[1] == f"lips {int(procedural.part('lips').sum())}"
    assert "SHA-256 of the source" not in rows


def test_many_expressions_are_counted() -> None:
    face = tiny_face()
    many = 100
    model = MorphableModel(
        name=face.name,
        licence="a licence\nof two lines",
        mean=face.mean,
        identity_basis=face.identity_basis,
        expression_basis=torch.zeros(many, face.vertex_count, 3),
        expression_names=[f"expression_{number:02d}" for number in range(many)],
        albedo_mean=face.albedo_mean,
        albedo_basis=face.albedo_basis,
        triangles=face.triangles,
        landmark_vertices=face.landmark_vertices,
        uv=face.uv,
        parts=face.parts,
    )
    rows = dict(describe_face_model(model))
    assert rows["expressions"].endswith("expression_59 and 40 more")
    assert rows["licence"] == "a licence of two lines"


def test_size_is_that_of_the_landmarks() -> None:
    face = tiny_face()
    points = torch.zeros(68, 3)
    points[8], points[[21, 22]] = torch.tensor([0.0, -60.0, 0.0]), torch.tensor([0.0, 40.0, 0.0])
    points[36:42], points[42:48] = torch.tensor([-31.0, 30.0, 0.0]), torch.tensor([31.0, 30.0, 0.0])
    points[0], points[16] = torch.tensor([-70.0, 0.0, 0.0]), torch.tensor([70.0, 0.0, 0.0])
    mean = face.mean.clone()
    mean[face.landmark_vertices] = points
    face.mean = mean
    assert face_size(face) == "chin to brows 100 mm, eyes 62 mm apart, 140 mm wide between the ears"


def test_what_was_borrowed_is_found_out(procedural: MorphableModel) -> None:
    assert borrowed_from_procedural(procedural) == []
    bare = foreign(procedural)
    assert borrowed_from_procedural(bare) == ["albedo", "parts", "uv (a cylinder)"]
    assert dict(describe_face_model(bare))["SHA-256 of the source"] == "ab" * 32
    count = procedural.vertex_count
    own = {
        "albedo_mean": np.full((count, 3), 0.5, np.float32),
        "albedo_basis": np.full((2, count, 3), 0.1, np.float32),
        "uv": np.linspace(0, 1, 2 * count, dtype=np.float32).reshape(count, 2),
    }
    assert borrowed_from_procedural(foreign(procedural, **own)) == ["parts"]
    own["parts"] = np.arange(count) % 3
    assert borrowed_from_procedural(foreign(procedural, **own)) == []


def test_a_converted_model_still_says_what_was_borrowed(procedural: MorphableModel, tmp_path: Path) -> None:
    save_face_model(foreign(procedural), tmp_path / "foreign.npz")
    model, _ = convert_face_model(tmp_path / "foreign.npz", tmp_path / "again.safetensors")
    assert borrowed_from_procedural(model) == ["albedo", "parts", "uv (a cylinder)"]
