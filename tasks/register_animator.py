"""The animator in MLflow's registry: a new version as `challenger`, and its promotion if it deserves it.

A version holds a graph and one file of Python that run anywhere (tasks/served_animator.py), and the checkpoint from
which `mien animate` builds the network again.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.animation.animator_export import export_animator
from models.animation.clip import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from models.animation.log_mel import mel_weights
from models.face.procedural_expressions import ARKIT_NAMES
from tasks.animator_checkpoint import open_animator
from tasks.animator_data import LOG_MEL, PreparedClip
from tasks.artifacts import Workspace, load_checkpoint, write_json
from tasks.params import Params
from tasks.promotion import ANIMATOR_POLICY_PATH, CHAMPION, load_policy
from tasks.provenance import trace
from tasks.registry import CHALLENGER, enter, find_version, keep_sources
from tasks.tracking import TrackedRun, finite, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["CHECKPOINT_FILE", "find_version", "register_animator", "write_package"]

SERVED_ANIMATOR = Path(__file__).with_name("served_animator.py")
REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas")

CHECKPOINT_FILE, GRAPH_FILE, SETTINGS_FILE, FILTERS_FILE = (
    "animator.pt",
    "animator.onnx",
    "settings.json",
    "filters.npy",
)
MAX_SERVED_S = 120.0
"""The graph computes all of a recording at once, in memory that grows with the square."""


def register_animator(
    params: Params,
    workspace: Workspace,
    run: TrackedRun,
    metrics: Mapping[str, Any],
    test: Sequence[PreparedClip],
) -> dict[str, Any]:
    """Register the trained animator, judge it, make it `champion` if it passes; returns what became of it.

    Raises: ParamsError, ValueError or FileNotFoundError with a one-line remedy.
    """
    policy = load_policy(ANIMATOR_POLICY_PATH)
    test_set = fingerprint_of_clips(test, metrics)
    name = params.evaluate_animator.model_name
    content = load_checkpoint(workspace.folder("train_animator") / "checkpoint.pt")
    provenance = trace(workspace, ["train_animator"], checkpoints=[content])
    with tempfile.TemporaryDirectory() as scratch:
        deviation = write_package(Path(scratch) / "files", params, workspace)
        sources = keep_sources(Path(scratch), workspace, provenance)
        run.artifact(sources, sources.name)
        version = _new_version(Path(scratch), name, run)
    tags = {"test_set": test_set, "encoder": params.train_animator.encoder}
    tags |= {f"animator.{key}": f"{value:.5g}" for key, value in finite(_flat(metrics["animator"])).items()}
    decision = enter(
        run.client,
        name,
        str(version.version),
        metrics=metrics,
        policy=policy,
        provenance=provenance,
        tags=tags,
        promote=params.register.promote == "at_once",
    )
    alias = CHAMPION if decision.promoted else CHALLENGER
    return {
        "model": name,
        "version": decision.version,
        "alias": alias,
        "uri": f"models:/{name}@{alias}",
        "tracking_uri": tracking_uri(params, workspace),
        "champion_before": decision.champion_before,
        "test_set": test_set,
        "rules": {
            verdict.rule: {"outcome": verdict.outcome, "detail": verdict.detail} for verdict in decision.verdicts
        },
        "source": provenance.tags(),
        "export_deviation": deviation,
    }


def write_package(folder: Path, params: Params, workspace: Workspace) -> float | None:
    """Write what a version consists of; returns how far the exported graph lies from the network.

    An animator that hears through a speech encoder comes without a graph: it is used through its checkpoint.
    """
    folder.mkdir(parents=True)
    checkpoint = workspace.folder("train_animator") / "checkpoint.pt"
    animator = open_animator(checkpoint)
    shutil.copy(checkpoint, folder / CHECKPOINT_FILE)
    settings = {
        "encoder": params.train_animator.encoder,
        "emotions": list(animator.settings.emotions),
        "styles": list(animator.settings.styles),
        "names": list(ARKIT_NAMES),
        "fps": FRAME_RATE_HZ,
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "max_seconds": MAX_SERVED_S,
    }
    write_json(folder / SETTINGS_FILE, settings)
    np.save(folder / FILTERS_FILE, mel_weights().numpy())
    if params.train_animator.encoder != LOG_MEL:
        return None
    return export_animator(animator, folder / GRAPH_FILE)


def fingerprint_of_clips(clips: Sequence[PreparedClip], metrics: Mapping[str, Any]) -> str:
    """Hash of what the metrics were measured on: two versions can be compared only if theirs agree.

    The face that a silent one is measured on shows in its errors, so that other face models count as another set.
    """
    names = sorted(clip.clip.clip_id for clip in clips)
    return hashlib.sha256(repr([names, metrics["silence"]["lip_vertex_error_mm"]]).encode()).hexdigest()[:16]


def _new_version(scratch: Path, name: str, run: TrackedRun) -> ModelVersion:
    import mlflow
    from mlflow.exceptions import MlflowException

    files = {path.name.replace(".", "_"): str(path) for path in sorted((scratch / "files").iterdir())}
    with warnings.catch_warnings():
        # MLflow warns of types that it cannot infer; the signature is given.
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            path=str(scratch / "animator"),
            python_model=str(SERVED_ANIMATOR),
            artifacts=files,
            signature=_signature(),
            pip_requirements=[f"{package}=={installed_version(package)}" for package in REQUIREMENTS],
        )
    run.artifact(scratch / "animator", "animator")
    try:
        run.client.get_registered_model(name)
    except MlflowException:
        run.client.create_registered_model(name, description="Speech in, ARKit coefficients out; see mlflow/README.md.")
    source = f"{run.client.get_run(run.run_id).info.artifact_uri}/animator"
    return run.client.create_model_version(name, source, run_id=run.run_id)


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType, Array

    rows = Array(Array(DataType.double))
    return ModelSignature(
        # Bytes of a WAV file, base64 of them and samples are all welcome, which only the loosest type expresses.
        inputs=Schema(
            [
                ColSpec(AnyType(), "speech"),
                ColSpec(DataType.string, "emotion", required=False),
                ColSpec(DataType.string, "style", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.string, "error", required=False),
                ColSpec(DataType.double, "fps", required=False),
                ColSpec(Array(DataType.string), "names", required=False),
                ColSpec(rows, "weights", required=False),
            ]
        ),
    )


def _flat(block: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if not isinstance(value, Mapping)}
