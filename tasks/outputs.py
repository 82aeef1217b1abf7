"""What can be written about reconstructed faces, by name, and how it is written: all files of a face or none.

Every file names the face model with its licence. `sheet` and `csv` are about all faces of a call and are written at the
end, the others face by face.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.face_record import FaceRecord
from tasks.images import Pixels
from tasks.output_documents import WEIGHTS_TABLE, weights_row, write_camera, write_document, write_weights
from tasks.output_meshes import write_glb, write_obj, write_ply
from tasks.output_pictures import (
    sheet_row,
    write_depth,
    write_normals,
    write_overlay,
    write_sheets,
    write_texture,
)


@dataclass(frozen=True)
class Output:
    """One kind of output about one face."""

    about: str
    """For the help."""
    suffixes: tuple[str, ...]
    """What is added to the stem of a face for each of its files; the first is what the writer is given."""
    write: Callable[[FaceRecord, Path], None]


OUTPUTS: dict[str, Output] = {
    "glb": Output("the face with ARKit's 52 shapes as morph targets and the photo as skin", (".glb",), write_glb),
    "obj": Output("mesh, material and picture", (".obj", ".mtl", "_texture.png"), write_obj),
    "ply": Output("mesh with vertex colours", (".ply",), write_ply),
    "texture": Output("the skin's picture", ("_texture.png",), write_texture),
    "json": Output("coefficients, camera and landmarks", (".json",), write_document),
    "camera": Output("the camera for OpenCV, three.js and Blender", ("_camera.json",), write_camera),
    "overlay": Output("the face drawn over the photo", ("_overlay.png",), write_overlay),
    "depth": Output("depth of the photo's pixels, 16 bits", ("_depth.png",), write_depth),
    "normals": Output("normals of the photo's pixels", ("_normals.png",), write_normals),
}
"""About one face."""

TOGETHER = {"csv": "weights of the shapes, a row per face", "sheet": "a picture with a row per face"}
"""About all faces."""

DEFAULT_OUTPUTS = ("glb", "overlay", "json")


def chosen_outputs(names: str | Iterable[str]) -> tuple[str, ...]:
    """Names of outputs, also as one string with commas; `all` stands for every one.

    Raises: ValueError if one is unknown or none is named.
    """
    known = (*OUTPUTS, *TOGETHER)
    wanted = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    wanted = [name for name in wanted if name]
    if "all" in wanted:
        return known
    for name in wanted:
        if name not in known:
            raise ValueError(f"--outputs {name}: no such output, expected some of {', '.join(known)}, or all")
    if not wanted:
        raise ValueError(f"--outputs: none named, expected some of {', '.join(known)}, or all")
    return tuple(dict.fromkeys(wanted))


@dataclass
class OutputWriter:
    """Writes the chosen outputs of one face after another into a folder."""

    folder: Path
    outputs: Sequence[str] = DEFAULT_OUTPUTS
    written: list[Path] = field(default_factory=list)
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _cells: list[list[Pixels]] = field(default_factory=list)
    _last: FaceRecord | None = None

    def add(self, record: FaceRecord) -> list[Path]:
        """Write what is about this face, all files or none; returns their paths."""
        own = [OUTPUTS[name] for name in self.outputs if name in OUTPUTS]
        names = list(dict.fromkeys(f"{record.stem}{suffix}" for output in own for suffix in output.suffixes))
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".reconstruct-", dir=self.folder))
        try:
            for output in own:
                output.write(record, scratch / f"{record.stem}{output.suffixes[0]}")
            if "csv" in self.outputs:
                self._rows.append(weights_row(record))
            if "sheet" in self.outputs:
                self._cells.append(sheet_row(record))
            for name in names:
                (scratch / name).replace(self.folder / name)
        finally:
            shutil.rmtree(scratch)
        self._last = record
        paths = [self.folder / name for name in names]
        self.written += paths
        return paths

    def finish(self) -> list[Path]:
        """Write what is about all faces; returns the paths of everything."""
        if self._last is not None:
            if self._rows:
                self.written.append(write_weights(self._rows, self.folder / WEIGHTS_TABLE))
            if self._cells:
                self.written += write_sheets(self._cells, self.folder, model=self._last.model)
        return self.written
