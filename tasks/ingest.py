"""The stage `ingest`: sources of photos and meshes become a sample manifest, image shards and a quarantine.

Every photo that a source offers is either accepted or quarantined with a reason, and the counts are checked.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from models.face.dense import dense_vertices
from models.face.morphable import MorphableModel
from tasks.artifacts import Workspace, replace_folder, write_json
from tasks.backdrops import MOST_PHOTOS, Backdrops
from tasks.contact_sheet import write_contact_sheet
from tasks.face_model import shared_face_model
from tasks.fan_out import Spread, serial
from tasks.hold_out import held_out
from tasks.images import decode_stored
from tasks.kept_photos import KeptPhotos
from tasks.params import Params
from tasks.prepared_photos import preparation_fingerprint
from tasks.sample_store import SampleStore
from tasks.scan_rows import forget_meshes, read_scans
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
from tasks.sources import Candidate, Mesh, Refusal, read_photos
from tasks.synthesize import BATCH_SIZE, LabelMesh, Photo, rerender, synthesize

BATCHES_PER_PIECE = 8
"""Batches of rendered photos that are handed out together."""


def ingest(params: Params, workspace: Workspace, *, spread: Spread = serial) -> None:
    """Read or render every source of `params.ingest` into `artifacts/ingest/`.

    Photo files that have not changed since the last run are not read again; the result is the same.
    Raises: FileNotFoundError or ValueError with a one-line remedy; the previous output then stays as it was.
    """
    section, seed, started_ns = params.ingest, params.project.seed, time.time_ns()
    if any(not isinstance(source, PhotosSource) and not detector_only(source) for source in section.sources):
        # Read before anything else, so that a fault in it is known at once.
        shared_face_model(params.face_model, workspace)
    kept = KeptPhotos(workspace, fingerprint=preparation_fingerprint(section))
    with replace_folder(workspace.folder("ingest")) as folder:
        store = SampleStore(folder, shard_rows=section.shard_rows, earlier=kept.shards)
        for source in sorted(section.sources, key=_turn):
            for item in _items(source, params, workspace, store, kept, spread):
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
        kept.write(folder, store.linked)
    kept.close()
    forget_meshes(workspace, before_ns=started_ns)


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
    source: Source, params: Params, workspace: Workspace, store: SampleStore, kept: KeptPhotos, spread: Spread
) -> Iterator[Candidate | Refusal]:
    section = params.ingest
    if isinstance(source, PhotosSource):
        yield from read_photos(source, workspace.resolve(source.path), section, kept=kept, spread=spread)
    elif isinstance(source, ScansSource):
        yield from read_scans(source, section, face_model=params.face_model, workspace=workspace, spread=spread)
    elif isinstance(source, SyntheticSource) and source.backgrounds is not None:
        # The photos under the faces are here alone.
        backdrops = _backdrops(source, section, params.project.seed, store)
        yield from _rendered(RenderPiece(source, params, workspace, range(source.persons)), backdrops)
    else:
        for photos in spread(render_piece, _pieces(source, params, workspace, store)):
            yield from photos


@dataclass(frozen=True)
class RenderPiece:
    """Photos to be rendered: of some persons, or of some meshes."""

    source: SyntheticSource | RerenderedSource
    params: Params
    workspace: Workspace
    persons: range = range(0)
    meshes: tuple[LabelMesh, ...] = ()


def render_piece(piece: RenderPiece) -> list[Candidate]:
    """Render a piece."""
    return list(_rendered(piece, None))


def _pieces(
    source: SyntheticSource | RerenderedSource, params: Params, workspace: Workspace, store: SampleStore
) -> Iterator[RenderPiece]:
    # Every piece but the last is made of whole batches, so that each photo is rendered in the company it always has.
    photos = source.copies if isinstance(source, RerenderedSource) else source.photos_per_person
    count = BATCH_SIZE // math.gcd(BATCH_SIZE, photos)
    count *= max(1, round(BATCHES_PER_PIECE * BATCH_SIZE / (count * photos)))
    if isinstance(source, RerenderedSource):
        meshes = _training_meshes(source, params.ingest, params.project.seed, store)
        while some := tuple(islice(meshes, count)):
            yield RenderPiece(source, params, workspace, meshes=some)
    else:
        for start in range(0, source.persons, count):
            persons = range(start, min(start + count, source.persons))
            yield RenderPiece(source, params, workspace, persons=persons)


def _rendered(piece: RenderPiece, backdrops: Backdrops | None) -> Iterator[Candidate]:
    source, section, seed = piece.source, piece.params.ingest, piece.params.project.seed
    other = source.face_model if isinstance(source, SyntheticSource) else None
    face_model = shared_face_model(other or piece.params.face_model, piece.workspace)
    # The detector finds vertices of one model only.
    dense = None
    if section.dense_points and other is None:
        dense = _dense_vertices(face_model, section.dense_points)
    if isinstance(source, RerenderedSource):
        for photo in rerender(source, face_model, piece.meshes, seed=seed, dense=dense, outlines=section.outlines):
            yield _candidate(photo, source.name, photo.person, labelled=True)
        return
    for photo in synthesize(
        source,
        face_model,
        seed=seed,
        backdrops=backdrops,
        dense=dense,
        outlines=section.outlines,
        persons=piece.persons,
    ):
        person = f"{source.name}/{photo.person}"
        # Training must not see the meshes of unlabelled photos; measuring needs them, if they fit the face model.
        keep = source.labelled or split_of(person, section, seed) != "train"
        known = keep and not detector_only(source)
        mesh = Mesh(photo.mesh_id, photo.vertices, photo.neutral) if known else None
        yield _candidate(photo, source.name, person, labelled=source.labelled, mesh=mesh)


@lru_cache(maxsize=2)
def _dense_vertices(face_model: MorphableModel, count: int) -> NDArray[np.int64]:
    return dense_vertices(face_model, count)[0]


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
