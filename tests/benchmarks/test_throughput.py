from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import throughput
from benchmarks.throughput import PARTS, ApartStep, Stopwatch, _forward, main, missed_aims, with_backbone
from tasks.artifacts import Workspace
from tasks.train import load_trainee
from tasks.training_step import Trainee, build_step
from tests.tiny_face import tiny_face
from tests.tiny_workspace import LABELLED, UNLABELLED, tiny_params, tiny_workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return tiny_workspace(tmp_path, tiny_face())


@pytest.fixture
def trainee(workspace: Workspace) -> Trainee:
    checkpoint = workspace.folder("train_geometry") / "checkpoint.pt"
    return load_trainee(tiny_params(), workspace, checkpoint, sources=["photos", "scans"])


def test_a_step_taken_apart_has_the_gradients_of_a_whole_one(trainee: Trainee) -> None:
    encoder = trainee.reconstructor.encoder.eval()
    nn.init.normal_(encoder.correction.weight, std=0.01)
    load, loss = build_step(trainee, {"photos": UNLABELLED, "scans": LABELLED}, {"photos": 3, "scans": 2})
    wrapped = trainee.fabric.setup(encoder)
    (batches,) = load(throughput.seeded(0, 0))
    trainee.fabric.backward(loss(wrapped, batches)[0])
    expected = {name: value.grad.clone() for name, value in encoder.named_parameters() if value.grad is not None}
    encoder.zero_grad()
    watch = Stopwatch(torch.device("cpu"))
    apart = ApartStep(trainee.fabric, wrapped, watch)
    apart.backward(_forward(apart, loss, batches))
    found = {name: value.grad for name, value in encoder.named_parameters() if value.grad is not None}
    assert len(expected) > 10
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6)
    assert all(watch.seconds[name] > 0 for name in ("network_forward", "network_backward", "render", "losses"))


def test_a_row_for_every_stage(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = tiny_params().model_dump_json()
    (workspace.root / "params.yaml").write_text(params)
    main(json_file=tmp_path / "rows.json", workspace=workspace.root, steps=2)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["stage"] for row in rows] == list(throughput.STAGES)
    for row in rows:
        assert sum(row["shares"].values()) == pytest.approx(1.0, abs=1e-3)
        assert set(row["shares"]) == set(PARTS)
        assert row["photos_per_second"] > 0
    assert "train fused" in capsys.readouterr().out.replace("_", " ")


def test_another_image_branch_sees_enlarged_crops(trainee: Trainee) -> None:
    larger = with_backbone(trainee, backbone="resnet-18", size_px=64)
    assert larger.crops.images.shape[1:] == (3, 64, 64)
    assert set(larger.crops.source) == {"photos", "scans"}
    where = larger.crops.sample_ids.index(trainee.crops.sample_ids[0])
    torch.testing.assert_close(larger.crops.landmarks[where], 2 * trainee.crops.landmarks[0])
    mapped = larger.crops.affine[where] @ torch.tensor([64.0, 64.0, 1.0])
    torch.testing.assert_close(mapped, trainee.crops.affine[0] @ torch.tensor([32.0, 32.0, 1.0]))
    assert larger.reconstructor.settings.backbone == "resnet-18"
    assert with_backbone(trainee, backbone="resnet-slim", size_px=32) is trainee


def test_parts_that_take_too_much_are_named() -> None:
    shares = dict.fromkeys(PARTS, 0.0) | {"network_backward": 0.6, "render": 0.3, "losses": 0.1}
    assert missed_aims([{"stage": "train_fused", "shares": shares}]) == [
        "train_fused: render takes 30% of a step, aim 25%"
    ]
