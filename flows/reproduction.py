"""Making a registered version again: its commit from git, its data from DVC, and then the same weights, or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flows.failures import StageError
from flows.processes import run_child
from flows.workspace import read_yaml
from tasks.artifacts import Workspace, load_checkpoint, read_json
from tasks.provenance import CODE_PATHS, FILES, FOLDER, git, named, read_lock, weights_hash
from tasks.registry import MODEL_FILE
from tasks.shipped import CODE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

SOURCE_STAGES = ("ingest", "ingest_speech")
"""What they read may lie anywhere; their outputs are what DVC keeps."""


@dataclass(frozen=True)
class Compared:
    """One thing that must come out the same."""

    what: str
    recorded: str
    found: str

    @property
    def same(self) -> bool:
        """Whether it did."""
        return self.recorded == self.found


def reproduce_version(
    client: MlflowClient,
    version: ModelVersion,
    *,
    workspace: Path,
    out: Path,
    train: bool,
    say: Callable[[str], None],
) -> list[Compared]:
    """Check out code, parameters and data of a version into a new folder and compare; `train` also trains anew.

    Raises: ValueError or FileNotFoundError naming what is missing; StageError if a stage fails.
    """
    commit = version.tags.get("source.commit")
    if not commit or "source.weights" not in version.tags:
        raise ValueError(f"{version.name} {version.version} does not say where it comes from; it was made without git")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty; name another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    kept = Path(client.download_artifacts(version.run_id, FOLDER, str(out)))
    model = read_json(kept / MODEL_FILE)
    code = _check_out(commit, out / "code")
    say(f"code      commit {commit[:12]} in {code}")
    place = _lay_out(code, out / "workspace", kept, model["lock"], workspace)
    compared = [Compared("code", "as recorded", _code_of(model["lock"], place))]
    wanted = [f"artifacts/{stage}" for stage in model["stages"]]
    if not train:
        _bring(place, wanted)
        say(f"data      {', '.join(wanted)} from DVC")
        return [*compared, _compare_weights(version, model, place)]
    sources = [stage for stage in model["lock"] if stage in SOURCE_STAGES]
    _bring(place, [f"artifacts/{stage}" for stage in sources])
    say(f"data      {', '.join(sources)} from DVC")
    for stage in (stage for stage in model["lock"] if stage not in SOURCE_STAGES):
        _train(stage, place, code)
        compared.append(_compare_output(stage, model["lock"], place))
        say(f"{stage:24} {'same bytes' if compared[-1].same else 'other bytes'}")
    return [*compared, _compare_weights(version, model, place)]


def _check_out(commit: str, folder: Path) -> Path:
    """The code of a commit in a clone of its own, which shares the objects of ours; returns where flows/ lies in it."""
    top = git(CODE, "rev-parse", "--show-toplevel")
    if top is None or git(CODE, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise ValueError(f"commit {commit[:12]} is not in the repository of {CODE}; run `git fetch` there")
    inside = CODE.relative_to(Path(top).resolve())
    if git(CODE, "clone", "--quiet", "--shared", "--no-checkout", top, str(folder)) is None:
        raise OSError(f"{folder}: git could not clone {top} into it")
    if git(folder, "checkout", "--quiet", "--detach", commit) is None:
        raise OSError(f"{folder}: git could not check out {commit}")
    return folder / inside


def _lay_out(code: Path, folder: Path, kept: Path, lock: Mapping[str, Any], workspace: Path) -> Path:
    """Parameters, graph and lock of the version, with DVC's cache and remotes of the present workspace."""
    params = read_yaml(kept / FILES["params"])
    old = str(params.get("project", {}).get("code", "."))
    place = code if old == "." else folder
    new = "." if old == "." else os.path.relpath(code, folder)
    place.mkdir(parents=True, exist_ok=True)
    # What is made again must not be logged on the team's server.
    params.setdefault("register", {})["tracking_uri"] = None
    params.setdefault("project", {})["code"] = new
    stages = {name: _moved(entry, old, new) for name, entry in lock.items()}
    (place / FILES["params"]).write_text(yaml.safe_dump(params, sort_keys=False, allow_unicode=True), encoding="utf-8")
    (place / FILES["graph"]).write_bytes((kept / FILES["graph"]).read_bytes())
    (place / FILES["lock"]).write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))
    (place / ".dvc").mkdir(exist_ok=True)
    (place / ".dvc" / "config.local").write_text(_configuration(workspace, inside_git=place == code), encoding="utf-8")
    if not (place / ".dvc" / "config").is_file():
        (place / ".dvc" / "config").write_text("[core]\n    analytics = false\n", encoding="utf-8")
    return place


