"""The parameters of speech: where clips come from, how the animator is trained, and what its report shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.source_params import Count, Positive, PositiveCount, Section, Share, SourceName

Label = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""Name of an emotion or of a speaking style."""


class SyntheticSpeechSource(Section):
    """Sentences spoken by espeak-ng, with curves by viseme rules: the truth is known."""

    kind: Literal["synthetic"]
    name: SourceName
    sentences: PositiveCount = 150
    """How many sentences are made, or read of `text` at most; each is spoken once by every one of `readings` voices."""
    readings: PositiveCount = 2
    text: Path | None = None
    """A file with one sentence per line, in the language of the voices; without it our own grammar makes them."""
    voices: Annotated[tuple[str, ...], Field(min_length=1)] = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-029")
    """espeak-ng's names of voices; each speaks in several timbres, rates and pitches."""
    speakers: Annotated[int, Field(ge=2)] = 10
    """Voice, timbre, rate and pitch drawn once each."""
    held_out_speakers: PositiveCount = 2
    """Speakers heard in the test split only."""
    emotions: Annotated[tuple[Label, ...], Field(min_length=1)] = ("neutral", "joy", "anger", "sadness")
    styles: Annotated[tuple[Label, ...], Field(min_length=1)] = ("plain", "lively", "mumbled")


class VideoSource(Section):
    """Face-capture videos: one face and one voice each, labelled by the workspace's reconstructor."""

    kind: Literal["video"]
    name: SourceName
    path: Path
    checkpoint: Path = Path("artifacts/refusion/checkpoint.pt")
    table: str = "clips.csv"
    """CSV in the folder with columns file, speaker, emotion, style, split; columns and the file itself may lack."""
    emotion: Label = "neutral"
    style: Label = "plain"
    min_face_share: Share = 0.8
    """A video in which a smaller share of the frames shows a face is quarantined."""
    smoothing_hz: Positive = 10.0
    """Cut-off of the filter over the coefficients; below 8 it takes short closures of the lips for noise."""


class CurvesSource(Section):
    """Sound files with coefficient curves beside them: NPZ, CSV by ARKit name, or Live Link Face CSV."""

    kind: Literal["curves"]
    name: SourceName
    path: Path
    mapping: Path | None = None
    """CSV that says of which shapes of the file an ARKit coefficient is made (columns: ARKit's name, a shape or
    `max(…)` of several, valid or not); without it the names in the file must be ARKit's."""
    column_shift: int = 0
    """By how many columns the values of a file stand to the right of their names; 1 for FACEGOOD's published curves."""
    fps: Positive | None = None
    """Frame rate of files that say none."""
    channels: tuple[str, ...] | None = None
    """ARKit coefficients that carry meaning; default all in the file, or those that `mapping` calls valid."""
    table: str = "clips.csv"
    """CSV in the folder with columns file, speaker, emotion, style, split; columns and the file itself may lack."""
    speaker: str | None = None
    """Who speaks in all files without an entry in the table; default each file somebody of its own."""
    hold_out: tuple[str, ...] = ()
    """Sound files of the test split, by name."""
    emotion: Label = "neutral"
    style: Label = "plain"


SpeechSource = Annotated[SyntheticSpeechSource | VideoSource | CurvesSource, Field(discriminator="kind")]


class IngestSpeechParams(Section):
    """Where clips of speech come from, and what is refused."""

    sources: Annotated[tuple[SpeechSource, ...], Field(min_length=1)] = (
        SyntheticSpeechSource(kind="synthetic", name="synthetic_speech"),
    )
    validation_share: Share = 0.1
    """Of the sentences of a synthetic source, of the clips of others."""
    test_share: Share = 0.15
    min_seconds: Positive = 0.5
    max_seconds: Positive = 900.0
    max_file_bytes: PositiveCount = 2**30
    min_sample_rate_hz: PositiveCount = 8000
    max_sample_rate_hz: PositiveCount = 192_000
    loudness_db: Annotated[float, Field(ge=-60.0, le=0.0)] = -23.0
    """Level of speech after normalisation, dB of full scale (RMS where somebody speaks)."""
    silence_db: Annotated[float, Field(le=0.0)] = -55.0
    """A clip that is quieter throughout is silent."""
    max_clipped_share: Share = 0.01
    """Of the samples that may stand at full scale."""
    max_length_difference_s: Positive = 0.25
    """Curves may be shorter or longer than their sound by this; what goes beyond is cut."""
    max_failed_share: Share = 0.2
    """More quarantined clips stop the pipeline."""
    shard_clips: PositiveCount = 128

    @model_validator(mode="after")
    def _names(self) -> IngestSpeechParams:
        if self.validation_share + self.test_share >= 1.0:
            raise ValueError("validation_share and test_share leave nothing to train on, expected a sum below 1")
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"source names repeat: {', '.join(names)}")
        for source in self.sources:
            if isinstance(source, SyntheticSpeechSource) and source.held_out_speakers >= source.speakers:
                raise ValueError(
                    f"source {source.name}: held_out_speakers = {source.held_out_speakers}, "
                    f"expected fewer than speakers = {source.speakers}"
                )
        return self


class TrainAnimatorParams(Section):
    """The network of method E, from speech to coefficients."""

    encoder: str = "log_mel"
    """`log_mel`, or a speech encoder of `transformers` (wav2vec 2.0, HuBERT) by name or folder; it stays frozen."""
    width: Annotated[int, Field(gt=0, multiple_of=4)] = 128
    layers: PositiveCount = 3
    heads: PositiveCount = 4
    feed_forward: PositiveCount = 256
    position_kernel: Annotated[int, Field(ge=3)] = 31
    """Frames over which the convolution that tells positions looks."""
    condition_width: PositiveCount = 32
    """Numbers that describe an emotion, and as many a style."""
    dropout: Share = 0.1
    unknown_share: Share = 0.1
    """Of the windows in training that hide emotion, and as many that hide style: these teach the default."""
    window_s: Positive = 2.0
    lookahead_s: Positive = 0.3
    """How far into the future the network may look; bounds the delay of streaming."""
    memory_s: Positive = 1.0
    """How far into the past it may look."""
    steps: PositiveCount = 800
    batch_size: PositiveCount = 16
    learning_rate: Positive = 1.5e-3
    warmup_steps: Count = 50
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-2
    clip_norm: Positive = 1.0
    validate_every: PositiveCount = 100
    patience: PositiveCount = 5
    first_weight: Positive = 1.0
    velocity_weight: Annotated[float, Field(ge=0.0)] = 10.0
    lip_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Of the second loss where lips are closed; 0 does without."""
    lip_match_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Of the term that matches the lip distance where lips are open; without it the mouth learns to stay shut."""
    lip_distance: Literal["patent", "extended"] = "extended"
    open_ratio: Share = 0.25
    """mouthClose / jawOpen up to which lips are open."""
    closed_ratio: Share = 0.75
    """… and from which they are closed."""
    closed_distance: Positive = 0.03
    """Lip distance, as a share of that of a fully open jaw, below which lips are closed."""
    bilabial_weight: Positive = 3.0
    """Of frames of p, b and m in the second loss."""


class EvaluateAnimatorParams(Section):
    """What the animator's report shows, and under which name it is registered."""

    ablation: bool = True
    """Whether the network is trained once more without lip losses, to show what they do."""
    tolerance_frames: Count = 1
    """Frames by which a closure may come early or late."""
    pictures: PositiveCount = 4
    model_name: str = "mien-animator"
