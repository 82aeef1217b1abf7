"""Charts: they are drawn from what is there, and left out where nothing is."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.charts import by_part, colour_bar, error_distribution, gains, read_curve, training_curves

TITLES = {"mean_face": "mean face", "refusion": "re-fused"}


def size(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content)) as image:
        return image.size


def write_curve(path: Path, rows: list[tuple[int, str, str, float]]) -> Path:
    path.write_text("step,split,name,value\n" + "\n".join(",".join(map(str, row)) for row in rows) + "\n")
    return path


def test_a_curve_is_read_by_split_and_name(tmp_path: Path) -> None:
    path = write_curve(
        tmp_path / "curve.csv", [(0, "train", "loss", 2.0), (1, "train", "loss", 1.5), (1, "validation", "loss", 1.8)]
    )
    curves = read_curve(path)
    assert set(curves) == {"train", "validation"}
    steps, values = curves["train"]["loss"]
    assert (steps.tolist(), values.tolist()) == ([0.0, 1.0], [2.0, 1.5])


def test_a_broken_curve_names_the_file(tmp_path: Path) -> None:
    path = write_curve(tmp_path / "curve.csv", [(0, "train", "loss", "many")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"curve.csv.*expected step, split, name, value"):
        read_curve(path)


def test_training_curves_are_a_picture_or_nothing(tmp_path: Path) -> None:
    path = write_curve(tmp_path / "curve.csv", [(step, "train", "loss", 100.0 / (1 + step)) for step in range(50)])
    full = training_curves(path)
    assert full is not None
    assert size(full)[0] > 800
    assert training_curves(tmp_path / "missing.csv") is None
    path.write_text("step,split,name,value\n")
    assert training_curves(path) is None


def test_curves_of_other_names_are_drawn_where_no_telling_one_is(tmp_path: Path) -> None:
    path = write_curve(tmp_path / "curve.csv", [(step, "train", f"term{step % 9}", 1.0 + step) for step in range(40)])
    other = training_curves(path)
    assert other is not None
    telling = write_curve(tmp_path / "other.csv", [(0, "train", "loss", 1.0), (0, "train", "term0", 1.0)])
    only = training_curves(telling)
    assert only is not None
    # Four charts leave less white than the one that is worth it.
    assert np.asarray(Image.open(io.BytesIO(other))).mean() < np.asarray(Image.open(io.BytesIO(only))).mean()


def test_the_distribution_needs_a_scan() -> None:
    errors = np.random.default_rng(0).gamma(2.0, 0.5, 500)
    assert size(error_distribution({"mean_face": errors, "refusion": errors[:0]}, TITLES) or b"")[0] > 500
    assert error_distribution({"mean_face": errors[:0]}, TITLES) is None


def test_yaw_bars_skip_what_nobody_measured() -> None:
    measures = {"landmark_nme": ("NME", 100.0), "scan_error_mm_median": ("scan", 1.0)}
    block = {"by_yaw": {"0-30": {"landmark_nme": 0.02, "scan_error_mm_median": None},
                        "30-60": {"landmark_nme": None, "scan_error_mm_median": None}}}  # fmt: skip
    one = by_part({"mean_face": block, "refusion": block}, "by_yaw", measures, TITLES, str)
    block = {"by_yaw": {"0-30": {"landmark_nme": 0.02, "scan_error_mm_median": 1.0}}}
    two = by_part({"mean_face": block, "refusion": block}, "by_yaw", measures, TITLES, str)
    assert one is not None
    assert two is not None
    assert size(two)[0] == pytest.approx(2 * size(one)[0], abs=2)
    nothing = {"by_yaw": {"0-30": {"landmark_nme": None, "scan_error_mm_median": None}}}
    assert by_part({"refusion": nothing}, "by_yaw", measures, TITLES, str) is None


def test_gains_are_drawn_for_all_but_the_mean_face() -> None:
    measures = {"landmark_nme": ("NME", 100.0), "similarity": ("similarity", 1.0)}
    known = {"landmark_nme": -0.01, "landmark_nme_low": -0.02, "landmark_nme_high": -0.005, "similarity": None}
    one = gains({"mean_face": {}, "refusion": {"versus_mean_face": known}}, measures, TITLES)
    two = gains({"mean_face": {}, "refusion": {"versus_mean_face": known | {"similarity": 0.1}}}, measures, TITLES)
    assert one is not None
    assert two is not None
    assert size(two)[0] > size(one)[0] + 200
    assert gains({"mean_face": {"versus_mean_face": known}}, measures, TITLES) is None


def test_charts_are_the_same_every_time() -> None:
    assert colour_bar([[0, 0, 0], [1, 1, 1]], limit_mm=4) == colour_bar([[0, 0, 0], [1, 1, 1]], limit_mm=4)
