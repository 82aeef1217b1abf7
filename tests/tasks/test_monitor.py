"""Drift of new photos: the index, the limits, and what counts as new."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks import monitor as module
from tasks.artifacts import Workspace
from tasks.monitor import compare_photos, monitor, stability_index
from tasks.monitoring_policy import FEATURES, Limit, MonitoringPolicy, load_monitoring
from tasks.params import ParamsError
from tasks.photo_profile import clean_table, measure_photos
from tests.tiny_face import tiny_face
from tests.tiny_workspace import clean_rows, tiny_params, tiny_workspace, write_clean


def test_index_worked_out_by_hand() -> None:
    reference, new = np.repeat([0.0, 1.0], 50), np.repeat([0.0, 1.0], [80, 20])
    a, b = 80.5 / 101.0, 20.5 / 101.0
    expected = (a - 0.5) * np.log(a / 0.5) + (b - 0.5) * np.log(b / 0.5) - (1 / 100 + 1 / 100)
    assert stability_index(reference, new, bins=2) == pytest.approx(expected)


@pytest.mark.parametrize("count", [50, 400])
def test_photos_of_the_same_kind_are_no_drift(count: int) -> None:
    generator = np.random.default_rng(0)
    reference = generator.normal(size=2000)
    found = [stability_index(reference, generator.normal(size=count)) for _ in range(200)]
    assert np.mean(found) < 0.09
    assert np.mean(np.array(found) > 0.25) < 0.03
    assert stability_index(reference, generator.normal(1.0, size=count)) > 0.5


def test_a_number_without_spread_does_not_drift_from_itself() -> None:
    assert stability_index(np.ones(100), np.ones(100)) == 0.0
    assert stability_index(np.ones(100), np.zeros(100)) > 1.0


def rows(count: int, seed: int, **shift: float) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [
        {name: float(generator.normal() + shift.get(name, 0.0)) for name in FEATURES} | {"source": "photos"}
        for _ in range(count)
    ]


def test_only_what_passes_a_limit_is_a_reason() -> None:
    limits = {"yaw_deg": Limit(max_psi=0.25), "similarity": Limit(max_drop=0.5), "brightness": Limit(max_rise=0.5)}
    shifts = compare_photos(rows(1000, 0), rows(300, 1, yaw_deg=2.0, roll_deg=2.0, similarity=-1.0), limits)
    assert [shift.feature for shift in shifts] == list(FEATURES)
    beyond = {shift.feature: shift.beyond for shift in shifts if shift.beyond}
    assert set(beyond) == {"yaw_deg", "similarity"}
    assert "is above 0.25" in beyond["yaw_deg"]
    assert beyond["similarity"].startswith("fell by ")
    rising = compare_photos(rows(1000, 0), rows(300, 1, brightness=1.0), limits)
    assert [shift.feature for shift in rising if shift.beyond] == ["brightness"]


def test_what_is_unknown_is_left_out() -> None:
    new = [row | {"similarity": float("nan")} for row in rows(100, 1)]
    shifts = compare_photos(rows(100, 0), new, {"similarity": Limit(max_drop=0.1)})
    assert "similarity" not in [shift.feature for shift in shifts]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A champion that knows the first half of the photos; of the rest the test decides."""
    workspace = tiny_workspace(tmp_path, tiny_face())
    table = clean_table(workspace)
    known = sorted(table["sample_id"].to_pylist())[:12]
    old = table.filter(pa.compute.is_in(table["sample_id"], pa.array(known)))
    profile = measure_photos(workspace, old, None, compared=0)
    monkeypatch.setattr(module, "_training_photos", lambda *_: (profile, pa.array(known)))
    reader = SimpleNamespace(reconstructor=None, origin={"version": 3})
    monkeypatch.setattr(module, "open_champion", lambda *_: reader)
    return workspace


def policy(**changes: Any) -> MonitoringPolicy:
    limits = {"brightness": {"max_rise": 0.2}}
    return MonitoringPolicy.model_validate({"min_photos": 5, "limits": limits, **changes})


def test_photos_like_the_old_ones(watched: Workspace) -> None:
    report = monitor(tiny_params(), watched, policy())
    assert (report.champion, report.trained_on, report.new_photos, report.measured) == (3, 12, 12, 12)
    assert not report.drifted
    assert {"yaw_deg", "brightness", "face_px"} <= {row["feature"] for row in report.rows()}


def test_brighter_photos_are_drift_once(watched: Workspace) -> None:
    stored, meshes, crops = clean_rows(tiny_face())
    known = set(sorted(row["sample_id"] for row in stored)[:12])
    lit = [crop if row["sample_id"] in known else b"\xff" * len(crop) for row, crop in zip(stored, crops, strict=True)]
    calm = monitor(tiny_params(), watched, policy())
    write_clean(watched, stored, meshes, lit)
    report = monitor(tiny_params(), watched, policy())
    assert len(report.reasons) == 1
    assert report.reasons[0].startswith("brightness: rose by ")
    # The same photos and champion are the same finding, so that nobody trains twice for it.
    assert report.fingerprint == monitor(tiny_params(), watched, policy()).fingerprint == calm.fingerprint


def test_few_photos_say_nothing_and_many_are_a_reason(watched: Workspace) -> None:
    few = monitor(tiny_params(), watched, policy(min_photos=13, retrain_share=0.1))
    assert (few.measured, list(few.reasons)) == (0, [])
    many = monitor(tiny_params(), watched, policy(retrain_share=1.0))
    assert many.reasons == ["12 new photos are 100% of the 12 that it was trained on"]


def test_limits_of_the_repository_and_faulty_ones(tmp_path: Path) -> None:
    assert set(load_monitoring().limits) == set(FEATURES)
    for text, message in (
        ("limits: {colour: {max_psi: 1}}", "colour unknown, expected some of yaw_deg"),
        ("limits: {yaw_deg: {}}", "one of max_psi, max_drop and max_rise"),
        ("limits: {yaw_deg: {max_psi: -1}}", r"limits.yaw_deg.max_psi = -1: expected"),
        ("limits: [", "not valid YAML in line"),
    ):
        path = tmp_path / "monitoring.yaml"
        path.write_text(text)
        with pytest.raises(ParamsError, match=message):
            load_monitoring(path)
