"""The report's tables, and that the page needs nothing beside itself."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tasks.artifacts import Workspace, write_json
from tasks.identity_report import identity_table, identity_yaw_table
from tasks.report import data_table, data_uri, landmark_table, read_ablation, read_rounds, render_report
from tasks.report_tables import (
    COLUMNS,
    POSE_COLUMNS,
    REGION_COLUMNS,
    TITLES,
    headlines,
    number,
    source_table,
    stage_table,
    tone_table,
    verdict,
    yaw_table,
)


def block(**known: float) -> dict[str, Any]:
    return {key: None for key, *_ in COLUMNS} | {"photos": 3, "persons": 2, "photos_with_mesh": 1} | known


def metrics() -> dict[str, Any]:
    """The final model halves the scan error, doubles the similarity and is worse in pose."""
    found = {name: block(scan_error_mm_median=1.5, similarity=0.6) for name in TITLES}
    found["mean_face"] |= {"scan_error_mm_median": 2.0, "similarity": 0.4, "pose_error_deg": 2.0}
    found["refusion"] |= {"scan_error_mm_median": 1.0, "similarity": 0.8, "pose_error_deg": 2.5, "landmark_nme": 0.0123}
    return {
        name: {
            **values,
            "by_yaw": {"0-30": dict(values)},
            "by_tone": {"dark": dict(values)},
            "by_source": {"photos": dict(values), "scans": dict(values)},
        }
        for name, values in found.items()
    }


def context(**changes: Any) -> dict[str, Any]:
    found = metrics()
    pixel = data_uri(b"\x89PNG\r\n\x1a\n")
    return {
        "model": "procedural",
        "licence": "Apache-2.0",
        "face_model_hash": "0123456789abcdef",
        "source_sha256": "",
        "headlines": headlines(found),
        "stages": stage_table(found),
        "yaw": yaw_table(found),
        "regions": stage_table(found, REGION_COLUMNS),
        "angles": stage_table(found, POSE_COLUMNS),
        "tones": tone_table(found),
        "identity": identity_table(found),
        "identity_yaw": identity_yaw_table(found),
        "difference_limit_mm": 4.0,
        "verdict": verdict(found),
        "ablation": {},
        "lessons": [],
        "run": {"id": "0a1b2c", "uri": "sqlite:////work/mlflow.db"},
        "sources": source_table(found),
        "data": [],
        "curves": {},
        "rounds": [],
        "stopped": None,
        "threshold": 0.8,
        "photos": 3,
        "persons": 2,
        "meshes": 1,
        "faces": [],
        "error_limit_mm": 4.0,
        "images": {"overview": pixel},
        "landmarks": [],
        "rendered_landmarks": False,
    } | changes


def test_headlines_compare_with_the_mean_face() -> None:
    rows = {row["title"]: row for row in headlines(metrics())}
    scan, likeness, pose = rows["scan error, median"], rows["similarity"], rows["pose error"]
    assert (scan["value"], scan["baseline"], scan["gain"]) == ("1.00", "2.00", 50)
    assert (likeness["value"], likeness["gain"]) == ("0.800", 100)
    assert pose["gain"] == -25
    points = rows["landmark NME"]
    assert (points["value"], points["baseline"], points["gain"]) == ("1.23", "–", None)
    assert rows["vertex error"]["value"] == "–"


def test_the_best_of_each_column_is_marked_and_the_unknown_is_not() -> None:
    table = stage_table(metrics())
    marked = {row["title"]: [place for place, cell in enumerate(row["cells"]) if cell["best"]] for row in table["rows"]}
    keys = [key for key, *_ in COLUMNS]
    assert marked["re-fused"] == [keys.index(key) for key in ("scan_error_mm_median", "landmark_nme", "similarity")]
    assert marked["mean face"] == [keys.index("pose_error_deg")]
    assert marked["stage 3: fused"] == []
    assert [row["final"] for row in table["rows"]] == [title == "re-fused" for title in marked]


def test_bins_show_both_the_model_and_the_mean_face() -> None:
    (row,) = yaw_table(metrics())["rows"]
    assert row["title"] == "0–30°"
    assert row["cells"][0] == {"text": "1.00", "base": "2.00", "interval": ""}


def test_sources_have_a_section_where_there_are_several() -> None:
    found = metrics()
    table = source_table(found)
    assert [row["title"] for row in table["rows"]] == ["photos", "scans"]
    assert "Source by source" in render_report(context())
    for values in found.values():
        del values["by_source"]["scans"]
    assert source_table(found)["rows"] == []
    assert "Source by source" not in render_report(context(sources=source_table(found)))


@pytest.mark.parametrize(
    ("value", "factor", "decimals", "text"),
    [
        (1.236, 1, 2, "1.24"),
        (0.0123, 100, 1, "1.2"),
        (None, 1, 2, "–"),
        (float("nan"), 1, 2, "–"),
        (0.0, 1, 0, "0"),
        (-1e-6, 1, 2, "0.00"),
    ],
)
def test_numbers_are_printed_for_people(value: float | None, factor: float, decimals: int, text: str) -> None:
    assert number(value, factor, decimals) == text


def test_the_page_is_one_file_without_a_network() -> None:
    page = render_report(context())
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", page)
    assert "url(" not in page
    assert "<script" not in page
    assert 'src="data:image/png;base64,' in page
    assert "50 % better" in page
    assert "25 % worse" in page


def test_intervals_stand_below_their_numbers() -> None:
    found = metrics()
    found["refusion"] |= {"scan_error_mm_median_low": 0.9, "scan_error_mm_median_high": 1.1}
    assert headlines(found)[0]["interval"] == "0.90…1.10"
    row = next(row for row in stage_table(found)["rows"] if row["final"])
    assert [cell["interval"] for cell in row["cells"]][:2] == ["0.90…1.10", ""]
    assert "<small" in render_report(context(stages=stage_table(found)))
    assert "0.90…1.10" in render_report(context(stages=stage_table(found)))


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ((-0.5, -0.7, -0.3), "0.50 mm (12 %) nearer to"),
        ((-0.1, -0.3, 0.1), "which may be nothing"),
        ((0.4, 0.2, 0.6), "so it is a loss"),
    ],
)
def test_the_verdict_says_what_the_interval_allows(ends: tuple[float, float, float], words: str) -> None:
    found = metrics()
    assert verdict(found) == []
    names = ("vertex_error_mm", "vertex_error_mm_low", "vertex_error_mm_high")
    found["mean_face"]["vertex_error_mm"] = 4.0
    found["optimised"]["vertex_error_mm"] = 3.7
    found["refusion"] |= {"vertex_error_mm": 3.5, "versus_mean_face": dict(zip(names, ends, strict=True))}
    sentences = verdict(found)
    assert words in sentences[0]
    assert "without a network, reaches 3.70 mm; the model 3.50 mm" in sentences[-1]
    assert words in render_report(context(verdict=sentences))


def test_the_run_can_be_found() -> None:
    page = render_report(context())
    assert "MLflow run <code>0a1b2c</code>" in page
    assert "mlflow ui --backend-store-uri sqlite:////work/mlflow.db" in page
    page = render_report(context(run={"id": "0a1b2c", "uri": "https://mlflow.example.org"}))
    assert 'href="https://mlflow.example.org/#/runs/0a1b2c"' in page


class TestAblation:
    CONTENT: ClassVar[dict[str, Any]] = {
        "command": "mien experiment ablation",
        "reference": "fused",
        "columns": {"vertex_error_mm": "vertex error, mm", "landmark_nme": "NME, %"},
        "headline": {"sentence": "three stages beat one"},
        "rows": [
            {
                "name": "self_supervised",
                "title": "photos only",
                "seeds": [0, 1],
                "numbers": {"vertex_error_mm": {"mean": 3.5, "deviation": 0.04}, "landmark_nme": {"mean": 0.015}},
                "against_reference": {"vertex_error_mm": {"difference": 0.1, "low": 0.05, "high": 0.15}},
            },
            {"name": "fused", "title": "three stages", "seeds": [0, 1], "numbers": {}},
        ],
    }

    def test_it_is_read_and_shown(self, tmp_path: Path) -> None:
        write_json(tmp_path / "experiment" / "ablation.json", self.CONTENT)
        found = read_ablation(Workspace(tmp_path), Path("experiment"))
        assert found["picture"] is None
        assert found["rows"][0]["cells"] == [{"text": "3.50", "spread": "0.04"}, {"text": "1.50", "spread": "–"}]
        assert found["rows"][0]["gap"] == "+0.10 [+0.05, +0.15]"
        assert (found["rows"][1]["gap"], found["rows"][1]["final"]) == ("–", True)
        page = render_report(context(ablation=found))
        for text in ("What each part is worth", "2 seeds", "three stages beat one", "mien experiment ablation"):
            assert text in page

    def test_none_is_none_and_a_missing_one_is_named(self, tmp_path: Path) -> None:
        assert read_ablation(Workspace(tmp_path), None) == {}
        assert "What each part is worth" not in render_report(context())
        with pytest.raises(ValueError, match=r"evaluate.ablation: .*ablation.json holds no ablation; run `mien exp"):
            read_ablation(Workspace(tmp_path), Path("nowhere"))


def test_what_users_wrote_is_escaped() -> None:
    rounds = [{"round": "0", "decision": "<script>alert(1)</script>"}]
    page = render_report(context(model='<img src="x">', rounds=rounds))
    assert "<script" not in page
    assert '<img src="x">' not in page
    assert "&lt;script&gt;" in page


def test_the_face_model_is_named_with_its_hashes() -> None:
    page = render_report(context())
    assert "<em>procedural</em> (Apache-2.0), hash <code>0123456789abcdef</code>.</p>" in page
    page = render_report(context(source_sha256="ab" * 32))
    assert f"from a file with SHA-256 <code>{'ab' * 32}</code>." in page


def test_empty_sections_are_left_out() -> None:
    page = render_report(context())
    for heading in ("Best, median, worst", "What was learned from what", "Fusing again", "How it learned"):
        assert heading not in page
    assert "Fusing again" in render_report(context(rounds=[{"round": "0"}], stopped="3 rounds are done"))


def test_a_data_uri_holds_its_content() -> None:
    content = b"\x89PNG\r\n\x1a\nabc"
    kind, text = data_uri(content).split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(text) == content


def test_counts_come_from_both_summaries(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert data_table(workspace) == []
    counts = {"found": 12, "quarantined": 2, "persons": 4, "labelled": 0,
              "photos_by_split": {"train": 6, "validation": 1, "test": 3}}  # fmt: skip
    write_json(workspace.folder("ingest") / "summary.json", {"sources": {"photos": counts}})
    (row,) = data_table(workspace)
    assert (row["found"], row["refused"], row["splits"], row["clean"]) == (12, 2, "6 / 1 / 3", "–")
    checked = {"sources": {"photos": {"clean": 9, "mean_label_quality": None}}}
    write_json(workspace.folder("validate_labels") / "summary.json", checked)
    (row,) = data_table(workspace)
    assert (row["clean"], row["quality"]) == (9, "–")


def test_rounds_are_shortened_for_reading(tmp_path: Path) -> None:
    path = tmp_path / "rounds.csv"
    assert read_rounds(path) == []
    path.write_text("round,similarity,geometry,decision\n0,0.7431612,,start\n1,0.75,3.4861,kept\n")
    assert read_rounds(path) == [
        {"round": "0", "similarity": "0.7432", "geometry": "–", "decision": "start"},
        {"round": "1", "similarity": "0.75", "geometry": "3.486", "decision": "kept"},
    ]


class TestLandmarkTable:
    def test_all_photos_first_then_by_yaw(self, tmp_path: Path) -> None:
        numbers = {
            "count": 4,
            "nme68": 0.0234,
            "nme51": 0.02,
            "nme68_box": 0.01,
            "fr8": 0.25,
            "fr10": 0.0,
            "auc10": None,
        }
        write_json(tmp_path / "landmarks.json", {**numbers, "by_yaw": {"0-30": {**numbers, "count": 3}}})
        rows = landmark_table(tmp_path / "landmarks.json")
        assert [(row["name"], row["count"]) for row in rows] == [("all", "4"), ("|yaw| 0-30°", "3")]
        assert rows[0]["nme68"] == "2.34 %"
        assert rows[0]["auc10"] == "–"

    def test_a_detector_that_was_not_measured(self, tmp_path: Path) -> None:
        assert landmark_table(tmp_path / "landmarks.json") == []

    def test_the_page_shows_it(self) -> None:
        row = {
            "name": "all",
            "count": "4",
            **dict.fromkeys(("nme68", "nme51", "nme68_box", "fr8", "fr10", "auc10"), "1.00 %"),
        }
        page = render_report(context(landmarks=[row], rendered_landmarks=True))
        assert "<h2>Landmarks</h2>" in page
        assert "rendered photos" in page
        assert "<h2>Landmarks</h2>" not in render_report(context())
