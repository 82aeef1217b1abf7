"""The commands `mien experiment …` on a workspace of two dozen crops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer.testing
import yaml

from flows import cli
from tasks.artifacts import Workspace
from tests.tiny_face import tiny_face
from tests.tiny_workspace import split_off_test, tiny_params, tiny_workspace


def invoke(*arguments: str) -> tuple[int, str]:
    result = typer.testing.CliRunner().invoke(cli.app, ["experiment", *arguments])
    return result.exit_code, result.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "workspace"
    root.mkdir()
    split_off_test(tiny_workspace(root, tiny_face()))
    content = tiny_params().model_dump(mode="json", by_alias=True)
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    return root


def test_a_dry_run_says_what_would_be_done(folder: Path) -> None:
    code, text = invoke("ablation", "--workspace", str(folder), "--seeds", "2", "--dry-run", "--steps-factor", "0.5")
    assert code == 0
    assert "without_L3" in text
    assert "train_self_supervised 3 + train_supervised 3 + train_fused 3" in text
    # Three baselines, and ten variants with two seeds.
    assert "13 variants, 23 runs" in text
    assert not (folder / ".mien" / "experiments").exists()


def test_the_image_alone_is_another_experiment(folder: Path) -> None:
    code, text = invoke("ablation", "--workspace", str(folder), "--image-only", "--dry-run")
    assert code == 0
    assert "results in" in text
    assert "ablation_image_only" in text.replace("\n", "")
    assert not [line for line in text.splitlines() if line.startswith("geometry")]


def test_label_counts_stop_at_what_there_is(folder: Path) -> None:
    code, text = invoke("labels", "--workspace", str(folder), "--counts", "2", "--counts", "500", "--dry-run")
    assert code == 0
    assert "labels_2 " in text
    assert "labels_9 " in text
    assert "labels_500" not in text


def test_fusion_lists_ratios_and_noise(folder: Path) -> None:
    code, text = invoke("fusion", "--workspace", str(folder), "--noise", "3", "--dry-run")
    assert code == 0
    assert all(f"ratio_{ratio}_1_noise_3" in text for ratio in (1, 2, 3))


def test_an_experiment_from_the_command_line(folder: Path) -> None:
    code, text = invoke(
        *("ablation", "--workspace", str(folder), "--seeds", "1", "--set", "train_fused.learning_rate=0.002"),
        *("--variants", "three_stages", "--variants", "self_supervised"),
    )
    assert code == 0, text
    out = folder / ".mien" / "experiments" / "ablation"
    content = json.loads((out / "ablation.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["self_supervised", "three_stages"]
    assert content["headline"]["sentence"] in text
    noted = json.loads((out / "mlflow.json").read_text())
    assert noted["tracking_uri"].startswith("sqlite:///")
    assert not Workspace(folder).folder("train_fused").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--variants", "without_L7"],
            "--variants without_L7: no such variant, expected one of mean_face, optimised, geom",
        ),
        (["--set", "train_fused.step=3"], "train_fused.step"),
    ],
)
def test_wrong_options_are_one_line(folder: Path, arguments: list[str], message: str) -> None:
    code, text = invoke("ablation", "--workspace", str(folder), "--dry-run", *arguments)
    assert code == 2
    assert message in text
    assert len(text.strip().splitlines()) == 1


def test_a_folder_that_is_no_workspace(tmp_path: Path) -> None:
    code, text = invoke("ablation", "--workspace", str(tmp_path))
    assert code == 2
    assert text.strip() == (
        f"error: {tmp_path}/params.yaml: no such file; run in a Mien workspace or name one with --workspace"
    )
