"""Networks as ONNX files: writing one, running it, and the proof that it computes the same."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import config
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnxruntime

TOLERANCE = 1e-3
"""Largest difference between an exported graph and its network, relative to the largest number of that output."""

BATCH_ONLY = {0: "batch"}
"""An input of which only the number of rows may change."""


def write_graph(
    graph: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    metadata: Mapping[str, str] | None = None,
    dynamic: Mapping[int, Any] | None = None,
) -> None:
    """Write a network as one file.

    `dynamic`: names (or `torch.export.Dim`) of the axes of every input whose extent may change, by default the first.
    """
    logger = logging.getLogger("torch.onnx")
    level, unchecked = logger.level, config.jaxtyping_disable
    logger.setLevel(logging.ERROR)
    # While tests check types: the batch size is a symbol here, and no int.
    config.update("jaxtyping_disable", True)
    try:
        with warnings.catch_warnings():
            # The exporter warns of its own inner workings and of packages that it looks for and does not need.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                example,
                dynamo=True,
                # The runtime optimises when it loads; doing it here as well takes as long as the rest.
                optimize=False,
                verbose=False,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple(dict(dynamic or BATCH_ONLY) for _ in example),
            )
            assert program is not None
            program.model.metadata_props.update(metadata or {})
            program.save(path, external_data=False)
    finally:
        logger.setLevel(level)
        config.update("jaxtyping_disable", unchecked)


def open_session(path: Path, *, threads: int = 0) -> onnxruntime.InferenceSession:
    """A graph ready to run on the processor; 0 threads: as many as there are cores.

    Raises: ValueError if the file is no graph that can be run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Threads that wait by spinning take the cores from whatever runs between two calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime has kinds of its own, which share no other base
        raise ValueError(f"{path}: not a graph that onnxruntime runs ({type(error).__name__}); export again") from None


def check_graph(
    graph: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    tolerance: float = TOLERANCE,
) -> float:
    """Largest relative difference between a written graph and its network.

    Raises: ValueError if it exceeds the tolerance.
    """
    session = open_session(path)
    found = session.run(list(outputs), {name: value.numpy() for name, value in zip(inputs, example, strict=True)})
    with torch.no_grad():
        expected = graph(*example)
    worst = 0.0
    for name, exported, computed in zip(outputs, found, expected, strict=True):
        reference = computed.numpy()
        scale = max(float(np.abs(reference).max(initial=0.0)), 1e-6)
        difference = float(np.abs(exported - reference).max(initial=0.0)) / scale
        if not difference <= tolerance:
            raise ValueError(
                f"{path.name}: output {name} differs from the network by {difference:.2g} of its range, "
                f"expected at most {tolerance:g}; check the versions of torch and onnxruntime"
            )
        worst = max(worst, difference)
    return worst
