"""Writers leave the whole thing or nothing; readers name the file and the remedy."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from tasks.artifacts import (
    CLEAN,
    IMAGES,
    LANDMARKS,
    SAMPLES,
    Workspace,
    load_checkpoint,
    read_json,
    read_table,
    replace_file,
    replace_folder,
    save_checkpoint,
    write_json,
    write_table,
)
from tests.faults.killed import files_of_at_most


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "stage"
    target.mkdir()
    (target / "old").touch()
    with replace_folder(target) as folder:
        (folder / "new").write_text("x")
        assert (target / "old").exists()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "stage"
    target.mkdir()
    (target / "old").touch()

    def fails() -> None:
        with replace_folder(target) as folder:
            (folder / "half").touch()
            raise error

    with pytest.raises(error):
        fails()
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fails() -> None:
        with replace_file(target) as temporary:
            temporary.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - raised above
        fails()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_table_comes_back_as_written(tmp_path: Path) -> None:
    rows = [{"sample_id": "a", "image": b"\x00\x01"}, {"sample_id": "b", "image": None}]
    write_table(tmp_path / "images.parquet", rows, IMAGES)
    assert read_table(tmp_path / "images.parquet", IMAGES).to_pylist() == rows


def test_a_row_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^images\.parquet: "):
        write_table(tmp_path / "images.parquet", [{"sample_id": 3, "image": b""}], IMAGES)
    assert not list(tmp_path.iterdir())


def test_a_table_of_another_schema_names_the_stage(tmp_path: Path) -> None:
    path = tmp_path / "ingest" / "samples.parquet"
    write_table(path, [], IMAGES)
    with pytest.raises(ValueError, match=r"samples\.parquet: columns \['sample_id', 'image'\].*run ingest again"):
        read_table(path, SAMPLES)


@pytest.mark.parametrize(("schema", "added"), [(SAMPLES, 1), (SAMPLES, 2), (LANDMARKS, 2)])
def test_a_table_from_before_further_points_is_read_as_one_without(
    tmp_path: Path, schema: pa.Schema, added: int
) -> None:
    older = pa.schema(list(schema)[:-added])
    write_table(tmp_path / "older.parquet", [{"sample_id": "a"}], older)
    table = read_table(tmp_path / "older.parquet", schema)
    assert table.to_pylist() == [{**dict.fromkeys(schema.names), "sample_id": "a"}]
    # Any other column must be there.
    write_table(tmp_path / "broken.parquet", [{"sample_id": "a"}], pa.schema(list(older)[:1] + list(older)[2:]))
    with pytest.raises(ValueError, match=r"broken\.parquet: columns"):
        read_table(tmp_path / "broken.parquet", schema)


@pytest.mark.parametrize("read", [read_json, load_checkpoint, lambda path: read_table(path, IMAGES)])
def test_a_missing_file_names_the_stage(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FileNotFoundError, match=r"missing; run the stage ingest first"):
        read(tmp_path / "ingest" / "x")


def test_json_without_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", {"error": math.nan})
    assert not list(tmp_path.iterdir())
    write_json(tmp_path / "a.json", {"error": 1.5})
    assert read_json(tmp_path / "a.json") == {"error": 1.5}


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"weights": {"w": torch.arange(3.0)}, "size": 3})
    content = load_checkpoint(tmp_path / "c.pt")
    assert content["size"] == 3
    assert torch.equal(content["weights"]["w"], torch.arange(3.0))


@pytest.mark.parametrize("replace", [replace_file, replace_folder])
def test_a_full_disk_is_told_with_what_was_to_be_written(tmp_path: Path, replace: Callable[..., Any]) -> None:
    with pytest.raises(OSError, match="No space left") as caught, replace(tmp_path / "out.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "out.json")
    with pytest.raises(OSError, match=r"^refused$"), replace(tmp_path / "out.json"):
        raise OSError("refused")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_on_a_full_disk_is_told_in_words_and_leaves_nothing(tmp_path: Path) -> None:
    with files_of_at_most(1000), pytest.raises(OSError, match=r"c\.pt: cannot be written; check the free space"):
        save_checkpoint(tmp_path / "c.pt", {"weights": torch.ones(1000)})
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_executes_nothing(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"w": Trap()}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c\.pt: not a checkpoint of Mien"):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 truncated"])
def test_a_broken_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.pt: not a checkpoint of Mien .*; train again"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c\.pt: holds a Tensor, expected a checkpoint of Mien"):
        load_checkpoint(tmp_path / "c.pt")


def test_the_workspace_knows_its_stages(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.folder("ingest") == tmp_path / "artifacts" / "ingest"
    assert workspace.params == tmp_path / "params.yaml"
    assert workspace.resolve(Path("a/b")) == tmp_path / "a" / "b"
    assert workspace.resolve(Path("/a/b")) == Path("/a/b")
    # DVC clears the outputs before a stage runs; what a killed stage needs lies elsewhere.
    assert not workspace.progress("train_fused").is_relative_to(tmp_path / "artifacts")
    with pytest.raises(ValueError, match="stage 'inges' is unknown, expected one of ingest, train_detector"):
        workspace.folder("inges")


def test_clean_rows_hold_what_samples_and_landmarks_hold() -> None:
    names = set(CLEAN.names)
    assert set(SAMPLES.names) - {"landmarks", "dense", "outline"} <= names
    assert set(LANDMARKS.names) - {"dense", "dense_confidence"} <= names
    assert not names & {"dense", "dense_confidence", "outline"}
    assert CLEAN.field("annotation").type == SAMPLES.field("landmarks").type == pa.list_(pa.float32())
