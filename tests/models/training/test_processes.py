from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as distributed
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models.training.processes import (
    SynchronizedBatchNorm,
    add_gradients,
    build_fabric,
    portions,
    synchronized_batch_norm,
)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of this process alone; `tests/tasks/test_train.py` has one of two."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_process_alone_has_a_plain_fabric() -> None:
    fabric = build_fabric(device="cpu", precision="32-true")
    assert (fabric.world_size, fabric.is_global_zero) == (1, True)
    assert not distributed.is_initialized()


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    processes=st.integers(1, 4),
    accumulate=st.integers(1, 3),
)
def test_portions_cover_every_face_once_and_evenly(counts: list[int], processes: int, accumulate: int) -> None:
    named = {f"source{place}": count for place, count in enumerate(counts)}
    if sum(counts) < processes * accumulate:
        with pytest.raises(ValueError, match="expected at least one face for each"):
            portions(named, rank=0, processes=processes, accumulate=accumulate)
        return
    passes = [
        part
        for rank in range(processes)
        for part in portions(named, rank=rank, processes=processes, accumulate=accumulate)
    ]
    assert len(passes) == processes * accumulate
    for name, count in named.items():
        assert [place for part in passes for place in range(count)[part[name]]] == list(range(count))
    sizes = [sum(part[name].stop - part[name].start for name in named) for part in passes]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@pytest.mark.usefixtures("one_process")
def test_synchronized_statistics_of_one_process_are_the_usual_ones() -> None:
    torch.manual_seed(0)
    usual, own = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    with torch.no_grad():
        usual.weight.uniform_(0.5, 2.0)
        usual.bias.uniform_(-1.0, 1.0)
    own.load_state_dict(usual.state_dict())
    inputs = [torch.randn(4, 3, 5, 6).mul_(3.0).add_(7.0).requires_grad_() for _ in range(2)]
    inputs[1] = inputs[0].detach().clone().requires_grad_()
    weights = torch.randn(4, 3, 5, 6)
    with synchronized_batch_norm(nn.Sequential(own), enabled=True):
        assert type(own) is SynchronizedBatchNorm
        found = own(inputs[1])
        (found * weights).sum().backward()
    expected = usual(inputs[0])
    (expected * weights).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(own.weight.grad, usual.weight.grad, rtol=1e-4, atol=1e-4)
    for name, value in usual.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value)
    assert type(own) is nn.BatchNorm2d
    own.eval()
    usual.eval()
    torch.testing.assert_close(own(inputs[1]), usual(inputs[0]))


@pytest.mark.usefixtures("one_process")
def test_gradients_are_added_and_absent_ones_stay_absent() -> None:
    layers = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(3, 1, bias=False)])
    layers[0](torch.ones(1, 2)).sum().backward()
    total = add_gradients(list(layers.parameters()), torch.tensor([2.0, 5.0]))
    assert total.tolist() == [2.0, 5.0]
    assert layers[0].weight.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert layers[1].weight.grad is None


def test_layers_are_left_alone_where_one_process_trains() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2))
    with synchronized_batch_norm(network, enabled=False):
        assert type(network[0]) is nn.BatchNorm2d
