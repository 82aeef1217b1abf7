"""The command `mien doctor`: what is installed, what works on this machine, and where files are looked for."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import typer

from flows.console import JsonOption, WorkspaceOption, command, examples
from flows.failures import BROKEN
from tasks.shipped import CODE, SHIPPED

State = Literal["works", "absent", "broken"]
EXAMPLES = examples("mien doctor", "mien doctor --workspace workspaces/portraits --json")
COLOURS: dict[State, str] = {"works": "green", "absent": "yellow", "broken": "red"}


@dataclass(frozen=True)
class Finding:
    """What is known of one thing; what is absent is optional, what is broken keeps Mien from working."""

    topic: str
    name: str
    state: State
    text: str


def doctor(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Say what is installed, which devices and backends work, and where models and weights are looked for.

    Ends with exit code 1 if something is broken; what is absent is optional.
    """
    with command("doctor", workspace):
        findings = examine(workspace)
        broken = [finding for finding in findings if finding.state == "broken"]
        if as_json:
            print(json.dumps([asdict(finding) for finding in findings], indent=2))
        else:
            _show(findings)
            print(f"{len(broken)} broken, see above" if broken else "Nothing is broken.")
    if broken:
        raise typer.Exit(BROKEN)


def examine(workspace: Path) -> list[Finding]:
    """Look at everything; a look that fails is itself a finding."""
    findings: list[Finding] = []
    looks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("machine", _machine),
        ("packages", _packages),
        ("devices", _devices),
        ("backends", _backends),
        ("weights", _weights),
        ("tools", _tools),
        ("workspace", lambda: _workspace(workspace)),
    )
    for topic, look in looks:
        try:
            findings += look()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a package does when it is imported
            text = (str(error).splitlines() or [""])[0]
            findings.append(Finding(topic, "look", "broken", f"{type(error).__name__}: {text}"))
    return findings


def _machine() -> Iterator[Finding]:
    python = f"{platform.python_version()} ({sys.executable})"
    # A check of the project's range, not of the interpreter that the linter assumes.
    supported = tuple(sys.version_info[:2]) >= (3, 11)
    yield Finding("machine", "python", "works" if supported else "broken", python if supported else f"{python}: < 3.11")
    yield Finding("machine", "system", "works", f"{platform.platform()}, {os.cpu_count()} cores{_memory()}")
    try:
        version = metadata.version("mien")
    except metadata.PackageNotFoundError:
        version = "not installed"
    kind = "checkout" if SHIPPED == CODE else "installed package"
    yield Finding("machine", "mien", "works", f"{version}, {kind} in {CODE}")


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return ""
    return f", {size / 2**30:.1f} GiB memory"


def requirements() -> list[str]:
    """What Mien asks for, extras with their marker, from the installed package or the checkout's `pyproject.toml`."""
    project = CODE / "pyproject.toml"
    if SHIPPED != CODE or not project.is_file():
        return metadata.requires("mien") or []
    with project.open("rb") as file:
        table = tomllib.load(file)["project"]
    extras = table.get("optional-dependencies", {})
    return [
        *table["dependencies"],
        *(f'{entry} ; extra == "{name}"' for name, entries in extras.items() for entry in entries),
    ]


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    extras: dict[str, list[str]] = {}
    good, bad = 0, []
    for entry in requirements():
        requirement = Requirement(entry)
        if requirement.name == "mien":  # an extra that brings another one, which has a line of its own
            continue
        extra = next((name for name in _extra_names(entry) if _applies(requirement, name)), None)
        if extra is None and not _applies(requirement, ""):
            continue
        fault = _fault(requirement.name, str(requirement.specifier))
        if extra is not None:
            extras.setdefault(extra, []).append(fault)
        elif fault:
            bad.append(fault)
        else:
            good += 1
    yield Finding(
        "packages", "core", "works" if not bad else "broken", "; ".join(bad) or f"{good} packages as required"
    )
    for extra, faults in sorted(extras.items()):
        lacking = [fault for fault in faults if fault]
        text = (
            f"{'; '.join(lacking)}: pip install 'mien[{extra}]'" if lacking else f"{len(faults)} packages as required"
        )
        yield Finding("packages", f"extra {extra}", "absent" if lacking else "works", text)


def _extra_names(entry: str) -> list[str]:
    _, _, marker = entry.partition("extra ==")
    return [marker.strip().strip("\"' )")] if marker else []


def _applies(requirement: object, extra: str) -> bool:
    marker = getattr(requirement, "marker", None)
    return marker is None or bool(marker.evaluate({"extra": extra}))


def _fault(name: str, wanted: str) -> str:
    from packaging.specifiers import SpecifierSet

    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed"
    return "" if SpecifierSet(wanted).contains(version, prereleases=True) else f"{name} {version}, expected {wanted}"


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("devices", "processor", "works", f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count()))
        yield Finding("devices", "cuda", "works", names)
    else:
        built = torch.version.cuda
        text = f"no GPU is seen by torch built for CUDA {built}" if built else "this torch is built for the processor"
        yield Finding("devices", "cuda", "absent", text)
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
        yield Finding("devices", "onnxruntime", "works", f"{onnxruntime.__version__}: {providers}")


