"""The parameters of every stage: one frozen model per section of `params.yaml`, and unknown keys are refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from models.losses.needs import NEEDS, SOURCE_NEEDS
from tasks.runner_params import RunnerParams
from tasks.source_params import (
    Count,
    FaceModelParams,
    IngestParams,
    Positive,
    PositiveCount,
    Section,
    Share,
    SourceName,
    detector_only,
    is_labelled,
    may_know_persons,
)
from tasks.speech_params import EvaluateAnimatorParams, IngestSpeechParams, TrainAnimatorParams
from tasks.yaml_file import YamlError, read_yaml


class ParamsError(ValueError):
    """`params.yaml` cannot be used; the message names key, value and what was expected."""


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
    max_crops_in_memory: Count = 20_000
    """Splits of more crops are read from a file that is mapped into memory, as they are drawn."""


class TrainDetectorParams(Section):
    """The landmark network of method C."""

    input_size_px: Annotated[int, Field(ge=64, le=512, multiple_of=16)] = 96
    epochs: PositiveCount = 20
    batch_size: PositiveCount = 32
    """Faces per step; half as many warped copies and an eighth without a face come on top."""
    learning_rate: Positive = 4e-3
    finder_steps: Count = 300
    """Of the network that finds faces in whole photos; 0 does without, and windows are searched instead."""
    finder_learning_rate: Positive = 1e-2
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    clip_norm: Positive = 1.0
    wing_width_px: Positive = 10.0
    wing_curvature_px: Positive = 2.0
    augmented_weight: Annotated[float, Field(ge=0.0)] = 1.0
    consistency_weight: Annotated[float, Field(ge=0.0)] = 0.0
    annotated_share: Share = 0.25
    """Of each batch, where annotated photos lie beside rendered ones; these have the face model's own points."""
    augmentation: Literal["mild", "strong"] = "mild"
    """How hard the training crops are made; `strong` for trainings of more than some minutes."""
    turned_copies: Count = 0
    """How often the head of an annotated photo may be turned further at most, to fill poses that photos lack."""
    width_factor: Positive = 1.0
    """Channels of the network relative to the default."""
    attention: Literal["linear", "softmax"] = "linear"
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
    set_steps: Count = 100
    """Steps that learn, on simulated sets, how much each photo of a person deserves to be heard; 0 leaves it out."""


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

    backbone: Literal["resnet-slim", "resnet-18", "resnet-50", "mobilenet", "convnext"] = "resnet-slim"
    """Ours, or one of those that the library transformers builds."""
    pretrained: bool = False
    """Start from public weights of the backbone, which are fetched; not for `resnet-slim`, which has none."""
    width: PositiveCount = 24
    """Channels of the first layer of `resnet-slim`."""
    features: PositiveCount = 256

    @model_validator(mode="after")
    def _has_public_weights(self) -> EncoderParams:
        if self.pretrained and self.backbone == "resnet-slim":
            raise ValueError("pretrained is set, but resnet-slim has no public weights; choose another backbone")
        return self


class TrainingSource(Section):
    """One source's part in every training step."""

    source: SourceName
    share: Annotated[float, Field(gt=0.0, le=1.0)]
    losses: dict[str, Annotated[float, Field(ge=0.0)]] = Field(min_length=1)
    photos_per_person: PositiveCount = 1
    """Photos of each person in a batch, as far as there are so many; 1 draws photos without looking at persons."""


class TrainingParams(Section):
    """One of the three stages of method A."""

    init: Literal["train_geometry", "train_self_supervised", "train_supervised", "train_fused"]
    steps: PositiveCount
    batch_size: PositiveCount = 32
    learning_rate: Positive = 1e-3
    warmup_steps: Count = 50
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """How the rate falls: to a fiftieth along a cosine, to a tenth at `decay_at`, or not."""
    decay_at: Share = 0.5
    """Share of the steps after which the schedule `step` lowers the rate."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    clip_norm: Positive = 1.0
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Of the moving average of the weights, which is then what is validated and kept; 0 does without."""
    accumulate: PositiveCount = 1
    """Portions that a batch is computed in, to save memory; gradients add up to those of the whole."""
    geometry_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Learning rate of the pretrained geometry branch relative to that of the rest; 0 freezes it."""
    freeze_batch_norm: bool = False
    validate_every: PositiveCount = 100
    patience: PositiveCount = 5
    """Validations without a better score after which the stage stops; the best weights are kept."""
    identity_warmup_steps: Count = 1000
    """Steps over which the losses that are about persons grow to their weights. Source: method D.4."""
    identity_map_steps: Count = 160
    """Steps that look for the linear map of identities that tells persons apart, before the stage trains."""
    class_rate: Annotated[float, Field(ge=0.0)] = 10.0
    """Learning rate of the directions that separation keeps of persons, relative to that of the network."""
    center_rate: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    """How far a photo moves its person's centre; 1 after Wen et al. 2016."""
    confidence_width: PositiveCount = 16
    """Channels of the first layer of the network that photo_likelihood learns; its source has 64."""
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
                if loss not in NEEDS:
                    raise ValueError(f"loss {loss!r} is unknown, expected one of {', '.join(NEEDS)}")
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


