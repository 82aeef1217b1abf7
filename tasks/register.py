"""Stage register: a new version of the model in MLflow's registry, and its promotion if it deserves it.

A version holds two things: graphs and one file of Python that run anywhere (tasks/served_model.py), and the checkpoints
with their face model, from which `mien reconstruct` builds the networks again.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image

from models.face.camera import CAMERA_DISTANCE_MM, FOCAL_PER_SIZE, crop_camera, to_camera_space
from models.face.formats import save_face_model
from models.face.lighting import ambient_light
from models.face.morphable import MorphableModel
from models.landmarks.cascade import LIKELY_BOX_SCORE, MIN_BOX_SCORE, REFINEMENTS, UNBOXED_REFINEMENTS
from models.landmarks.detector import CONFIDENCE_SIGMA, PROVIDED_SIGMA, confidence_from_sigma
from models.landmarks.framing import FLIP_PERMUTATION, FRAME_SCALE
from models.landmarks.portable import (
    FINDER_FILE,
    LANDMARK_FILE,
    check_exported,
    export_detector,
    finder_settings,
    is_exported,
)
from models.network_export import RECONSTRUCTOR_OUTPUTS, export_reconstructor
from models.onnx_graph import TOLERANCE
from models.reconstruction.reconstructor import Reconstructor, load_reconstructor
from models.rendering.render import render
from tasks.artifacts import CLEAN, Workspace, load_checkpoint, read_json, read_table, replace_folder, write_json
from tasks.face_model import load_face_model
from tasks.params import Params
from tasks.promotion import CHAMPION, Verdict, comparable_metrics, judge, load_policy
from tasks.tracking import TrackedRun, finite, track, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER = "challenger"
FINAL_STAGE = "refusion"
"""Whose checkpoint is registered; `metrics.json` has a block of the same name."""

SERVED_MODEL = Path(__file__).with_name("served_model.py")

REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")
"""What served_model.py imports; pinned to what is installed here, so that nothing is probed."""

PACKAGE_FILES = {
    "settings": "settings.json",
    "face_model": "face_model.npz",
    "reconstructor": "reconstructor.onnx",
    "reconstructor_checkpoint": "reconstructor.pt",
    "detector": LANDMARK_FILE,
    "finder": FINDER_FILE,
    "detector_checkpoint": "detector.pt",
}
"""Names under which served_model.py finds its artifacts; the detector's are absent if landmarks are provided,
the finder's also if none was trained."""

EXAMPLE_SIZE_PX = 160


def register(params: Params, workspace: Workspace) -> None:
    """Register the final model as `challenger`, judge it, make it `champion` if it passes; writes summary.json.

    Raises: ParamsError, ValueError or FileNotFoundError with a one-line remedy; TrackingError if MLflow cannot be used.
    """
    policy = load_policy()
    metrics = read_json(workspace.folder("evaluate") / "metrics.json")
    model = load_face_model(params, workspace)
    test_set = fingerprint_of_test_set(workspace, model)
    with track(params, workspace, "register") as run, tempfile.TemporaryDirectory() as scratch:
        deviations = write_package(Path(scratch), params, workspace, model)
        run.metrics(finite(metrics))
        run.artifact(workspace.folder("evaluate") / "metrics.json", "evaluate")
        version = _new_version(Path(scratch), params, workspace, run, model)
        name, number = params.register.model_name, str(version.version)
        tags = _version_tags(params, model, metrics) | {"test_set": test_set}
        for key, value in tags.items():
            run.client.set_model_version_tag(name, number, key, value)
        run.client.set_registered_model_alias(name, CHALLENGER, number)
        champion = find_version(run.client, name, CHAMPION)
        promoted, verdicts = judge(policy, metrics, champion=comparable_metrics(run, champion, test_set))
        for verdict in verdicts:
            outcome = f"{verdict.outcome}: {verdict.detail}"
            run.client.set_model_version_tag(name, number, f"rule.{verdict.rule}", outcome)
        run.client.set_model_version_tag(name, number, "promotion", "passed" if promoted else "failed")
        if promoted:
            run.client.set_registered_model_alias(name, CHAMPION, number)
        with replace_folder(workspace.folder("register")) as folder:
            write_json(
                folder / "summary.json",
                _summary(params, workspace, number, promoted, verdicts, deviations, champion, test_set),
            )


