"""The parameters of every stage: one frozen model per section of `params.yaml`, and unknown keys are refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.losses.objective import TERMS

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(gt=0)]
SourceName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class ParamsError(ValueError):
    """`params.yaml` cannot be used; the message names key, value and what was expected."""


class Section(BaseModel):
    """Base of all sections: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProjectParams(Section):
    """What all stages share."""

    code: str = "."
    """Folder of flows/, tasks/ and models/ seen from the workspace; `dvc.yaml` uses it to name code dependencies."""
    seed: Count = 0
    crop_size_px: Annotated[int, Field(ge=32, le=1024, multiple_of=16)] = 112
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """`auto`: bf16 where the processor computes in it, else 32 bits."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rasterizer: Literal["auto", "numba", "torch", "pytorch3d"] = "auto"
    """What draws the photo losses; `auto`: numba on the processor, torch on CUDA. All find the same triangles."""


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


class ScansSource(Section):
    """Photos with meshes in the topology of the face model, listed in a table."""

    kind: Literal["scans"]
    name: SourceName
    path: Path
    table: str = "scans.csv"
    """CSV in the folder with columns photo, mesh, person; meshes are OBJ, PLY or NPY in millimetres."""


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

    @model_validator(mode="after")
    def _names(self) -> IngestParams:
        if self.validation_share + self.test_share >= 1.0:
            raise ValueError("validation_share and test_share leave nothing to train on, expected a sum below 1")
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"source names repeat: {', '.join(names)}")
        for source in self.sources:
            if isinstance(source, RerenderedSource):
                original = next((other for other in self.sources if other.name == source.of), None)
                if original is None or not is_labelled(original) or isinstance(original, RerenderedSource):
                    raise ValueError(f"source {source.name}: of = {source.of!r} is not a labelled source")
        return self


def is_labelled(source: Source) -> bool:
    """Whether training samples of the source come with a mesh."""
    if isinstance(source, SyntheticSource):
        return source.labelled
    return not isinstance(source, PhotosSource)


class TrainDetectorParams(Section):
    """The landmark network of method C."""

    input_size_px: Annotated[int, Field(ge=64, le=512, multiple_of=16)] = 96
    epochs: PositiveCount = 20
    batch_size: PositiveCount = 32
    """Faces per step; half as many warped copies and an eighth without a face come on top."""
    learning_rate: Positive = 4e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    clip_norm: Positive = 1.0
    wing_width_px: Positive = 10.0
    wing_curvature_px: Positive = 2.0
    augmented_weight: Annotated[float, Field(ge=0.0)] = 1.0
    consistency_weight: Annotated[float, Field(ge=0.0)] = 0.0
    balance_tolerance: Share = 0.02
    """Large and small poses may differ in number by at most this share of the set."""
    large_pose_deg: Positive = 30.0
    yaw_bin_deg: Positive = 10.0


class TrainGeometryParams(Section):
    """The branch that reads a face's shape from its landmarks, trained on projections of the face model alone."""

    steps: PositiveCount = 4000
    batch_size: PositiveCount = 512
    learning_rate: Positive = 2e-3
    width: PositiveCount = 256
    blocks: PositiveCount = 2
    refinements: Count = 2
    """How often the first guess is corrected by what it misses."""
    max_yaw_deg: Annotated[float, Field(ge=0.0, le=90.0)] = 90.0


class DetectLandmarksParams(Section):
    """Which detector finds the 68 points."""

    detector: Literal["hierarchical", "provided", "face_alignment"] = "hierarchical"
    min_face_score: Share = 0.5
    """Photos whose best face scores less are quarantined as showing no face."""
    batch_size: PositiveCount = 64


class ValidateLabelsParams(Section):
    """What a row must fulfil, and how many may fail before the pipeline stops."""

    max_failed_share: Share = 0.2
    min_mean_confidence: Share = 0.3
    max_abs_pitch_deg: Positive = 60.0
    max_abs_roll_deg: Positive = 60.0
    max_abs_yaw_deg: Positive = 110.0
    border_tolerance: Share = 0.15
    """Landmarks may lie outside the photo by at most this share of the face box."""
    min_label_quality: Share = 0.0
    crop_scale: Positive = 1.35
    """Side of the aligned crop relative to the larger side of the landmarks' box."""


class EncoderParams(Section):
    """Shape of the image branch that stands beside the geometry branch."""

    backbone: Literal["resnet-slim"] = "resnet-slim"
    width: PositiveCount = 24
    features: PositiveCount = 256


class TrainingSource(Section):
    """One source's part in every training step."""

    source: SourceName
    share: Annotated[float, Field(gt=0.0, le=1.0)]
    losses: dict[str, Annotated[float, Field(ge=0.0)]] = Field(min_length=1)


