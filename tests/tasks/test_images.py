"""Safe decoding, and reading of the stored photos."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from tasks.artifacts import IMAGES, SAMPLES, Workspace, write_table
from tasks.images import (
    LOSSLESS_PIXELS,
    ImageError,
    decode,
    decode_stored,
    encode,
    encode_jpeg,
    image_batches,
    pixel_hash,
    read_file,
    read_images,
    reduce,
)


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours(height: int = 60, width: int = 80) -> np.ndarray:
    """A smooth picture whose corners all differ."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / (width - 1), 255 * y / (height - 1), 0 * x + 90], 2).astype(np.uint8)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (body, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def refusal(content: bytes, **limits: int) -> str:
    with pytest.raises(ImageError) as caught:
        decode(content, **limits)
    assert str(caught.value) == f"{caught.value.reason}: {caught.value.detail}"
    assert "\n" not in str(caught.value)
    return caught.value.reason


# value


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_kinds_keep_every_pixel(kind: str) -> None:
    image = colours()
    np.testing.assert_array_equal(decode(save(Image.fromarray(image), kind)), image)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_kinds_come_close(kind: str) -> None:
    image = colours()
    decoded = decode(save(Image.fromarray(image), kind, quality=95)).astype(int)
    assert np.abs(decoded - image).mean() < 3


