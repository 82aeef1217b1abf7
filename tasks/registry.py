"""Versions in MLflow's registry: which is in use, which may take its place, and the way back.

Two aliases point to versions: `challenger` to the newest, `champion` to the one that everybody loads. A version that
becomes champion remembers which one it replaced, so that every step can be taken back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifacts import Workspace, read_json, write_json
from tasks.params import Params
from tasks.promotion import CHAMPION, PromotionPolicy, Verdict, judge, judge_provenance
from tasks.provenance import FILES, FOLDER, Known, Provenance, known_from_tags
from tasks.tracking import tracking_client, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER = "challenger"
METRICS_FILE, MODEL_FILE = "evaluate/metrics.json", "model.json"
"""Of a version's run: its metrics, and in the folder `provenance` what it was made of."""

SINCE, BEFORE, ROLLED_BACK, PROMOTION = "champion_since", "champion_before", "rolled_back", "promotion"
"""Tags of a version that has been champion, and of every version that was judged."""

HEADLINES = {
    "reconstructor": ("refusion.scan_error_mm_median", "refusion.landmark_nme", "refusion.similarity"),
    "animator": ("animator.lip_vertex_error_mm2", "animator.closure_f1"),
}
"""Tags with numbers that a list of versions shows."""


class PromotionError(ValueError):
    """A version may not become champion; the message says why and what to do."""


@dataclass(frozen=True)
class Decision:
    """What became of a version that wanted to be champion."""

    version: int
    promoted: bool
    verdicts: Sequence[Verdict]
    champion_before: int | None

    @property
    def reasons(self) -> list[str]:
        """Why not, one line per rule that failed."""
        return [f"{verdict.rule}: {verdict.detail}" for verdict in self.verdicts if verdict.outcome == "failed"]


def open_registry(params: Params, workspace: Workspace) -> MlflowClient:
    """The registry of a workspace.

    Raises: FileNotFoundError if there is none yet; TrackingError if its server cannot be used.
    """
    # Asking would create an empty registry in a workspace that has none.
    if params.register.tracking_uri is None and not (workspace.root / "mlruns" / "mlflow.db").exists():
        raise FileNotFoundError(f"no registry in {tracking_uri(params, workspace)}; run `mien run register` first")
    return tracking_client(params, workspace)


