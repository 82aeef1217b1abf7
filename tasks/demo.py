"""What the page of `mien demo` does with photos and speech: faces with their files, kept until its server ends."""

from __future__ import annotations

import io
import secrets
import shutil
import threading
import wave
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from PIL import Image

from models.animation.clip import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from models.animation.gltf import MorphFace, write_animated_glb
from models.face.morphable import MorphableModel
from models.face.procedural_expressions import ARKIT_NAMES
from models.reconstruction.face_meshes import TEXTURE_PX
from models.reconstruction.photos import Which
from tasks.animate import SpeakingNetwork, animate_sound, open_network, read_speech, write_animation
from tasks.artifacts import Workspace
from tasks.face_model import load_face_model
from tasks.face_reader import FaceReader, open_champion, open_checkpoint
from tasks.face_record import FaceRecord, Palette
from tasks.faces_to_animate import open_face
from tasks.images import decode
from tasks.outputs import OutputWriter
from tasks.params import load_params
from tasks.reconstruct import FoundFace, Refinement, refine_faces

MAX_FACES = 60
"""Older faces are deleted when more have come: the page of an exhibition runs for days."""

OUTPUTS = ("glb", "obj", "ply", "json", "camera", "overlay", "depth", "normals")
"""Of `mien reconstruct`; what the page offers for every face."""

CLOSE_UP, CLOSE_UP_PX = 2.0, 900
"""The page shows the photo around the face, so many times its box, at most this large; the files keep all of it."""

FINE_FACE_PX = 400
"""Faces that are smaller in the photo have nothing to show on a texture of full size."""

MEAN = "mean"
"""Key of the face that is there before any photo."""


@dataclass(frozen=True)
class DemoFace:
    """A face that the page can show, with the files made of it."""

    key: str
    name: str
    folder: Path
    mesh: str
    """The file with morph targets that the page draws."""
    face: MorphFace | None
    """What speech moves; None if the face model has no shapes to speak with, and then `silent` says so."""
    stamp: dict[str, str]
    overlay: str | None = None
    photo: str | None = None
    """Overlay and photo, cut to the face."""
    files: tuple[str, ...] = ()
    silent: str = ""

    def document(self) -> dict[str, Any]:
        """What the page is told."""
        return {
            "key": self.key,
            "name": self.name,
            "mesh": self.address(self.mesh),
            "overlay": None if self.overlay is None else self.address(self.overlay),
            "photo": None if self.photo is None else self.address(self.photo),
            "files": self.listing(),
        }

    def listing(self) -> list[dict[str, Any]]:
        """Name, address and size of every file."""
        return [
            {"name": name, "url": self.address(name), "bytes": (self.folder / name).stat().st_size}
            for name in self.files
        ]

    def address(self, name: str) -> str:
        """Where the page finds a file."""
        return f"/api/faces/{self.key}/files/{name}"


