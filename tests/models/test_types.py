from __future__ import annotations

import torch

from models.face.camera import crop_camera
from models.types import Batch, Scan, map_tensors, to_device


def batch(*, scan: Scan | None) -> Batch:
    return Batch(
        source="photos",
        sample_ids=("a", "b"),
        camera=crop_camera(2, 8),
        image=torch.ones(2, 3, 8, 8),
        mask=torch.ones(2, 8, 8, dtype=torch.bool),
        landmarks=torch.ones(2, 68, 2),
        confidence=torch.ones(2, 68),
        person=torch.zeros(2, dtype=torch.int64),
        scan=scan,
    )


def test_a_function_reaches_every_tensor_also_nested_ones_and_nothing_else() -> None:
    scan = Scan(vertices=torch.ones(2, 5, 3), normals=torch.ones(2, 5, 3), landmarks=torch.ones(2, 68, 3))
    whole = batch(scan=scan)
    first = map_tensors(whole, lambda tensor: tensor[:1])
    assert first.scan is not None
    assert {len(value) for value in (first.image, first.person, first.camera.focal_px, first.scan.vertices)} == {1}
    assert (first.source, first.sample_ids, first.camera.size) == ("photos", ("a", "b"), (8, 8))
    assert len(whole.image) == 2


def test_a_device_is_reached_by_every_tensor() -> None:
    moved = to_device(batch(scan=None), "meta")
    assert moved.scan is None
    assert {moved.image.device.type, moved.camera.principal_px.device.type, moved.mask.device.type} == {"meta"}
