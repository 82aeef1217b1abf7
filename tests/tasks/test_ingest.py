"""The stage on small sources: everything that comes in is accepted or quarantined, whatever it is."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.face.formats import save_face_model
from tasks.artifacts import MESHES, QUARANTINE, Workspace, read_table
from tasks.images import image_batches, pixel_hash, read_images
from tasks.ingest import ingest, split_of
from tasks.params import ParamsError
from tasks.source_params import IngestParams
from tests.ingest_sources import (
    HEADER,
    TINY,
    content,
    one_line,
    params,
    photos,
    picture,
    put,
    quarantine,
    row_of,
    samples,
    summary,
)
from tests.tiny_face import tiny_face


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "album").mkdir()
    return Workspace(tmp_path)


# photos


def test_three_photos(workspace: Workspace) -> None:
    put(workspace, {"a.png": content(picture(0)), "b/c.png": content(picture(1)), "d.jpg": content(picture(2), "JPEG")})
    ingest(params(photos()), workspace)
    rows = samples(workspace)
    assert [row["path"] for row in rows] == ["a.png", "b/c.png", "d.jpg"]
    assert len({row["person"] for row in rows}) == 3
    assert {(row["width"], row["height"], row["labelled"], row["mesh_id"]) for row in rows} == {(80, 60, False, None)}
    stored = read_images(workspace, [row["sample_id"] for row in rows])
    np.testing.assert_array_equal(stored[rows[0]["sample_id"]], picture(0))
    assert all(pixel_hash(image) == sample_id for sample_id, image in stored.items())
    assert sum(len(ids) for ids, _ in image_batches(workspace, batch_size=2)) == 3
    assert summary(workspace)["total"]["found"] == 3
    sheet = np.asarray(Image.open(workspace.folder("ingest") / "examples.png"))
    assert sheet.shape == (160, 480, 3)
    assert not list(workspace.root.glob("artifacts/.ingest*"))


def test_bad_files_have_reasons(workspace: Workspace) -> None:
    noise = content(picture(3), "JPEG")
    put(
        workspace,
        {
            "good.png": content(picture(0)),
            "same.bmp": content(picture(0), "BMP"),
            "text.jpg": "not a photo",
            "cut.jpg": noise[: len(noise) // 2],
            "empty.png": b"",
            "tiny.png": content(picture(0, 20, 20)),
            "wide.png": content(picture(0, 50, 4000)),
            "notes.txt": "buy milk",
            "orphan.pts": "version: 1",
        },
    )
    (workspace.root / "album" / "link.jpg").symlink_to("nowhere.jpg")
    ingest(params(photos(), max_image_pixels=150_000), workspace)
    assert quarantine(workspace) == {
        "same.bmp": "duplicate",
        "text.jpg": "not_an_image",
        "cut.jpg": "truncated",
        "empty.png": "empty_file",
        "tiny.png": "too_small",
        "wide.png": "too_many_pixels",
        "notes.txt": "not_an_image",
        "orphan.pts": "missing_file",
        "link.jpg": "missing_file",
    }
    assert [row["path"] for row in samples(workspace)] == ["good.png"]
    total = summary(workspace)["total"]
    assert (total["found"], total["accepted"], total["quarantined"]) == (10, 1, 9)
    assert sum(total["reasons"].values()) == 9


def test_a_photo_that_reduction_makes_too_narrow(workspace: Workspace) -> None:
    put(workspace, {"good.png": content(picture(0)), "strip.png": content(picture(1, 60, 2048))})
    ingest(params(photos()), workspace)
    assert quarantine(workspace) == {"strip.png": "too_small"}


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_forbidden_file(workspace: Workspace) -> None:
    put(workspace, {"good.png": content(picture(0)), "secret.png": content(picture(1))})
    (workspace.root / "album" / "secret.png").chmod(0)
    ingest(params(photos()), workspace)
    assert quarantine(workspace) == {"secret.png": "unreadable"}


def test_a_pipe_does_not_block(workspace: Workspace) -> None:
    put(workspace, {"good.png": content(picture(0))})
    os.mkfifo(workspace.root / "album" / "pipe.jpg")
    ingest(params(photos()), workspace)
    assert quarantine(workspace) == {"pipe.jpg": "unreadable"}


def test_names_outside_unicode(workspace: Workspace) -> None:
    put(workspace, {"good.png": content(picture(0))})
    bad, fine = (os.fsencode(workspace.root / "album") + b"/" + name for name in (b"x\xff.jpg", b"y\xfe.png"))
    Path(os.fsdecode(bad)).write_bytes(b"text")
    Path(os.fsdecode(fine)).write_bytes(content(picture(1)))
    ingest(params(photos()), workspace)
    assert quarantine(workspace) == {"x\\udcff.jpg": "not_an_image"}
    assert {row["path"] for row in samples(workspace)} == {"good.png", "y\\udcfe.png"}


def test_persons_keep_together(workspace: Workspace) -> None:
    files: dict[str, bytes | str] = {f"{number:02d}.png": content(picture(number)) for number in range(24)}
    listed = [f"{number:02d}.png,p{number // 3}" for number in range(18)]
    put(workspace, files | {"who.csv": "\n".join(["file,person", *listed])})
    ingest(params(photos(persons="who.csv"), validation_share=0.3, test_share=0.3), workspace)
    rows = samples(workspace)
    assert Counter(row["person"] for row in rows[:18]) == {f"album/p{number}": 3 for number in range(6)}
    assert len({row["person"] for row in rows[18:]}) == 6
    by_person: dict[str, set[str]] = {}
    for row in rows:
        by_person.setdefault(row["person"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in by_person.values())
    assert set.union(*by_person.values()) == {"train", "validation", "test"}


def test_a_photo_in_two_sources_is_one_person(workspace: Workspace) -> None:
    put(
        workspace,
        {"a.png": content(picture(0)), "b.png": content(picture(1)), "persons.csv": "file,person\na.png,x\nb.png,x\n"},
    )
    put(workspace, {"c.png": content(picture(1)), "d.png": content(picture(2))}, "more")
    put(workspace, {"persons.csv": "file,person\nc.png,y\nd.png,y\n"}, "more")
    ingest(params(photos(), photos(name="more", path="more")), workspace)
    assert {row["person"] for row in samples(workspace)} == {"album/x"}
    account = summary(workspace)["sources"]
    assert (account["more"]["found"], account["more"]["accepted"]) == (2, 1)
    assert account["more"]["reasons"] == {"duplicate": 1}


# errors of the whole stage


def test_empty_folder(workspace: Workspace) -> None:
    one_line(lambda: ingest(params(photos()), workspace), ValueError, "album", "no photos", "correct ingest.sources")
    assert not workspace.folder("ingest").exists()


def test_missing_folder(workspace: Workspace) -> None:
    source = photos(path="elsewhere")
    one_line(lambda: ingest(params(source), workspace), FileNotFoundError, "elsewhere", "correct its path")


def test_missing_table(workspace: Workspace) -> None:
    put(workspace, {"a.png": content(picture(0))})
    source = photos(landmarks="points.csv")
    one_line(lambda: ingest(params(source), workspace), FileNotFoundError, "points.csv", "expected columns file")


def test_nothing_usable_leaves_the_previous_output(workspace: Workspace) -> None:
    put(workspace, {"a.png": content(picture(0))})
    ingest(params(photos()), workspace)
    before = samples(workspace)
    put(workspace, {"a.png": "broken"})
    one_line(lambda: ingest(params(photos()), workspace), ValueError, "none of 1 files", "not_an_image 1")
    assert samples(workspace) == before
    assert [path.name for path in workspace.folder("ingest").parent.iterdir()] == ["ingest"]


def test_missing_face_model(workspace: Workspace) -> None:
    source = {"kind": "synthetic", "name": "photos", "persons": 1}
    model = {"kind": "npz", "path": "none.npz"}
    one_line(lambda: ingest(params(source, face_model=model), workspace), FileNotFoundError, "none.npz", "face_model")
    assert not workspace.folder("ingest").exists()


def test_shares_must_leave_something_to_train_on() -> None:
    with pytest.raises(ParamsError, match="leave nothing to train on, expected a sum below 1"):
        params(photos(), validation_share=0.5, test_share=0.5)


# synthetic, rerendered and scans


@pytest.fixture
def modelled(workspace: Workspace) -> Workspace:
    save_face_model(tiny_face(), workspace.root / "tiny.npz")
    return workspace


SYNTHETIC = (
    {"kind": "synthetic", "name": "photos", "persons": 12, "photos_per_person": 2, "size_px": 64},
    {"kind": "synthetic", "name": "scans", "persons": 6, "photos_per_person": 1, "labelled": True, "size_px": 64},
    {"kind": "rerendered", "name": "copies", "of": "scans", "copies": 2, "size_px": 64},
)


def test_synthetic_sources(modelled: Workspace) -> None:
    section = params(*SYNTHETIC, face_model=TINY, validation_share=0.2, test_share=0.2, shard_rows=10)
    ingest(section, modelled)
    rows = samples(modelled)
    meshes = {
        row["mesh_id"]: row for row in read_table(modelled.folder("ingest") / "meshes.parquet", MESHES).to_pylist()
    }
    count = tiny_face().vertex_count
    by_source: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_source.setdefault(row["source"], []).append(row)
        assert row["split"] == split_of(row["person"], section.ingest, 0)
        assert len(row["landmarks"]) == 136
        assert len(row["rotation"]) == 3
        assert row["labelled"] == (row["source"] != "photos")
        # Training must not find the mesh of an unlabelled photo; measuring needs it.
        assert (row["mesh_id"] is not None) == (row["labelled"] or row["split"] != "train")
        if row["mesh_id"]:
            mesh = meshes[row["mesh_id"]]
            assert mesh["person"] == row["person"]
            assert (len(mesh["vertices"]), len(mesh["neutral"])) == (3 * count, 3 * count)
            assert (mesh["fit_error_mm"], mesh["coverage"]) == (0.0, 1.0)
    training = {row["mesh_id"] for row in by_source["scans"] if row["split"] == "train"}
    assert len(by_source["photos"]) == 24
    assert 0 < len(training) < 6
    assert Counter(row["mesh_id"] for row in by_source["copies"]) == dict.fromkeys(training, 2)
    assert {row["split"] for row in by_source["copies"]} == {"train"}
    assert {row["person"] for row in by_source["copies"]} <= {row["person"] for row in by_source["scans"]}
    assert len(meshes) == len({row["mesh_id"] for row in rows if row["mesh_id"]})
    assert len(list(modelled.folder("ingest").glob("images-*.parquet"))) == -(-len(rows) // 10)


def test_a_source_of_another_face_model_has_no_meshes(modelled: Workspace) -> None:
    other = {"kind": "synthetic", "name": "other", "persons": 5, "size_px": 64, "face_model": {"kind": "procedural"}}
    ingest(params(*SYNTHETIC, other, face_model=TINY, validation_share=0.3, test_share=0.3), modelled)
    rows = [row for row in samples(modelled) if row["source"] == "other"]
    assert len(rows) == 10
    assert len({row["split"] for row in rows}) > 1
    for row in rows:
        assert (row["labelled"], row["mesh_id"], len(row["landmarks"]), len(row["rotation"])) == (False, None, 136, 3)
    alone = params(photos(), other, face_model={"kind": "npz", "path": "none.npz"})
    put(modelled, {"a.png": content(picture(0))})
    ingest(alone, modelled)
    again = {row["sample_id"] for row in samples(modelled) if row["source"] == "other"}
    assert again == {row["sample_id"] for row in rows}


def test_rendered_photos_bring_further_vertices_of_the_own_face_model(modelled: Workspace) -> None:
    other = {"kind": "synthetic", "name": "other", "persons": 2, "size_px": 64, "face_model": {"kind": "procedural"}}
    sources = (*SYNTHETIC, other, photos())
    put(modelled, {"a.png": content(picture(0))})
    ingest(params(*sources, face_model=TINY), modelled)
    without = samples(modelled)
    assert {row["dense"] for row in without} == {None}
    stored = {path.name: path.read_bytes() for path in modelled.folder("ingest").glob("images-*.parquet")}
    ingest(params(*sources, face_model=TINY, dense_points=12), modelled)
    rows = samples(modelled)
    assert [{**row, "dense": None} for row in rows] == without
    assert {path.name: path.read_bytes() for path in modelled.folder("ingest").glob("images-*.parquet")} == stored
    for row in rows:
        if row["source"] in ("other", "album"):
            assert row["dense"] is None
            continue
        dense, points = (np.reshape(row[name], (-1, 2)) for name in ("dense", "landmarks"))
        assert dense.shape == (12, 2)
        # The landmarks of this face cover all of it.
        assert (dense > points.min(0) - 4).all()
        assert (dense < points.max(0) + 4).all()
        assert np.ptp(dense, axis=0).max() > 10


def test_every_rendered_photo_may_bring_its_outline(modelled: Workspace) -> None:
    other = {"kind": "synthetic", "name": "other", "persons": 2, "size_px": 64, "face_model": {"kind": "procedural"}}
    sources = (*SYNTHETIC, other, photos())
    put(modelled, {"a.png": content(picture(0))})
    ingest(params(*sources, face_model=TINY), modelled)
    without = samples(modelled)
    assert {row["outline"] for row in without} == {None}
    ingest(params(*sources, face_model=TINY, outlines=True), modelled)
    rows = samples(modelled)
    # The photos are the same: a sample's name is the hash of its pixels.
    assert [{**row, "outline": None} for row in rows] == without
    for row in rows:
        if row["source"] == "album":
            assert row["outline"] is None
            continue
        assert np.shape(row["outline"]) == (34,)
        if row["source"] == "other":
            outline, points = (np.reshape(row[name], (-1, 2)) for name in ("outline", "landmarks"))
            size = np.ptp(points, axis=0).max()
            assert np.linalg.norm(outline[8] - points[8]) < 0.1 * size
            assert np.linalg.norm(outline - points[:17], axis=1).max() < 0.6 * size


def test_strong_photos_before_those_of_a_source(modelled: Workspace) -> None:
    green = np.zeros((80, 80, 3), np.uint8)
    green[..., 1] = 240
    points = 40 + 12 * np.stack([np.cos(np.arange(68)), np.sin(np.arange(68))], 1)
    names = [f"{number}.png" for number in range(4)]
    for place, name in enumerate(names):
        green[0, place] = 0
        put(modelled, {name: content(green)})
    put(modelled, {"landmarks.csv": "\n".join([HEADER, *(row_of(name, points) for name in names)])})
    strong = {"kind": "synthetic", "name": "strong", "persons": 8, "photos_per_person": 1, "size_px": 64}
    strong |= {"randomization": "strong", "backgrounds": "album"}
    section = params(strong, photos(), face_model=TINY, validation_share=0.0, test_share=0.0, shard_rows=3)
    ingest(section, modelled)
    rows = [row for row in samples(modelled) if row["source"] == "strong"]
    assert len(rows) == 8
    drawn = read_images(modelled, [row["sample_id"] for row in rows]).values()
    assert sum(bool((image[..., 1] > image[..., [0, 2]].max(2) + 40).mean() > 0.3) for image in drawn) >= 2
    nobody = params(strong, photos(), face_model=TINY, validation_share=0.0, test_share=0.999)
    one_line(lambda: ingest(nobody, modelled), ValueError, "source strong", "no annotated photo in the training split")


def test_same_seed_same_bytes(modelled: Workspace) -> None:
    def digest(seed: int) -> dict[str, bytes]:
        ingest(params(*SYNTHETIC, face_model=TINY, seed=seed), modelled)
        return {path.name: path.read_bytes() for path in sorted(modelled.folder("ingest").iterdir())}

    first = digest(0)
    assert digest(0) == first
    assert digest(1)["samples.parquet"] != first["samples.parquet"]


def test_copies_of_a_source_without_training_meshes(modelled: Workspace) -> None:
    section = params(*SYNTHETIC, face_model=TINY, validation_share=0.0, test_share=0.999)
    one_line(
        lambda: ingest(section, modelled), ValueError, "source copies", "no mesh in the training split", "add persons"
    )


# properties

NAMES = st.sampled_from(
    ["a.jpg", "b.png", "c", "d.txt", "e.pts", "f/g.png", "h.gif", "i.jpeg", ".hidden", "landmarks.csv.bak"]
)
GOOD = st.integers(0, 3).map(lambda number: content(picture(number)))
CUT = st.tuples(st.integers(0, 3), st.floats(0, 1)).map(lambda drawn: cut(*drawn))
FILES = st.dictionaries(NAMES, st.one_of(GOOD, CUT, st.binary(max_size=64)), min_size=1)
ROWS = st.lists(
    st.tuples(NAMES | st.sampled_from(["../x", "/x", "gone.jpg"]), st.sampled_from([68, 67, 0]), st.booleans()),
    max_size=4,
)


def cut(number: int, share: float) -> bytes:
    whole = content(picture(number), "JPEG")
    return whole[: int(share * len(whole))]


@settings(max_examples=60, deadline=None)
@given(files=FILES, rows=ROWS)
def test_in_is_accepted_plus_quarantined(files: dict[str, bytes], rows: list[tuple[str, int, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        put(workspace, dict(files) | {"anchor.png": content(picture(99))})
        lines = [",".join([name, *(["nan" if spoiled else "1.5"] * (2 * count))]) for name, count, spoiled in rows]
        put(workspace, {"landmarks.csv": "\n".join([HEADER, *lines])})
        ingest(params(photos()), workspace)
        accepted = samples(workspace)
        refused = read_table(workspace.folder("ingest") / "quarantine.parquet", QUARANTINE).to_pylist()
        outside = sum(name in ("../x", "/x") for name, _, _ in rows)
        # A `.pts` file belongs to a photo, where there is one.
        stems = {name.rsplit(".", 1)[0] for name in files if not name.endswith(".pts")}
        offered = {name for name in files if not (name.endswith(".pts") and name.removesuffix(".pts") in stems)}
        missing = {name for name, _, _ in rows if name not in files and name not in ("../x", "/x")}
        missing |= {name for name, _, _ in rows if name == "e.pts" and name in files}
        total = summary(workspace)["total"]
        assert total["found"] == len(accepted) + len(refused) == len(offered) + 1 + len(missing) + outside
        assert Counter(row["reason"] for row in refused) == total["reasons"]
        assert len({row["sample_id"] for row in accepted}) == len(accepted)
        assert not list(workspace.root.glob("artifacts/.*"))


@given(st.text(min_size=1, max_size=20), st.integers(0, 5), st.floats(0, 0.4), st.floats(0, 0.4))
def test_splits_follow_the_name_alone(person: str, seed: int, validation: float, test: float) -> None:
    section = IngestParams.model_validate({"sources": [photos()], "validation_share": validation, "test_share": test})
    first = split_of(person, section, seed)
    assert first == split_of(person, section, seed)
    larger = section.model_copy(update={"test_share": min(0.5, test + 0.1)})
    assert first != "test" or split_of(person, larger, seed) == "test"


def test_shares_are_met_on_average() -> None:
    section = IngestParams.model_validate({"sources": [photos()], "validation_share": 0.1, "test_share": 0.2})
    found = Counter(split_of(f"photos/{number}", section, 0) for number in range(5000))
    assert abs(found["test"] / 5000 - 0.2) < 0.02
    assert abs(found["validation"] / 5000 - 0.1) < 0.02


# real photos


def test_real_photos(workspace: Workspace, shared_data: Path) -> None:
    sources = [photos(name=name, path=str(shared_data / name)) for name in ("portraits", "photos")]
    ingest(params(*sources), workspace)
    account = summary(workspace)["sources"]
    assert account["portraits"]["accepted"] == 185
    assert account["portraits"]["with_landmarks"] > 180
    assert (account["photos"]["accepted"], account["photos"]["with_landmarks"]) == (4, 4)
    for row in samples(workspace):
        if row["landmarks"]:
            points = np.reshape(row["landmarks"], (68, 2))
            centre = points.mean(0)
            assert 0 < centre[0] < row["width"]
            assert 0 < centre[1] < row["height"]
    biggest = max(samples(workspace), key=lambda row: row["width"] * row["height"])
    assert max(biggest["width"], biggest["height"]) <= 1024
