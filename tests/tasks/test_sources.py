"""Labels beside photos, and tables of scans: good ones reach the samples, bad ones cost their photo alone."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scipy.spatial.transform import Rotation

from models.face.alignment import rigid_alignment, transform
from models.face.formats import save_face_model
from tasks.artifacts import MESHES, QUARANTINE, Workspace, read_table
from tasks.images import read_images
from tasks.ingest import ingest
from tests.ingest_sources import (
    HEADER,
    POINTS,
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
    save_face_model(tiny_face(), tmp_path / "tiny.npz")
    return Workspace(tmp_path)


def test_landmarks_of_both_kinds(workspace: Workspace) -> None:
    pts = "version: 1\nn_points: 68\n{\n" + "\n".join(f"{x} {y}" for x, y in POINTS + 0.5) + "\n}\n"
    put(
        workspace,
        {
            "table.png": content(picture(0)),
            "both.png": content(picture(1)),
            "both.pts": pts,
            "none.png": content(picture(2)),
            "landmarks.csv": f"{HEADER}\n{row_of('table.png', POINTS)}\n{row_of('both.png', 2 * POINTS)}\n",
        },
    )
    ingest(params(photos()), workspace)
    found = {row["path"]: row["landmarks"] for row in samples(workspace)}
    np.testing.assert_allclose(found["table.png"], POINTS.ravel(), atol=1e-3)
    np.testing.assert_allclose(found["both.png"], POINTS.ravel(), atol=1e-3)
    assert found["none.png"] is None
    assert summary(workspace)["total"]["with_landmarks"] == 2


def test_large_photos_are_reduced_and_their_landmarks_with_them(workspace: Workspace) -> None:
    large = np.full((200, 300, 3), 30, np.uint8)
    large[96:104, 196:204] = 255
    spot = np.full((68, 2), [200.0, 100.0])
    put(workspace, {"large.png": content(large), "landmarks.csv": f"{HEADER}\n{row_of('large.png', spot)}\n"})
    ingest(params(photos(), max_side_px=150), workspace)
    (row,) = samples(workspace)
    assert (row["width"], row["height"]) == (150, 100)
    x, y = row["landmarks"][:2]
    image = read_images(workspace, [row["sample_id"]])[row["sample_id"]].astype(float)[..., 0] - 30
    rows, columns = np.mgrid[0:100, 0:150] + 0.5
    np.testing.assert_allclose(
        [x, y], [(columns * image).sum() / image.sum(), (rows * image).sum() / image.sum()], atol=0.1
    )


def test_landmarks_of_a_turned_photo_refer_to_the_upright_one(workspace: Workspace) -> None:
    upright = picture(0, 60, 80)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(upright.transpose(1, 0, 2)[::-1])).save(buffer, "PNG", exif=exif)
    put(workspace, {"a.png": buffer.getvalue(), "landmarks.csv": f"{HEADER}\n{row_of('a.png', POINTS)}\n"})
    ingest(params(photos()), workspace)
    (row,) = samples(workspace)
    assert (row["width"], row["height"]) == (80, 60)
    np.testing.assert_array_equal(read_images(workspace, [row["sample_id"]])[row["sample_id"]], upright)
    np.testing.assert_allclose(row["landmarks"], POINTS.ravel(), atol=1e-3)


def test_faulty_labels_quarantine_their_photo(workspace: Workspace) -> None:
    spoiled = POINTS.copy()
    spoiled[3, 0] = np.nan
    rows = [
        row_of("nan.png", spoiled),
        row_of("good.png", POINTS),
        row_of("gone.png", POINTS),
        row_of("../x.png", POINTS),
    ]
    pts = "{" + "1 1\n" * 67 + "}"
    put(
        workspace,
        {
            **{f"{name}.png": content(picture(number)) for number, name in enumerate(("nan", "good", "few", "two"))},
            "landmarks.csv": "\n".join([HEADER, *rows]),
            "few.pts": pts,
            "persons.csv": "file,person\ntwo.png,anna\ntwo.png,bert\ngood.png,anna\ngone.png,anna\n/etc/passwd,anna\n",
        },
    )
    ingest(params(photos()), workspace)
    assert quarantine(workspace) == {
        "nan.png": "landmarks_not_finite",
        "few.png": "landmarks_wrong_count",
        "two.png": "person_ambiguous",
        "gone.png": "missing_file",
        "../x.png": "unsafe_path",
        "/etc/passwd": "unsafe_path",
    }
    assert [row["person"] for row in samples(workspace)] == ["album/anna"]


def put_scans(workspace: Workspace, *rows: str, header: str = "photo,mesh,person") -> None:
    mean = tiny_face().mean.numpy()
    put(workspace, {f"{number}.png": content(picture(number)) for number in range(6)}, "scans")
    np.save(workspace.root / "scans" / "a.npy", mean + 1)
    np.save(workspace.root / "scans" / "short.npy", mean[1:])
    np.save(workspace.root / "scans" / "nan.npy", np.where(np.arange(3) == 1, np.nan, mean))
    put(workspace, {"scans.csv": "\n".join([header, *rows]), "broken.png": "text"}, "scans")


SCANS = {"kind": "scans", "name": "scans", "path": "scans"}


def test_scans(workspace: Workspace) -> None:
    put_scans(
        workspace,
        "0.png,a.npy,anna,0.4,0.8,a.npy",
        "1.png,a.npy,anna,0.4,0.8,a.npy",
        "2.png,short.npy,bert,,,",
        "3.png,nan.npy,bert,,,",
        "4.png,gone.npy,bert,,,",
        "gone.png,a.npy,bert,,,",
        "broken.png,a.npy,bert,,,",
        "5.png,../a.npy,bert,,,",
        "/5.png,a.npy,bert,,,",
        "5.png,a.npy,,,,",
        "5.png,a.npy,bert,much,,",
        header="photo,mesh,person,fit_error_mm,coverage,neutral",
    )
    ingest(params(SCANS, face_model=TINY), workspace)
    refused = read_table(workspace.folder("ingest") / "quarantine.parquet", QUARANTINE).to_pylist()
    assert [(row["path"], row["reason"]) for row in refused] == [
        ("2.png", "mesh_wrong_size"),
        ("3.png", "mesh_not_finite"),
        ("4.png", "missing_mesh"),
        ("gone.png", "missing_file"),
        ("broken.png", "not_an_image"),
        ("5.png", "unsafe_path"),
        ("/5.png", "unsafe_path"),
        ("5.png", "missing_person"),
        ("5.png", "bad_number"),
    ]
    rows = samples(workspace)
    assert [(row["path"], row["person"], row["mesh_id"]) for row in rows] == [
        ("0.png", "scans/anna", "scans/a.npy"),
        ("1.png", "scans/anna", "scans/a.npy"),
    ]
    assert all(row["labelled"] for row in rows)
    (mesh,) = read_table(workspace.folder("ingest") / "meshes.parquet", MESHES).to_pylist()
    np.testing.assert_allclose(np.reshape(mesh["vertices"], (-1, 3)), tiny_face().mean.numpy() + 1)
    np.testing.assert_allclose((mesh["fit_error_mm"], mesh["coverage"]), (0.4, 0.8), rtol=1e-6)
    assert mesh["neutral"] == mesh["vertices"]
    assert summary(workspace)["total"]["found"] == 11


def test_of_two_equal_photos_the_one_with_a_mesh_is_kept(workspace: Workspace) -> None:
    put(workspace, {"same.png": content(picture(0)), "other.png": content(picture(9))})
    put_scans(workspace, "0.png,a.npy,anna")
    ingest(params(photos(), SCANS, face_model=TINY), workspace)
    assert quarantine(workspace) == {"same.png": "duplicate"}
    assert {row["path"]: row["mesh_id"] for row in samples(workspace)} == {"0.png": "scans/a.npy", "other.png": None}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("photo,mesh\n", ("scans.csv", "column person is missing")),
        ("photo,mesh,person\n", ("scans.csv", "no rows", "correct ingest.sources")),
    ],
)
def test_tables_of_scans_that_cannot_be_used(workspace: Workspace, table: str, words: tuple[str, ...]) -> None:
    put(workspace, {"scans.csv": table}, "scans")
    one_line(lambda: ingest(params(SCANS, face_model=TINY), workspace), ValueError, *words)


def foreign_scan(folder: Path, name: str, *, scale: float = 1.0, landmarks: bool = True) -> np.ndarray:
    """Write a person as a finer mesh with other vertices, somewhere in space; returns the person's true vertices."""
    model = tiny_face()
    truth = model.vertices(torch.tensor([[1.0, -0.5, 0.5, 1.0]]))[0].double().numpy()
    points = model.landmarks(torch.from_numpy(truth)[None].float())[0].double().numpy()
    vertices, triangles = trimesh.remesh.subdivide(truth, model.triangles.numpy())
    turn = Rotation.from_euler("xyz", [20, -40, 10], degrees=True).as_matrix()
    placed, seen = (scale * (where @ turn.T + [50.0, 900.0, -20.0]) for where in (vertices, points))
    trimesh.Trimesh(placed, triangles, process=False).export(folder / name)
    if landmarks:
        table = "\n".join(",".join(str(value) for value in row) for row in seen)
        (folder / name).with_suffix(".landmarks.csv").write_text(f"x,y,z\n{table}\n", encoding="utf-8")
    return truth


