"""The benchmark of rendering: what its rows hold, and that its numbers are of the right thing. No timing is judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.render import AIMS, Row, compare_with_pytorch3d, measure, missed_aims, write_rows
from benchmarks.rendering import timing
from benchmarks.rendering.chart import BATCH, SIZE_PX, VERTICES, curve_cases, write_curves
from benchmarks.rendering.memory import peak_here, tensor_bytes
from benchmarks.rendering.runs import available_backends, prepare_runs
from benchmarks.rendering.scene import build_scene, face_mesh

ASKED = {
    "backend",
    "vertices",
    "size_px",
    "batch",
    "ids_ms",
    "forward_ms",
    "forward_backward_ms",
    "peak_mb",
}


@pytest.mark.parametrize("count", [400, 500, 5_000])
def test_the_mesh_has_as_many_vertices_as_asked_and_faces_outward(count: int) -> None:
    points, triangles = face_mesh(count)
    assert points.shape == (count, 3)
    assert triangles.unique().tolist() == list(range(count))
    a, b, c = points[triangles].unbind(1)
    normals = torch.linalg.cross(b - a, c - a)
    assert normals.norm(dim=1).min() > 0
    # All but the steep sides of nose and sockets look at the camera.
    assert (normals[:, 2] > 0).float().mean() > 0.95
    extent = points.amax(0) - points.amin(0)
    assert ((extent > torch.tensor([140.0, 180.0, 60.0])) & (extent < torch.tensor([160.0, 200.0, 110.0]))).all()


def test_a_scene_shows_the_face_in_every_image() -> None:
    scene = build_scene(500, 32, 3)
    ids, _ = prepare_runs(scene, "torch").ids()
    covered = (ids >= 0).float().mean((1, 2))
    assert covered.min() > 0.2
    assert not torch.equal(scene.vertices[0], scene.vertices[2])


def test_backends_compute_the_same_image_and_gradients() -> None:
    scene = build_scene(500, 32, 2)
    expected = prepare_runs(scene, "torch").forward_backward()
    for backend in available_backends("cpu"):
        image, of_vertices, of_attributes = prepare_runs(scene, backend).forward_backward()
        torch.testing.assert_close(image, expected[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(of_attributes, expected[2], rtol=1e-3, atol=1e-4)
        assert of_vertices.shape == scene.vertices.shape
        assert of_vertices.abs().amax() > 0


def test_a_row_holds_what_is_asked_for() -> None:
    rows = measure(400, 16, 2, backends=["numba", "torch"], seconds=0.0, memory=False)
    assert [row["backend"] for row in rows] == ["numba", "torch"]
    for row in rows:
        assert set(row) >= ASKED
        assert (row["vertices"], row["size_px"], row["batch"]) == (400, 16, 2)
        assert all(row[name] > 0 for name in ("ids_ms", "forward_ms", "forward_backward_ms", "network_ms"))


class Clock:
    """Stands in for the module `time`; runs move it on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def run(self, name: str, first: float, others: list[float]) -> None:
        done = self.calls.count(name)
        self.now += others[(done - 1) % len(others)] if done else first
        self.calls.append(name)


def test_runs_take_turns_and_the_first_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    runs = {
        "compiled": lambda: clock.run("compiled", 0.9, [0.002]),
        "uneven": lambda: clock.run("uneven", 0.1, [0.004, 0.004, 0.5]),
    }
    taken = timing.median_milliseconds(runs, seconds=0.0)
    assert taken == pytest.approx({"compiled": 2.0, "uneven": 4.0})
    assert clock.calls == ["compiled", "uneven"] * (timing.FEWEST + 2)


def test_a_slow_run_is_repeated_three_times_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    runs = {
        "slow": lambda: clock.run("slow", 3.0, [2.0, 4.0]),
        "quick": lambda: clock.run("quick", 0.5, [0.01]),
    }
    taken = timing.median_milliseconds(runs, seconds=0.09)
    assert taken == pytest.approx({"slow": 3000.0, "quick": 10.0})
    assert clock.calls.count("slow") == 3
    assert clock.calls.count("quick") == 2 + 9
    # They are spread, not run in a row.
    assert "slow slow" not in " ".join(clock.calls)


def test_the_peak_is_what_a_run_holds_at_once_beyond_what_it_returns() -> None:
    def run() -> object:
        for _ in range(3):
            held = torch.ones(12_000_000)
            del held
        return torch.ones(10_000_000)

    peak = peak_here(run)
    # 48 MB held, then 40 MB returned: 8 MB more than what came out.
    assert 47.0 < peak.total < 56.0
    assert peak.beyond_outputs == pytest.approx(peak.total - 40.0, abs=0.02)


def test_bytes_of_what_comes_out() -> None:
    assert tensor_bytes((torch.zeros(3, 5), (torch.zeros(2, dtype=torch.float64), "name"))) == 60 + 16


def row_of(backend: str, case: tuple[int, int, int], **numbers: float) -> Row:
    vertices, size_px, batch = case
    row: Row = {"backend": backend, "device": "cpu", "vertices": vertices, "size_px": size_px, "batch": batch}
    return row | {"ids_ms": 0.1, "forward_backward_ms": 0.5, "times_pytorch3d": None, "peak_mb": 9.0} | numbers


def test_pytorch3d_is_compared_at_the_same_mesh_and_size() -> None:
    rows = [
        row_of("pytorch3d", (5_000, 128, 1), forward_backward_ms=600.0),
        row_of("numba", (5_000, 128, 32), forward_backward_ms=2.0),
        row_of("numba", (5_000, 224, 32), forward_backward_ms=2.0),
    ]
    compare_with_pytorch3d(rows)
    assert [row["times_pytorch3d"] for row in rows] == [None, 300.0, None]
    assert [line for line in missed_aims(rows) if "PyTorch3D" in line] == [
        "numba, 5,000 vertices, 128 px, batch 32: 300.0 times PyTorch3D, aim 500"
    ]


def test_aims_that_are_missed_are_named() -> None:
    case = next(iter(AIMS))
    assert missed_aims([row_of("numba", case)]) == []
    assert missed_aims([row_of("torch", case, ids_ms=9.0)]) == []
    assert missed_aims([row_of("numba", case, ids_ms=0.3, peak_mb=70.0)]) == [
        "numba, 5,000 vertices, 128 px, batch 32: ids_ms 0.3, aim 0.25",
        "numba, 5,000 vertices, 128 px, batch 32: peak_mb 70.0, aim 64.0",
    ]
    assert len(missed_aims([row_of("torch", case, peak_mb=70.0)])) == 1


def test_rows_are_written_as_a_list(tmp_path: Path) -> None:
    rows = [row_of("numba", (5_000, 128, 1))]
    write_rows(rows, tmp_path / "render.json")
    assert json.loads((tmp_path / "render.json").read_text()) == rows
    assert [path.name for path in tmp_path.iterdir()] == ["render.json"]


def test_both_curves_are_drawn(tmp_path: Path) -> None:
    cases = curve_cases()
    assert len(cases) == len(set(cases))
    assert sum(case[0] == VERTICES and case[2] == BATCH for case in cases) >= 5
    assert sum(case[1] == SIZE_PX and case[2] == BATCH for case in cases) >= 5
    rows = [
        row_of(backend, case, forward_backward_ms=factor * case[0] * case[1] ** 2 / 1e6)
        for case in cases
        for backend, factor in (("numba", 1e-3), ("torch", 1e-2))
    ]
    write_curves(rows, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((0xC8, 0x45, 0x3B), (0x6A, 0xA5, 0xD8)):
        assert (colours == colour).all(1).sum() > 200
