"""Versions, aliases and the way back, in a registry without models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import write_json
from tasks.promotion import PromotionPolicy, Rule
from tasks.provenance import Known, Provenance
from tasks.registry import (
    PromotionError,
    enter,
    find_version,
    get_version,
    judge_version,
    promote_version,
    roll_back,
    version_rows,
)

POLICY = PromotionPolicy(
    rules=(
        Rule(name="good", metric="refusion.landmark_nme", max=0.05, when_missing="fail"),
        Rule(name="keeps_up", metric="refusion.landmark_nme", against="champion", max_ratio=1.02, when_missing="skip"),
    )
)


class Registry:
    """A model of a name of its own in a store that all tests share."""

    def __init__(self, client: Any, name: str, folder: Path) -> None:
        self.client, self.name, self.folder = client, name, folder
        client.create_registered_model(name)

    def add(self, nme: float, *, code: Any = "yes", promote: bool = True, test_set: str = "a") -> Any:
        experiment = self.client.get_experiment_by_name("tests").experiment_id
        run = self.client.create_run(experiment).info.run_id
        metrics = {"refusion": {"landmark_nme": nme}}
        write_json(self.folder / "metrics.json", metrics)
        self.client.log_artifact(run, str(self.folder / "metrics.json"), "evaluate")
        version = self.client.create_model_version(self.name, "nowhere", run_id=run)
        known = {aspect: Known("yes", aspect) for aspect in ("code", "data", "params")}
        provenance = Provenance(("refusion",), "c" * 40, known | {"code": Known(code, "three files differ")}, {}, "w")
        return enter(
            self.client, self.name, str(version.version), metrics=metrics, policy=POLICY, provenance=provenance,
            tags={"test_set": test_set, "refusion.landmark_nme": str(nme)}, promote=promote,
        )  # fmt: skip

    def champion(self) -> int | None:
        version = find_version(self.client, self.name, "champion")
        return None if version is None else int(version.version)

    def version(self, number: int) -> Any:
        return get_version(self.client, self.name, str(number))

    def promote(self, number: int, **options: Any) -> Any:
        return promote_version(self.client, self.name, self.version(number), policy=POLICY, **options)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from mlflow import MlflowClient

    from tasks.tracking import quiet_mlflow

    quiet_mlflow()
    folder = tmp_path_factory.mktemp("registry")
    found = MlflowClient(f"sqlite:///{folder}/mlflow.db", f"sqlite:///{folder}/mlflow.db")
    found.create_experiment("tests", artifact_location=(folder / "artifacts").as_uri())
    return found


@pytest.fixture
def registry(client: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Registry:
    return Registry(client, request.node.name.replace("[", "-").replace("]", ""), tmp_path)


def test_better_versions_take_over_and_worse_ones_wait(registry: Registry) -> None:
    assert registry.add(0.04).promoted
    assert registry.add(0.03).champion_before == 1
    worse = registry.add(0.04)
    assert not worse.promoted
    assert worse.reasons == ["keeps_up: refusion.landmark_nme 0.04, expected at most 0.0306 (1.02 x champion 0.03)"]
    assert registry.champion() == 2
    challenger = find_version(registry.client, registry.name, "challenger")
    assert challenger is not None
    assert int(challenger.version) == 3
    assert registry.version(3).tags["promotion"] == "failed"
    assert registry.version(2).tags["champion_before"] == "1"


def test_other_photos_cannot_be_compared(registry: Registry) -> None:
    registry.add(0.03)
    assert registry.add(0.045, test_set="b").promoted


def test_a_version_that_cannot_be_made_again_is_refused(registry: Registry) -> None:
    first = registry.add(0.04, code="no")
    assert first.promoted, "there was nothing to lose"
    second = registry.add(0.03, code="no")
    assert not second.promoted
    assert second.reasons == ["reproducible_code: three files differ"]
    with pytest.raises(PromotionError, match="reproducible_code: three files differ"):
        registry.promote(2, despite=True)
    assert registry.champion() == 1


def test_data_that_is_gone_stops_a_promotion(registry: Registry) -> None:
    registry.add(0.04)
    registry.add(0.03, promote=False)
    with pytest.raises(PromotionError, match="not in the remote"):
        registry.promote(2, data=Known("no", "artifacts/ingest is not in the remote"))
    assert registry.champion() == 1
    assert registry.promote(2, data=Known("yes", "all there")).champion_before == 1
    assert registry.champion() == 2


def test_metrics_can_be_overruled(registry: Registry) -> None:
    registry.add(0.03)
    registry.add(0.04)
    with pytest.raises(PromotionError, match=r"keeps_up: .*can be overruled with --despite-metrics"):
        registry.promote(2)
    registry.promote(2, despite=True)
    assert registry.champion() == 2
    assert registry.version(2).tags["promotion"] == "overruled"
    with pytest.raises(PromotionError, match="2 is champion already"):
        registry.promote(2)


def test_the_way_back(registry: Registry) -> None:
    for nme in (0.04, 0.03, 0.02):
        registry.add(nme)
    assert roll_back(registry.client, registry.name, reason="side views") == (3, 2)
    assert registry.version(3).tags["rolled_back"].endswith(" side views")
    assert roll_back(registry.client, registry.name, reason="") == (2, 1)
    with pytest.raises(PromotionError, match="1 was the first champion"):
        roll_back(registry.client, registry.name, reason="")
    # A version that was left and is taken again is whole again.
    registry.promote(3)
    assert registry.champion() == 3
    assert "rolled_back" not in registry.version(3).tags
    assert roll_back(registry.client, registry.name, reason="", to=registry.version(2)) == (3, 2)
    assert "rolled_back" not in registry.version(2).tags


def test_a_version_that_was_left_is_passed_over_on_the_way_back(registry: Registry) -> None:
    for nme in (0.04, 0.03):
        registry.add(nme)
    roll_back(registry.client, registry.name, reason="")
    registry.add(0.02)
    assert registry.version(3).tags["champion_before"] == "1"
    assert roll_back(registry.client, registry.name, reason="") == (3, 1)


def test_back_only_to_what_was_in_use(registry: Registry) -> None:
    with pytest.raises(PromotionError, match="has no champion"):
        roll_back(registry.client, registry.name, reason="")
    registry.add(0.03)
    registry.add(0.04)
    with pytest.raises(PromotionError, match="2 has never been champion"):
        roll_back(registry.client, registry.name, reason="", to=registry.version(2))


def test_judging_moves_nothing(registry: Registry) -> None:
    registry.add(0.03, promote=False)
    assert judge_version(registry.client, registry.name, "1", policy=POLICY).promoted
    assert registry.champion() is None


def test_rows_of_the_list(registry: Registry) -> None:
    registry.add(0.03)
    registry.add(0.04, code="no")
    second, first = version_rows(registry.client, registry.name)
    assert (first["version"], first["aliases"], first["metrics"]) == (1, ["champion"], {"refusion.landmark_nme": 0.03})
    assert (second["aliases"], second["promotion"]) == (["challenger"], "failed")
    assert second["failed_rules"] == ["keeps_up", "reproducible_code"]
    assert second["reproducible"] == {"code": "no", "data": "yes", "params": "yes"}
    assert second["commit"] == "c" * 40


def test_unknown_versions_and_models_are_named(registry: Registry) -> None:
    registry.add(0.03)
    with pytest.raises(ValueError, match="no version 7, there are: 1; see `mien registry list`"):
        registry.version(7)
    assert get_version(registry.client, registry.name, "champion").version == registry.version(1).version
    with pytest.raises(ValueError, match="nobody: no such model in the registry"):
        version_rows(registry.client, "nobody")
