"""Photos as bytes and as pixels: safe decoding of what users bring, and reading of what `ingest` stored.

Convention: pixels are uint8 RGB (H, W, 3), upright; coordinates are x right, y down, with pixel centres at +0.5.
"""

from __future__ import annotations

import hashlib
import io
import stat
import threading
import warnings
from collections.abc import Collection, Container, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from tasks.artifacts import IMAGES, SAMPLES, Workspace, read_table

Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""Pillow knows more, some of which start external programs (EPS) or are hardly tested."""

MATTE = 128
"""Grey level that shows through transparent pixels."""

LOSSLESS_PIXELS = 160 * 160
"""Photos up to this size are stored as PNG: there every artefact counts and a file is small anyway."""

JPEG_QUALITY = 95

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_pillow_lock = threading.Lock()


class ImageError(ValueError):
    """A photo that cannot be used; `reason` is a short code for the quarantine, `detail` says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


def decode(
    content: bytes, *, max_bytes: int = 32 * 2**20, max_pixels: int = 64_000_000, min_side_px: int = 1
) -> Pixels:
    """Decode an image file of any common kind to upright 8-bit RGB.

    Grey, palette, CMYK, 16-bit and float images are converted (wider ranges scaled, not clipped), transparency is
    laid over mid grey, EXIF orientation is applied, and of an animation the first picture counts. The limits are
    checked in the header, before any pixel is decoded.
    Raises: ImageError.
    """
    if not content:
        raise ImageError("empty_file", "0 bytes, expected an image")
    if len(content) > max_bytes:
        raise ImageError("too_many_bytes", f"{len(content)} bytes, expected at most {max_bytes}")
    with _pillow_without_globals():
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:
            raise ImageError("not_an_image", f"starts with {content[:12]!r}, expected {', '.join(FORMATS)}") from None
        except Exception as error:  # noqa: BLE001 - a malformed header makes Pillow raise errors of many kinds
            raise ImageError("broken_header", _one_line(error)) from None
        with image:
            _check_size(image.size, max_pixels=max_pixels, min_side_px=min_side_px)
            try:
                image.load()
                return _to_rgb(_upright(image))
            except ImageError:
                raise
            except Exception as error:  # noqa: BLE001 - as above, for malformed data
                reason = "truncated" if "truncated" in str(error).lower() else "broken_data"
                raise ImageError(reason, _one_line(error)) from None


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """Content of a file whose size is checked before it is read.

    Raises: ImageError.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("unreadable", "not a regular file")
        if status.st_size > max_bytes:
            raise ImageError("too_many_bytes", f"{status.st_size} bytes, expected at most {max_bytes}")
        return path.read_bytes()
    except OSError as error:
        raise ImageError("unreadable", error.strerror or type(error).__name__) from None


def reduce(image: Pixels, *, max_side_px: int) -> Pixels:
    """The image itself, or a copy whose larger side has `max_side_px` pixels."""
    height, width = image.shape[:2]
    scale = max_side_px / max(height, width)
    if scale >= 1.0:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def encode(image: Pixels) -> bytes:
    """File content of a photo as the shards hold it: PNG where it is small, else JPEG of high quality."""
    if image.shape[0] * image.shape[1] <= LOSSLESS_PIXELS:
        return _encode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    return encode_jpeg(image, quality=JPEG_QUALITY)


def encode_jpeg(image: Pixels, *, quality: int) -> bytes:
    """File content of a JPEG."""
    return _encode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_png(image: Pixels) -> bytes:
    """File content of a PNG. OpenCV's imwrite leaves half a file on a full disk and raises nothing."""
    return _encode(".png", image, [])


def decode_stored(content: bytes) -> Pixels:
    """Pixels of a photo as `encode` and `encode_jpeg` write it; faster than `decode`, and only for our own bytes.

    Raises: ValueError if the bytes are no image.
    """
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if image is None:
        raise ValueError("a stored photo cannot be decoded; run the stage ingest again")
    return np.asarray(image[..., ::-1], dtype=np.uint8, order="C")


