"""Which version of a model is in use: the rules, what DVC still has of a version, and the decision."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from flows.kept_data import kept_data
from tasks.artifacts import Workspace, read_json
from tasks.params import Params, load_params
from tasks.promotion import ANIMATOR_POLICY_PATH, CHAMPION, POLICY_PATH, PromotionPolicy, load_policy
from tasks.provenance import FOLDER, Known
from tasks.registry import (
    CHALLENGER,
    MODEL_FILE,
    ROLLED_BACK,
    Decision,
    find_version,
    judge_version,
    move_champion,
    open_registry,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def model_name(params: Params, model: str) -> str:
    """Name in the registry of the `reconstructor`, the `animator`, or of a model that is called so there."""
    known = {"reconstructor": params.register.model_name, "animator": params.evaluate_animator.model_name}
    return known.get(model, model)


def policy_of(params: Params, name: str) -> PromotionPolicy:
    """The rules that versions of a model are held to."""
    return load_policy(ANIMATOR_POLICY_PATH if name == params.evaluate_animator.model_name else POLICY_PATH)


def present_data(client: MlflowClient, version: ModelVersion, workspace: Path) -> Known | None:
    """Whether DVC still has what a version was made of; None where the version does not say what that was."""
    from mlflow.exceptions import MlflowException

    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = client.download_artifacts(version.run_id, f"{FOLDER}/{MODEL_FILE}", scratch)
            lock = read_json(Path(path))["lock"]
    except (MlflowException, OSError):
        return None
    return kept_data(workspace, lock) if lock else None


def decide(workspace: Path, model: str) -> tuple[Decision | None, str]:
    """Judge the challenger of a model and move `champion` to it if it passes; and what became of it in a sentence."""
    place = Workspace(workspace)
    params = load_params(place.params)
    client, name = open_registry(params, place), model_name(params, model)
    challenger, champion = (find_version(client, name, alias) for alias in (CHALLENGER, CHAMPION))
    if challenger is None:
        return None, f"{name} has no challenger; run `mien run register`"
    number = str(challenger.version)
    if champion is not None and int(champion.version) == int(number):
        return None, f"{name} {number} is champion already"
    if ROLLED_BACK in challenger.tags:
        return (
            None,
            f"{name} {number} was rolled back ({challenger.tags[ROLLED_BACK]}); promote it by hand if you want it",
        )
    data = present_data(client, challenger, workspace)
    decision = judge_version(client, name, number, policy=policy_of(params, name), data=data)
    if not decision.promoted:
        reasons = "; ".join(decision.reasons) or "nothing of it was measured"
        return decision, f"{name} {number} stays challenger: {reasons}"
    move_champion(client, name, number)
    instead = f" instead of {decision.champion_before}" if decision.champion_before is not None else ""
    return decision, f"{name} {number} is champion{instead}"