class Studio:
    """Turns photos into faces and lets them speak; one thing at a time, since each takes all cores.

    What cannot be done, because no model was trained, is said by `no_photos` and `no_speech`; the face model itself can
    always be shown. Raises: ValueError or FileNotFoundError with a one-line message if even that fails.
    """

    def __init__(
        self,
        workspace: Workspace,
        folder: Path,
        *,
        checkpoint: Path | None = None,
        animator: Path | None = None,
        which: Which = "all",
    ) -> None:
        self.workspace, self.folder, self.which = workspace, folder, which
        self.params = load_params(workspace.params)
        self.faces: OrderedDict[str, DemoFace] = OrderedDict()
        self._busy = threading.Lock()
        self.no_photos = self.no_speech = ""
        self.reader: FaceReader | None = None
        self.network: SpeakingNetwork | None = None
        try:
            if checkpoint is None:
                self.reader = open_champion(self.params, workspace)
            else:
                self.reader = open_checkpoint(checkpoint, self.params, workspace)
        except FileNotFoundError as error:
            if checkpoint is not None:
                raise
            self.no_photos = str(error)
        try:
            self.network = open_network(animator, self.params, workspace)
        except FileNotFoundError as error:
            if animator is not None:
                raise
            self.no_speech = str(error)
        self._show_mean()

    @cached_property
    def model(self) -> MorphableModel:
        """The face model of the network, or where there is none, the workspace's."""
        if self.reader is not None:
            return self.reader.reconstructor.model
        return load_face_model(self.params, self.workspace)

    @cached_property
    def palettes(self) -> dict[bool, Palette]:
        """For the pictures of faces, by whether the face is large in its photo."""
        return {True: Palette(self.model), False: Palette(self.model, texture_px=TEXTURE_PX // 2)}

    def about(self) -> dict[str, Any]:
        """What the page can do, and the face that it begins with."""
        animator = None if self.network is None else self.network.animator
        return {
            "face_model": self.model.stamp(),
            "no_photos": self.no_photos,
            "no_speech": self.no_speech,
            "emotions": [] if animator is None else list(animator.settings.emotions),
            "styles": [] if animator is None else list(animator.settings.styles),
            "mean": self.faces[MEAN].document(),
        }

    def add_photo(self, name: str, content: bytes, *, refine: bool = False) -> dict[str, Any]:
        """Reconstruct the face of a photo, write all its files, and say where they are.

        Raises: ValueError with a one-line message: no photo, no face in it, or no model to see it with.
        """
        reader = self.reader
        if reader is None:
            raise ValueError(self.no_photos)
        with self._busy:
            started = monotonic()
            photo = decode(content, max_bytes=reader.max_image_bytes, max_pixels=reader.max_image_pixels)
            plain = Path(safe_name(name, "photo"))
            (seen,) = reader.photos.read([photo], names=[plain.name], which=self.which)
            found = [FoundFace(plain, number, face) for number, face in enumerate(seen, 1)]
            if not found:
                raise ValueError("no face was found; cut the photo closer to the face")
            if refine:
                found = refine_faces(reader, found, Refinement())
            made = [self._written(reader, one) for one in found]
            for face in made:
                self._keep(face)
            return {"faces": [face.document() for face in made], "seconds": monotonic() - started}

    def add_speech(
        self, key: str, name: str, content: bytes, *, emotion: str = "", style: str = "", film: bool = False
    ) -> dict[str, Any]:
        """Let a face speak: curves for the page, and the files of `mien animate` beside those that there are.

        Raises: ValueError with a one-line message: no such face, sound that cannot be used, nothing to hear it with.
        """
        if self.network is None:
            raise ValueError(self.no_speech)
        with self._busy:
            started = monotonic()
            face = self.face(key)
            if face.face is None:
                raise ValueError(face.silent)
            # Before anything is computed, so that an unknown name is known at once.
            self.network.animator.emotion_index(emotion or None)
            self.network.animator.style_index(style or None)
            stem = f"{Path(safe_name(face.name, 'face')).stem}_speech"
            folder = face.folder / ".sound"
            folder.mkdir(exist_ok=True)
            path = folder / safe_name(name, "speech")
            try:
                path.write_bytes(content)
                sound = read_speech(path, self.params)
                curves = animate_sound(
                    self.network, sound, emotion=emotion or None, style=style or None, workspace=self.workspace
                )
                seconds = len(sound) / SAMPLE_RATE_HZ
                origin = {
                    "speech": path.name,
                    "seconds": round(seconds, 3),
                    "emotion": emotion or None,
                    "style": style or None,
                    "model": self.network.origin,
                    "face": face.name,
                    "face_model": face.stamp,
                }
                written = write_animation(face.folder, stem, face.face, curves, sound, origin=origin, preview=film)
            finally:
                shutil.rmtree(folder)
            write_wave(face.folder / f"{stem}.wav", sound)
            new = [path.name for path in written] + [f"{stem}.wav"]
            speech = {
                "seconds": seconds,
                "fps": FRAME_RATE_HZ,
                "names": list(ARKIT_NAMES),
                "weights": np.round(curves.astype(np.float64), 4).tolist(),
                "sound": face.address(f"{stem}.wav") + f"?{secrets.token_hex(4)}",
            }
            files = tuple(dict.fromkeys([*face.files, *new]))
            self.faces[key] = replace(face, files=files)
            return {"speech": speech, "files": self.faces[key].listing(), "seconds": monotonic() - started}

    def face(self, key: str) -> DemoFace:
        """A face by its key.

        Raises: ValueError if there is none, or no longer.
        """
        if key not in self.faces:
            raise ValueError("this face is not there any more; drop its photo again")
        return self.faces[key]

    def file(self, key: str, name: str) -> Path:
        """A file of a face; only what was made for the page is found.

        Raises: ValueError if there is no such face or file.
        """
        face = self.face(key)
        if name not in (*face.files, face.mesh, face.overlay, face.photo):
            raise ValueError(f"{face.name}: has no file of that name")
        return face.folder / name

    def bundle(self, key: str) -> bytes:
        """All files of a face as one ZIP.

        Raises: ValueError if there is no such face.
        """
        face = self.face(key)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in face.files:
                archive.write(face.folder / name, name)
        return buffer.getvalue()

    def _show_mean(self) -> None:
        folder = self.folder / MEAN
        folder.mkdir(parents=True)
        model, stamp = self.model, self.model.stamp()
        speaking, silent = self._speaking(None)
        shown = speaking or MorphFace(
            vertices=model.mean.numpy(),
            triangles=model.triangles.numpy(),
            colours=model.albedo_mean.numpy(),
            target_names=model.expression_names,
            targets=model.expression_basis.numpy(),
        )
        write_animated_glb(
            folder / "mean_face.glb",
            shown,
            extras={"comment": "mean of the face model", "face_model": stamp},
            copyright_line=f"face model {stamp['name']}: {stamp.get('licence', '')}",
        )
        self.faces[MEAN] = DemoFace(
            key=MEAN,
            name="mean face",
            folder=folder,
            mesh="mean_face.glb",
            face=speaking,
            stamp=stamp,
            files=("mean_face.glb",),
            silent=silent,
        )

    def _speaking(self, document: Path | None) -> tuple[MorphFace | None, str]:
        try:
            return open_face(document, self.model)[0], ""
        except ValueError as error:
            return None, str(error)

    def _written(self, reader: FaceReader, one: FoundFace) -> DemoFace:
        """A face with all its files, all of them or none."""
        key = secrets.token_urlsafe(12)
        folder = self.folder / key
        box = one.face.detection.box
        record = FaceRecord(
            face=one.face,
            stem=one.stem,
            palette=self.palettes[float(np.ptp(box.reshape(2, 2), axis=0).max()) > FINE_FACE_PX],
            origin=reader.origin,
            number=one.number,
            refinement=one.refinement,
        )
        try:
            names = [path.name for path in OutputWriter(folder, OUTPUTS).add(record)]
            with Image.open(folder / f"{one.stem}_overlay.png") as drawn:
                close_up(drawn, box).save(folder / ".overlay.jpg", quality=92)
            close_up(Image.fromarray(one.face.photo), box).save(folder / ".photo.jpg", quality=92)
            speaking, silent = self._speaking(folder / f"{one.stem}.json")
            if speaking is not None:
                # The mesh that is shown, with the photo as skin; the document alone knows why a face cannot speak.
                speaking, silent = self._speaking(folder / f"{one.stem}.glb")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return DemoFace(
            key=key,
            name=one.stem,
            folder=folder,
            mesh=f"{one.stem}.glb",
            face=speaking,
            stamp=self.model.stamp(),
            overlay=".overlay.jpg",
            photo=".photo.jpg",
            files=tuple(names),
            silent=silent,
        )

    def _keep(self, face: DemoFace) -> None:
        self.faces[face.key] = face
        for old in [key for key in self.faces if key != MEAN][:-MAX_FACES]:
            shutil.rmtree(self.faces.pop(old).folder, ignore_errors=True)


def close_up(picture: Image.Image, box: np.ndarray) -> Image.Image:
    """The square around a face, as far as the picture goes; `box` is left, top, right, bottom in pixels."""
    centre = (box[:2] + box[2:]) / 2
    half = CLOSE_UP * float((box[2:] - box[:2]).max()) / 2
    low = np.maximum(centre - half, 0).astype(int)
    high = np.minimum(centre + half, picture.size).astype(int)
    cut = picture.convert("RGB").crop((int(low[0]), int(low[1]), int(high[0]), int(high[1])))
    cut.thumbnail((CLOSE_UP_PX, CLOSE_UP_PX))
    return cut


def safe_name(name: str, otherwise: str) -> str:
    """The last part of a file's name, with nothing in it that a path or an address could be built from."""
    plain = "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in Path(name).name)
    plain = plain.strip(". ")[-80:]
    return plain if Path(plain).stem else otherwise


def write_wave(path: Path, sound: np.ndarray) -> None:
    """Write mono sound in [-1, 1] at 16 kHz as WAV, which every browser plays."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(np.rint(np.clip(sound, -1.0, 1.0) * 32767.0).astype("<i2").tobytes())
