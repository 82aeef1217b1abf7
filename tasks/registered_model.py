"""The reconstructor as MLflow keeps it: graphs, checkpoints, face model, one file of Python, signature and example."""

from __future__ import annotations

import base64
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from models.face.camera import CAMERA_DISTANCE_MM, crop_camera, to_camera_space
from models.face.lighting import ambient_light
from models.face.morphable import MorphableModel
from models.landmarks.portable import FINDER_FILE, LANDMARK_FILE
from models.network_export import RECONSTRUCTOR_OUTPUTS
from models.rendering.render import render
from tasks.artifacts import Workspace
from tasks.params import Params
from tasks.served_bundle import bundle
from tasks.tracking import TrackedRun, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

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
    "card": "model_card.md",
}
"""Names under which served_model.py finds its artifacts; the detector's are absent if landmarks are provided,
the finder's also if none was trained."""

EXAMPLE_SIZE_PX = 160


def log_version(
    folder: Path, params: Params, workspace: Workspace, run: TrackedRun, model: MorphableModel
) -> ModelVersion:
    """Log the files of `PACKAGE_FILES` with what makes them a model, and register that as a new version."""
    import mlflow
    from mlflow.exceptions import MlflowException

    served = folder / SERVED_MODEL.name
    served.write_text(bundle(SERVED_MODEL), encoding="utf-8")
    artifacts = {key: str(folder / name) for key, name in PACKAGE_FILES.items() if (folder / name).exists()}
    name = params.register.model_name
    with _fluent(tracking_uri(params, workspace), run.run_id), warnings.catch_warnings():
        # MLflow warns of types that it cannot infer; the signature is given.
        warnings.simplefilter("ignore")
        info = mlflow.pyfunc.log_model(
            name="reconstructor",
            python_model=str(served),
            artifacts=artifacts,
            signature=_signature(required_landmarks="detector" not in artifacts),
            input_example=_input_example(model, with_landmarks="detector" not in artifacts),
            pip_requirements=[f"{package}=={installed_version(package)}" for package in REQUIREMENTS],
            metadata=face_model_tags(model),
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


def face_model_tags(model: MorphableModel) -> dict[str, str]:
    """The model's stamp as flat keys, with the name under `face_model` alone."""
    found = model.stamp()
    return {"face_model": found.pop("name")} | {f"face_model_{key}": value for key, value in found.items() if value}