def test_scans_of_another_topology_are_registered(workspace: Workspace) -> None:
    put_scans(
        workspace,
        "0.png,anna.ply,anna,,,",
        "1.png,anna.ply,anna,,,",
        "2.png,bert.obj,bert,m,,0.5",
        "3.png,cleo.ply,cleo,,,",
        "4.png,cleo.ply,cleo,,anna.landmarks.csv,",
        "5.png,bert.obj,bert,inch,,",
        header="photo,mesh,person,unit,landmarks,coverage",
    )
    folder = workspace.root / "scans"
    truth = foreign_scan(folder, "anna.ply")
    foreign_scan(folder, "bert.obj", scale=0.001)
    foreign_scan(folder, "cleo.ply", landmarks=False)
    ingest(params(SCANS, face_model=TINY), workspace)
    assert {row["path"]: row["mesh_id"] for row in samples(workspace)} == {
        "0.png": "scans/anna.ply",
        "1.png": "scans/anna.ply",
        "2.png": "scans/bert.obj",
        "4.png": "scans/cleo.ply",
    }
    assert quarantine(workspace) == {"3.png": "landmarks_missing", "5.png": "bad_unit"}
    meshes = read_table(workspace.folder("ingest") / "meshes.parquet", MESHES).to_pylist()
    for mesh, person in zip(meshes, ("anna", "bert", "cleo"), strict=True):
        assert mesh["person"] == f"scans/{person}"
        found = torch.tensor(mesh["vertices"]).double().view(1, -1, 3)
        aligned = transform(found, *rigid_alignment(found, torch.from_numpy(truth)[None])[:2])
        assert np.linalg.norm(aligned[0].numpy() - truth, axis=1).mean() < 0.5
        # A scan of which half is trustworthy stays one after its registration.
        assert mesh["coverage"] == pytest.approx(0.5 if person == "bert" else 1.0, abs=0.05)
        assert 0.0 < mesh["fit_error_mm"] < 0.3


