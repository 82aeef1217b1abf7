"""Speech to an animated face: GLB with morph targets, Live Link CSV, JSON and a film."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.animation.animator import Animator
from models.animation.audio import AudioLimits, normalised, read_audio
from models.animation.clip import SAMPLE_RATE_HZ, SpeechClip, frame_count, frame_times
from models.animation.gltf import Animation, MorphFace, write_animated_glb
from models.animation.streaming import animate_features
from tasks.animation_files import write_curves, write_film, write_live_link
from tasks.animator_checkpoint import open_animator
from tasks.animator_data import LOG_MEL, clip_features
from tasks.artifacts import Workspace, load_checkpoint
from tasks.face_model import load_face_model
from tasks.faces_to_animate import open_face
from tasks.params import Params, load_params
from tasks.promotion import CHAMPION
from tasks.register_animator import CHECKPOINT_FILE, find_version
from tasks.tracking import tracking_client, tracking_uri


@dataclass(frozen=True)
class SpeakingNetwork:
    """An animator with the features that it hears through."""

    animator: Animator
    encoder: str
    origin: dict[str, Any]
    """Where the weights come from, for the record."""


def animate_speech(
    speech: Path,
    out: Path,
    *,
    workspace: Workspace,
    checkpoint: Path | None = None,
    face: Path | None = None,
    emotion: str | None = None,
    style: str | None = None,
    preview: bool = True,
) -> list[Path]:
    """Write `<speech>.glb`, `.csv`, `.json` and, with a preview, `.mp4`, all of them or none; returns their paths.

    Raises: ValueError or FileNotFoundError with a one-line message: speech that cannot be used, an unknown emotion or
    style, a face without ARKit's shapes, no trained animator.
    """
    params = load_params(workspace.params)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder; name another one with --out")
    network = open_network(checkpoint, params, workspace)
    # Before anything is computed, so that a misspelt name is known at once.
    network.animator.emotion_index(emotion)
    network.animator.style_index(style)
    speaker, stamp = open_face(face, load_face_model(params, workspace))
    sound = read_speech(speech, params)
    curves = animate_sound(network, sound, emotion=emotion, style=style, workspace=workspace)
    origin = {
        "speech": speech.name,
        "seconds": round(len(sound) / SAMPLE_RATE_HZ, 3),
        "emotion": emotion,
        "style": style,
        "model": network.origin,
        "face": face.name if face else "mean face",
        "face_model": stamp,
    }
    return write_animation(out, speech.stem, speaker, curves, sound, origin=origin, preview=preview)


def read_speech(path: Path, params: Params) -> np.ndarray:
    """Mono sound at 16 kHz and at the level of the training clips.

    Raises: AudioError or FileNotFoundError with a one-line message.
    """
    section = params.ingest_speech
    limits = AudioLimits(
        min_seconds=section.min_seconds,
        max_seconds=section.max_seconds,
        max_file_bytes=section.max_file_bytes,
        min_sample_rate_hz=section.min_sample_rate_hz,
        max_sample_rate_hz=section.max_sample_rate_hz,
        silence_db=section.silence_db,
        max_clipped_share=section.max_clipped_share,
    )
    sound, _ = read_audio(path, limits)
    return normalised(sound, level_db=section.loudness_db)


def animate_sound(
    network: SpeakingNetwork, sound: np.ndarray, *, emotion: str | None, style: str | None, workspace: Workspace
) -> np.ndarray:
    """Coefficients (T, 52) of mono sound at 16 kHz."""
    animator, frames = network.animator, frame_count(len(sound))
    clip = SpeechClip(
        clip_id="",
        source="",
        speaker="",
        emotion=emotion or "",
        style=style or "",
        text=None,
        split="",
        held_out=None,
        audio=sound,
        coefficients=np.zeros((frames, 52), np.float32),
        known=np.ones(52, bool),
        phonemes=np.full(frames, -1),
    )
    features, _ = clip_features(clip, network.encoder, workspace)
    return animate_features(
        animator, features, emotion=animator.emotion_index(emotion), style=animator.style_index(style)
    ).numpy()


def write_animation(
    out: Path,
    stem: str,
    face: MorphFace,
    curves: np.ndarray,
    sound: np.ndarray,
    *,
    origin: dict[str, Any],
    preview: bool,
) -> list[Path]:
    """Write the files of one animation under a common name."""
    names = [f"{stem}.glb", f"{stem}.csv", f"{stem}.json", *([f"{stem}.mp4"] if preview else [])]
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".animate-", dir=out))
    try:
        licence = origin["face_model"].get("licence", "")
        write_animated_glb(
            scratch / names[0],
            face,
            Animation(times_s=frame_times(len(curves)), weights=curves),
            name=stem,
            extras={"comment": f"speech of {origin['speech']}", "face_model": origin["face_model"]},
            copyright_line=f"face model {origin['face_model'].get('name', '')}: {licence}" if licence else "",
        )
        write_live_link(scratch / names[1], curves)
        write_curves(scratch / names[2], curves, origin)
        if preview:
            write_film(scratch / names[3], face, curves, sound)
        for name in names:
            (scratch / name).replace(out / name)
    finally:
        shutil.rmtree(scratch)
    return [out / name for name in names]


def open_network(checkpoint: Path | None, params: Params, workspace: Workspace) -> SpeakingNetwork:
    """The animator of a checkpoint file, or of the folder that holds one; by default the registry's champion.

    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    if checkpoint is not None:
        path = checkpoint / "checkpoint.pt" if checkpoint.is_dir() else checkpoint
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such checkpoint; name one such as artifacts/train_animator/checkpoint.pt"
            )
        return _open(path, {"checkpoint": str(path)})
    name, uri = params.evaluate_animator.model_name, tracking_uri(params, workspace)
    version = None
    # Asking would create an empty registry in a workspace that has none.
    if params.register.tracking_uri is not None or (workspace.root / "mlruns" / "mlflow.db").exists():
        client = tracking_client(params, workspace)
        version = find_version(client, name, CHAMPION)
    if version is None:
        raise FileNotFoundError(
            f"no champion of {name} in {uri}; run `mien run evaluate_animator` or give --checkpoint"
        )
    from mlflow.artifacts import download_artifacts

    location = client.get_model_version_download_uri(name, version.version)
    folder = Path(download_artifacts(artifact_uri=f"{location}/artifacts", tracking_uri=uri))
    return _open(folder / CHECKPOINT_FILE, {"name": name, "version": int(version.version), "alias": CHAMPION})


def _open(path: Path, origin: dict[str, Any]) -> SpeakingNetwork:
    content = load_checkpoint(path)
    return SpeakingNetwork(open_animator(path), str(content.get("encoder", LOG_MEL)), origin)