def write_package(folder: Path, params: Params, workspace: Workspace, model: MorphableModel) -> dict[str, float]:
    """Write the files of `PACKAGE_FILES`; returns how far each exported graph lies from its network.

    Raises: FileNotFoundError or ValueError with a one-line remedy.
    """
    checkpoint = workspace.folder(FINAL_STAGE) / "checkpoint.pt"
    reconstructor = load_reconstructor(load_checkpoint(checkpoint), model)
    shutil.copy(checkpoint, folder / PACKAGE_FILES["reconstructor_checkpoint"])
    save_face_model(model, folder / PACKAGE_FILES["face_model"])
    deviations = {"reconstructor": export_reconstructor(reconstructor, folder / PACKAGE_FILES["reconstructor"])}
    detector = None
    if params.detect_landmarks.detector == "hierarchical":
        checkpoint = workspace.folder("train_detector") / "checkpoint.pt"
        content = load_checkpoint(checkpoint)
        shutil.copy(checkpoint, folder / PACKAGE_FILES["detector_checkpoint"])
        exported = _package_detector(content, checkpoint.parent, folder)
        deviations |= {Path(name).stem: deviation for name, deviation in exported.items()}
        detector = _detector_settings(content, params)
    write_json(folder / PACKAGE_FILES["settings"], _settings(params, reconstructor, detector))
    return deviations


def _package_detector(content: dict[str, Any], trained: Path, folder: Path) -> dict[str, float]:
    # Exporting takes half a minute, and training has done it; checkpoints of older versions come without.
    if not is_exported(trained, with_finder="finder" in content):
        return export_detector(content, folder)
    for name in (LANDMARK_FILE, FINDER_FILE) if "finder" in content else (LANDMARK_FILE,):
        shutil.copy(trained / name, folder)
    return check_exported(content, folder)


def fingerprint_of_test_set(workspace: Workspace, model: MorphableModel) -> str:
    """Hash of what the metrics were measured on: two versions can be compared only if theirs agree."""
    table = read_table(workspace.folder("validate_labels") / "clean.parquet", CLEAN)
    samples = sorted(table.filter(pc.equal(table["split"], "test"))["sample_id"].to_pylist())
    return hashlib.sha256("\n".join([model.content_hash(), *samples]).encode()).hexdigest()[:16]


def find_version(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that an alias points to, None where the alias is not set."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        # A missing alias is said to be an invalid parameter.
        if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            return None
        raise


def _settings(params: Params, reconstructor: Reconstructor, detector: dict[str, Any] | None) -> dict[str, Any]:
    model = reconstructor.model
    return {
        "crop_size_px": reconstructor.settings.crop_size_px,
        "crop_scale": reconstructor.settings.crop_scale,
        "focal_per_size": FOCAL_PER_SIZE,
        "max_image_bytes": params.ingest.max_image_bytes,
        "max_image_pixels": params.ingest.max_image_pixels,
        "max_side_px": params.ingest.max_side_px,
        "provided_confidence": float(confidence_from_sigma(np.array([PROVIDED_SIGMA]))[0]),
        "landmarks": params.detect_landmarks.detector,
        "detector": detector,
        "face_model": model.stamp(),
        "expression_names": list(model.expression_names),
        "units": "vertices in millimetres, pixels with centres at +0.5, rotation axis-angle in radians",
    }


def _detector_settings(content: dict[str, Any], params: Params) -> dict[str, Any]:
    scores = {"min_score": MIN_BOX_SCORE, "likely_score": LIKELY_BOX_SCORE}
    return {
        "input_size_px": int(content["input_size_px"]),
        "mean_shape": content["mean_shape"].tolist(),
        "sigma_scale": float(content["sigma_scale"]),
        "frame_scale": FRAME_SCALE,
        "mirror_order": FLIP_PERMUTATION.tolist(),
        "refinements": REFINEMENTS,
        "unboxed_refinements": UNBOXED_REFINEMENTS,
        "confidence_sigma": CONFIDENCE_SIGMA,
        "min_face_score": params.detect_landmarks.min_face_score,
        "finder": finder_settings() | scores if "finder" in content else None,
    }


def _new_version(
    folder: Path, params: Params, workspace: Workspace, run: TrackedRun, model: MorphableModel
) -> ModelVersion:
    import mlflow
    from mlflow.exceptions import MlflowException

    artifacts = {key: str(folder / name) for key, name in PACKAGE_FILES.items() if (folder / name).exists()}
    name = params.register.model_name
    with _fluent(tracking_uri(params, workspace), run.run_id), warnings.catch_warnings():
        # MLflow warns of types that it cannot infer; the signature is given.
        warnings.simplefilter("ignore")
        info = mlflow.pyfunc.log_model(
            name="reconstructor",
            python_model=str(SERVED_MODEL),
            artifacts=artifacts,
            signature=_signature(required_landmarks="detector" not in artifacts),
            input_example=_input_example(model, with_landmarks="detector" not in artifacts),
            pip_requirements=[f"{package}=={installed_version(package)}" for package in REQUIREMENTS],
            metadata=_face_model_tags(model),
        )
        try:
            run.client.get_registered_model(name)
        except MlflowException:
            run.client.create_registered_model(name, description="Photos in, 3D faces out; see mlflow/README.md.")
        return run.client.create_model_version(name, info.model_uri, run_id=run.run_id, model_id=info.model_id)


@contextmanager
def _fluent(uri: str, run_id: str) -> Iterator[None]:
    """Logging a model works through MLflow's global state only; it is put back as it was."""
    import mlflow

    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = [os.environ.get(name) for name in names]
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        with mlflow.start_run(run_id=run_id):
            yield
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])
        # Setting an address exports it to child processes, unsetting it does not take that back.
        for name, value in zip(names, before, strict=True):
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _signature(*, required_landmarks: bool) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    numbers = Array(DataType.double)
    shapes = {"error": DataType.string, "face_score": DataType.double, "landmarks_detected": Array(numbers)}
    shapes |= {"affine": Array(numbers), "intrinsics": Array(numbers), "confidence": numbers}
    vectors = ("identity", "expression", "albedo", "rotation", "translation")
    shapes |= {name: numbers if name in vectors else Array(numbers) for name in RECONSTRUCTOR_OUTPUTS}
    return ModelSignature(
        # Bytes, base64 and pixels are all welcome, which only the loosest type expresses.
        inputs=Schema([ColSpec(AnyType(), "image"), ColSpec(numbers, "landmarks", required=required_landmarks)]),
        outputs=Schema([ColSpec(kind, name, required=False) for name, kind in shapes.items()]),
        params=ParamSchema([ParamSpec("triangles", DataType.boolean, False)]),
    )


