from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.training.progress import forget_progress, read_progress, write_progress
from tests.faults.killed import files_of_at_most


def test_what_was_written_comes_back_to_the_same_run_only(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert read_progress(folder, "one") is None
    write_progress(folder, "one", {"step": 3, "weights": {"a": torch.ones(2)}})
    found = read_progress(folder, "one")
    assert found is not None
    assert found["step"] == 3
    assert found["weights"]["a"].tolist() == [1.0, 1.0]
    assert read_progress(folder, "another") is None


def test_writing_that_ends_half_way_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_progress(tmp_path, "one", {"step": 1})

    def broken(content: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="no space left"):
        write_progress(tmp_path, "one", {"step": 2})
    found = read_progress(tmp_path, "one")
    assert found is not None
    assert found["step"] == 1
    forget_progress(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_in_words_and_leaves_the_old_state(tmp_path: Path) -> None:
    write_progress(tmp_path, "one", {"step": 1})
    with files_of_at_most(1000), pytest.raises(OSError, match=r"state\.pt: cannot be written .*; check the free space"):
        write_progress(tmp_path, "one", {"step": 2, "weights": torch.ones(1000)})
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    found = read_progress(tmp_path, "one")
    assert found is not None
    assert found["step"] == 1


def test_there_may_be_nothing_to_forget(tmp_path: Path) -> None:
    forget_progress(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
