"""The wheel holds what an installed Mien needs, and works where there are neither checkout nor extras."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

CODE = ("flows", "tasks", "models")
EXTRAS = {"mkdocs", "dask", "distributed", "ray", "boto3", "moto", "psycopg2", "pytorch3d", "dvc_s3", "dvc_ssh"}
BESIDE = (
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "NOTICE",
    ".dvcignore",
    "constraints.txt",
)

OUTSIDE = """
import json, sys
from pathlib import Path

site = Path(sys.argv[1])
import flows, models, tasks
assert all(Path(package.__file__).is_relative_to(site) for package in (flows, models, tasks)), flows.__file__

import typer.testing, yaml
from flows.cli import app
runner, said = typer.testing.CliRunner(), {}
for name, words in json.loads(sys.argv[2]).items():
    result = runner.invoke(app, words)
    said[name] = [result.exit_code, result.output]

from flows.doctor import _machine
from tasks.artifacts import STAGES
from tasks.promotion import POLICY_PATH, load_policy
params = yaml.safe_load(Path("w/params.yaml").read_text())
graph = yaml.safe_load(Path("w/dvc.yaml").read_text())["stages"]
code = params["project"]["code"]
named = [entry.replace("${project.code}", code) for stage in graph.values() for entry in stage["deps"]]
missing = sorted({entry for entry in named if not entry.startswith("artifacts/") and not Path(entry).exists()})
print(json.dumps({
    "said": said, "code": code, "missing": missing, "stages": list(graph) == list(STAGES),
    "rules": len(load_policy(POLICY_PATH).rules), "machine": [finding.text for finding in _machine()],
}))
"""


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", "77")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in CODE:
        shutil.copytree(repository / name, source / name, ignore=ignored)
    # Not only what is shipped, so that too much would be seen.
    for name in ("presets", "mlflow", "benchmarks", "docs"):
        shutil.copytree(repository / name, source / name, ignore=ignored)
    for name in (*BESIDE, *(path.name for path in repository.glob("*.yaml"))):
        shutil.copyfile(repository / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(built), "."], cwd=source, check=True, capture_output=True, timeout=300)
    (found,) = built.glob("mien-*.whl")
    return found


def test_contents(wheel: Path, repository: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        described = Parser().parsestr(archive.read(metadata).decode())
        held = {name.removeprefix("tasks/shipped_files/") for name in names if name.startswith("tasks/shipped_files/")}
        for name in held:
            assert archive.read(f"tasks/shipped_files/{name}") == (repository / name).read_bytes()
    info = metadata.split("/")[0]
    # A folder called mlflow beside the packages would hide the library, and tests are not for users.
    assert {name.split("/")[0] for name in names} == {*CODE, info}
    presets = {f"presets/{path.name}" for path in (repository / "presets").glob("*.yaml")}
    assert {"params.yaml", "dvc.yaml", ".dvcignore", "mlflow/promotion.yaml", "mlflow/animator_promotion.yaml"} <= held
    assert presets <= held
    assert {"tasks/templates/report.html", "tasks/demo_page/viewer.js", "tasks/demo_page/index.html"} <= set(names)
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE", f"{info}/entry_points.txt"} <= set(names)
    with (repository / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert described["Version"] == project["version"]
    assert described["Requires-Python"] == ">=3.11"
    assert sorted(described.get_all("Provides-Extra")) == sorted(project["optional-dependencies"])


def test_nothing_needs_an_extra_when_it_is_imported(repository: Path) -> None:
    """Only inside of functions, where its absence can be said in words."""
    adapters = {"models/rendering/rasterize_pytorch3d.py"}
    found = []
    for folder in CODE:
        for path in sorted((repository / folder).rglob("*.py")):
            name = path.relative_to(repository).as_posix()
            modules = [
                alias.name if isinstance(node, ast.Import) else str(node.module)
                for node in at_import(ast.parse(path.read_text(encoding="utf-8")).body)
                for alias in node.names
            ]
            if name not in adapters:
                found += [f"{name}: {module}" for module in modules if module.partition(".")[0] in EXTRAS]
    assert not found


def at_import(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that run when a file is imported; those for the type checker do not."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from at_import([*node.body, *node.orelse])
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            yield from at_import(node.body)


@pytest.mark.slow
def test_it_works_outside_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    commands = {
        "help": ["--help"],
        "workspace": ["workspace", "w", "--preset", "smoke"],
        "info": ["model", "info", "--workspace", "w"],
        "nowhere": ["run"],
    }
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE, str(site), json.dumps(commands)],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    codes = {name: code for name, (code, _) in found["said"].items()}
    assert codes == {"help": 0, "workspace": 0, "info": 0, "nowhere": 2}, found["said"]
    assert found["code"] == str(site)
    assert found["missing"] == []
    assert found["stages"]
    assert found["rules"] > 0
    assert f"installed package in {site}" in found["machine"][-1]
