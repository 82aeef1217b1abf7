"""The rules of the layout: which way imports point, one name in five places, no file too long."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from flows.stages import FUNCTIONS
from tasks.artifacts import STAGES
from tasks.params import Params

LAYERS = ("models", "tasks", "flows")
FORBIDDEN = {
    "models": {"tasks", "flows", "prefect", "dvc", "mlflow", "great_expectations", "pandas"},
    "tasks": {"flows", "prefect", "dvc"},
    "flows": set(),
}
MAX_LINES = 400

NOT_A_CAUSE = {
    "tasks/tracking.py": "records results and changes none",
    "tasks/params.py": "is listed, but it imports the losses only to check their names",
}
"""Code at which the search for what a result depends on stops, and why."""


def python_files(root: Path, *folders: str) -> list[Path]:
    return sorted(
        path for folder in folders for path in (root / folder).rglob("*.py") if "__pycache__" not in path.parts
    )


def imported_modules(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, also inside functions; `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def source_closure(root: Path, start: str) -> set[str]:
    """Files of ours that a file imports, directly or not."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if name in NOT_A_CAUSE:
            continue
        for module in imported_modules(root / name):
            candidate = Path(*module.split(".")).with_suffix(".py")
            if module.split(".")[0] in LAYERS and (root / candidate).is_file():
                waiting.append(candidate.as_posix())
    return found


@pytest.fixture(scope="module")
def graph(repository: Path) -> dict:
    return yaml.safe_load((repository / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(repository: Path, layer: str) -> None:
    wrong = [
        f"{path.relative_to(repository)} imports {module}"
        for path in python_files(repository, layer)
        for module in imported_modules(path)
        if module.split(".")[0] in FORBIDDEN[layer]
    ]
    assert not wrong


def test_a_stage_has_one_name_in_five_places(graph: dict) -> None:
    shared = {"project", "face_model", "encoder", "runner"}
    sections = [field.alias or name for name, field in Params.model_fields.items()]
    assert list(graph) == list(STAGES)
    assert list(FUNCTIONS) == list(STAGES)
    assert [name for name in sections if name not in shared] == list(STAGES)
    for name, stage in graph.items():
        assert stage["cmd"] == f"python -m flows {name}"
        assert [next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"]] == [f"artifacts/{name}"]
        assert name in stage["params"]
        assert {"project", "face_model"} <= set(stage["params"])


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_all_code_that_it_runs(repository: Path, graph: dict, name: str) -> None:
    prefix = "${project.code}/"
    listed = {entry.removeprefix(prefix) for entry in graph[name]["deps"] if entry.startswith(prefix)}
    module = FUNCTIONS[name].split(":")[0]
    needed = source_closure(repository, module.replace(".", "/") + ".py") - {"tasks/tracking.py"}
    missing = {file for file in needed if not any(file == entry or file.startswith(f"{entry}/") for entry in listed)}
    assert not missing, f"dvc.yaml: {name}: add to deps: {sorted(missing)}"
    unused = {entry for entry in listed if not (repository / entry).exists()}
    assert not unused, f"dvc.yaml: {name}: no such code: {sorted(unused)}"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_all_parameters_that_it_reads(repository: Path, graph: dict, name: str) -> None:
    """The section `ingest` is left out: whatever it changes shows in the samples."""
    modules = {stage: function.split(":")[0].replace(".", "/") + ".py" for stage, function in FUNCTIONS.items()}
    others = set(modules.values()) - {modules[name]}
    sections = set(STAGES) - {"ingest"} | {"encoder"}
    read = {
        match
        for file in source_closure(repository, modules[name]) - others - set(NOT_A_CAUSE)
        for match in re.findall(r"\bparams\.(\w+)", (repository / file).read_text(encoding="utf-8"))
        if match in sections
    }
    missing = read - set(graph[name]["params"])
    assert not missing, f"dvc.yaml: {name}: add to params: {sorted(missing)}"


def test_a_stage_reads_earlier_stages_only(graph: dict) -> None:
    for name, stage in graph.items():
        read = [entry.removeprefix("artifacts/") for entry in stage["deps"] if entry.startswith("artifacts/")]
        for other in read:
            assert STAGES.index(other) < STAGES.index(name)


def test_the_folder_mlflow_cannot_shadow_the_library(repository: Path) -> None:
    import mlflow

    assert not list((repository / "mlflow").rglob("*.py"))
    assert not (repository / "mlflow.py").exists()
    assert not Path(str(mlflow.__file__)).is_relative_to(repository / "mlflow")


def test_tests_are_no_package(repository: Path) -> None:
    assert not list((repository / "tests").rglob("__init__.py"))


def test_test_paths_mirror_the_source(repository: Path) -> None:
    whole = {"test_architecture.py", "test_end_to_end.py"}
    lost = []
    for path in sorted((repository / "tests").rglob("test_*.py")):
        relative = path.relative_to(repository / "tests")
        if relative.as_posix() in whole or relative.parts[0] in ("benchmarks", "docs", "packaging", "faults", "fuzz"):
            continue
        name = relative.name.removeprefix("test_").removesuffix(".py")
        folder = repository / relative.parent
        if not (folder / f"{name}.py").exists() and not (folder / f"__{name}__.py").exists():
            lost.append(relative.as_posix())
    assert not lost, f"no source file of that name: {lost}"


def test_no_file_is_too_long(repository: Path) -> None:
    long = {
        str(path.relative_to(repository)): count
        for path in python_files(repository, *LAYERS, "benchmarks")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long, f"over {MAX_LINES} lines, split: {long}"


def test_no_vague_names(repository: Path) -> None:
    vague = re.compile(r"(^|_)(utils?|helpers?|manager|misc|common)(_|$)|^new_|_v2$")
    assert not [str(path) for path in python_files(repository, *LAYERS) if vague.search(path.stem)]


def test_nothing_read_from_a_user_is_executed(repository: Path) -> None:
    """No unrestricted unpickling, no unsafe YAML, no eval; `model.eval()` is another thing."""
    unsafe = re.compile(
        r"yaml\.(load|unsafe_load|full_load)\(|(?<![\w.])(eval|exec)\(|pickle\.loads?\(|allow_pickle=True"
    )
    found = []
    for path in python_files(repository, *LAYERS):
        text = path.read_text(encoding="utf-8")
        found += [f"{path.name}: {match.group()}" for match in unsafe.finditer(text)]
        if "torch.load(" in text:
            found += (
                [] if text.count("torch.load(") == text.count("weights_only=True") else [f"{path.name}: torch.load"]
            )
    assert not found
