"""Stage train_geometry: the geometry branch learns the face model from simulated landmarks, without any photo."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Generator, Tensor, nn

from models.face.camera import crop_camera, project, rotation_distance, to_camera_space
from models.face.sampling import sample_expressions
from models.losses.coefficients import geometry_embedding
from models.losses.image import REFERENCE_SIZE_PX
from models.reconstruction.backbones import load_public_weights
from models.reconstruction.geometry_branch import LandmarkNoise, SimulatedFaces, simulate_faces
from models.reconstruction.reconstructor import Reconstructor, ReconstructorSettings, reconstructor_content
from models.training.loop import LoopSettings, build_fabric, seeded, train
from models.training.progress import forget_progress
from models.types import to_device
from tasks.artifacts import Workspace, replace_folder, save_checkpoint, write_curve, write_json
from tasks.face_model import load_face_model
from tasks.learn_sets import SHARED_NOISE, learn_set_confidence
from tasks.params import Params
from tasks.tracking import track
from tasks.train import fingerprint

VALIDATION_FACES = 4096

EXPRESSIONS = 16384
"""Expressions drawn in advance, by the code that draws those of the synthetic photos."""

ROTATION_WEIGHT = 20.0
"""Of the squared error in radians, against squared millimetres of shape: one degree weighs like 0.08 mm."""

REPROJECTION_WEIGHT = 0.02
"""Of squared pixels of a 224 px crop."""


def train_geometry(params: Params, workspace: Workspace) -> None:
    """Train on simulated projections under the detector's measured noise; writes checkpoint, curve and metrics."""
    section = params.train_geometry
    torch.manual_seed(params.project.seed)
    model = load_face_model(params, workspace)
    noise = _load_noise(workspace)
    expressions = sample_expressions(model.expression_names, EXPRESSIONS, seed=params.project.seed)
    fabric = build_fabric(device=params.project.device, precision=params.project.precision)
    # Faces are drawn in main memory, so that a seed means the same on every device.
    reconstructor = Reconstructor(copy.deepcopy(model), reconstructor_settings(params)).to(fabric.device)
    if params.encoder.pretrained:
        load_public_weights(reconstructor.encoder.image)
    branch, size_px = reconstructor.encoder.geometry, params.project.crop_size_px
    identity_embedding = geometry_embedding(model.identity_basis, model.mean).to(fabric.device)
    expression_embedding = geometry_embedding(model.expression_basis, model.mean).to(fabric.device)

    def simulate(count: int, generator: Generator, *, photos_per_person: int = 1) -> SimulatedFaces:
        faces = simulate_faces(
            model,
            count,
            expressions=expressions,
            noise=noise,
            size_px=size_px,
            crop_scale=params.validate_labels.crop_scale,
            max_yaw_deg=section.max_yaw_deg,
            generator=generator,
            photos_per_person=photos_per_person,
            shared_noise=SHARED_NOISE if photos_per_person > 1 else 0.0,
        )
        return to_device(faces, fabric.device)

    def errors(state: Tensor, faces: SimulatedFaces) -> dict[str, Tensor]:
        identity, expression, pose = torch.split(state, list(reconstructor.encoder.sizes), 1)
        rotation, translation = reconstructor.pose(pose)
        offsets = identity @ branch.identity_basis + expression @ branch.expression_basis
        points = branch.mean + offsets.view(len(state), -1, 3)
        seen = to_camera_space(points, rotation=rotation, translation=translation)
        pixels = project(seen, crop_camera(len(points), size_px, device=points.device))
        return {
            "shape": ((identity - faces.identity) @ identity_embedding).square().sum(1),
            "expression": ((expression - faces.expression) @ expression_embedding).square().sum(1),
            "rotation": (rotation - faces.rotation).square().sum(1),
            "reprojection": ((pixels - faces.truth) * (REFERENCE_SIZE_PX / size_px)).square().sum(2).mean(1),
            "pose_error_deg": rotation_distance(rotation.detach(), faces.rotation).rad2deg(),
        }

    def loss(network: nn.Module, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        faces = simulate(section.batch_size, generator)
        _, states = network(reconstructor.normalize(faces.landmarks), faces.confidence)
        total = torch.zeros(())
        for state in states:
            # Every guess is supervised, so that each correction starts from something sensible.
            found = {name: value.mean() for name, value in errors(state, faces).items()}
            total = total + (
                found["shape"]
                + found["expression"]
                + ROTATION_WEIGHT * found["rotation"]
                + REPROJECTION_WEIGHT * found["reprojection"]
            )
        return total, {name: value.detach() for name, value in found.items()}

    held_out = simulate(VALIDATION_FACES, seeded(params.project.seed, -1))
    mean_face = (held_out.identity @ identity_embedding).square().sum(1).mean().sqrt()

    def validate(network: nn.Module) -> dict[str, float]:
        _, states = network(reconstructor.normalize(held_out.landmarks), held_out.confidence)
        found = {name: float(value.mean()) for name, value in errors(states[-1], held_out).items()}
        shape_mm = found["shape"] ** 0.5
        return {
            **found,
            "score": found["shape"],
            "shape_error_mm": shape_mm,
            "shape_ratio": shape_mm / float(mean_face),
        }

    with (
        track(params, workspace, "train_geometry") as run,
        replace_folder(workspace.folder("train_geometry")) as folder,
    ):
        result = train(
            fabric,
            branch,
            settings=LoopSettings(
                steps=section.steps,
                learning_rate=section.learning_rate,
                warmup_steps=min(100, section.steps // 10),
                weight_decay=1e-4,
                clip_norm=10.0,
                validate_every=max(1, section.steps // 10),
                patience=10,
                seed=params.project.seed,
            ),
            loss=loss,
            validate=validate,
            progress_folder=workspace.progress("train_geometry"),
            fingerprint=fingerprint(params, "train_geometry", [workspace.folder("train_detector") / "noise.npz"]),
            name="train_geometry",
            keep_progress=True,
        )
        sets = None
        if section.set_steps:
            sets = learn_set_confidence(
                reconstructor.eval(),
                lambda count, size, generator: simulate(count, generator, photos_per_person=size),
                embedding=identity_embedding,
                fabric=fabric,
                steps=section.set_steps,
                seed=params.project.seed,
                progress_folder=workspace.progress("train_geometry") / "sets",
                fingerprint=fingerprint(params, "train_geometry", [workspace.folder("train_detector") / "noise.npz"]),
            )
        save_checkpoint(folder / "checkpoint.pt", reconstructor_content(reconstructor))
        write_curve(folder / "curve.csv", result.curve)
        metrics = {
            "shape_error_mm": result.best["shape_error_mm"],
            "mean_face_mm": float(mean_face),
            "pose_error_deg": result.best["pose_error_deg"],
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
        }
        if sets is not None:
            metrics |= {"set_error_mm": sets.best["set_error_mm"], "set_seconds": round(sets.seconds, 1)}
        write_json(folder / "metrics.json", metrics)
        run.curve(result.curve)
        run.metrics(metrics)
    forget_progress(workspace.progress("train_geometry"))


def reconstructor_settings(params: Params) -> ReconstructorSettings:
    """The network that the params describe."""
    return ReconstructorSettings(
        crop_size_px=params.project.crop_size_px,
        crop_scale=params.validate_labels.crop_scale,
        geometry_width=params.train_geometry.width,
        geometry_blocks=params.train_geometry.blocks,
        geometry_refinements=params.train_geometry.refinements,
        backbone=params.encoder.backbone,
        width=params.encoder.width,
        features=params.encoder.features,
    )


def _load_noise(workspace: Workspace) -> LandmarkNoise:
    path = workspace.folder("train_detector") / "noise.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; run the stage train_detector first")
    with np.load(path, allow_pickle=False) as file:
        return LandmarkNoise.build(
            **{key: torch.from_numpy(file[key]) for key in ("covariance", "bias", "response", "sigma", "large")}
        )