def _backends() -> Iterator[Finding]:
    import torch

    from models.face.camera import crop_camera
    from models.rendering.rasterize import RASTERIZERS, rasterize_ids

    corners = torch.tensor([[[-50.0, -50.0, 900.0], [50.0, -50.0, 900.0], [0.0, 50.0, 900.0]]])
    both_sides = torch.tensor([[0, 1, 2], [2, 1, 0]])
    for name in RASTERIZERS:
        try:
            ids, _ = rasterize_ids(corners, both_sides, crop_camera(1, 32), rasterizer=name)
        except (ImportError, ValueError) as error:
            yield Finding("backends", f"rasterizer {name}", "absent", str(error).splitlines()[0])
            continue
        drawn = int((ids >= 0).sum())
        yield Finding("backends", f"rasterizer {name}", "works" if drawn else "broken", f"drew {drawn} pixels")
    if importlib.util.find_spec("av"):
        import av

        codecs = [name for name in ("libx264", "libopenh264", "mpeg4", "aac") if name in av.codecs_available]
        yield Finding("backends", "films", "works" if codecs else "absent", f"av {av.__version__}: {', '.join(codecs)}")
    speaks = importlib.util.find_spec("espeakng_loader") is not None
    text = "espeak-ng for synthetic speech" if speaks else "espeakng-loader is not installed; no synthetic speech"
    yield Finding("backends", "speech synthesis", "works" if speaks else "absent", text)


def _weights() -> Iterator[Finding]:
    import torch

    from models.landmarks.face_alignment import FACE_WEIGHTS, LANDMARK_WEIGHTS

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name, title in ((LANDMARK_WEIGHTS, "FAN landmarks"), (FACE_WEIGHTS, "FAN face finder")):
        there = (folder / name).is_file()
        yield Finding("weights", title, "works" if there else "absent", str(folder / name))
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    cache = cache.expanduser()
    found = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    text = (
        f"{cache}: {', '.join(found)}" if found else f"{cache}: empty; only encoder.pretrained and speech encoders look"
    )
    yield Finding("weights", "pretrained networks", "works" if found else "absent", text)


def _tools() -> Iterator[Finding]:
    uses = {
        "git": "versions of code and data",
        "make": "make run, make test",
        "node": "tests of animated GLB files",
        "chromium": "tests in a browser",
    }
    for name, use in uses.items():
        path = shutil.which(name)
        yield Finding("tools", name, "works" if path else "absent", f"{path or 'not on PATH'} ({use})")


def _workspace(workspace: Path) -> Iterator[Finding]:
    place = workspace.resolve()
    if not (workspace / "params.yaml").is_file():
        remedy = "`mien workspace FOLDER --preset smoke` makes one; name it with --workspace"
        yield Finding("workspace", "folder", "absent", f"{place}: no params.yaml; {remedy}")
        return
    from tasks.artifacts import STAGES, Workspace
    from tasks.params import load_params
    from tasks.tracking import tracking_client, tracking_uri

    try:
        params = load_params(workspace / "params.yaml")
    except ValueError as error:
        yield Finding("workspace", "params.yaml", "broken", str(error))
        return
    yield Finding("workspace", "params.yaml", "works", str(place / "params.yaml"))
    path = params.face_model.path
    if path is None:
        yield Finding("workspace", "face model", "works", f"{params.face_model.kind}, made by code")
    else:
        found = Workspace(workspace).resolve(path)
        state: State = "works" if found.exists() else "broken"
        yield Finding("workspace", "face model", state, f"{params.face_model.kind}: {found}{_missing(found)}")
    made = [name for name in STAGES if (workspace / "artifacts" / name).is_dir()]
    text = f"{len(made)} of {len(STAGES)} stages made; `mien status` says which are up to date"
    yield Finding("workspace", "artifacts", "works" if made else "absent", text if made else "none yet; run `mien run`")
    checkpoint = workspace / "artifacts" / "train_detector" / "checkpoint.pt"
    if params.detect_landmarks.detector == "hierarchical":
        state = "works" if checkpoint.is_file() else "absent"
        yield Finding("workspace", "landmark detector", state, f"{checkpoint.resolve()}{_missing(checkpoint)}")
    else:
        yield Finding("workspace", "landmark detector", "works", f"{params.detect_landmarks.detector}")
    uri = tracking_uri(params, Workspace(workspace))
    if params.register.tracking_uri is None and not (workspace / "mlruns" / "mlflow.db").is_file():
        yield Finding("workspace", "registry", "absent", f"{uri}: not made yet")
        return
    from tasks.promotion import CHAMPION
    from tasks.register import find_version

    client = tracking_client(params, Workspace(workspace))
    for name in (params.register.model_name, params.evaluate_animator.model_name):
        version = find_version(client, name, CHAMPION)
        text = f"no champion in {uri}" if version is None else f"version {version.version} is champion in {uri}"
        yield Finding("workspace", name, "absent" if version is None else "works", text)


def _missing(path: Path) -> str:
    return "" if path.exists() else " (not there)"


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "what", "state", "details", show_lines=False)
    before = ""
    for finding in findings:
        if before and finding.topic != before:
            table.add_section()
        topic = "" if finding.topic == before else finding.topic
        state = Text(finding.state, style=COLOURS[finding.state])
        table.add_row(topic, finding.name, state, Text(finding.text, overflow="fold"))
        before = finding.topic
    Console().print(table)