def test_grey_becomes_three_equal_channels() -> None:
    grey = colours()[..., 0]
    np.testing.assert_array_equal(decode(save(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, 2))


def test_cmyk_keeps_its_colours() -> None:
    image = colours()
    decoded = decode(save(Image.fromarray(image).convert("CMYK"), "JPEG", quality=98)).astype(int)
    assert decoded.shape == image.shape
    assert np.abs(decoded - image).mean() < 4


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    grey = np.linspace(0, 65535, 60 * 80).reshape(60, 80).astype(np.uint16)
    decoded = decode(save(Image.fromarray(grey), "PNG"))
    np.testing.assert_allclose(decoded[..., 1], grey / 257.0, atol=0.5)
    assert decoded.shape == (60, 80, 3)


def test_sixteen_bit_colour_is_scaled() -> None:
    import cv2

    wide = colours().astype(np.uint16) * 257
    written, content = cv2.imencode(".png", wide[..., ::-1])
    assert written
    np.testing.assert_allclose(decode(content.tobytes()).astype(int), colours(), atol=1)


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_float_tiff_is_scaled_to_its_white(white: float) -> None:
    grey = np.linspace(0, white, 60 * 80, dtype=np.float32).reshape(60, 80)
    decoded = decode(save(Image.fromarray(grey), "TIFF"))
    np.testing.assert_allclose(decoded[..., 0], grey / white * 255, atol=0.51)


def test_alpha_lies_over_mid_grey() -> None:
    image = np.dstack([colours(), np.full((60, 80), 255, np.uint8)])
    image[:30, :, 3] = 0
    image[30:40, :, 3] = 51
    decoded = decode(save(Image.fromarray(image), "PNG"))
    np.testing.assert_array_equal(decoded[:30], 128)
    np.testing.assert_allclose(decoded[30:40], 0.2 * image[30:40, :, :3] + 0.8 * 128, atol=0.51)
    np.testing.assert_array_equal(decoded[40:], image[40:, :, :3])


def test_transparent_palette_lies_over_mid_grey() -> None:
    palette = Image.fromarray(np.repeat(np.arange(2, dtype=np.uint8), 40)[None].repeat(60, 0), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0])
    decoded = decode(save(palette, "PNG", transparency=0))
    np.testing.assert_array_equal(decoded[5, 5], [128, 128, 128])
    np.testing.assert_array_equal(decoded[5, 75], [0, 255, 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = colours()
    # What a camera in that orientation writes, after the standard's description of the tag.
    written = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = save(Image.fromarray(np.ascontiguousarray(written)), "PNG", exif=exif)
    np.testing.assert_array_equal(decode(content), upright)


def test_first_picture_of_an_animation_counts() -> None:
    frames = [Image.fromarray(np.full((60, 80), value, np.uint8)) for value in (40, 200)]
    decoded = decode(save(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    np.testing.assert_array_equal(decoded, 40)


# exception


def test_text_is_not_an_image() -> None:
    assert refusal(b"just some words, named photo.jpg") == "not_an_image"


def test_empty_file() -> None:
    assert refusal(b"") == "empty_file"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_photo(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    content = save(Image.fromarray(noise), kind)
    assert refusal(content[: len(content) // 2]) in ("truncated", "broken_data")


def test_truncation_is_refused_whatever_the_process_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    content = save(Image.fromarray(noise), "JPEG")
    assert refusal(content[: len(content) // 2]) == "truncated"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_huge_header_is_refused_before_decoding() -> None:
    assert refusal(png_header(40_000, 40_000), max_pixels=64_000_000) == "too_many_pixels"


def test_limit_is_the_callers_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(save(Image.fromarray(colours()), "PNG")).shape == (60, 80, 3)
    assert refusal(save(Image.fromarray(colours()), "PNG"), max_pixels=4799) == "too_many_pixels"
    assert Image.MAX_IMAGE_PIXELS == 100


def test_small_and_heavy_files_are_refused() -> None:
    content = save(Image.fromarray(colours()), "PNG")
    assert refusal(content, min_side_px=61) == "too_small"
    assert refusal(content, max_bytes=len(content) - 1) == "too_many_bytes"


def test_postscript_is_never_started() -> None:
    assert refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n") == "not_an_image"


def test_not_a_number_in_pixels() -> None:
    grey = np.full((60, 80), np.nan, np.float32)
    assert refusal(save(Image.fromarray(grey), "TIFF")) == "not_finite"


@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"II*\0", b"GIF89a", b"P6 "]),
)
def test_wild_bytes_give_pixels_or_a_reason(content: bytes, start: bytes) -> None:
    assert outcome(start + content).isidentifier()


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_photo_gives_pixels_or_a_reason(place: int, value: int) -> None:
    content = bytearray(PHOTO)
    content[place % len(content)] = value
    assert outcome(bytes(content)).isidentifier()


def outcome(content: bytes) -> str:
    try:
        decoded = decode(content, max_pixels=10**6)
    except ImageError as error:
        return error.reason
    return "pixels" if decoded.dtype == np.uint8 and decoded.shape[2] == 3 else "not 8-bit RGB"


PHOTO = save(Image.fromarray(colours()), "JPEG")


def test_unreadable_files_have_a_reason(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"12345")
    for name, reason in (("none", "unreadable"), (".", "unreadable"), ("big", "too_many_bytes")):
        with pytest.raises(ImageError) as caught:
            read_file(tmp_path / name, max_bytes=4)
        assert caught.value.reason == reason


# storage


def test_reduce_keeps_small_photos_and_mean_colours() -> None:
    image = colours(300, 400)
    assert reduce(image, max_side_px=400) is image
    small = reduce(image, max_side_px=100)
    assert small.shape == (75, 100, 3)
    np.testing.assert_allclose(small.mean((0, 1)), image.mean((0, 1)), atol=1)


def test_small_photos_are_stored_without_loss() -> None:
    image = np.random.default_rng(0).integers(0, 255, (LOSSLESS_PIXELS // 100, 100, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_stored(encode(image)), image)
    large = colours(400, 300)
    assert len(encode(large)) < large.size / 10
    assert np.abs(decode_stored(encode(large)).astype(int) - large).mean() < 2


def test_stored_bytes_that_are_no_image() -> None:
    for content in (b"", b"nothing"):
        with pytest.raises(ValueError, match="run the stage ingest again"):
            decode_stored(content)


def test_hash_tells_shape_and_pixels_apart() -> None:
    image = colours()
    assert pixel_hash(image) == pixel_hash(np.asfortranarray(image))
    assert pixel_hash(image) != pixel_hash(image.reshape(80, 60, 3))
    changed = image.copy()
    changed[0, 0, 0] ^= 1
    assert pixel_hash(image) != pixel_hash(changed)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Workspace, dict[str, np.ndarray]]:
    workspace = Workspace(tmp_path)
    folder = workspace.folder("ingest")
    images = {f"id{number}": np.full((50, 50 + number, 3), 10 * number, np.uint8) for number in range(7)}
    rows = []
    for number, (sample_id, image) in enumerate(images.items()):
        empty = dict.fromkeys(SAMPLES.names)
        rows.append(empty | {"sample_id": sample_id, "shard": f"images-{number // 3:05d}.parquet"})
        if number % 3 == 0:
            shard: list[dict[str, object]] = []
        shard.append({"sample_id": sample_id, "image": encode(image)})
        write_table(folder / f"images-{number // 3:05d}.parquet", shard, IMAGES)
    write_table(folder / "samples.parquet", rows, SAMPLES)
    return workspace, images


def test_batches_follow_the_shards(stored: tuple[Workspace, dict[str, np.ndarray]]) -> None:
    workspace, images = stored
    batches = list(image_batches(workspace, batch_size=2))
    assert [ids for ids, _ in batches] == [["id0", "id1"], ["id2", "id3"], ["id4", "id5"], ["id6"]]
    for ids, pixels in batches:
        for sample_id, image in zip(ids, pixels, strict=True):
            np.testing.assert_array_equal(image, images[sample_id])
    chosen = [ids for ids, _ in image_batches(workspace, batch_size=4, sample_ids={"id5", "id1", "elsewhere"})]
    assert chosen == [["id1", "id5"]]


def test_read_images_in_the_order_asked_for(stored: tuple[Workspace, dict[str, np.ndarray]]) -> None:
    workspace, images = stored
    found = read_images(workspace, ["id6", "id0"])
    assert list(found) == ["id6", "id0"]
    np.testing.assert_array_equal(found["id6"], images["id6"])
    with pytest.raises(ValueError, match=r"1 samples are unknown, e.g. other"):
        read_images(workspace, ["id0", "other"])


def test_no_shards(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the stage ingest first"):
        next(image_batches(Workspace(tmp_path), batch_size=1))


def test_jpeg_quality_matters() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert len(encode_jpeg(noise, quality=40)) < len(encode_jpeg(noise, quality=95)) / 2
