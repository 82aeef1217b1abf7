"""Duplicates, persons and the account of what came in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import IMAGES, MESHES, QUARANTINE, SAMPLES, read_table
from tasks.images import decode_stored, encode, pixel_hash
from tasks.sample_store import SampleStore, printable
from tasks.sources import Candidate, Mesh, Refusal

POINTS = np.arange(136, dtype=np.float32).reshape(68, 2)


def photo(number: int) -> bytes:
    return encode(np.full((50, 60, 3), number, np.uint8))


def candidate(number: int, person: str, source: str = "photos", **known: object) -> Candidate:
    return Candidate(source, f"{person}-{number}.png", f"{source}/{person}", photo(number), **known)  # type: ignore[arg-type]


def mesh(name: str, source: str = "scans") -> Mesh:
    return Mesh(f"{source}/{name}", np.full((5, 3), len(name), np.float32), None)


def one_split(person: str) -> str:
    return "test" if person.endswith("anna") else "train"


def test_tables_and_account(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, shard_rows=2)
    for number in range(5):
        store.accept(candidate(number, "anna" if number < 2 else "bert", landmarks=POINTS if number else None))
    store.refuse(Refusal("photos", "x.jpg", "not_an_image", "text"))
    account = store.close(one_split, sources=["photos", "nothing"])
    assert account["total"] == {
        "found": 6,
        "accepted": 5,
        "quarantined": 1,
        "reasons": {"not_an_image": 1},
        "persons": 2,
        "labelled": 0,
        "with_landmarks": 4,
        "with_mesh": 0,
        "photos_by_split": {"train": 3, "validation": 0, "test": 2},
        "persons_by_split": {"train": 1, "validation": 0, "test": 1},
    }
    assert account["sources"]["photos"] == account["total"]
    assert account["sources"]["nothing"]["found"] == 0
    rows = read_table(tmp_path / "samples.parquet", SAMPLES).to_pylist()
    assert [row["shard"] for row in rows] == [f"images-0000{number}.parquet" for number in (0, 0, 1, 1, 2)]
    for number, row in enumerate(rows):
        stored = read_table(tmp_path / row["shard"], IMAGES).to_pylist()
        content = next(item["image"] for item in stored if item["sample_id"] == row["sample_id"])
        assert content == photo(number)
        assert pixel_hash(decode_stored(content)) == row["sample_id"]
        assert (row["width"], row["height"]) == (60, 50)
    assert rows[0]["landmarks"] is None
    assert rows[1]["landmarks"] == POINTS.ravel().tolist()


def test_duplicates_merge_what_they_know(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, shard_rows=10)
    store.accept(candidate(1, "anna"))
    store.accept(candidate(1, "anna", landmarks=POINTS))
    known = {"rotation": np.ones(3, np.float32), "dense": np.arange(6, dtype=np.float32).reshape(3, 2)}
    known["outline"] = np.arange(34, dtype=np.float32).reshape(17, 2)
    store.accept(candidate(1, "anna", landmarks=POINTS + 1, **known))
    account = store.close(one_split, sources=["photos"])["total"]
    assert (account["found"], account["accepted"], account["reasons"]) == (3, 1, {"duplicate": 2})
    (row,) = read_table(tmp_path / "samples.parquet", SAMPLES).to_pylist()
    assert row["landmarks"] == POINTS.ravel().tolist()
    assert row["rotation"] == [1, 1, 1]
    assert row["dense"] == [0, 1, 2, 3, 4, 5]
    assert row["outline"] == list(range(34))
    for refused in read_table(tmp_path / "quarantine.parquet", QUARANTINE).to_pylist():
        assert refused["sample_id"] == row["sample_id"]
        assert "anna-1.png of source photos" in refused["detail"]


def test_a_shared_photo_makes_two_persons_one(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, shard_rows=10)
    store.accept(candidate(1, "anna", "scans", mesh=mesh("a"), labelled=True))
    store.accept(candidate(2, "p7"))
    store.accept(candidate(3, "p7"))
    store.accept(candidate(4, "other"))
    store.accept(candidate(5, "bert", "scans", mesh=mesh("b"), labelled=True))
    # The chain bert - p7 - anna ends at whoever came first.
    store.accept(candidate(3, "bert", "scans"))
    store.accept(candidate(2, "anna", "scans"))
    account = store.close(one_split, sources=["scans", "photos"])
    rows = read_table(tmp_path / "samples.parquet", SAMPLES).to_pylist()
    persons = [row["person"] for row in rows]
    assert persons == ["scans/anna", "scans/anna", "scans/anna", "photos/other", "scans/anna"]
    assert account["total"]["persons"] == 2
    assert {row["split"] for row in rows if row["person"] == "scans/anna"} == {"test"}
    meshes = read_table(tmp_path / "meshes.parquet", MESHES).to_pylist()
    assert [(row["mesh_id"], row["person"]) for row in meshes] == [("scans/a", "scans/anna"), ("scans/b", "scans/anna")]
    assert meshes[1]["vertices"] == [1.0] * 15


def test_photos_share_a_mesh_that_is_stored_once(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, shard_rows=10)
    for number in range(3):
        store.accept(candidate(number, "anna", "scans", mesh=mesh("a"), labelled=True))
    store.close(one_split, sources=["scans"])
    assert len(read_table(tmp_path / "meshes.parquet", MESHES)) == 1
    rows = read_table(tmp_path / "samples.parquet", SAMPLES).to_pylist()
    assert {row["mesh_id"] for row in rows} == {"scans/a"}


def test_the_mesh_of_a_refused_duplicate_is_not_stored(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, shard_rows=10)
    store.accept(candidate(1, "anna", "scans", mesh=mesh("a"), labelled=True))
    store.accept(candidate(1, "anna", "scans", mesh=mesh("b"), labelled=True))
    store.close(one_split, sources=["scans"])
    assert read_table(tmp_path / "meshes.parquet", MESHES)["mesh_id"].to_pylist() == ["scans/a"]


def test_meshes_are_written_in_groups_and_read_by_source(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, shard_rows=100)
    for number in range(70):
        source = "scans" if number % 2 else "scans_more"
        item = mesh(f"{number:03d}", source)
        store.accept(candidate(number, f"p{number}", source, mesh=item))
    found = list(store.meshes("scans"))
    assert [mesh_id for mesh_id, _, _ in found] == [f"scans/{number:03d}" for number in range(1, 70, 2)]
    assert found[0][1] == "scans/p1"
    np.testing.assert_array_equal(found[0][2], np.full((5, 3), 3, np.float32))
    store.close(one_split, sources=["scans", "scans_more"])
    assert pq.ParquetFile(tmp_path / "meshes.parquet").num_row_groups == 3


def test_tables_exist_even_where_empty(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, shard_rows=100)
    store.refuse(Refusal("photos", "x", "empty_file", ""))
    store.close(one_split, sources=["photos"])
    for name, schema in (("samples", SAMPLES), ("meshes", MESHES)):
        assert len(read_table(tmp_path / f"{name}.parquet", schema)) == 0


@pytest.mark.parametrize(("text", "printed"), [("é.jpg", "é.jpg"), ("a\udcff.jpg", "a\\udcff.jpg")])
def test_names_that_are_not_unicode_can_be_stored(text: str, printed: str) -> None:
    assert printable(text) == printed
