"""Where a model comes from: code in git, data and parameters in DVC, and a hash of its weights.

DVC writes `dvc.lock` stage by stage, so when a model is registered the lock names everything that it was made of. That
part of it, and the parameters, are kept with the version: from them and the commit it can be made again.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import yaml

from tasks.artifacts import Workspace
from tasks.shipped import CODE

Aspect = Literal["code", "data", "params"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)

CODE_PATHS = ("flows", "tasks", "models", "dvc.yaml")
"""What a result can depend on; files beside it may differ from the commit."""

MOST_NAMED = 4

SHORT_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")

FILES = {"params": "params.yaml", "graph": "dvc.yaml", "lock": "dvc.lock", "config": ".dvc/config"}
"""Of a workspace, kept with every version under the name of the file."""

FOLDER = "provenance"
"""Of the run's artifacts, where they lie."""


@dataclass(frozen=True)
class Known:
    """Whether one aspect of a model can be restored."""

    state: Literal["yes", "no", "unknown"]
    """Unknown where there is no git, or no DVC lock."""
    detail: str


@dataclass(frozen=True)
class Provenance:
    """What git and DVC know of a model."""

    stages: tuple[str, ...]
    """Whose checkpoints it consists of, in the order in which they are hashed."""
    commit: str | None
    known: Mapping[Aspect, Known]
    lock: Mapping[str, Any]
    """Entries of `dvc.lock` for the stages that the model comes from."""
    weights: str

    def tags(self) -> dict[str, str]:
        """Tags of a version; only what is known."""
        found = {"source.weights": self.weights}
        found |= {f"reproducible.{aspect}": f"{known.state}: {known.detail}" for aspect, known in self.known.items()}
        if self.commit:
            found["source.commit"] = self.commit
        if self.lock:
            found["source.dvc_lock"] = lock_hash(self.lock)
        return found


def known_from_tags(tags: Mapping[str, str]) -> dict[Aspect, Known]:
    """What `Provenance.tags` said when the version was made."""
    found: dict[Aspect, Known] = {}
    for aspect in ASPECTS:
        state, _, detail = tags.get(f"reproducible.{aspect}", "").partition(": ")
        if state == "yes":
            found[aspect] = Known("yes", detail)
        elif state == "no":
            found[aspect] = Known("no", detail)
        else:
            found[aspect] = Known("unknown", detail or "the version does not say")
    return found


def trace(workspace: Workspace, stages: Sequence[str], *, checkpoints: Sequence[Mapping[str, Any]]) -> Provenance:
    """What is known of a model that consists of the checkpoints of these stages."""
    commit, code = _code()
    lock, data, params = _recorded(workspace, stages)
    return Provenance(
        stages=tuple(stages),
        commit=commit,
        known={"code": code, "data": data, "params": params},
        lock=lock,
        weights=weights_hash(checkpoints),
    )


def weights_hash(checkpoints: Sequence[Mapping[str, Any]]) -> str:
    """Hash of all tensors and plain values, which does not change when a file is written anew."""
    digest = hashlib.sha256()
    for content in checkpoints:
        _add(digest, content)
    return digest.hexdigest()


def lock_hash(lock: Mapping[str, Any]) -> str:
    """Hash of entries of `dvc.lock`, whatever their order."""
    return hashlib.sha256(json.dumps(lock, sort_keys=True).encode()).hexdigest()


def ancestors(graph: Mapping[str, Any], stages: Sequence[str]) -> list[str]:
    """These stages and all that they read from, directly or not, in the order of `dvc.yaml`."""
    # An output with settings of its own is a mapping from its path to them.
    makers = {
        str(next(iter(out)) if isinstance(out, Mapping) else out): name
        for name, stage in graph.items()
        for out in stage.get("outs", ())
    }
    found: set[str] = set()
    waiting = list(stages)
    while waiting:
        name = waiting.pop()
        if name not in found and name in graph:
            found.add(name)
            waiting += [makers[str(entry)] for entry in graph[name].get("deps", ()) if str(entry) in makers]
    return [name for name in graph if name in found]


def read_lock(path: Path) -> dict[str, Any]:
    """The stages of a `dvc.lock`; empty where there is none."""
    if not path.is_file():
        return {}
    stages = dict((yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("stages") or {})
    return {
        name: entry | {"params": _with_numbers(entry["params"])} if "params" in entry else entry
        for name, entry in stages.items()
    }


def _with_numbers(value: Any) -> Any:
    """DVC writes 1e-05, a number in YAML 1.2 and text in YAML 1.1, which is what everybody else reads."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and SHORT_NUMBER.fullmatch(value) else value


def _code() -> tuple[str | None, Known]:
    commit = git(CODE, "rev-parse", "HEAD")
    # Installed below somebody's repository, the code belongs to no commit of it.
    if not commit or git(CODE, "ls-files", "--error-unmatch", f"tasks/{Path(__file__).name}") is None:
        return None, Known("unknown", "no git commit names the code")
    changed = [line[3:] for line in (git(CODE, "status", "--porcelain", "--", *CODE_PATHS) or "").splitlines() if line]
    changed = [name for name in changed if not name.endswith((".pyc", "__pycache__/"))]
    if changed:
        return commit, Known(
            "no", f"{named(changed)} differ from commit {commit[:12]}; commit the code and train again"
        )
    return commit, Known("yes", f"commit {commit[:12]}")


def _recorded(workspace: Workspace, stages: Sequence[str]) -> tuple[dict[str, Any], Known, Known]:
    lock, graph = read_lock(workspace.root / FILES["lock"]), workspace.root / FILES["graph"]
    if not lock or not graph.is_file():
        nothing = Known("unknown", "there is no dvc.lock; the stages were run without DVC")
        return {}, nothing, nothing
    wanted = ancestors((yaml.safe_load(graph.read_text(encoding="utf-8")) or {}).get("stages", {}), stages)
    kept = {name: lock[name] for name in wanted if name in lock}
    missing = [name for name in wanted if name not in lock]
    if missing:
        data = Known("no", f"dvc.lock does not know {named(missing)}; run `dvc repro`")
    else:
        data = Known("yes", f"dvc.lock {lock_hash(kept)[:12]}")
    now = yaml.safe_load(workspace.params.read_text(encoding="utf-8"))
    changed = [
        f"{name}: {section}"
        for name, entry in kept.items()
        for section, value in entry.get("params", {}).get(FILES["params"], {}).items()
        if _with_numbers(now.get(section)) != value
    ]
    if changed:
        params = Known("no", f"{named(changed)} in params.yaml is not what was run; run `dvc repro`")
    elif missing:
        params = Known("no", data.detail)
    else:
        params = Known("yes", "params.yaml is what was run")
    return kept, data, params


def named(things: Sequence[str]) -> str:
    """A few of them, and how many more there are."""
    few = ", ".join(things[:MOST_NAMED])
    return few if len(things) <= MOST_NAMED else f"{few} and {len(things) - MOST_NAMED} more"


def git(folder: Path, *arguments: str) -> str | None:
    """What git says, None where it fails or is not there."""
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.rstrip() if answer.returncode == 0 else None


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(f"{key}:".encode())
            _add(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}]".encode())
        for item in value:
            _add(digest, item)
    else:
        digest.update(repr(value).encode())
