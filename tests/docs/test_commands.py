"""Every command that the documentation shows is one that there is, with options that it has."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from flows.cli import app
from flows.stages import FUNCTIONS
from tests.documentation import Block, blocks, pages

ROOT = Path(__file__).resolve().parents[2]
HISTORY = ("CHANGELOG.md", "experiments.md")
"""What was true when it was written."""

BLOCKS = [block for page in pages(ROOT) if page.name not in HISTORY for block in blocks(page)]


def lines(word: str) -> list[tuple[Block, str]]:
    """Commands that begin with a word, settings of the environment before it left out."""
    found = []
    for block in BLOCKS:
        for command in (part.strip() for line in block.commands() for part in line.split("&&")):
            plain = re.sub(r"^([A-Z_]+=\S+ +)+", "", command)
            if plain == word or plain.startswith(f"{word} "):
                found.append((block, plain))
    return found


def named(entries: list[tuple[Block, str]]) -> list[object]:
    return [pytest.param(command, id=f"{block}: {command[:60]}") for block, command in entries]


@pytest.mark.parametrize("command", named(lines("mien")))
def test_mien(command: str) -> None:
    arguments = shlex.split(command, comments=True)[1:]
    group = get_command(app)
    context = group.make_context("mien", list(arguments))
    rest = [*getattr(context, "_protected_args", []), *context.args]
    while rest and hasattr(group, "resolve_command"):
        name, group, rest = group.resolve_command(context, rest)
        context = group.make_context(name, list(rest), parent=context)
        rest = [*getattr(context, "_protected_args", []), *context.args]
    assert not hasattr(group, "resolve_command"), f"{command}: names a group of commands and none of them"


@pytest.mark.parametrize("command", named(lines("python -m")))
def test_python_modules(command: str) -> None:
    words = shlex.split(command, comments=True)
    assert importlib.util.find_spec(words[2]) is not None
    if words[2] == "flows":
        assert words[3] in (*FUNCTIONS, "pipeline")


@pytest.mark.parametrize("command", named(lines("make")))
def test_make(command: str) -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    wanted = [word for word in shlex.split(command, comments=True)[1:] if "=" not in word]
    assert set(wanted) <= targets


@pytest.mark.parametrize("command", named(lines("pip install")))
def test_extras(command: str) -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    wanted = {name for names in re.findall(r"(?:mien|\.)\[([\w,-]+)\]", command) for name in names.split(",")}
    assert wanted <= extras


def test_there_are_commands_to_check() -> None:
    assert len(lines("mien")) > 30
    assert len(lines("make")) > 5
