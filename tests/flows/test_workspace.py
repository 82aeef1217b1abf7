"""Workspaces: parameters from presets and settings, and a graph that watches the input folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.workspace import (
    CODE,
    allow_without_git,
    changed,
    create_workspace,
    merged,
    preset_names,
    preset_path,
    read_yaml,
    refresh_graph,
)
from tasks.params import ParamsError, load_params


def test_merging_replaces_lists_and_keeps_the_rest() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 2}
    assert merged(base, {"a": {"y": [3]}, "c": None}) == {"a": {"x": 1, "y": [3]}, "b": 2, "c": None}
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 2}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("a.x=3", {"a": {"x": 3}, "s": [{"name": "one", "n": 1}, {"source": "two", "n": 2}]}),
        ("s.two.n=5", {"a": {"x": 1}, "s": [{"name": "one", "n": 1}, {"source": "two", "n": 5}]}),
        ("s.0.n=1.5e-3", {"a": {"x": 1}, "s": [{"name": "one", "n": 1.5e-3}, {"source": "two", "n": 2}]}),
        ("a.x=", {"a": {"x": None}, "s": [{"name": "one", "n": 1}, {"source": "two", "n": 2}]}),
    ],
)
def test_a_setting_changes_one_value(setting: str, expected: dict[str, Any]) -> None:
    data = {"a": {"x": 1}, "s": [{"name": "one", "n": 1}, {"source": "two", "n": 2}]}
    assert changed(data, setting) == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("a.x", "expected key=value"),
        ("b.x=1", "'b' is not among a, s"),
        ("s.three.n=1", "'three' is not among one"),
        ("a.x.y=1", "nothing below 1"),
        ("a.x={", "not valid YAML"),
    ],
)
def test_a_setting_that_leads_nowhere_is_refused(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed({"a": {"x": 1}, "s": [{"name": "one", "n": 1}]}, setting)


def test_paths_count_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert changed({"a": {"path": None}}, "a.path=photos") == {"a": {"path": str(tmp_path / "photos")}}


def test_real_input_is_watched_by_the_graph(tmp_path: Path) -> None:
    settings = ["ingest.sources.portraits.path=/data/faces", "face_model.path=/data/model.npz", "project.seed=7"]
    settings += ["face_model.landmarks=/data/points.txt"]
    create_workspace(tmp_path / "w", preset=preset_path("portraits"), settings=settings)
    params = load_params(tmp_path / "w" / "params.yaml")
    stages = read_yaml(tmp_path / "w" / "dvc.yaml")["stages"]
    assert params.project.seed == 7
    assert Path(params.project.code) == CODE
    assert params.detect_landmarks.detector == "provided"
    assert "/data/faces" in stages["ingest"]["deps"]
    assert all({"/data/model.npz", "/data/points.txt"} <= set(stage["deps"]) for stage in stages.values())
    assert stages["evaluate"]["cmd"] == "python -m flows evaluate"


def test_recorded_speech_is_watched_by_the_graph(tmp_path: Path) -> None:
    paths = {"path": "/data/takes", "mapping": "/data/shapes.csv"}
    settings = [f"ingest_speech.sources.facegood.{key}={path}" for key, path in paths.items()]
    create_workspace(tmp_path / "w", preset=preset_path("facegood"), settings=settings)
    deps = read_yaml(tmp_path / "w" / "dvc.yaml")["stages"]["ingest_speech"]["deps"]
    assert set(paths.values()) <= set(deps)
    assert not [name for name in deps if name.startswith("artifacts/")]


def test_films_depend_on_who_reads_them(tmp_path: Path) -> None:
    sources = "[{kind: video, name: films, path: /data/films}]"
    create_workspace(tmp_path / "w", preset=preset_path("smoke"), settings=[f"ingest_speech.sources={sources}"])
    deps = read_yaml(tmp_path / "w" / "dvc.yaml")["stages"]["ingest_speech"]["deps"]
    assert {"/data/films", "artifacts/refusion/checkpoint.pt", "artifacts/train_detector"} <= set(deps)


def test_code_is_watched_file_by_file_without_caches(tmp_path: Path) -> None:
    create_workspace(tmp_path / "w", preset=preset_path("smoke"))
    deps = read_yaml(tmp_path / "w" / "dvc.yaml")["stages"]["ingest"]["deps"]
    assert "${project.code}/models/face/camera.py" in deps
    assert "${project.code}/models/face" not in deps
    assert not [name for name in deps if "__pycache__" in name]


def test_the_graph_follows_the_parameters_of_the_workspace(tmp_path: Path) -> None:
    create_workspace(tmp_path / "w", preset=preset_path("smoke"))
    params = tmp_path / "w" / "params.yaml"
    data = read_yaml(params)
    data["ingest"]["sources"].append({"kind": "photos", "name": "more", "path": "/data/more"})
    params.write_text(yaml.safe_dump(data))
    refresh_graph(tmp_path / "w")
    assert read_yaml(tmp_path / "w" / "dvc.yaml")["stages"]["ingest"]["deps"][-1] == "/data/more"


def test_the_graph_of_the_checkout_is_nobodys_copy(repository: Path) -> None:
    before = (repository / "dvc.yaml").read_bytes()
    refresh_graph(repository)
    assert (repository / "dvc.yaml").read_bytes() == before


def test_a_preset_without_its_paths_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="face_model: kind npz needs a path"):
        create_workspace(tmp_path / "w", preset=preset_path("portraits"))
    assert not (tmp_path / "w").exists()


def test_a_workspace_is_not_overwritten(tmp_path: Path) -> None:
    create_workspace(tmp_path / "w", preset=preset_path("smoke"))
    with pytest.raises(ValueError, match="is a workspace already"):
        create_workspace(tmp_path / "w", preset=preset_path("smoke"), settings=["project.seed=1"])


def test_an_unknown_preset_names_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such preset; there are facegood, landmarks, portraits, smoke"):
        create_workspace(tmp_path / "w", preset=preset_path("nope"))


def test_without_a_preset_the_parameters_are_those_of_the_default_run(tmp_path: Path) -> None:
    create_workspace(tmp_path / "w", settings=["face_model.identity_modes=12"])
    own, default = (load_params(path / "params.yaml") for path in (tmp_path / "w", CODE))
    assert own.face_model.identity_modes == 12
    assert own.model_copy(update={"face_model": default.face_model, "project": default.project}) == default
    assert "from params.yaml;" in (tmp_path / "w" / "params.yaml").read_text().splitlines()[0]


def test_presets_are_laid_over_each_other(tmp_path: Path) -> None:
    model = ["face_model.path=m.npz", "ingest.sources.heads.face_model.path=h.npz"]
    create_workspace(
        tmp_path / "w",
        preset=preset_path("portraits"),
        further=[preset_path("landmarks")],
        settings=["ingest.sources.portraits.path=photos", *model],
    )
    params = load_params(tmp_path / "w" / "params.yaml")
    assert params.detect_landmarks.detector == "hierarchical"
    assert params.train_self_supervised.sources[0].source == "portraits"
    graph = yaml.safe_load((tmp_path / "w" / "dvc.yaml").read_text())["stages"]
    # The graph notices when the head that only the detector sees changes.
    assert str(Path("h.npz").resolve()) in graph["ingest"]["deps"]


@pytest.mark.parametrize("text", ["a: [", "- 1"])
def test_a_preset_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"p\.yaml: (not valid YAML|holds a list)"):
        create_workspace(tmp_path / "w", preset=tmp_path / "p.yaml")


def test_every_preset_is_documented_by_its_name() -> None:
    assert preset_names() == ["facegood", "landmarks", "portraits", "smoke"]


def test_an_unpacked_archive_works_without_git(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    allow_without_git(tmp_path)
    assert "no_scm = true" in (tmp_path / ".dvc" / "config.local").read_text()


def test_a_checkout_keeps_git(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".git").mkdir()
    allow_without_git(tmp_path)
    assert not (tmp_path / ".dvc" / "config.local").exists()


def test_the_template_of_curves_is_found_from_any_workspace(tmp_path: Path) -> None:
    create_workspace(tmp_path / "w", preset=preset_path("smoke"))
    plots = read_yaml(tmp_path / "w" / "dvc.yaml")["plots"]
    templates = {options["template"] for plot in plots if isinstance(plot, dict) for options in plot.values()}
    (template,) = templates
    content = json.loads(Path(template).read_text(encoding="utf-8"))
    assert content["data"] == {"values": "<DVC_METRIC_DATA>"}
    # Every term has a scale of its own, and commits are told apart.
    assert content["resolve"]["scale"]["y"] == "independent"
    assert content["spec"]["encoding"]["color"]["field"] == "rev"
