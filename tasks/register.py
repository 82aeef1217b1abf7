"""Stage register: a new version of the model in MLflow's registry, and its promotion if it deserves it.

A version holds two things: graphs and one file of Python that run anywhere (tasks/served_model.py), and the checkpoints
with their face model, from which `mien reconstruct` builds the networks again.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from models.face.camera import FOCAL_PER_SIZE
from models.face.formats import save_face_model
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
from models.network_export import export_reconstructor
from models.onnx_graph import TOLERANCE
from models.reconstruction.reconstructor import Reconstructor, load_reconstructor, reconstructor_content
from tasks.artifacts import (
    CLEAN,
    Workspace,
    load_checkpoint,
    read_json,
    read_table,
    replace_folder,
    save_checkpoint,
    write_json,
)
from tasks.face_model import load_face_model
from tasks.model_card import model_card
from tasks.params import Params
from tasks.photo_profile import write_profile
from tasks.promotion import CHAMPION, load_policy
from tasks.provenance import Provenance, trace
from tasks.registered_model import PACKAGE_FILES, face_model_tags, log_version
from tasks.registry import CHALLENGER, Decision, enter, find_version, keep_sources
from tasks.tracking import finite, track, tracking_uri

__all__ = ["CHALLENGER", "PACKAGE_FILES", "find_version", "register", "write_package"]

FINAL_STAGE = "refusion"
"""Whose checkpoint is registered; `metrics.json` has a block of the same name."""


def register(params: Params, workspace: Workspace) -> None:
    """Register the final model as `challenger`, judge it, make it `champion` if it passes; writes summary.json.

    Raises: ParamsError, ValueError or FileNotFoundError with a one-line remedy; TrackingError if MLflow cannot be used.
    """
    policy = load_policy()
    metrics = read_json(workspace.folder("evaluate") / "metrics.json")
    model = load_face_model(params, workspace)
    test_set = fingerprint_of_test_set(workspace, model)
    provenance = trace_model(params, workspace)
    with track(params, workspace, "register") as run, tempfile.TemporaryDirectory() as scratch:
        deviations = write_package(Path(scratch), params, workspace, model)
        card = model_card(params, model, metrics, provenance, block=FINAL_STAGE)
        (Path(scratch) / PACKAGE_FILES["card"]).write_text(card, encoding="utf-8")
        run.metrics(finite(metrics))
        run.artifact(workspace.folder("evaluate") / "metrics.json", "evaluate")
        sources = keep_sources(Path(scratch), workspace, provenance)
        write_profile(sources, workspace, load_reconstructor(load_checkpoint(checkpoint(workspace)), model))
        run.artifact(sources, sources.name)
        version = log_version(Path(scratch), params, workspace, run, model)
        decision = enter(
            run.client,
            params.register.model_name,
            str(version.version),
            metrics=metrics,
            policy=policy,
            provenance=provenance,
            tags=_version_tags(params, model, metrics) | {"test_set": test_set},
            promote=params.register.promote == "at_once",
        )
        with replace_folder(workspace.folder("register")) as folder:
            write_json(folder / "summary.json", _summary(params, workspace, decision, deviations, test_set, provenance))
            (folder / PACKAGE_FILES["card"]).write_text(card, encoding="utf-8")


def checkpoint(workspace: Workspace) -> Path:
    """Weights of the reconstructor that is registered."""
    return workspace.folder(FINAL_STAGE) / "checkpoint.pt"


def trace_model(params: Params, workspace: Workspace) -> Provenance:
    """Where the reconstructor and, if one was trained, its detector come from."""
    stages = [FINAL_STAGE]
    if params.detect_landmarks.detector == "hierarchical":
        stages.append("train_detector")
    contents = [load_checkpoint(workspace.folder(stage) / "checkpoint.pt") for stage in stages]
    return trace(workspace, stages, checkpoints=contents)


def write_package(folder: Path, params: Params, workspace: Workspace, model: MorphableModel) -> dict[str, float]:
    """Write the files of `PACKAGE_FILES`; returns how far each exported graph lies from its network.

    Raises: FileNotFoundError or ValueError with a one-line remedy.
    """
    reconstructor = load_reconstructor(load_checkpoint(checkpoint(workspace)), model)
    # Not the file itself: what training remembers of its persons is nobody else's business.
    save_checkpoint(folder / PACKAGE_FILES["reconstructor_checkpoint"], reconstructor_content(reconstructor))
    save_face_model(model, folder / PACKAGE_FILES["face_model"])
    deviations = {"reconstructor": export_reconstructor(reconstructor, folder / PACKAGE_FILES["reconstructor"])}
    detector = None
    if params.detect_landmarks.detector == "hierarchical":
        detector_checkpoint = workspace.folder("train_detector") / "checkpoint.pt"
        content = load_checkpoint(detector_checkpoint)
        shutil.copy(detector_checkpoint, folder / PACKAGE_FILES["detector_checkpoint"])
        exported = _package_detector(content, detector_checkpoint.parent, folder)
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


def _version_tags(params: Params, model: MorphableModel, metrics: Mapping[str, Any]) -> dict[str, str]:
    tags = face_model_tags(model) | {"landmarks": params.detect_landmarks.detector}
    for block in ("mean_face", FINAL_STAGE):
        numbers = {name: value for name, value in (metrics.get(block) or {}).items() if not isinstance(value, dict)}
        tags |= {f"{block}.{name}": f"{value:.5g}" for name, value in finite(numbers).items()}
    return tags


def _summary(
    params: Params,
    workspace: Workspace,
    decision: Decision,
    deviations: dict[str, float],
    test_set: str,
    provenance: Provenance,
) -> dict[str, Any]:
    name = params.register.model_name
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
        "export_deviation": deviations,
        "export_tolerance": TOLERANCE,
    }
