"""Several checkpoints that answer together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.reconstruction.ensemble import Ensemble
from tasks.artifacts import Workspace, load_checkpoint, save_checkpoint
from tasks.ensembles import open_ensemble, open_reader
from tasks.params import load_params
from tasks.reconstruct import read_face, reconstruct_photos
from tests.tasks.trained_workspace import trained_workspace, write_photo


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return trained_workspace(tmp_path_factory.mktemp("trained"))[1]


def other_checkpoint(workspace: Workspace, path: Path, *, seed: int) -> Path:
    """The workspace's weights with other corrections by the image branch."""
    content = load_checkpoint(workspace.folder("refusion") / "checkpoint.pt")
    generator = torch.Generator().manual_seed(seed)
    weights = content["weights"]["correction.weight"]
    content["weights"]["correction.weight"] = 0.1 * torch.randn(weights.shape, generator=generator)
    save_checkpoint(path, content)
    return path


def test_members_are_averaged_and_what_divides_them_is_told(trained: Workspace, tmp_path: Path) -> None:
    paths = [trained.folder("refusion"), other_checkpoint(trained, tmp_path / "other.pt", seed=1)]
    params = load_params(trained.params)
    photo = write_photo(tmp_path / "face.png", 300)
    single = [read_face(open_ensemble([path], params, trained), photo) for path in paths]
    reader = open_reader(params, trained, paths)
    assert isinstance(reader.reconstructor, Ensemble)
    both = read_face(reader, photo).coefficients
    torch.testing.assert_close(both.identity, sum(one.coefficients.identity for one in single) / 2)
    torch.testing.assert_close(both.lighting, sum(one.coefficients.lighting for one in single) / 2)
    report = reconstruct_photos([photo], tmp_path / "out", workspace=trained, checkpoint=paths, outputs="json")
    names = {"face.json", "face_ensemble.json", "face_ensemble_neutral.ply"}
    assert names < {path.name for path in report.files}
    document = json.loads((tmp_path / "out" / "face.json").read_text())
    assert document["model"]["ensemble"] == [str(paths[0] / "checkpoint.pt"), str(paths[1])]
    arrays = np.load(tmp_path / "out" / "face_ensemble_uncertainty.npz")
    total = np.sqrt(arrays["photos_mm"] ** 2 + arrays["ensemble_mm"] ** 2)
    np.testing.assert_allclose(arrays["uncertainty_mm"], total, rtol=1e-5)
    assert arrays["ensemble_mm"].max() > 0.0


def test_members_that_cut_photos_otherwise_are_refused(trained: Workspace, tmp_path: Path) -> None:
    content = load_checkpoint(trained.folder("refusion") / "checkpoint.pt")
    content["settings"]["crop_scale"] = 1.6
    save_checkpoint(tmp_path / "wide.pt", content)
    with pytest.raises(ValueError, match=r"ensemble: checkpoints of crop_scale 1.35 and 1.6, expected one for all"):
        open_ensemble([trained.folder("refusion"), tmp_path / "wide.pt"], load_params(trained.params), trained)


def test_a_missing_member_is_named(trained: Workspace, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.pt: no such checkpoint"):
        open_ensemble([trained.folder("refusion"), tmp_path / "none.pt"], load_params(trained.params), trained)