def find_version(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that an alias points to, None where the alias or the model is not there."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        # A missing alias is said to be an invalid parameter.
        if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            return None
        raise


def get_version(client: MlflowClient, name: str, version: str) -> ModelVersion:
    """A version by its number or by an alias.

    Raises: ValueError naming the versions that there are.
    """
    found = find_version(client, name, version) if not version.isdigit() else None
    if found is not None:
        return found
    there = versions(client, name)
    for one in there:
        if version == str(one.version):
            # The list of versions comes without their aliases.
            return client.get_model_version(name, version)
    numbers = ", ".join(str(one.version) for one in there) or "none"
    raise ValueError(f"{name}: no version {version}, there are: {numbers}; see `mien registry list`")


def versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions of a model, the newest first."""
    found, token = [], None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        found += list(page)
        token = page.token
        if not token:
            return sorted(found, key=lambda version: -int(version.version))


def version_rows(client: MlflowClient, name: str) -> list[dict[str, Any]]:
    """What a list of versions shows, the newest first."""
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise ValueError(f"{name}: no such model in the registry; run `mien run register` first") from None
        raise
    rows = []
    for version in versions(client, name):
        known = known_from_tags(version.tags)
        rows.append(
            {
                "version": int(version.version),
                "aliases": sorted(alias for alias, number in aliases.items() if str(number) == str(version.version)),
                "made": _time(version.creation_timestamp),
                "promotion": version.tags.get(PROMOTION),
                "failed_rules": sorted(
                    key.removeprefix("rule.")
                    for key, value in version.tags.items()
                    if key.startswith("rule.") and value.startswith("failed")
                ),
                "reproducible": {aspect: one.state for aspect, one in known.items()},
                "commit": version.tags.get("source.commit"),
                "weights": version.tags.get("source.weights"),
                SINCE: version.tags.get(SINCE),
                ROLLED_BACK: version.tags.get(ROLLED_BACK),
                "metrics": {
                    key: float(version.tags[key])
                    for names in HEADLINES.values()
                    for key in names
                    if key in version.tags
                },
            }
        )
    return rows


def keep_sources(scratch: Path, workspace: Workspace, provenance: Provenance) -> Path:
    """Write what a model can be made again from into a new folder, for its run to keep; returns the folder."""
    folder = scratch / FOLDER
    folder.mkdir()
    for name in FILES.values():
        source = workspace.root / name
        if source.is_file():
            (folder / Path(name).name).write_bytes(source.read_bytes())
    write_json(folder / MODEL_FILE, {"stages": provenance.stages, "lock": provenance.lock, **provenance.tags()})
    return folder


def enter(
    client: MlflowClient,
    name: str,
    number: str,
    *,
    metrics: Mapping[str, Any],
    policy: PromotionPolicy,
    provenance: Provenance,
    tags: Mapping[str, str],
    promote: bool,
) -> Decision:
    """Make a new version the challenger, judge it, and with `promote` make it champion if it passes."""
    for key, value in {**tags, **provenance.tags()}.items():
        client.set_model_version_tag(name, number, key, value)
    client.set_registered_model_alias(name, CHALLENGER, number)
    decision = judge_version(client, name, number, metrics=metrics, policy=policy)
    if promote and decision.promoted:
        move_champion(client, name, number)
        return decision
    return Decision(decision.version, False, decision.verdicts, decision.champion_before)


def judge_version(
    client: MlflowClient,
    name: str,
    number: str,
    *,
    policy: PromotionPolicy,
    metrics: Mapping[str, Any] | None = None,
    data: Known | None = None,
) -> Decision:
    """Hold a version to all rules and write the verdicts as its tags; moves no alias.

    `metrics` are read from the version's run where they are not given. `data` says whether its data is there now, not
    only when it was made.
    """
    version, champion = client.get_model_version(name, number), find_version(client, name, CHAMPION)
    if champion is not None and int(champion.version) == int(number):
        champion = previous_champion(client, name, champion)
    metrics = _metrics(client, version) if metrics is None else metrics
    known = known_from_tags(version.tags)
    if data is not None and known["data"].state != "no":
        known["data"] = data
    _, verdicts = judge(policy, metrics or {}, champion=comparable_metrics(client, champion, version))
    measured = any(verdict.outcome == "passed" for verdict in verdicts)
    verdicts = [*judge_provenance(policy, known, first=champion is None), *verdicts]
    promoted = measured and all(verdict.outcome != "failed" for verdict in verdicts)
    for verdict in verdicts:
        client.set_model_version_tag(name, number, f"rule.{verdict.rule}", f"{verdict.outcome}: {verdict.detail}")
    client.set_model_version_tag(name, number, PROMOTION, "passed" if promoted else "failed")
    before = None if champion is None else int(champion.version)
    return Decision(int(number), promoted, verdicts, before)


def promote_version(
    client: MlflowClient,
    name: str,
    version: ModelVersion,
    *,
    policy: PromotionPolicy,
    data: Known | None = None,
    despite: bool = False,
) -> Decision:
    """Judge a version and make it champion; `despite` lets metrics fail, but not what makes it reproducible.

    Raises: PromotionError with the rules that failed.
    """
    number = str(version.version)
    if CHAMPION in aliases_of(client, name, number):
        raise PromotionError(f"{name} {number} is champion already")
    decision = judge_version(client, name, number, policy=policy, data=data)
    standing = [reason for reason in decision.reasons if not despite or reason.startswith("reproducible_")]
    measured = despite or any(verdict.outcome == "passed" for verdict in decision.verdicts)
    if standing or not measured:
        remedy = "" if despite else "; metrics alone can be overruled with --despite-metrics"
        raise PromotionError(
            f"{name} {number} stays what it is: {'; '.join(standing) or 'nothing of it was measured'}{remedy}"
        )
    if not decision.promoted:
        client.set_model_version_tag(name, number, PROMOTION, "overruled")
    move_champion(client, name, number)
    return Decision(decision.version, True, decision.verdicts, decision.champion_before)


def move_champion(client: MlflowClient, name: str, number: str) -> None:
    """Point `champion` to a version, which remembers since when and in whose place."""
    before = find_version(client, name, CHAMPION)
    if before is not None and int(before.version) == int(number):
        return
    client.set_model_version_tag(name, number, BEFORE, "" if before is None else str(before.version))
    client.set_model_version_tag(name, number, SINCE, _now())
    _forgive(client, name, number)
    client.set_registered_model_alias(name, CHAMPION, number)


def roll_back(client: MlflowClient, name: str, *, reason: str, to: ModelVersion | None = None) -> tuple[int, int]:
    """Point `champion` back to the version before, or to another that has been champion; returns from and to.

    The version that is left is marked, so that no schedule promotes it again.
    Raises: PromotionError if there is no way back.
    """
    champion = find_version(client, name, CHAMPION)
    if champion is None:
        raise PromotionError(f"{name} has no champion, so there is nothing to go back from")
    target = previous_champion(client, name, champion) if to is None else to
    if target is None:
        raise PromotionError(f"{name} {champion.version} was the first champion; there is none to go back to")
    if int(target.version) == int(champion.version):
        raise PromotionError(f"{name} {target.version} is champion already")
    if SINCE not in target.tags:
        raise PromotionError(
            f"{name} {target.version} has never been champion; use `mien registry promote {target.version}`"
        )
    client.set_model_version_tag(name, str(champion.version), ROLLED_BACK, f"{_now()} {reason}".strip())
    _forgive(client, name, str(target.version))
    client.set_registered_model_alias(name, CHAMPION, str(target.version))
    return int(champion.version), int(target.version)


def previous_champion(client: MlflowClient, name: str, champion: ModelVersion) -> ModelVersion | None:
    """The version that a champion replaced, None for the first; those that were rolled back do not count."""
    from mlflow.exceptions import MlflowException

    number, seen = champion.tags.get(BEFORE, ""), {str(champion.version)}
    while number and number not in seen:
        seen.add(number)
        try:
            found = client.get_model_version(name, number)
        except MlflowException:
            return None  # deleted, and with it what it replaced
        if ROLLED_BACK not in found.tags:
            return found
        number = found.tags.get(BEFORE, "")
    return None


def _forgive(client: MlflowClient, name: str, number: str) -> None:
    if ROLLED_BACK in client.get_model_version(name, number).tags:
        client.delete_model_version_tag(name, number, ROLLED_BACK)


def aliases_of(client: MlflowClient, name: str, number: str) -> list[str]:
    """Names that point to a version."""
    return list(client.get_model_version(name, number).aliases)


def comparable_metrics(
    client: MlflowClient, champion: ModelVersion | None, version: ModelVersion
) -> dict[str, Any] | None:
    """Metrics of the champion, if they were measured on the same test set and its run still has them."""
    if champion is None or champion.tags.get("test_set") != version.tags.get("test_set"):
        return None
    return _metrics(client, champion)


def _metrics(client: MlflowClient, version: ModelVersion) -> dict[str, Any] | None:
    from mlflow.exceptions import MlflowException

    if not version.run_id:
        return None
    try:
        with tempfile.TemporaryDirectory() as scratch:
            found: dict[str, Any] = read_json(Path(client.download_artifacts(version.run_id, METRICS_FILE, scratch)))
            return found
    except (MlflowException, OSError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000.0, UTC).isoformat(timespec="seconds")
