from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks import scale
from benchmarks.scale import main, stages_until


def test_the_stages_up_to_one() -> None:
    assert stages_until("ingest") == ("ingest",)
    assert stages_until("validate_labels") == scale.STAGES
    with pytest.raises(ValueError, match="stage 'evaluate' is unknown, expected one of ingest, detect_landmarks"):
        stages_until("evaluate")


def test_rows_of_one_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    """Every change of the folder runs the chosen stage alone; photos are really written."""
    (tmp_path / "detector" / "artifacts" / "train_detector").mkdir(parents=True)
    parameters = (repository / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "detector" / "params.yaml").write_text(parameters, encoding="utf-8")
    seen = []

    def run(place: Path, stage: str) -> dict[str, float]:
        seen.append((stage, len(list((place / "photos").rglob("*.jpg")))))
        (place / "artifacts" / stage).mkdir(exist_ok=True)
        (place / "artifacts" / stage / "out").write_bytes(bytes(300))
        return {"seconds": 2.0, "cpu_seconds": 1.0, "peak_mib": 50.0, "imports_mib": 40.0}

    monkeypatch.setattr(scale, "in_process_of_its_own", run)
    monkeypatch.setattr(scale.time, "sleep", lambda _: None)
    main(
        detector=tmp_path / "detector",
        folder=tmp_path / "scale",
        photos=[3],
        side_px=64,
        runner="serial",
        workers=None,
        until="ingest",
        json_file=tmp_path / "rows.json",
    )
    # One photo in a hundred is one of three here; those in between stay when others come.
    assert seen == [("ingest", 3), ("ingest", 3), ("ingest", 4), ("ingest", 5)]
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [row["change"] for row in rows] == list(scale.CHANGES)
    assert {row["stage"] for row in rows} == {"ingest"}
    assert rows[0]["bytes_per_photo"]["ingest"] == 100
    assert set(rows[0]["bytes_per_photo"]) == {"photos", "kept", "ingest"}
    assert (rows[0]["photos_per_cpu_second"], rows[1]["share"]) == (3.0, 1.0)
    written = yaml.safe_load((tmp_path / "scale" / "serial-3" / "params.yaml").read_text(encoding="utf-8"))
    assert written["ingest"]["sources"] == [{"kind": "photos", "name": "photos", "path": "photos"}]