def _moved(entry: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """An entry of the lock with the code in another place."""
    moved = json.loads(json.dumps(entry))
    for dependency in moved.get("deps", ()):
        path = str(dependency["path"])
        if old != "." and path.startswith(f"{old}/"):
            dependency["path"] = f"{new}{path[len(old) :]}"
    project = moved.get("params", {}).get(FILES["params"], {}).get("project")
    if project is not None and "code" in project:
        project["code"] = new
    return moved  # type: ignore[no-any-return]


def _configuration(workspace: Path, *, inside_git: bool) -> str:
    from dvc.repo import Repo

    with Repo(str(workspace)) as repo:
        cache, config = repo.cache.local_cache_dir, repo.config
        lines = ["[cache]", f"    dir = {cache}", "[core]", f"    no_scm = {str(not inside_git).lower()}"]
        if config["core"].get("remote"):
            lines.append(f"    remote = {config['core']['remote']}")
        for name, values in config["remote"].items():
            lines += [f"['remote \"{name}\"']", *(f"    {key} = {value}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _code_of(lock: Mapping[str, Any], place: Path) -> str:
    """Whether the code that was checked out is the code that ran."""
    answer = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json", *lock],
        cwd=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        found = json.loads(answer.stdout)
    except json.JSONDecodeError:
        raise StageError(f"dvc status: {(answer.stderr or answer.stdout).strip().splitlines()[-1]}") from None
    changed = {
        Path(name).name
        for entries in found.values()
        for entry in entries
        if isinstance(entry, dict)
        for name in entry.get("changed deps", {})
        if any(part in CODE_PATHS for part in Path(name).parts) and "artifacts" not in Path(name).parts
    }
    return "as recorded" if not changed else f"differs in {named(sorted(changed))}"


def _bring(place: Path, outputs: list[str]) -> None:
    """Outputs from the cache, or from the remote."""
    for command in (("checkout",), ("pull",)):
        answer = subprocess.run(
            [sys.executable, "-m", "dvc", *command, "--force", *outputs],
            cwd=place, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if answer.returncode == 0:
            return
    reason = " ".join((answer.stderr or answer.stdout).split()).removeprefix("ERROR: ")
    raise StageError(f"DVC has not all of {', '.join(outputs)}: {reason[:300]}")


def _train(stage: str, place: Path, code: Path) -> None:
    before = os.environ.get("PYTHONPATH")
    # The stage must find the code of the commit, not ours.
    os.environ["PYTHONPATH"] = str(code)
    try:
        command = [sys.executable, "-m", "dvc", "repro", "--single-item", "--force", "--no-run-cache", stage]
        if run_child(command, cwd=place):
            raise StageError(f"{stage}: failed, see above")
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _compare_output(stage: str, lock: Mapping[str, Any], place: Path) -> Compared:
    def hashes(entry: Mapping[str, Any]) -> str:
        return " ".join(str(out["md5"])[:12] for out in entry.get("outs", ()))

    return Compared(f"output of {stage}", hashes(lock[stage]), hashes(read_lock(place / FILES["lock"])[stage]))


def _compare_weights(version: ModelVersion, model: Mapping[str, Any], place: Path) -> Compared:
    paths = [Workspace(place).folder(stage) / "checkpoint.pt" for stage in model["stages"]]
    found = weights_hash([load_checkpoint(path) for path in paths])
    return Compared("weights", version.tags["source.weights"], found)
