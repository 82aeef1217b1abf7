from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.metrics import depth_flatness, depth_moments
from tasks.compare import Result, compare, flatness_difference, row_of, write_comparison

PERSONS = np.repeat(np.arange(20), 2)


def result(
    variant: str, seed: int, error: float, *, slope: float = 0.5, rounds: Any = (), persons: int | None = None
) -> Result:
    generator = np.random.default_rng(7)
    errors = error + generator.normal(0.0, 0.5, len(PERSONS))
    truth = torch.from_numpy(generator.normal(0.0, 3.0, (len(PERSONS), 50)))
    moments = depth_moments(slope * truth, truth).numpy()
    return Result(
        variant=variant,
        title=variant.replace("_", " "),
        seed=seed,
        steps=100,
        seconds=10.0 + seed,
        summary={"vertex_error_mm": float(errors.mean()), "depth_slope": slope, "similarity": None},
        labels={"persons": persons, "noise_mm": 0.0},
        line="three stages" if persons else "",
        rounds=list(rounds),
        moments=moments,
        values={
            "vertex_error_mm": errors,
            "similarity": np.full(len(PERSONS), np.nan),
            "psnr_db": np.full(len(PERSONS), 20.0 + error),
        },
    )


def test_rows_hold_mean_and_spread_over_seeds() -> None:
    row = row_of([result("a", 0, 3.0), result("a", 1, 3.2), result("a", 2, 3.4)])
    numbers = row["numbers"]["vertex_error_mm"]
    assert numbers["deviation"] == pytest.approx(0.2)
    assert numbers["mean"] == pytest.approx(np.mean(numbers["seeds"]))
    assert (row["seeds"], row["seconds"], row["steps"]) == ([0, 1, 2], 11.0, 100.0)
    assert "similarity" not in row["numbers"]
    assert row_of([result("a", 0, 3.0)])["numbers"]["vertex_error_mm"]["deviation"] is None


def test_differences_are_paired() -> None:
    """The same faces are hard for both, so that the interval is far narrower than the spread of errors."""
    found = compare([result("a", 0, 2.9), result("a", 1, 3.0)], [result("b", 0, 3.0), result("b", 1, 3.2)], PERSONS)
    vertex = found["vertex_error_mm"]
    assert vertex["difference"] == pytest.approx(-0.15)
    assert (vertex["low"], vertex["high"]) == pytest.approx((-0.15, -0.15))
    assert vertex["seeds"] == pytest.approx([-0.1, -0.2])
    assert np.isnan(found["similarity"]["difference"])


def test_a_seed_that_the_other_lacks_is_compared_with_its_mean() -> None:
    found = compare([result("a", 5, 3.0)], [result("b", 0, 3.1), result("b", 1, 3.3)], PERSONS)
    assert found["vertex_error_mm"]["seeds"] == pytest.approx([-0.2])


def test_flatness_as_the_metrics_have_it() -> None:
    first, second = result("a", 0, 3.0, slope=0.7), result("b", 0, 3.0, slope=0.4)
    found = flatness_difference([first.moments], [second.moments], PERSONS)
    slopes = [depth_flatness(torch.from_numpy(item.moments))[0] for item in (first, second)]
    assert found["depth_slope"]["difference"] == pytest.approx(slopes[0] - slopes[1])
    assert found["depth_slope"]["low"] == pytest.approx(0.3)
    assert found["depth_correlation"]["difference"] == pytest.approx(0.0, abs=1e-9)


def test_photos_without_a_mesh_do_not_count() -> None:
    first, second = result("a", 0, 3.0, slope=0.7), result("b", 0, 3.0, slope=0.4)
    first.moments[3] = np.nan
    assert flatness_difference([first.moments], [second.moments], PERSONS)["depth_slope"][
        "difference"
    ] == pytest.approx(0.3)


