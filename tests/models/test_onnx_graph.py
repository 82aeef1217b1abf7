"""Graphs that are written, opened and compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.onnx_graph import check_graph, open_session, write_graph


class Sum(nn.Module):
    """The weighted sum of an image's pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.weight * image.sum((1, 2)),)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sum, Path]:
    graph, path = Sum().eval(), tmp_path_factory.mktemp("graph") / "sum.onnx"
    sides = {1: torch.export.Dim("rows"), 2: torch.export.Dim("columns")}
    write_graph(
        graph,
        (torch.rand(2, 4, 6),),
        path,
        inputs=("image",),
        outputs=("sum",),
        metadata={"of": "a test"},
        dynamic={0: "batch", **sides},
    )
    return graph, path


def test_every_extent_may_change(written: tuple[Sum, Path]) -> None:
    graph, path = written
    assert check_graph(graph, (torch.rand(5, 3, 9),), path, inputs=("image",), outputs=("sum",)) < 1e-5
    assert open_session(path, threads=1).get_modelmeta().custom_metadata_map["of"] == "a test"


def test_another_network_is_refused(written: tuple[Sum, Path]) -> None:
    other = Sum()
    with torch.no_grad():
        other.weight.fill_(3.0)
    with pytest.raises(ValueError, match=r"sum.onnx: output sum differs from the network by 0.33 of its range"):
        check_graph(other, (torch.rand(2, 4, 6),), written[1], inputs=("image",), outputs=("sum",))


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(ValueError, match=r"text\.onnx: not a graph that onnxruntime runs"):
        open_session(tmp_path / "text.onnx")
