"""The same bytes come out wherever the pieces run, and what breaks there is said here."""

from __future__ import annotations

import operator
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from flows import runners
from flows.runners import RUNNERS, RunnerError, open_runner
from models.face.formats import save_face_model
from tasks.artifacts import Workspace
from tasks.images import encode
from tasks.ingest import ingest
from tasks.params import Params
from tasks.runner_params import RunnerParams
from tests.faults.killed import digests
from tests.ingest_sources import TINY, content, params, photos, picture, put
from tests.tiny_face import tiny_face

ELSEWHERE = [
    pytest.param("processes"),
    pytest.param("dask", marks=pytest.mark.slow),
    pytest.param("ray", marks=pytest.mark.slow),
]


def available(kind: str) -> RunnerParams:
    """Two workers of a runner; skips the test where its library is not installed."""
    for name in {"dask": ("distributed",), "ray": ("ray",)}.get(kind, ()):
        pytest.importorskip(name, reason=f"runner {kind} needs {name}: pip install 'mien[{kind}]'")
    return RunnerParams(kind=kind, workers=2)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Path, dict[str, str]]:
    """Photos and a rendered source, and what comes of them one piece after the other."""
    workspace = Workspace(tmp_path_factory.mktemp("here"))
    save_face_model(tiny_face(), workspace.root / "tiny.npz")
    put(workspace, {f"{number}.png": content(picture(number)) for number in range(5)} | {"text.jpg": "not a photo"})
    rendered = {"kind": "synthetic", "name": "rendered", "persons": 9, "photos_per_person": 2, "size_px": 64}
    labelled = rendered | {"name": "labelled", "persons": 3, "labelled": True}
    copies = {"kind": "rerendered", "name": "copies", "of": "labelled", "copies": 2, "size_px": 64}
    settings = params(photos(), rendered, labelled, copies, face_model=TINY, validation_share=0.1, test_share=0.1)
    with open_runner(RunnerParams()) as spread:
        ingest(settings, workspace, spread=spread)
    return settings, workspace.root, digests(workspace.folder("ingest"))


def made_by(kind: str, here: tuple[Params, Path, dict[str, str]], folder: Path) -> dict[str, str]:
    settings, origin, _ = here
    for name in ("tiny.npz", "album"):
        (folder / name).symlink_to(origin / name)
    with open_runner(available(kind)) as spread:
        ingest(settings, Workspace(folder), spread=spread)
    return digests(folder / "artifacts" / "ingest")


def test_threads_write_the_same_bytes(here: tuple[Params, Path, dict[str, str]], tmp_path: Path) -> None:
    assert made_by("threads", here, tmp_path) == here[2]


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_other_processes_write_the_same_bytes(
    here: tuple[Params, Path, dict[str, str]], tmp_path: Path, kind: str
) -> None:
    assert made_by(kind, here, tmp_path) == here[2]


@pytest.mark.parametrize("kind", ["processes", *ELSEWHERE[1:]])
def test_what_a_piece_raises_elsewhere(kind: str) -> None:
    with open_runner(available(kind)) as spread:
        assert list(spread(operator.neg, range(20))) == [-number for number in range(20)]
        with pytest.raises(TypeError, match="bad operand type"):
            list(spread(operator.neg, [1, "two"]))


def process_and_threads(_: int) -> tuple[int, int]:
    return os.getpid(), torch.get_num_threads()


@pytest.mark.parametrize("kind", ["serial", "threads"])
def test_results_come_in_order_and_pieces_are_drawn_as_they_are_needed(kind: str) -> None:
    drawn: list[int] = []

    def pieces() -> Iterator[int]:
        for number in range(50):
            drawn.append(number)
            yield number

    def slow_at_first(number: int) -> int:
        time.sleep(0.02 if number < 2 else 0.0)
        return number

    with open_runner(RunnerParams(kind=kind, workers=2)) as spread:  # type: ignore[arg-type]
        results = spread(slow_at_first, pieces())
        assert next(results) == 0
        assert len(drawn) <= 2 * runners.AHEAD + 1
        assert list(results) == list(range(1, 50))


def test_a_piece_computes_on_one_core_and_leaves_the_setting() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for kind in ("serial", "threads"):
            with open_runner(RunnerParams(kind=kind, workers=2)) as spread:  # type: ignore[arg-type]
                assert {threads for _, threads in spread(process_and_threads, range(4))} == {1}
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_after_an_error_no_further_piece_is_started() -> None:
    started = []

    def work(number: int) -> int:
        started.append(number)
        if number == 1:
            raise ValueError("piece 1 broke")
        return number

    broken = pytest.raises(ValueError, match="piece 1 broke")
    with open_runner(RunnerParams(kind="threads", workers=1)) as spread, broken:
        list(spread(work, range(100)))
    assert len(started) < 10


def test_a_worker_that_is_killed_is_named() -> None:
    lost = pytest.raises(RunnerError, match=r"a worker was ended from outside.*lower runner\.workers")
    with open_runner(RunnerParams(kind="processes", workers=1)) as spread, lost:
        list(spread(os._exit, [1]))


PARENT = """
import operator, os, time
from flows.runners import open_runner
from tasks.runner_params import RunnerParams

if __name__ == "__main__":
    with open_runner(RunnerParams(kind="processes", workers=1)) as spread:
        print(next(spread(operator.methodcaller("__call__"), [os.getpid])), flush=True)
        time.sleep(600)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(repository)}
    with subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        worker = int(parent.stdout.readline())
        assert runs(worker)
        parent.kill()
    deadline = time.monotonic() + 30
    while runs(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not runs(worker)


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("kind", "library"), [("dask", "distributed"), ("ray", "ray")])
def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, kind: str, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    remedy = rf"runner {kind}: {library} is not installed; pip install 'mien\[{kind}\]'"
    with pytest.raises(RunnerError, match=remedy), open_runner(RunnerParams(kind=kind)):  # type: ignore[arg-type]
        pass


def test_every_runner_of_the_parameters_is_there() -> None:
    kinds = RunnerParams.model_fields["kind"].annotation
    assert set(kinds.__args__) == set(RUNNERS)  # type: ignore[union-attr]


def test_photos_are_encoded_alike_on_any_thread() -> None:
    image = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    with open_runner(RunnerParams(kind="threads", workers=4)) as spread:
        assert len(set(spread(encode, [image] * 8))) == 1
