"""Triangles of mesh files; what can be wrong with one is tested in test_meshes.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh

from tasks.mesh_files import read_geometry


def test_polygons_and_every_way_to_write_a_corner(tmp_path: Path) -> None:
    lines = [f"v {x} {y} 0" for x, y in ((0, 0), (1, 0), (1, 1), (0, 1), (2, 2))]
    path = tmp_path / "mesh.obj"
    path.write_text("\n".join([*lines, "f 1/1 2/2/2 3//3 4", "f -1 -2 -3", "v 9 9 9"]) + "\n", encoding="utf-8")
    vertices, triangles = read_geometry(path)
    assert vertices.shape == (6, 3)
    assert triangles.tolist() == [[0, 1, 2], [0, 2, 3], [4, 3, 2]]


def test_ply_keeps_vertices_and_triangles(tmp_path: Path) -> None:
    box = trimesh.creation.box()
    vertices = np.concatenate([box.vertices, box.vertices[:1]])
    path = tmp_path / "mesh.ply"
    trimesh.Trimesh(vertices, box.faces, process=False).export(path)
    found, triangles = read_geometry(path)
    np.testing.assert_allclose(found, vertices)
    np.testing.assert_array_equal(triangles, box.faces)


def test_a_ply_of_points_has_no_triangles(tmp_path: Path) -> None:
    path = tmp_path / "mesh.ply"
    trimesh.PointCloud(np.eye(3)).export(path)
    vertices, triangles = read_geometry(path)
    assert vertices.shape == (3, 3)
    assert triangles.shape == (0, 3)
