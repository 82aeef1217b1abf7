from __future__ import annotations

import pytest
import torch

from tasks.face_reader import chosen_device


def test_the_processor_is_always_there() -> None:
    assert chosen_device("cpu") == "cpu"
    assert chosen_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "gpu"])
def test_devices_that_are_not_there_are_named(name: str) -> None:
    if name != "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match=rf"^--device {name}: cannot be used here \(.+\); give cpu, cuda or auto$"):
        chosen_device(name)