def pixel_hash(image: Pixels) -> str:
    """Name of a photo that depends on its pixels alone."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()[:20]


def image_batches(
    workspace: Workspace, *, batch_size: int, sample_ids: Collection[str] | None = None
) -> Iterator[tuple[list[str], list[Pixels]]]:
    """Sample ids and pixels of the accepted photos, in the order of the shards; one batch is in memory at a time.

    Raises: FileNotFoundError if there are no shards.
    """
    yield from folder_batches(workspace.folder("ingest"), batch_size=batch_size, sample_ids=sample_ids)


def folder_batches(
    folder: Path, *, batch_size: int, sample_ids: Collection[str] | None = None
) -> Iterator[tuple[list[str], list[Pixels]]]:
    """`image_batches` for a folder of shards."""
    shards = sorted(folder.glob("images-*.parquet"))
    if not shards:
        raise FileNotFoundError(f"{folder}/images-*.parquet: missing; run the stage ingest first")
    wanted = None if sample_ids is None else frozenset(sample_ids)
    ids: list[str] = []
    images: list[Pixels] = []
    for shard in shards:
        for sample_id, content in _shard_rows(shard, wanted):
            ids.append(sample_id)
            images.append(decode_stored(content))
            if len(ids) == batch_size:
                yield ids, images
                ids, images = [], []
    if ids:
        yield ids, images


def read_images(workspace: Workspace, sample_ids: Collection[str]) -> dict[str, Pixels]:
    """Pixels by sample id; opens only the shards that hold them.

    Raises: FileNotFoundError, or ValueError if a sample is unknown.
    """
    folder = workspace.folder("ingest")
    samples = read_table(folder / "samples.parquet", SAMPLES).select(["sample_id", "shard"]).to_pydict()
    shard_of = dict(zip(samples["sample_id"], samples["shard"], strict=True))
    wanted = dict.fromkeys(sample_ids)
    unknown = [sample_id for sample_id in wanted if sample_id not in shard_of]
    if unknown:
        raise ValueError(
            f"samples.parquet: {len(unknown)} samples are unknown, e.g. {unknown[0]}; run ingest and what follows again"
        )
    found: dict[str, Pixels] = {}
    for shard in sorted({shard_of[sample_id] for sample_id in wanted}):
        for sample_id, content in _shard_rows(folder / shard, wanted):
            found[sample_id] = decode_stored(content)
    return {sample_id: found[sample_id] for sample_id in wanted}


def read_shard(
    workspace: Workspace, shard: str, sample_ids: Collection[str], *, at_once: int
) -> Iterator[dict[str, Pixels]]:
    """Pixels by sample id of photos of one shard, so many in memory at a time.

    Raises: FileNotFoundError, or ValueError if a sample is not in it.
    """
    path = workspace.folder("ingest") / shard
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; run the stage ingest again")
    wanted = frozenset(sample_ids)
    found, some = 0, dict[str, Pixels]()
    for sample_id, content in _shard_rows(path, wanted):
        some[sample_id] = decode_stored(content)
        found += 1
        if len(some) == at_once:
            yield some
            some = {}
    if some:
        yield some
    if found != len(wanted):
        raise ValueError(f"{path}: {found} of {len(wanted)} photos, expected all; run ingest again")


def _shard_rows(shard: Path, wanted: Container[str] | None) -> Iterator[tuple[str, bytes]]:
    try:
        with pq.ParquetFile(shard) as file:
            if not file.schema_arrow.equals(IMAGES):
                raise ValueError(
                    f"{shard}: columns {file.schema_arrow.names}, expected {IMAGES.names}; run ingest again"
                )
            for batch in file.iter_batches(batch_size=64):
                for row, sample_id in enumerate(batch.column("sample_id").to_pylist()):
                    if wanted is None or sample_id in wanted:
                        yield sample_id, batch.column("image")[row].as_py()
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{shard}: cannot be read ({_one_line(error)}); run ingest again") from None


@contextmanager
def _pillow_without_globals() -> Iterator[None]:
    # Pillow keeps its own limit on pixels and its leniency about truncated files in module variables, and warns of
    # oddities in metadata that do not concern the pixels. The limit that counts here is the caller's.
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, lenient = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = limit, lenient


def _check_size(size: tuple[int, int], *, max_pixels: int, min_side_px: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError("too_many_pixels", f"{width} x {height}, expected at most {max_pixels} pixels")
    if min(width, height) < min_side_px:
        raise ImageError("too_small", f"{width} x {height}, expected at least {min_side_px} on each side")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # noqa: BLE001 - metadata that cannot be read says nothing about the pixels
        return image
    transpose = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if transpose is None else image.transpose(transpose)


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith(("I", "F")):
        grey = _to_eight_bits(np.asarray(image), sixteen_bits=image.mode.startswith("I;16"))
        return np.repeat(grey[..., None], 3, axis=2)
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if not transparent:
        return np.array(image.convert("RGB"), dtype=np.uint8)
    # Premultiplied modes convert to RGBA only.
    layered = np.asarray(image.convert("RGBA"), dtype=np.float32)
    alpha = layered[..., 3:] / 255.0
    return np.asarray(np.rint(layered[..., :3] * alpha + MATTE * (1.0 - alpha)), np.uint8)


def _to_eight_bits(values: NDArray[np.generic], *, sixteen_bits: bool) -> Pixels:
    scaled = values.astype(np.float64)
    if not np.isfinite(scaled).all():
        raise ImageError("not_finite", "pixels that are not finite, expected numbers")
    if scaled.min() < 0:
        raise ImageError("negative_pixels", f"pixels down to {scaled.min():g}, expected none below 0")
    highest = float(scaled.max())
    if sixteen_bits:
        white = 65535.0
    elif np.issubdtype(values.dtype, np.floating):
        white = next((limit for limit in (1.0, 255.0, 65535.0) if highest <= limit), highest)
    else:
        # Pillow widens some 16-bit files to 32 bits.
        white = next((limit for limit in (65535.0, 2.0**31 - 1.0) if highest <= limit), highest)
    return np.asarray(np.rint(scaled * (255.0 / white)), np.uint8)


def _encode(suffix: str, image: Pixels, options: list[int]) -> bytes:
    written, content = cv2.imencode(suffix, image[..., ::-1], options)
    if not written:
        raise ValueError(f"photo of shape {image.shape} cannot be encoded as {suffix}")
    return bytes(content)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
