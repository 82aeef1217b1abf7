"""Every stage is a flow run of its name; here against a Prefect API of the test session."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from flows import stages
from flows.__main__ import main
from flows.runners import FANNED_OUT
from flows.stages import FUNCTIONS, SHARED, check_processes, run_stage, stage_function
from flows.workspace import create_workspace, preset_path
from tasks.artifacts import Workspace, write_json
from tasks.fan_out import Spread
from tasks.params import Params, ParamsError


@pytest.fixture(scope="module")
def prefect_api() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    create_workspace(tmp_path / "w", preset=preset_path("smoke"))
    return tmp_path / "w"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_table_names_functions_of_params_and_workspace(name: str) -> None:
    handed_out = ["spread"] if name in FANNED_OUT else []
    assert list(inspect.signature(stage_function(name)).parameters) == ["params", "workspace", *handed_out]


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="stage 'nope' is unknown, expected one of ingest"):
        stage_function("nope")


def test_only_training_stages_run_in_several_processes() -> None:
    check_processes("ingest", 1)
    check_processes("train_fused", 4)
    with pytest.raises(ValueError, match=r"ingest: started in 2 processes, expected 1; .* use python -m flows ingest"):
        check_processes("ingest", 2)
    assert set(SHARED) <= set(FUNCTIONS)


def test_a_process_beside_the_first_runs_the_plain_function(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(stages, "stage_function", lambda name: lambda params, place: ran.append((name, place.root)))
    monkeypatch.setattr(stages, "run_stage", lambda *arguments: pytest.fail("a second flow run"))
    monkeypatch.setattr("flows.__main__.prefect_server", lambda *arguments, **named: pytest.fail("a second server"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    main(["train_fused", "--workspace", str(workspace)])
    assert ran == [("train_fused", workspace.resolve())]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_stage_is_a_flow_run_of_its_name(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client

    def ingest(params: Params, place: Workspace, *, spread: Spread) -> None:
        assert list(spread(len, ["a", "bc"])) == [1, 2]
        write_json(place.folder("ingest") / "summary.json", {"seed": params.project.seed})

    monkeypatch.setattr(stages, "stage_function", lambda _name: ingest)
    run_stage("ingest", workspace)
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs()
        flow = client.read_flow(run.flow_id)
        artifacts = client.read_artifacts()
    assert flow.name == "ingest"
    assert run.state
    assert run.state.name == "Completed"
    assert [artifact.key for artifact in artifacts] == ["ingest"]
    assert '"seed": 0' in str(artifacts[0].data)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_an_error_of_the_stage_arrives_as_it_is(workspace: Path) -> None:
    content = yaml.safe_load((workspace / "params.yaml").read_text())
    content["ingest"]["test_shaer"] = 0.5
    (workspace / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError, match=r"params\.yaml: ingest\.test_shaer = 0\.5: unknown key"):
        run_stage("ingest", workspace)
