from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.artifacts import Workspace
from tasks.face_pairs import FacePairs, PairsError
from tasks.verify import judge_pairs, verify_photos
from tests.tasks.trained_workspace import write_photo


def test_pairs_with_a_photo_that_failed_are_left_out() -> None:
    generator = np.random.default_rng(0)
    persons = generator.normal(size=(40, 3))
    identities = {
        Path(f"{person}-{photo}"): persons[person] + 0.05 * generator.normal(size=3)
        for person in range(40)
        for photo in range(2)
    }
    first = [Path(f"{person}-0") for person in range(40)] * 2
    second = [Path(f"{person}-1") for person in range(40)] + [Path(f"{(person + 1) % 40}-1") for person in range(40)]
    same = np.arange(80) < 40
    listed = FacePairs(tuple(first), tuple(second), same, np.arange(80) % 10)
    known = np.arange(80) != 3
    del identities[Path("3-1")]
    known[42] = False
    found = judge_pairs(listed, known, identities, np.diag([2.0, 1.0, 1.0]))
    assert (found["pairs_same"], found["pairs_different"], found["pairs_failed"]) == (39, 39, 2)
    assert found["geometry_accuracy"] > 0.95
    assert found["cosine_auc"] > 0.95
    assert 0.1 < found["geometry_threshold"] < 4.0


def test_photos_of_a_folder_are_compared(registered: Workspace, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "Abel").mkdir(exist_ok=True)
        write_photo(tmp_path / "Abel" / f"Abel_{number:04d}.png")
    (tmp_path / "broken.png").write_bytes(b"no photo")
    rows = ["Abel/Abel_0001.png Abel/Abel_0002.png 1", "Abel/Abel_0001.png broken.png 0"]
    (tmp_path / "pairs.txt").write_text("\n".join(rows))
    seen: list[tuple[int, int, int]] = []
    found = verify_photos(
        tmp_path, tmp_path / "pairs.txt", workspace=registered, progress=lambda *numbers: seen.append(numbers)
    )
    assert (found["pairs_same"], found["pairs_different"], found["pairs_failed"]) == (1, 0, 1)
    assert list(found["photos_failed"]) == ["broken.png"]
    # One kind of pairs alone tells nothing.
    assert found["geometry_accuracy"] is None
    assert seen[-1] == (3, 3, 2)
    (tmp_path / "pairs.txt").write_text(rows[1])
    with pytest.raises(PairsError, match=r"no pair has two faces; the first photo that failed: "):
        verify_photos(tmp_path, tmp_path / "pairs.txt", workspace=registered)