def test_bad_scans_cost_their_photos_and_say_why(workspace: Workspace) -> None:
    put_scans(
        workspace,
        "0.png,shuffled.ply,anna",
        "1.png,centimetres.ply,bert",
        "2.png,points.ply,cleo",
        "3.png,elsewhere.ply,dora",
        "4.png,few.ply,emil",
    )
    folder = workspace.root / "scans"
    for name in ("shuffled", "elsewhere", "few"):
        foreign_scan(folder, f"{name}.ply")
    foreign_scan(folder, "centimetres.ply", scale=0.1)
    trimesh.PointCloud(np.eye(3)).export(folder / "points.ply")
    random = np.random.default_rng(0)
    for name in ("shuffled", "elsewhere", "few"):
        path = folder / f"{name}.landmarks.csv"
        points = np.loadtxt(path, delimiter=",", skiprows=1)
        if name == "shuffled":
            points = random.permutation(points)
        elif name == "elsewhere":
            points = points + 5000.0
        else:
            points[20:] = np.nan
        np.savetxt(path, points, delimiter=",")
    one_line(lambda: ingest(params(SCANS, face_model=TINY), workspace), ValueError, "none of 5 files could be used")
    with pytest.raises(
        ValueError, match="landmarks_disagree 2, landmarks_too_few 1, mesh_without_triangles 1"
    ) as caught:
        ingest(params(SCANS, face_model=TINY), workspace)
    assert "mesh_wrong_scale 1" in str(caught.value)
