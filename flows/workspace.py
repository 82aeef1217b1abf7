"""Workspaces: folders with their own parameters, artifacts and registry, so that one checkout serves many data sets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tasks.shipped import CODE, SHIPPED

if TYPE_CHECKING:
    from tasks.params import Params

PATH_KEYS = frozenset({"path", "landmarks", "persons", "mapping", "text", "checkpoint"})
"""Keys whose value is a file; on the command line it counts from the current folder, as in a shell."""

DVC_CONFIG = "[core]\n    analytics = false\n    check_update = false\n    no_scm = true\n"


def create_workspace(
    folder: Path, *, preset: Path | None = None, further: Sequence[Path] = (), settings: Sequence[str] = ()
) -> None:
    """Make a folder with the parameters of a preset, changed by `key=value` settings, and a DVC graph over our code.

    Without a preset the parameters are those of the default run; `further` ones are laid over the first, one after the
    other.
    Raises: ValueError if the folder is a workspace already or the parameters do not fit; then nothing is written.
    """
    from tasks.params import parse_params

    if (folder / "params.yaml").exists():
        raise ValueError(f"{folder}: is a workspace already; edit its params.yaml, or choose another folder")
    data = read_yaml(SHIPPED / "params.yaml")
    layers = [layer for layer in (preset, *further) if layer is not None]
    for layer in layers:
        if not layer.is_file():
            raise FileNotFoundError(f"{layer}: no such preset; there are {', '.join(preset_names())}")
        data = merged(data, read_yaml(layer))
    for setting in settings:
        data = changed(data, setting)
    root = folder.resolve()
    data["project"]["code"] = os.path.relpath(CODE, root) if root.is_relative_to(CODE) else str(CODE)
    name = " and ".join(layer.name for layer in layers) or "params.yaml"
    params = parse_params(data, name=f"{name} with the settings given")
    (folder / ".dvc").mkdir(parents=True, exist_ok=True)
    (folder / ".dvc" / "config").write_text(DVC_CONFIG, encoding="utf-8")
    shutil.copyfile(SHIPPED / ".dvcignore", folder / ".dvcignore")
    _write_graph(folder, params)
    heading = f"Made by `mien workspace` from {name}; {SHIPPED / 'params.yaml'} explains the keys."
    # Last, because it is what makes a folder a workspace.
    _write_yaml(folder / "params.yaml", data, heading)


def refresh_graph(folder: Path) -> None:
    """Bring a workspace's `dvc.yaml` up to date with the code's and with its own sources; the checkout's stays."""
    from tasks.params import load_params

    params = load_params(folder / "params.yaml")
    if params.project.code != ".":
        _write_graph(folder, params)


def _write_graph(folder: Path, params: Params) -> None:
    """The graph of the code, with what lies outside of the workspace as further dependencies.

    Folders of photos and scans and the face model's file are listed, so that DVC notices when they change. Folders of
    code are listed file by file: `.dvcignore` does not reach outside, and there Python leaves its caches.
    """
    graph = read_yaml(SHIPPED / "dvc.yaml")
    prefix = "${project.code}/"
    for stage in graph["stages"].values():
        stage["deps"] = [
            name
            for entry in stage["deps"]
            for name in (
                [prefix + file for file in _files(entry.removeprefix(prefix))] if entry.startswith(prefix) else [entry]
            )
        ]
        for path in (params.face_model.path, params.face_model.landmarks):
            if path is not None:
                stage["deps"].append(str(path))
    for plot in graph.get("plots", ()):
        options = next(iter(plot.values())) if isinstance(plot, dict) else {}
        if "template" in options:
            options["template"] = str(SHIPPED / options["template"].removeprefix(prefix))
    for stage, sources in (("ingest", params.ingest.sources), ("ingest_speech", params.ingest_speech.sources)):
        graph["stages"][stage]["deps"] += [
            str(path)
            for source in sources
            for section in (source, getattr(source, "face_model", None))
            for key in sorted(PATH_KEYS)
            if isinstance(path := getattr(section, key, None), Path)
        ]
    if any(source.kind == "video" for source in params.ingest_speech.sources):
        graph["stages"]["ingest_speech"]["deps"].append("artifacts/train_detector")
    _write_yaml(
        folder / "dvc.yaml", graph, f"Made from {SHIPPED / 'dvc.yaml'} whenever `mien run` is called; edit that one."
    )


def _files(name: str) -> list[str]:
    """A file of the code, or all files of a folder of it; DVC warns of empty ones."""
    found = [path for path in sorted((CODE / name).rglob("*")) if path.is_file() and path.stat().st_size]
    files = [path.relative_to(CODE).as_posix() for path in found if "__pycache__" not in path.parts]
    return files or [((CODE if (CODE / name).exists() else SHIPPED) / name).relative_to(CODE).as_posix()]


def allow_without_git(folder: Path) -> None:
    """Let DVC work in a copy of the checkout that is no git repository, such as an unpacked archive."""
    inside = any((place / ".git").exists() for place in (folder.resolve(), *folder.resolve().parents))
    local = folder / ".dvc" / "config.local"
    if not inside and (folder / ".dvc").is_dir() and not local.exists():
        local.write_text("[core]\n    no_scm = true\n", encoding="utf-8")


def preset_names() -> list[str]:
    """Names of the presets that come with the code."""
    return sorted(path.stem for path in (SHIPPED / "presets").glob("*.yaml"))


def preset_path(preset: str) -> Path:
    """The file of a preset, given by its name or by a path."""
    named = SHIPPED / "presets" / f"{preset}.yaml"
    return named if named.is_file() else Path(preset)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping.

    Raises: ValueError if the file is not YAML or no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}: not valid YAML{place}; check indentation and brackets") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected sections as in params.yaml")
    return content


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested mappings with changes laid over it; a list or a null replaces the whole value."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def changed(data: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """A copy with one value replaced by `section.key=value`; an element of a list is named by its name or number.

    Raises: ValueError naming the part of the key that leads nowhere.
    """
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ValueError(f"--set {setting}: expected key=value, such as train_fused.steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"--set {setting}: the value is not valid YAML; put it in quotes") from None
    parts = key.split(".")
    if parts[-1] in PATH_KEYS and isinstance(value, str):
        value = str(Path(value).expanduser().resolve())
    return _replaced(data, parts, value, setting)  # type: ignore[no-any-return]


def _replaced(data: Any, parts: list[str], value: Any, setting: str) -> Any:
    if not parts:
        return value
    first, rest = parts[0], parts[1:]
    if isinstance(data, Mapping):
        if rest and first not in data:
            raise ValueError(f"--set {setting}: {first!r} is not among {', '.join(map(str, data))}")
        return {**data, first: _replaced(data.get(first), rest, value, setting)}
    if isinstance(data, list):
        names = [str(item.get("name", item.get("source", ""))) if isinstance(item, Mapping) else "" for item in data]
        place = names.index(first) if first in names else int(first) if first.isdigit() else -1
        if not 0 <= place < len(data):
            raise ValueError(f"--set {setting}: {first!r} is not among {', '.join(filter(None, names))}")
        return [*data[:place], _replaced(data[place], rest, value, setting), *data[place + 1 :]]
    raise ValueError(f"--set {setting}: there is nothing below {data!r} to name with {first!r}")


def _write_yaml(path: Path, data: Mapping[str, Any], heading: str) -> None:
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
    path.write_text(f"# {heading}\n{text}", encoding="utf-8")
