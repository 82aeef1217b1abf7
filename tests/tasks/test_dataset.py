from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.face.morphable import MorphableModel
from tasks.artifacts import Workspace
from tasks.dataset import load_crops
from tests.tiny_face import tiny_crops, tiny_face
from tests.tiny_workspace import SIZE_PX, clean_rows, tiny_params, write_clean


@pytest.fixture(scope="module")
def face() -> MorphableModel:
    return tiny_face()


@pytest.fixture(scope="module")
def tables(face: MorphableModel) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[bytes]]:
    return clean_rows(face)


@pytest.fixture
def workspace(tmp_path: Path, tables: Any) -> Workspace:
    workspace = Workspace(tmp_path)
    write_clean(workspace, *tables)
    return workspace


def test_what_was_written_comes_back(workspace: Workspace, face: MorphableModel) -> None:
    expected = tiny_crops(face, 24, size_px=SIZE_PX)
    found = load_crops(workspace, tiny_params(), split="train")
    assert found.sample_ids == expected.sample_ids[:18]
    assert found.source == expected.source[:18]
    assert torch.equal(found.images, expected.images[:18])
    torch.testing.assert_close(found.landmarks, expected.landmarks[:18], atol=1e-4, rtol=0)
    assert found.photo_size.unique(dim=0).tolist() == [[400.0, 2.0 * SIZE_PX]]
    labelled = torch.tensor([source == "scans" for source in found.source])
    torch.testing.assert_close(found.annotation[labelled], found.landmarks[labelled])
    assert found.annotation[~labelled].isnan().all()
    torch.testing.assert_close(found.rotation[labelled], expected.rotation[:18][labelled])
    assert found.rotation[~labelled].isnan().all()
    assert found.quality[~labelled].isnan().all()
    assert (found.quality[labelled] == 0.5).all()
    assert (found.mesh_index[~labelled] == -1).all()
    meshes = expected.mesh_index[:18][labelled]
    torch.testing.assert_close(found.vertices[found.mesh_index[labelled]], expected.vertices[meshes])
    torch.testing.assert_close(found.neutral[found.mesh_index[labelled]], expected.neutral[meshes])
    # Two crops of a person share its number.
    assert torch.equal(found.person[0::2], found.person[1::2])
    assert len(found.person.unique()) == 9


def test_splits_and_sources_are_chosen(workspace: Workspace) -> None:
    params = tiny_params()
    assert len(load_crops(workspace, params, split="validation")) == 6
    scans = load_crops(workspace, params, split="train", sources=["scans"])
    assert set(scans.source) == {"scans"}
    assert len(scans) == 9


def test_many_crops_are_mapped_and_not_read(workspace: Workspace, tables: Any) -> None:
    expected = load_crops(workspace, tiny_params(), split="train").images
    few = tiny_params(project={"max_crops_in_memory": 17})
    mapped = load_crops(workspace, few, split="train").images
    folder = workspace.root / ".mien" / "crops"
    (file,) = folder.iterdir()
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(file) in maps.read_text()
    assert file.stat().st_size == expected.numel()
    assert torch.equal(mapped[[3, 0, 17]], expected[[3, 0, 17]])
    # Nothing that a batch does may reach the file.
    mapped[0] = 0
    made = file.stat().st_mtime_ns
    assert torch.equal(load_crops(workspace, few, split="train").images, expected)
    assert file.stat().st_mtime_ns == made
    # Nine scans are few; other crops of the same table lie beside the first, those of another table replace them.
    load_crops(workspace, few, split="train", sources=["scans"])
    assert list(folder.iterdir()) == [file]
    rows, meshes, crops = tables
    write_clean(workspace, [{**row, "width": 401} for row in rows], meshes, crops)
    load_crops(workspace, few, split="train")
    (other,) = folder.iterdir()
    assert other != file


def test_an_unreadable_set_leaves_no_file(workspace: Workspace) -> None:
    (workspace.folder("validate_labels") / "crops-00001.parquet").unlink()
    with pytest.raises(ValueError, match="9 crops for 18 rows"):
        load_crops(workspace, tiny_params(project={"max_crops_in_memory": 4}), split="train")
    assert list((workspace.root / ".mien" / "crops").iterdir()) == []


def test_a_split_without_any_mesh_can_be_read(workspace: Workspace) -> None:
    found = load_crops(workspace, tiny_params(), split="train", sources=["photos"])
    assert len(found) == 9
    assert len(found.vertices) == 0
    assert found.mesh_index.unique().tolist() == [-1]


def test_meshes_without_a_neutral_shape_are_unknown_there(tmp_path: Path, tables: Any) -> None:
    rows, meshes, crops = tables
    workspace = Workspace(tmp_path)
    write_clean(workspace, rows, [{**mesh, "neutral": None} for mesh in meshes], crops)
    found = load_crops(workspace, tiny_params(), split="train")
    assert found.neutral.isnan().all()
    assert found.vertices.isfinite().all()


@pytest.mark.parametrize(
    ("split", "sources", "message"),
    [
        ("test", None, "no test samples; add photos"),
        ("train", ["portraits", "faces"], "no train samples of portraits, faces; add photos"),
    ],
)
def test_nothing_left_is_an_error(workspace: Workspace, split: str, sources: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_crops(workspace, tiny_params(), split=split, sources=sources)


def test_crops_of_another_size_are_an_error(workspace: Workspace) -> None:
    params = tiny_params(project={"crop_size_px": 48})
    with pytest.raises(ValueError, match=r"crops-00000\.parquet: crops of 3072 bytes, expected 6912 for 48 px"):
        load_crops(workspace, params, split="train")


def test_missing_crops_are_an_error(workspace: Workspace) -> None:
    (workspace.folder("validate_labels") / "crops-00001.parquet").unlink()
    with pytest.raises(ValueError, match="9 crops for 18 rows; run validate_labels again"):
        load_crops(workspace, tiny_params(), split="train")


def test_a_missing_mesh_is_named(tmp_path: Path, tables: Any) -> None:
    rows, meshes, crops = tables
    workspace = Workspace(tmp_path)
    write_clean(workspace, rows, meshes[1:], crops)
    with pytest.raises(ValueError, match="mesh mesh-1 is missing; run ingest again"):
        load_crops(workspace, tiny_params(), split="train")


def test_a_stage_that_did_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the stage validate_labels first"):
        load_crops(Workspace(tmp_path), tiny_params(), split="train")