def test_table_and_plot(tmp_path: Path) -> None:
    rounds = [{"round": 0, "similarity": 0.7, "geometry": None, "decision": "start"}]
    results = [
        result("mean_face", 0, 4.0, slope=0.0),
        *(result("self_supervised", seed, 3.2) for seed in (0, 1)),
        *(result("three_stages", seed, 3.0, slope=0.6) for seed in (0, 1)),
        *(result("refusion", seed, 3.0, rounds=rounds) for seed in (0, 1)),
    ]
    paths = write_comparison(
        tmp_path,
        results,
        name="ablation",
        title="What it is worth",
        reference="three_stages",
        headline=("three_stages", "self_supervised"),
        axis=None,
        persons=PERSONS,
        command="mien experiment ablation",
    )
    assert [path.name for path in paths] == ["ablation.json", "ablation.md", "ablation.png"]
    content = json.loads(paths[0].read_text())
    assert [row["name"] for row in content["rows"]] == ["mean_face", "self_supervised", "three_stages", "refusion"]
    assert (content["photos"], content["persons"]) == (40, 20)
    assert "against_reference" not in content["rows"][2]
    assert content["headline"]["vertex_error_mm"]["high"] < 0
    text = paths[1].read_text()
    assert "the interval excludes zero" in text
    assert "`mien experiment ablation`" in text
    assert "Rounds of “refusion”, seed 1" in text
    assert len([line for line in text.splitlines() if line.startswith("| three stages |")]) == 1
    picture = np.asarray(Image.open(paths[2]).convert("L"))
    assert picture.shape[1] > 1000
    assert (picture < 250).mean() > 0.01


def test_a_reference_that_was_not_measured_is_replaced(tmp_path: Path) -> None:
    results = [result("one_to_one", 0, 3.0), result("two_to_one", 0, 3.2)]
    paths = write_comparison(
        tmp_path,
        results,
        name="fusion",
        title="Ratio",
        reference="self_supervised",
        headline=None,
        axis=None,
        persons=PERSONS,
        command="mien experiment fusion",
    )
    content = json.loads(paths[0].read_text())
    assert content["reference"] == "one_to_one"
    assert content["rows"][1]["against_reference"]["vertex_error_mm"]["difference"] == pytest.approx(0.2, abs=0.05)
    assert "against “one to one”" in paths[1].read_text()


def test_groups_of_photos_have_tables_of_their_own(tmp_path: Path) -> None:
    better = result("all", 0, 3.0)
    better.values["vertex_error_mm"][:10] += 1.0
    light, dark = np.arange(40) < 10, np.arange(40) >= 10
    paths = write_comparison(
        tmp_path,
        [result("without", 0, 3.2), better],
        name="priors",
        title="Priors",
        reference="without",
        headline=None,
        axis=None,
        persons=PERSONS,
        command="mien experiment priors",
        photo_groups={"light skin": light, "dark skin": dark, "medium skin": np.zeros(40, dtype=bool)},
    )
    groups = json.loads(paths[0].read_text())["groups"]
    assert {name: group["photos"] for name, group in groups.items()} == {"light skin": 10, "dark skin": 30}
    found = {name: group["rows"][1]["vertex_error_mm"]["difference"] for name, group in groups.items()}
    assert found == pytest.approx({"light skin": 0.8, "dark skin": -0.2})
    assert "difference" not in groups["dark skin"]["rows"][0]["vertex_error_mm"]
    assert "Of dark skin, 30 photos:" in paths[1].read_text()


def test_curves_over_labels(tmp_path: Path) -> None:
    results = [result("self_supervised", seed, 3.2) for seed in (0, 1)]
    for count, error in ((10, 3.15), (50, 3.0)):
        results += [result(f"labels_{count}", seed, error, persons=count) for seed in (0, 1)]
    paths = write_comparison(
        tmp_path,
        results,
        name="labels",
        title="How many it takes",
        reference="self_supervised",
        headline=("labels_50", "self_supervised"),
        axis="persons",
        persons=PERSONS,
        command="mien experiment labels",
    )
    rows = json.loads(paths[0].read_text())["rows"]
    assert [row["labels"]["persons"] for row in rows] == [None, 10, 50]
    assert [row["line"] for row in rows] == ["", "three stages", "three stages"]
    picture = np.asarray(Image.open(paths[2]).convert("RGB")).astype(int)
    assert ((picture[..., 2] - picture[..., 0]) > 60).mean() > 1e-4
