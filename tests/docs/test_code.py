"""The code of the documentation runs: Python as it stands, and the commands that need no training."""

from __future__ import annotations

import ast
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.testing

from flows.cli import app
from tests.documentation import Block, blocks, pages
from tests.tasks.trained_workspace import trained_workspace, write_photo

ROOT = Path(__file__).resolve().parents[2]
NEEDS_MORE = {
    "CONTRIBUTING.md": "shows how a thing is added",
}
"""Pages whose Python is no program, and why."""


def is_python(block: Block) -> bool:
    if block.language:
        return block.language == "python"
    try:
        tree = ast.parse(block.text)
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body)


PYTHON = [block for page in pages(ROOT) if page.name not in NEEDS_MORE for block in blocks(page) if is_python(block)]
COMMANDS = [
    (block, command)
    for page in (ROOT / "README.md", ROOT / "docs" / "start.md", ROOT / "docs" / "face_models.md")
    for block in blocks(page)
    for command in block.commands()
    if command.split()[:2] in (["mien", "reconstruct"], ["mien", "landmarks"], ["mien", "model"], ["mien", "doctor"])
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a champion and the files that the documentation names."""
    from models.face.formats import save_face_model
    from tasks.register import register
    from tests.tiny_face import tiny_face

    folder = tmp_path_factory.mktemp("documented")
    params, workspace = trained_workspace(folder)
    register(params, workspace)
    for name in ("photo.jpg", "a.jpg", "b.jpg", "PHOTO.jpg"):
        write_photo(folder / name, 200)
    save_face_model(tiny_face(), folder / "MODEL.npz")
    # What `mien export model` writes is what the registry keeps.
    (version,) = (folder / "mlruns" / "artifacts" / "models").iterdir()
    shutil.copytree(version / "artifacts" / "artifacts", folder / "model")
    return folder


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def surroundings(block: Block) -> dict[str, Any]:
    """What a page takes as given, as its text says."""
    if block.page.name == "speech.md":
        from models.animation.animator import Animator, AnimatorSettings, reach_of_layers

        reach = reach_of_layers(layers=1, position_kernel=9, memory=20, lookahead=8)
        settings = AnimatorSettings(("joy",), ("plain",), width=16, layers=1, heads=2, feed_forward=16, **reach)
        return {"animator": Animator(settings).eval(), "microphone": [torch.zeros(1600)] * 8}
    return {}


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python(block: Block, inside: Path) -> None:
    torch.manual_seed(0)
    text = "\n" * (block.line - 1) + block.text.replace("/path/to/workspace", str(inside))
    exec(compile(text, str(block.page), "exec"), {"__name__": "documentation", **surroundings(block)})


@pytest.mark.parametrize(("block", "command"), COMMANDS, ids=lambda value: str(value)[:60])
def test_commands(block: Block, command: str, inside: Path) -> None:
    # The workspace's own face model is called face.npz.
    files = {"MODEL": "MODEL.npz", "face.npz": "converted.npz"}
    words = [files.get(word, word) for word in shlex.split(command, comments=True)[1:]]
    missing = [word for word in words if word.endswith((".jpg", ".wav")) and not Path(word).exists()]
    assert not missing, f"{block}: name a photo that the fixture makes, not {missing}"
    result = typer.testing.CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output


def test_there_is_something_to_run() -> None:
    assert len(PYTHON) >= 3
    assert len(COMMANDS) >= 5