def _input_example(model: MorphableModel, *, with_landmarks: bool) -> Any:
    """A rendering of the mean face, so that the example shows nobody."""
    import pandas

    zeros = torch.zeros(1, 3)
    distance = zeros + torch.tensor([0.0, 0.0, 1.1 * CAMERA_DISTANCE_MM])
    seen = to_camera_space(model.mean[None] - model.mean.mean(0), rotation=zeros, translation=distance)
    camera = crop_camera(1, EXAMPLE_SIZE_PX)
    drawn = render(
        seen, model.triangles, albedo=model.albedo_mean[None], lighting=ambient_light(1), camera=camera
    ).image[0]
    pixels = (drawn.clamp(0.0, 1.0) * 255.0).round().byte().permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    columns: dict[str, list[Any]] = {"image": [base64.b64encode(content.getvalue()).decode()]}
    if with_landmarks:
        points = model.landmarks(seen)[0]
        pixels_of_points = points[:, :2] / points[:, 2:] * camera.focal_px + camera.principal_px
        columns["landmarks"] = [pixels_of_points.double().flatten().tolist()]
    return pandas.DataFrame(columns)


def _version_tags(params: Params, model: MorphableModel, metrics: Mapping[str, Any]) -> dict[str, str]:
    tags = _face_model_tags(model) | {"landmarks": params.detect_landmarks.detector}
    for block in ("mean_face", FINAL_STAGE):
        numbers = {name: value for name, value in (metrics.get(block) or {}).items() if not isinstance(value, dict)}
        tags |= {f"{block}.{name}": f"{value:.5g}" for name, value in finite(numbers).items()}
    return tags


def _face_model_tags(model: MorphableModel) -> dict[str, str]:
    """The model's stamp as flat keys, with the name under `face_model` alone."""
    found = model.stamp()
    return {"face_model": found.pop("name")} | {f"face_model_{key}": value for key, value in found.items() if value}


def _summary(
    params: Params,
    workspace: Workspace,
    number: str,
    promoted: bool,
    verdicts: list[Verdict],
    deviations: dict[str, float],
    champion: ModelVersion | None,
    test_set: str,
) -> dict[str, Any]:
    name = params.register.model_name
    return {
        "model": name,
        "version": int(number),
        "alias": CHAMPION if promoted else CHALLENGER,
        "uri": f"models:/{name}@{CHAMPION if promoted else CHALLENGER}",
        "tracking_uri": tracking_uri(params, workspace),
        "champion_before": int(champion.version) if champion is not None else None,
        "test_set": test_set,
        "rules": {verdict.rule: {"outcome": verdict.outcome, "detail": verdict.detail} for verdict in verdicts},
        "export_deviation": deviations,
        "export_tolerance": TOLERANCE,
    }
