from __future__ import annotations

import threading
from contextlib import closing

import pytest
import torch
from torch import Generator

from models.training.loading import AHEAD, BatchLoader, seeded


def test_batches_come_in_order_with_the_generators_of_their_steps() -> None:
    def load(generator: Generator) -> list[float]:
        return [float(torch.rand(1, generator=generator))]

    with closing(BatchLoader(load, seed=3, start=5, stop=12)) as loader:
        found = [batch[0] for batch in loader]
    assert found == [float(torch.rand(1, generator=seeded(3, step))) for step in range(5, 12)]


def test_only_a_few_steps_are_prepared_in_advance() -> None:
    ready, loaded = threading.Semaphore(0), []

    def load(generator: Generator) -> list[int]:
        loaded.append(threading.get_ident())
        ready.release()
        return [len(loaded)]

    with closing(BatchLoader(load, seed=0, start=0, stop=100)) as loader:
        for taken in range(1, 4):
            assert next(loader) == [taken]
            for _ in range(AHEAD if taken == 1 else 1):
                ready.acquire()
    assert len(loaded) <= 3 + AHEAD
    assert threading.get_ident() not in loaded


def test_gradients_are_off_while_loading() -> None:
    with closing(BatchLoader(lambda generator: [torch.is_grad_enabled()], seed=0, start=0, stop=1)) as loader:
        assert next(loader) == [False]
    assert torch.is_grad_enabled()


def test_an_error_in_loading_reaches_the_step_that_needs_it() -> None:
    def load(generator: Generator) -> list[float]:
        if generator.initial_seed() == 2:
            raise ValueError("sample x has no mesh")
        return [0.0]

    with closing(BatchLoader(load, seed=0, start=0, stop=5)) as loader:
        next(loader)
        next(loader)
        with pytest.raises(ValueError, match="sample x has no mesh"):
            next(loader)


def test_waiting_is_measured_and_an_end_is_an_end() -> None:
    gate = threading.Event()
    threading.Timer(0.2, gate.set).start()
    with closing(BatchLoader(lambda generator: [gate.wait()], seed=0, start=0, stop=1)) as loader:
        assert next(loader) == [True]
        assert loader.waiting_seconds > 0.05
        with pytest.raises(StopIteration):
            next(loader)
