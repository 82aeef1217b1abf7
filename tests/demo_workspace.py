"""A workspace for the page of `mien demo`: networks of random weights on a face model that can speak."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from models.animation.animator import Animator, AnimatorSettings, reach_of_layers
from models.animation.lips import calibrate_lips
from models.face.formats import build_face_model
from models.reconstruction.reconstructor import Reconstructor, reconstructor_content
from tasks.animator_checkpoint import checkpoint_content
from tasks.artifacts import Workspace, save_checkpoint
from tests.tasks.trained_workspace import SMALL_NETWORK, trained_workspace


def demo_workspace(root: Path) -> Workspace:
    """As `trained_workspace`, with the procedural face model and an animator."""
    root.mkdir(parents=True, exist_ok=True)
    _, workspace = trained_workspace(root)
    params = yaml.safe_load(workspace.params.read_text())
    params["face_model"] = {"kind": "procedural", "identity_modes": 6}
    workspace.params.write_text(yaml.safe_dump(params))
    model = build_face_model("procedural", identity_modes=6)
    torch.manual_seed(0)
    reconstructor = Reconstructor(model, SMALL_NETWORK)
    save_checkpoint(workspace.folder("refusion") / "checkpoint.pt", reconstructor_content(reconstructor))
    reach = reach_of_layers(layers=1, position_kernel=9, memory=20, lookahead=8)
    speaker = AnimatorSettings(("joy",), ("plain",), width=16, layers=1, heads=2, feed_forward=16, **reach)
    animator = Animator(speaker)
    torch.nn.init.normal_(animator.output.weight)
    path = workspace.folder("train_animator") / "checkpoint.pt"
    save_checkpoint(path, checkpoint_content(animator, calibrate_lips(model), "log_mel"))
    return workspace