class AblationParams(Section):
    """What the report compares the three stages with: `mien experiment ablation` at its small size."""

    variants: tuple[str, ...] = ("self_supervised", "three_stages", "refusion")
    """By their names there. What the stages themselves have trained costs no training; none at all: no ablation."""
    seeds: PositiveCount = 1


class EvaluateParams(Section):
    """What the report shows."""

    batch_size: PositiveCount = 64
    yaw_bins_deg: tuple[float, ...] = (0.0, 30.0, 60.0, 90.0)
    pictures: PositiveCount = 6
    refine_steps: Count = 60
    """Steps of per-photo optimisation after the network, measured in a block of their own; 0 leaves it out."""
    ablation: Path | None = None
    """Folder of an ablation (`mien experiment ablation`) that the report shows; None: that of the stage `ablation`."""


class RegisterParams(Section):
    """Where the model goes."""

    experiment: str = "mien"
    model_name: str = "mien-reconstructor"
    tracking_uri: str | None = None
    """None: SQLite in the workspace's `mlruns/`."""
    promote: Literal["at_once", "later"] = "at_once"
    """Whether the stage makes a version champion that passes, or leaves it to `mien registry promote`."""


# The section must be called like its stage; that every abstract class has a method `register` does no harm to a field.
warnings.filterwarnings("ignore", message='Field name "register" in "Params" shadows', category=UserWarning)


class Params(Section):
    """The whole of `params.yaml`."""

    project: ProjectParams = ProjectParams()
    face_model: FaceModelParams = FaceModelParams()
    encoder: EncoderParams = EncoderParams()
    runner: RunnerParams = RunnerParams()
    ingest: IngestParams
    train_detector: TrainDetectorParams = TrainDetectorParams()
    train_geometry: TrainGeometryParams = TrainGeometryParams()
    detect_landmarks: DetectLandmarksParams = DetectLandmarksParams()
    validate_labels: ValidateLabelsParams = ValidateLabelsParams()
    train_self_supervised: TrainingParams
    train_supervised: TrainingParams
    train_fused: TrainingParams
    refusion: RefusionParams = RefusionParams()
    ablation: AblationParams = AblationParams()
    evaluate: EvaluateParams = EvaluateParams()
    register: RegisterParams = RegisterParams()
    ingest_speech: IngestSpeechParams = IngestSpeechParams()
    train_animator: TrainAnimatorParams = TrainAnimatorParams()
    evaluate_animator: EvaluateAnimatorParams = EvaluateAnimatorParams()

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
                if detector_only(known[training.source]):
                    raise ValueError(
                        f"{stage}.sources: source {training.source!r} has a face model of its own and teaches "
                        "the landmark detector only; remove it there"
                    )
                source = known[training.source]
                has = {"scan": is_labelled(source), "person": may_know_persons(source)}
                for loss in training.losses:
                    for need in sorted(NEEDS[loss] & set(SOURCE_NEEDS)):
                        if not has[need]:
                            raise ValueError(
                                f"{stage}.sources: loss {loss!r} needs {SOURCE_NEEDS[need]}, "
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
        data = read_yaml(path)
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run in a Mien workspace or name one with --workspace") from None
    except YamlError as error:
        raise ParamsError(str(error)) from None
    return parse_params(data, name=path.name)


def _line(name: str, fault: Any) -> str:
    # Pydantic names the branch of a union in the location; the key that the user wrote is what helps.
    tags = {"synthetic", "rerendered", "photos", "scans", "video", "curves", "constrained-float", "float"}
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
