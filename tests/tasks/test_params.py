"""params.yaml: what is refused, and in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.params import ParamsError, load_params, parse_params
from tasks.source_params import detector_only


@pytest.fixture(scope="module")
def default(repository: Path) -> dict[str, Any]:
    return yaml.safe_load((repository / "params.yaml").read_text(encoding="utf-8"))


def with_value(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = json.loads(json.dumps(data))  # YAML's anchors share their values; here each is changed alone
    place: Any = changed
    *parents, last = key.split(".")
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = value
    return changed


def test_the_default_parameters_fit(repository: Path) -> None:
    params = load_params(repository / "params.yaml")
    assert params.project.code == "."
    assert params.face_model.kind == "procedural"
    assert [source.name for source in params.ingest.sources] == ["photos", "scans", "rerendered"]


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("train_fused.stepz", 3, "params.yaml: train_fused.stepz = 3: unknown key; remove it or check its spelling"),
        ("trian_fused", 3, "params.yaml: trian_fused = 3: unknown key; remove it or check its spelling"),
        ("project.seed", -1, "params.yaml: project.seed = -1: expected greater than or equal to 0"),
        ("project.seed", "many", "params.yaml: project.seed = 'many': expected a valid integer"),
        ("project.device", "tpu", "params.yaml: project.device = 'tpu': expected 'auto', 'cpu' or 'cuda'"),
        ("project.crop_size_px", 100, "params.yaml: project.crop_size_px = 100: expected a multiple of 16"),
        ("ingest.test_share", 1.5, "params.yaml: ingest.test_share = 1.5: expected less than or equal to 1"),
        ("ingest.sources.0.persons", 0, "params.yaml: ingest.sources.0.persons = 0: expected greater than 0"),
        ("ingest.sources.0.person", 5, "params.yaml: ingest.sources.0.person = 5: unknown key"),
        ("ingest.sources.1.name", "photos", "source names repeat: photos, photos"),
        ("ingest.sources.2.of", "photos", "source rerendered: of = 'photos' is not a labelled source"),
        ("ingest.sources.1.face_model", {"kind": "procedural"}, "labelled meshes must have the workspace's topology"),
        ("ingest.sources.0.face_model", {"kind": "ict"}, "ingest.sources.0.face_model: kind ict needs a path"),
        ("ingest.sources.0.backgrounds", "scans", "backgrounds need randomization: strong; set it"),
        ("ingest.sources.0.randomization", "weak", "sources.0.randomization = 'weak': expected 'plain' or 'strong'"),
        ("ingest.validation_share", 0.9, "validation_share and test_share leave nothing to train on"),
        ("face_model.path", "model.npz", "kind procedural is made by code and takes no path; set kind, or remove path"),
        ("face_model.path", 3, "params.yaml: face_model.path = 3: expected a path"),
        ("face_model.landmarks", "points.txt", "kind procedural is made by code and takes no landmarks"),
        ("face_model.region", "face", "kind procedural has no regions, only ict; remove region"),
        ("face_model.kind", "flame", "kind flame needs a path"),
        (
            "face_model.kind",
            "bfm",
            "params.yaml: face_model.kind = 'bfm': expected 'procedural', 'npz', 'ict', 'basel'",
        ),
        ("train_fused.sources.0.share", 0.9, "the shares of the sources add up to 1.4, expected 1"),
        ("train_fused.sources.0.losses.phota", 1.0, "loss 'phota' is unknown, expected one of photo, landmark"),
        (
            "train_fused.sources.0.losses.vertex",
            1.0,
            "loss 'vertex' needs labelled meshes, which source 'photos' lacks",
        ),
        ("train_fused.sources.0.photos_per_person", 0, "params.yaml: train_fused.sources.0.photos_per_person = 0"),
        (
            "ingest.sources.0.photos_per_person",
            1,
            "loss 'separation' needs several photos of a person, who is known, which source 'photos' lacks",
        ),
        ("train_fused.sources.0.source", "photo", "source 'photo' is not ingested, expected one of photos, scans"),
        ("train_fused.init", "ingest", "params.yaml: train_fused.init = 'ingest': expected 'train_geometry'"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(
    default: dict[str, Any], key: str, value: Any, line: str
) -> None:
    with pytest.raises(ParamsError) as error:
        parse_params(with_value(default, key, value))
    assert line in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_source_of_another_face_model_teaches_the_detector_only(default: dict[str, Any]) -> None:
    other = {"kind": "synthetic", "name": "other", "persons": 3, "face_model": {"kind": "procedural"}}
    more = with_value(default, "ingest.sources", [*default["ingest"]["sources"], other])
    params = parse_params(more)
    assert [detector_only(source) for source in params.ingest.sources] == [False, False, False, True]
    with pytest.raises(ParamsError) as error:
        parse_params(with_value(more, "train_fused.sources.0.source", "other"))
    assert str(error.value).startswith("params.yaml: (top level): train_fused.sources: source 'other' has a face model")
    assert len(str(error.value).splitlines()) == 1


def test_backgrounds_come_from_photos(default: dict[str, Any]) -> None:
    strong = {"kind": "synthetic", "name": "strong", "persons": 3, "randomization": "strong", "backgrounds": "album"}
    album = {"kind": "photos", "name": "album", "path": "album"}
    sources = default["ingest"]["sources"]
    with pytest.raises(ParamsError, match="source strong: backgrounds = 'album' is not a source of kind photos"):
        parse_params(with_value(default, "ingest.sources", [*sources, strong]))
    params = parse_params(with_value(default, "ingest.sources", [*sources, strong, album]))
    assert params.ingest.sources[3].backgrounds == "album"


def test_every_fault_has_its_line(default: dict[str, Any]) -> None:
    wrong = with_value(with_value(default, "project.seed", -1), "evaluate.colour", "red")
    with pytest.raises(ParamsError) as error:
        parse_params(wrong)
    assert [line.split(" = ")[0] for line in str(error.value).splitlines()] == [
        "params.yaml: project.seed",
        "params.yaml: evaluate.colour",
    ]


def test_a_section_that_must_be_there(default: dict[str, Any]) -> None:
    with pytest.raises(ParamsError, match=r"^params\.yaml: ingest: missing, expected a value$"):
        parse_params({name: section for name, section in default.items() if name != "ingest"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("project: [", r"params\.yaml: not valid YAML in line \d; check indentation and brackets"),
        ("", r"params\.yaml"),
        ("- a", r"params\.yaml"),
    ],
)
def test_a_file_that_is_no_params_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=message) as error:
        load_params(tmp_path / "params.yaml")
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"no such file; run in a Mien workspace or name one with --workspace"):
        load_params(tmp_path / "params.yaml")


def test_sections_are_frozen(default: dict[str, Any]) -> None:
    params = parse_params(default)
    with pytest.raises(ValidationError, match="frozen"):
        params.project.seed = 1  # type: ignore[misc]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_anything_else_is_refused_in_words(data: Any) -> None:
    with pytest.raises(ParamsError):
        parse_params(data)
