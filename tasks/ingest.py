"""The stage `ingest`: sources of photos and meshes become a sample manifest, image shards and a quarantine.

Every photo that a source offers is either accepted or quarantined with a reason, and the counts are checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from models.face.dense import dense_vertices
from models.face.morphable import MorphableModel
from tasks.artifacts import Workspace, replace_folder, write_json
from tasks.backdrops import MOST_PHOTOS, Backdrops
from tasks.contact_sheet import write_contact_sheet
from tasks.face_model import load_face_model, open_face_model
from tasks.hold_out import held_out
from tasks.images import decode_stored
from tasks.params import Params
from tasks.sample_store import SampleStore
from tasks.source_params import (
    IngestParams,
    PhotosSource,
    RerenderedSource,
    ScansSource,
    Source,
    SyntheticSource,
    detector_only,
    is_labelled,
)
from tasks.sources import Candidate, Mesh, Refusal, read_photos, read_scans
from tasks.synthesize import LabelMesh, Photo, rerender, synthesize


def ingest(params: Params, workspace: Workspace) -> None:
    """Read or render every source of `params.ingest` into `artifacts/ingest/`.

    Raises: FileNotFoundError or ValueError with a one-line remedy; the previous output then stays as it was.
    """
    section, seed = params.ingest, params.project.seed
    needs_model = any(not isinstance(source, PhotosSource) and not detector_only(source) for source in section.sources)
    face_model = load_face_model(params, workspace) if needs_model else None
    dense = None
    if face_model is not None and section.dense_points:
        dense, _ = dense_vertices(face_model, section.dense_points)
    with replace_folder(workspace.folder("ingest")) as folder:
        store = SampleStore(folder, shard_rows=section.shard_rows)
        for source in sorted(section.sources, key=_turn):
            for item in _items(source, params, workspace, face_model, store, dense):
                if isinstance(item, Refusal):
                    store.refuse(item)
                else:
                    store.accept(item)
        summary = store.close(
            lambda person: split_of(person, section, seed), sources=[source.name for source in section.sources]
        )
        if not summary["total"]["accepted"]:
            reasons = ", ".join(f"{reason} {count}" for reason, count in summary["total"]["reasons"].items())
            raise ValueError(
                f"ingest: none of {summary['total']['found']} files could be used ({reasons}); correct ingest.sources"
            )
        write_json(folder / "summary.json", summary)
        write_contact_sheet(folder)


def split_of(person: str, params: IngestParams, seed: int) -> str:
    """The split of all photos of a person: a matter of name and seed alone, whoever else is there."""
    every = _hold_out(person, params)
    if every and held_out(person.partition("/photo:")[2], every=every):
        return "test"
    digest = hashlib.sha256(f"{seed}/{person}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if every:
        return "validation" if place < params.validation_share else "train"
    if place < params.test_share:
        return "test"
    return "validation" if place < params.test_share + params.validation_share else "train"


def _hold_out(person: str, params: IngestParams) -> int | None:
    """The rule of a source that holds out photos by their file names, for photos that no table gives to a person."""
    name, _, photo = person.partition("/")
    for source in params.sources:
        if isinstance(source, PhotosSource) and source.name == name and photo.startswith("photo:"):
            return source.hold_out_every
    return None


def _turn(source: Source) -> int:
    # Labelled sources come first, so that of two equal photos the one with a mesh is kept; rendered copies come last,
    # because only then is it settled who is who, and with it the splits; before them, photos over photos of others.
    if isinstance(source, RerenderedSource):
        return 3
    if isinstance(source, SyntheticSource) and source.backgrounds is not None:
        return 2
    return 0 if is_labelled(source) else 1


def _items(
    source: Source,
    params: Params,
    workspace: Workspace,
    face_model: MorphableModel | None,
    store: SampleStore,
    dense: NDArray[np.int64] | None,
) -> Iterator[Candidate | Refusal]:
    section, seed = params.ingest, params.project.seed
    if isinstance(source, PhotosSource):
        yield from read_photos(source, workspace.resolve(source.path), section)
        return
    if isinstance(source, SyntheticSource) and source.face_model is not None:
        # The detector finds vertices of one model only.
        face_model, dense = open_face_model(source.face_model, workspace), None
    assert face_model is not None, "only folders of photos do without a face model"
    if isinstance(source, ScansSource):
        yield from read_scans(source, workspace.resolve(source.path), section, face_model=face_model)
    elif isinstance(source, RerenderedSource):
        meshes = _training_meshes(source, section, seed, store)
        for photo in rerender(source, face_model, meshes, seed=seed, dense=dense, outlines=section.outlines):
            yield _candidate(photo, source.name, photo.person, labelled=True)
    else:
        backdrops = _backdrops(source, section, seed, store)
        for photo in synthesize(
            source, face_model, seed=seed, backdrops=backdrops, dense=dense, outlines=section.outlines
        ):
            person = f"{source.name}/{photo.person}"
            # Training must not see the meshes of unlabelled photos; measuring needs them, if they fit the face model.
            keep = source.labelled or split_of(person, section, seed) != "train"
            known = keep and not detector_only(source)
            mesh = Mesh(photo.mesh_id, photo.vertices, photo.neutral) if known else None
            yield _candidate(photo, source.name, person, labelled=source.labelled, mesh=mesh)


def _candidate(photo: Photo, source: str, person: str, *, labelled: bool, mesh: Mesh | None = None) -> Candidate:
    return Candidate(
        source=source,
        path="",
        person=person,
        content=photo.content,
        labelled=labelled,
        landmarks=photo.landmarks,
        rotation=photo.rotation,
        mesh=mesh,
        mesh_id=photo.mesh_id if mesh or labelled else None,
        dense=photo.dense,
        outline=photo.outline if photo.outline is not None and np.isfinite(photo.outline).all() else None,
    )


def _backdrops(source: SyntheticSource, params: IngestParams, seed: int, store: SampleStore) -> Backdrops | None:
    if source.backgrounds is None:
        return None
    photos = store.annotated_photos(
        source.backgrounds, lambda person: split_of(person, params, seed) == "train", most=MOST_PHOTOS
    )
    backdrops = Backdrops((decode_stored(content), points) for content, points in photos)
    if not len(backdrops):
        raise ValueError(
            f"source {source.name}: source {source.backgrounds} has no annotated photo in the training split; "
            "annotate its photos or remove backgrounds"
        )
    return backdrops


def _training_meshes(
    source: RerenderedSource, params: IngestParams, seed: int, store: SampleStore
) -> Iterator[LabelMesh]:
    count = 0
    for mesh_id, person, vertices in store.meshes(source.of):
        if split_of(person, params, seed) == "train":
            count += 1
            yield LabelMesh(mesh_id, person, vertices)
    if not count:
        raise ValueError(
            f"source {source.name}: source {source.of} has no mesh in the training split; "
            "add persons there or lower ingest.validation_share and ingest.test_share"
        )
