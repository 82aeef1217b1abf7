"""The parameters that say where samples come from: face model, sources, and what is refused before decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(gt=0)]
SourceName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Section(BaseModel):
    """Base of all sections: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FaceModelParams(Section):
    """Which morphable model everything is expressed in."""

    kind: Literal["procedural", "npz", "ict", "basel", "flame", "surrey"] = "procedural"
    """`npz` is our own file, also as `.safetensors`."""
    path: Path | None = None
    """The model's file, or the folder of ICT-FaceKit; every kind but `procedural` needs it."""
    landmarks: Path | None = None
    """File that says where the 68 points are, for models that do not, or to correct them."""
    region: Literal["narrow_face", "face", "head", "full"] | None = None
    """Part of ICT-FaceKit; default `narrow_face`, `full` has eyeballs, teeth and tongue."""
    identity_modes: Annotated[int, Field(ge=1, le=500)] = 40

    @model_validator(mode="after")
    def _files_where_needed(self) -> FaceModelParams:
        if self.kind == "procedural":
            for key in ("path", "landmarks"):
                if getattr(self, key) is not None:
                    raise ValueError(f"kind procedural is made by code and takes no {key}; set kind, or remove {key}")
        elif self.path is None:
            raise ValueError(f"kind {self.kind} needs a path")
        if self.region is not None and self.kind != "ict":
            raise ValueError(f"kind {self.kind} has no regions, only ict; remove region")
        return self


class SyntheticSource(Section):
    """Rendered photos with full ground truth."""

    kind: Literal["synthetic"]
    name: SourceName
    persons: PositiveCount
    photos_per_person: PositiveCount = 2
    labelled: bool = False
    """Whether the training split may see the meshes; validation and test always keep them for measuring."""
    size_px: Annotated[int, Field(ge=64, le=2048)] = 160
    max_yaw_deg: Annotated[float, Field(ge=0.0, le=90.0)] = 90.0
    occluder_share: Share = 0.25
    face_model: FaceModelParams | None = None
    """A face model of its own. Its meshes fit nothing else, so such photos teach the landmark detector only."""
    randomization: Literal["plain", "strong"] = "plain"
    """`strong`: painted skin, more occluders, harder light, poses and lenses, cut-off faces, worse cameras."""
    backgrounds: SourceName | None = None
    """A source of kind `photos`: strong randomisation then also shows crops of its annotated training photos, their
    faces covered."""

    @model_validator(mode="after")
    def _what_goes_together(self) -> SyntheticSource:
        if self.labelled and self.face_model is not None:
            raise ValueError(
                "labelled meshes must have the workspace's topology; remove the source's face_model or labelled"
            )
        if self.backgrounds is not None and self.randomization != "strong":
            raise ValueError("backgrounds need randomization: strong; set it or remove backgrounds")
        return self


class RerenderedSource(Section):
    """Further labelled photos of the meshes of another source, under new poses, light and skin. Training split only."""

    kind: Literal["rerendered"]
    name: SourceName
    of: SourceName
    copies: PositiveCount
    size_px: Annotated[int, Field(ge=64, le=2048)] = 160
    max_yaw_deg: Annotated[float, Field(ge=0.0, le=90.0)] = 90.0
    occluder_share: Share = 0.25


class PhotosSource(Section):
    """A folder of images, with optional `landmarks.csv`, `.pts` files beside the images, and a table of persons."""

    kind: Literal["photos"]
    name: SourceName
    path: Path
    landmarks: Path | None = None
    """CSV with columns file, x0, y0 … x67, y67 in pixels; default `landmarks.csv` in the folder, where it exists."""
    persons: Path | None = None
    """CSV with columns file, person; default `persons.csv` in the folder, where it exists. A photo that is not
    listed is a person of its own."""
    hold_out_every: Annotated[int, Field(ge=2)] | None = None
    """Test photos are then those whose file name's SHA-256 divides by this, instead of `test_share` of the persons: a
    rule that other programs can follow. Needs photos without a table of persons."""


ScanUnit = Literal["mm", "cm", "m", "unknown"]
"""Of a mesh's coordinates; a face of unknown unit gets the size that is most probable."""


class ScansSource(Section):
    """Photos with meshes, listed in a table; meshes that are not in the face model's topology are registered to it."""

    kind: Literal["scans"]
    name: SourceName
    path: Path
    table: str = "scans.csv"
    """CSV in the folder with columns photo, mesh, person; meshes are OBJ, PLY or NPY. See docs/scans.md."""
    unit: ScanUnit = "mm"
    """Of meshes without an entry in the column `unit`."""


Source = Annotated[SyntheticSource | RerenderedSource | PhotosSource | ScansSource, Field(discriminator="kind")]


class IngestParams(Section):
    """Where samples come from, and what is refused before decoding."""

    sources: tuple[Source, ...] = Field(min_length=1)
    validation_share: Share = 0.08
    test_share: Share = 0.12
    shard_rows: PositiveCount = 512
    max_image_bytes: PositiveCount = 32 * 2**20
    max_image_pixels: PositiveCount = 64_000_000
    min_image_side_px: PositiveCount = 48
    max_side_px: PositiveCount = 1024
    """Larger photos are stored reduced to this, landmarks with them."""
    dense_points: Count = 0
    """Further vertices of the workspace's face model with which its rendered photos are stored, for the detector."""
    outlines: bool = False
    """Whether rendered photos are stored with the jaw points where people put them, on the visible outline."""

    @model_validator(mode="after")
    def _names(self) -> IngestParams:
        if self.validation_share + self.test_share >= 1.0:
            raise ValueError("validation_share and test_share leave nothing to train on, expected a sum below 1")
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"source names repeat: {', '.join(names)}")
        known = dict(zip(names, self.sources, strict=True))
        for source in self.sources:
            if isinstance(source, RerenderedSource):
                original = known.get(source.of)
                if original is None or not is_labelled(original) or isinstance(original, RerenderedSource):
                    raise ValueError(f"source {source.name}: of = {source.of!r} is not a labelled source")
            backgrounds = source.backgrounds if isinstance(source, SyntheticSource) else None
            if backgrounds is not None and not isinstance(known.get(backgrounds), PhotosSource):
                raise ValueError(f"source {source.name}: backgrounds = {backgrounds!r} is not a source of kind photos")
        return self


def is_labelled(source: Source) -> bool:
    """Whether training samples of the source come with a mesh."""
    if isinstance(source, SyntheticSource):
        return source.labelled
    return not isinstance(source, PhotosSource)


def may_know_persons(source: Source) -> bool:
    """Whether several photos of the source may show one person, who is known; a folder's table is read later."""
    if isinstance(source, SyntheticSource):
        return source.photos_per_person > 1
    if isinstance(source, RerenderedSource):
        return source.copies > 1
    return not isinstance(source, PhotosSource) or source.hold_out_every is None


def detector_only(source: Source) -> bool:
    """Whether only the landmark detector may learn from the source, because it shows another face model."""
    return isinstance(source, SyntheticSource) and source.face_model is not None
