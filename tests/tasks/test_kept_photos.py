"""A later run looks at new photos alone, and its output is that of a run from nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import ingest as stage
from tasks import prepared_photos
from tasks.artifacts import Workspace
from tasks.ingest import ingest
from tasks.kept_photos import KeptPhotos
from tasks.prepared_photos import prepare_photo
from tests.ingest_sources import HEADER, POINTS, content, params, photos, picture, put, quarantine, row_of, samples

PARAMS = params(photos(), shard_rows=2)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "workspace")
    put(workspace, {f"{number}.png": content(picture(number)) for number in range(5)} | {"text.jpg": "not a photo"})
    return workspace


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files that were decoded."""
    names: list[str] = []

    def noting(content: bytes, **limits: int) -> object:
        names.append(str(len(content)))
        return decode(content, **limits)

    decode = prepared_photos.decode
    monkeypatch.setattr(prepared_photos, "decode", noting)
    return names


def output(workspace: Workspace) -> dict[str, bytes]:
    folder = workspace.folder("ingest")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def from_nothing(workspace: Workspace, tmp_path: Path) -> dict[str, bytes]:
    """What a workspace that never ran makes of the same photos."""
    fresh = Workspace(tmp_path / "fresh")
    fresh.root.mkdir()
    (fresh.root / "album").symlink_to(workspace.root / "album")
    ingest(params(photos(path=str(workspace.root / "album")), shard_rows=2), fresh)
    return output(fresh)


def test_nothing_new_is_looked_at_twice(workspace: Workspace, looked_at: list[str]) -> None:
    ingest(PARAMS, workspace)
    first, inodes = output(workspace), shard_inodes(workspace)
    assert len(looked_at) == 6
    ingest(PARAMS, workspace)
    assert len(looked_at) == 6
    assert output(workspace) == first
    assert shard_inodes(workspace) == inodes


def shard_inodes(workspace: Workspace) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in sorted(workspace.folder("ingest").glob("images-*.parquet"))}


def test_files_whose_dates_are_settled_are_not_even_read(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_photos, "SETTLED_NS", 0)
    ingest(PARAMS, workspace)
    first = output(workspace)
    monkeypatch.setattr(prepared_photos, "read_file", lambda *_, **__: pytest.fail("an old file was read"))
    ingest(PARAMS, workspace)
    assert output(workspace) == first


@pytest.mark.parametrize(
    ("name", "more", "kept"), [("9.png", 1, 2), ("00.png", 1, 0), ("2.png", 1, 2)], ids=["last", "first", "replaced"]
)
def test_one_more_photo(
    workspace: Workspace, tmp_path: Path, looked_at: list[str], name: str, more: int, kept: int
) -> None:
    ingest(PARAMS, workspace)
    before = set(shard_inodes(workspace).values())
    put(workspace, {name: content(picture(77))})
    looked_at.clear()
    ingest(PARAMS, workspace)
    assert len(looked_at) == more
    assert len(before & set(shard_inodes(workspace).values())) == kept
    assert output(workspace) == from_nothing(workspace, tmp_path)


def test_a_photo_less_and_another_label(workspace: Workspace, tmp_path: Path, looked_at: list[str]) -> None:
    ingest(PARAMS, workspace)
    (workspace.root / "album" / "1.png").unlink()
    put(workspace, {"landmarks.csv": f"{HEADER}\n{row_of('3.png', POINTS)}\n"})
    looked_at.clear()
    ingest(PARAMS, workspace)
    assert not looked_at
    assert {row["path"]: row["landmarks"] is not None for row in samples(workspace)}["3.png"]
    assert output(workspace) == from_nothing(workspace, tmp_path)


def test_other_limits_look_at_everything_again(workspace: Workspace, looked_at: list[str]) -> None:
    ingest(PARAMS, workspace)
    looked_at.clear()
    ingest(params(photos(), shard_rows=2, max_side_px=70), workspace)
    assert len(looked_at) == 6
    assert {row["width"] for row in samples(workspace)} == {70}


def corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def vanish(path: Path) -> None:
    path.unlink()


def copy(path: Path) -> None:
    """As a checkout by DVC does: the same content in another place."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(("damage", "count"), [(corrupt, 2), (vanish, 2), (copy, 0)])
def test_a_shard_is_used_only_as_it_was_written(
    workspace: Workspace, looked_at: list[str], damage: Callable[[Path], None], count: int
) -> None:
    ingest(PARAMS, workspace)
    first = output(workspace)
    damage(workspace.folder("ingest") / "images-00001.parquet")
    looked_at.clear()
    ingest(PARAMS, workspace)
    assert len(looked_at) == count
    assert output(workspace) == first


@pytest.mark.parametrize("name", ["index/shards.json", "index/album.parquet"])
def test_a_spoiled_index_costs_time_only(workspace: Workspace, looked_at: list[str], name: str) -> None:
    ingest(PARAMS, workspace)
    first = output(workspace)
    (workspace.root / ".mien" / "kept" / "ingest" / name).write_bytes(b"spoiled")
    looked_at.clear()
    ingest(PARAMS, workspace)
    assert len(looked_at) == 6
    assert output(workspace) == first


def test_what_a_killed_run_made_ready_is_used(
    workspace: Workspace, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared_photos, "CHUNK", 2)
    monkeypatch.setattr(stage, "write_contact_sheet", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ingest(PARAMS, workspace)
    assert len(looked_at) == 6
    monkeypatch.undo()
    monkeypatch.setattr(prepared_photos, "CHUNK", 2)
    monkeypatch.setattr(prepared_photos, "decode", lambda *_, **__: pytest.fail("made ready twice"))
    ingest(PARAMS, workspace)
    assert [row["path"] for row in samples(workspace)] == [f"{number}.png" for number in range(5)]
    assert not list(workspace.root.glob("**/parts"))


def test_killed_between_the_output_and_its_index(
    workspace: Workspace, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(PARAMS, workspace)
    put(workspace, {"00.png": content(picture(78))})
    with monkeypatch.context() as patch:
        patch.setattr(KeptPhotos, "close", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ingest(PARAMS, workspace)
    made, _ = output(workspace), looked_at.clear()
    ingest(PARAMS, workspace)
    assert not looked_at
    assert output(workspace) == made


def test_a_photo_that_becomes_readable(workspace: Workspace) -> None:
    ingest(PARAMS, workspace)
    assert quarantine(workspace) == {"text.jpg": "not_an_image"}
    put(workspace, {"text.jpg": content(picture(50), "JPEG")})
    ingest(PARAMS, workspace)
    assert quarantine(workspace) == {}
    assert len(samples(workspace)) == 6


def test_bytes_that_come_back_under_new_dates_are_read_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content(picture(1)))
    first = prepare_photo(tmp_path, "a.png", PARAMS.ingest)
    assert first.changed_ns == -1, "a file this young is not trusted to keep its dates"
    os.utime(path, ns=(1, 1))
    again = prepare_photo(tmp_path, "a.png", PARAMS.ingest, known=first.sha256)
    assert (again.reason, again.image) == ("unchanged", None)
    path.write_bytes(content(picture(2)))
    assert prepare_photo(tmp_path, "a.png", PARAMS.ingest, known=first.sha256).sample_id not in (None, first.sample_id)
