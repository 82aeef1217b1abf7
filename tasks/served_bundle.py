"""One file of Python out of a few: a registered model must not depend on where its parts lie, or on our packages."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = "tasks."


def bundle(entry: Path) -> str:
    """Source of a module with the modules of ours that it imports in front, each once, without imports between them.

    Raises: ValueError if a part renames what it imports from another, or two parts give a name two meanings.
    """
    parts: dict[str, str] = {}
    _collect(entry, parts)
    names: dict[str, str] = {}
    for part, source in parts.items():
        for name in _defined(ast.parse(source)):
            if names.setdefault(name, part) != part:
                raise ValueError(f"{part}: {name} is defined in {names[name]}, too; rename one of them")
    heading = "# Made from " + ", ".join(sorted(parts)) + ".\n"
    return heading + "from __future__ import annotations\n\n" + "\n\n".join(parts.values())


def _collect(path: Path, parts: dict[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        ours = isinstance(node, ast.ImportFrom) and str(node.module).startswith(PACKAGE)
        if not ours and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            continue
        assert isinstance(node, ast.ImportFrom)
        assert node.end_lineno is not None
        for number in range(node.lineno - 1, node.end_lineno):
            lines[number] = ""
        if ours:
            if any(alias.asname for alias in node.names):
                raise ValueError(f"{path.name}: line {node.lineno} renames what it imports; use the name as it is")
            part = path.with_name(f"{str(node.module).removeprefix(PACKAGE)}.py")
            if part.name not in parts:
                _collect(part, parts)
    parts[path.name] = "".join(lines).strip("\n") + "\n"


def _defined(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (name for target in targets for name in ast.walk(target))
            found |= {name.id for name in names if isinstance(name, ast.Name)}
    return found