class TrainingParams(Section):
    """One of the three stages of method A."""

    init: Literal["train_geometry", "train_self_supervised", "train_supervised", "train_fused"]
    steps: PositiveCount
    batch_size: PositiveCount = 32
    learning_rate: Positive = 1e-3
    warmup_steps: Count = 50
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    clip_norm: Positive = 1.0
    geometry_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Learning rate of the pretrained geometry branch relative to that of the rest; 0 freezes it."""
    freeze_batch_norm: bool = False
    validate_every: PositiveCount = 100
    patience: PositiveCount = 5
    """Validations without a better score after which the stage stops; the best weights are kept."""
    labelled_share: Share | Literal["by_quality"] | None = None
    """Share of labelled samples in a batch; `by_quality` derives it from the labels, none leaves the given shares."""
    sources: tuple[TrainingSource, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _shares_and_names(self) -> TrainingParams:
        total = sum(source.share for source in self.sources)
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"the shares of the sources add up to {total:g}, expected 1")
        for source in self.sources:
            for loss in source.losses:
                if loss not in TERMS:
                    raise ValueError(f"loss {loss!r} is unknown, expected one of {', '.join(TERMS)}")
        return self


class RefusionParams(Section):
    """When and how the fused model is trained again with more labelled samples."""

    similarity_threshold: Share = 0.8
    max_rounds: Count = 3
    share_step: Share = 0.125
    max_labelled_share: Share = 0.75
    steps: PositiveCount = 150
    learning_rate: Positive = 3e-4
    min_gain: Share = 0.005
    """A round that raises the similarity by less counts as stagnation; two in a row end the loop."""
    max_geometry_loss: Share = 0.01
    """A round that worsens the geometry by more than this share is rejected and ends the loop."""


class EvaluateParams(Section):
    """What the report shows."""

    batch_size: PositiveCount = 64
    yaw_bins_deg: tuple[float, ...] = (0.0, 30.0, 60.0, 90.0)
    pictures: PositiveCount = 6


class RegisterParams(Section):
    """Where the model goes."""

    experiment: str = "mien"
    model_name: str = "mien-reconstructor"
    tracking_uri: str | None = None
    """None: SQLite in the workspace's `mlruns/`."""


# The section must be called like its stage; that every abstract class has a method `register` does no harm to a field.
warnings.filterwarnings("ignore", message='Field name "register" in "Params" shadows', category=UserWarning)


class Params(Section):
    """The whole of `params.yaml`."""

    project: ProjectParams = ProjectParams()
    face_model: FaceModelParams = FaceModelParams()
    encoder: EncoderParams = EncoderParams()
    ingest: IngestParams
    train_detector: TrainDetectorParams = TrainDetectorParams()
    train_geometry: TrainGeometryParams = TrainGeometryParams()
    detect_landmarks: DetectLandmarksParams = DetectLandmarksParams()
    validate_labels: ValidateLabelsParams = ValidateLabelsParams()
    train_self_supervised: TrainingParams
    train_supervised: TrainingParams
    train_fused: TrainingParams
    refusion: RefusionParams = RefusionParams()
    evaluate: EvaluateParams = EvaluateParams()
    register: RegisterParams = RegisterParams()

    @model_validator(mode="after")
    def _losses_have_what_they_need(self) -> Params:
        known = {source.name: source for source in self.ingest.sources}
        for stage in ("train_self_supervised", "train_supervised", "train_fused"):
            for training in getattr(self, stage).sources:
                if training.source not in known:
                    raise ValueError(
                        f"{stage}.sources: source {training.source!r} is not ingested, "
                        f"expected one of {', '.join(known)}"
                    )
                for loss in training.losses:
                    if "scan" in TERMS[loss].needs and not is_labelled(known[training.source]):
                        raise ValueError(
                            f"{stage}.sources: loss {loss!r} needs labelled meshes, "
                            f"which source {training.source!r} lacks"
                        )
        return self


def parse_params(data: Any, *, name: str = "params.yaml") -> Params:
    """Check raw data against the sections.

    Raises: ParamsError with one line per fault: key, value found, what was expected.
    """
    try:
        return Params.model_validate(data)
    except ValidationError as error:
        raise ParamsError("\n".join(_line(name, fault) for fault in error.errors())) from None


def load_params(path: Path) -> Params:
    """Read `params.yaml`.

    Raises: ParamsError if the file is missing, is not YAML or does not fit.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run in a Mien workspace or name one with --workspace") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        raise ParamsError(f"{path.name}: not valid YAML{line}; check indentation and brackets") from None
    return parse_params(data, name=path.name)


def _line(name: str, fault: Any) -> str:
    # Pydantic names the branch of a union in the location; the key that the user wrote is what helps.
    tags = {"synthetic", "rerendered", "photos", "scans", "constrained-float", "float"}
    key = ".".join(str(part) for part in fault["loc"] if part not in tags and not str(part).startswith("literal["))
    key = key or "(top level)"
    if fault["type"] == "extra_forbidden":
        return f"{name}: {key} = {fault['input']!r}: unknown key; remove it or check its spelling"
    if fault["type"] == "missing":
        return f"{name}: {key}: missing, expected a value"
    expected = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if fault["type"] == "path_type":
        expected = "a path"
    value = repr(fault["input"])
    if isinstance(fault["input"], dict) or len(value) > 80:
        return f"{name}: {key}: {expected}"
    return f"{name}: {key} = {value}: expected {expected}"
