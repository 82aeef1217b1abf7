"""The commands `mien registry …` on a workspace with one registered version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer.testing

from flows import cli
from flows.workspace import create_workspace, preset_path
from tasks.artifacts import Workspace, write_json
from tasks.params import load_params
from tasks.provenance import Known, Provenance
from tasks.registry import enter, get_version
from tasks.tracking import tracking_client


def invoke(*arguments: str) -> tuple[int, str]:
    result = typer.testing.CliRunner().invoke(cli.app, ["registry", *arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose registry holds a champion and a better version that nobody could make again."""
    root = tmp_path_factory.mktemp("registry") / "workspace"
    create_workspace(root, preset=preset_path("smoke"))
    params, place = load_params(root / "params.yaml"), Workspace(root)
    client = tracking_client(params, place)
    location = (root / "mlruns" / "artifacts").as_uri()
    experiment = client.create_experiment("mien", artifact_location=location)
    client.create_registered_model("mien-reconstructor")
    for nme, code in ((0.04, "yes"), (0.03, "no")):
        metrics = {"refusion": {"landmark_nme": nme}, "mean_face": {"landmark_nme": 0.1}}
        write_json(root / "metrics.json", metrics)
        run = client.create_run(experiment).info.run_id
        client.log_artifact(run, str(root / "metrics.json"), "evaluate")
        version = client.create_model_version("mien-reconstructor", "nowhere", run_id=run)
        known = {aspect: Known("yes", "known") for aspect in ("code", "data", "params")}
        from flows.champion import policy_of

        enter(
            client, "mien-reconstructor", str(version.version), metrics=metrics,
            policy=policy_of(params, "mien-reconstructor"),
            provenance=Provenance(("refusion",), None, known | {"code": Known(code, "a.py differs")}, {}, "w"),
            tags={"test_set": "a", "refusion.landmark_nme": str(nme)}, promote=True,
        )  # fmt: skip
    return root


@pytest.fixture
def workspace(prepared: Path, tmp_path: Path) -> Path:
    return prepared


def test_the_list_names_aliases_and_failed_rules(workspace: Path) -> None:
    code, text = invoke("list", "--workspace", str(workspace), "--json")
    assert code == 0
    found = json.loads(text)
    assert found["model"] == "mien-reconstructor"
    assert [(row["version"], row["aliases"]) for row in found["versions"]] == [(2, ["challenger"]), (1, ["champion"])]
    assert found["versions"][0]["failed_rules"] == ["reproducible_code"]
    code, text = invoke("list", "--workspace", str(workspace))
    assert code == 0
    assert "champion" in text
    assert "0.03" in text


def test_a_version_that_cannot_be_made_again_is_refused_whatever_its_metrics(workspace: Path) -> None:
    code, text = invoke("promote", "challenger", "--despite-metrics", "--workspace", str(workspace))
    assert code == 2
    assert text.strip() == "error: mien-reconstructor 2 stays what it is: reproducible_code: a.py differs"


def test_promotion_and_the_way_back(workspace: Path) -> None:
    params, place = load_params(workspace / "params.yaml"), Workspace(workspace)
    client = tracking_client(params, place)
    client.set_model_version_tag("mien-reconstructor", "2", "reproducible.code", "yes: committed since")
    code, text = invoke("promote", "2", "--workspace", str(workspace))
    assert (code, text.strip()) == (0, "mien-reconstructor 2 is champion instead of 1")
    code, text = invoke("rollback", "--reason", "side views", "--workspace", str(workspace))
    assert code == 0
    assert text.strip() == "mien-reconstructor 1 is champion again; 2 is marked as rolled back"
    assert get_version(client, "mien-reconstructor", "champion").version in (1, "1")
    code, text = invoke("rollback", "--workspace", str(workspace))
    assert (code, text.strip()) == (
        2,
        "error: mien-reconstructor 1 was the first champion; there is none to go back to",
    )


def test_what_came_without_git_cannot_be_reproduced(workspace: Path) -> None:
    code, text = invoke("reproduce", "1", "--workspace", str(workspace))
    assert code == 2
    assert text.strip() == "error: mien-reconstructor 1 does not say where it comes from; it was made without git"


def test_a_workspace_without_registry(tmp_path: Path) -> None:
    code, text = invoke("list", "--workspace", str(tmp_path))
    assert (code, "params.yaml: no such file" in text) == (2, True)
    shutil.copyfile(Path(cli.__file__).parents[1] / "params.yaml", tmp_path / "params.yaml")
    code, text = invoke("list", "--workspace", str(tmp_path))
    assert (code, "no registry in sqlite" in text) == (2, True)
    assert not (tmp_path / "mlruns").exists()
