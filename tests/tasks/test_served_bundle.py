"""One file out of several."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks import served_model
from tasks.served_bundle import bundle


def write(folder: Path, **parts: str) -> Path:
    for name, text in parts.items():
        (folder / f"{name}.py").write_text(text)
    return folder / "entry.py"


def test_parts_come_once_and_before_what_needs_them(tmp_path: Path) -> None:
    entry = write(
        tmp_path,
        base='"""Base."""\nfrom __future__ import annotations\nONE = 1\n',
        middle="from tasks.base import ONE\n\ndef two() -> int:\n    return 2 * ONE\n",
        entry="from tasks.middle import (\n    two,\n)\nfrom tasks.base import ONE\n\nTHREE = two() + ONE\n",
    )
    source = bundle(entry)
    assert source.count("ONE = 1") == 1
    assert "tasks." not in source
    names: dict[str, int] = {}
    exec(compile(source, "bundle", "exec"), names)
    assert names["THREE"] == 3


def test_two_meanings_of_a_name_are_refused(tmp_path: Path) -> None:
    entry = write(tmp_path, base="SIZE = 1\n", entry="from tasks.base import SIZE\nSIZE = 2\n")
    with pytest.raises(ValueError, match=r"entry.py: SIZE is defined in base.py, too"):
        bundle(entry)


def test_names_stay_what_they_are(tmp_path: Path) -> None:
    entry = write(tmp_path, base="SIZE = 1\n", entry="from tasks.base import SIZE as WIDTH\n")
    with pytest.raises(ValueError, match="line 1 renames what it imports"):
        bundle(entry)


def test_the_registered_model_needs_nothing_of_ours() -> None:
    source = bundle(Path(str(served_model.__file__)))
    assert not [line for line in source.splitlines() if line.startswith(("from tasks", "from models", "import tasks"))]
    assert source.rstrip().endswith("set_model(FaceReconstructor())")
