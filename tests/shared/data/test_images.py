"""Decoding: what real folders of word crops hold, sound and broken."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import ExifTags, Image

from clipocr.shared import geometry
from clipocr.shared.data import images
from clipocr.shared.data.images import ImageProblemError, decode_image, stretch, to_rgb


def encode(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def gradient() -> Image.Image:
    return Image.fromarray(np.arange(256, dtype=np.uint8).reshape(8, 32))


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 100), np.uint8))


def test_png_decodes_to_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    decoded = decode_image(encode(Image.fromarray(pixels)))
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), pixels)


def test_photos_are_decoded_no_larger_than_is_enough() -> None:
    photo = Image.linear_gradient("L").resize((1600, 1200))
    of_jpeg = decode_image(encode(photo, "JPEG", quality=95), enough_px=300)
    assert of_jpeg.size == (400, 300)
    assert np.abs(np.asarray(of_jpeg)[:, 0, 0] - np.arange(300) * 255 / 299).max() < 4
    assert decode_image(encode(photo), enough_px=300).size == photo.size


def test_grey_becomes_three_equal_channels() -> None:
    decoded = np.asarray(decode_image(encode(gradient())))
    assert decoded.shape == (8, 32, 3)
    assert (decoded == np.asarray(gradient())[..., None]).all()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_high_byte(file_format: str) -> None:
    deep = np.array([[0, 255, 256, 0x80FF, 0xFFFF]], np.uint16)
    decoded = decode_image(encode(Image.fromarray(deep), file_format))
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 0, 1, 0x80, 0xFF]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        # Up to 255 as they are, which is what Pillow makes of them too.
        ([0, 100, 200, 255], np.int32, [0, 100, 200, 255]),
        ([0, 100, 200, 255], np.uint16, [0, 100, 200, 255]),
        ([0, 100, 200, 255], np.float32, [0, 100, 200, 255]),
        # 12 bits in 16 lose their lowest four, 16 their lowest eight, 17 of 32 their lowest nine.
        ([0, 0x0800, 0x0FFF], np.uint16, [0, 0x80, 0xFF]),
        ([0, 0x80FF, 0xFFFF], np.uint16, [0, 0x80, 0xFF]),
        ([0, 0x8000, 0x10000], np.int32, [0, 0x40, 0x80]),
        ([0, 0.5, 1], np.float32, [0, 128, 255]),
        ([0, 512.7, 1023], np.float32, [0, 128, 255]),
    ],
)
def test_deep_grey_is_scaled_by_the_bits_it_uses(values, dtype, expected) -> None:
    picture = Image.fromarray(np.array([values], dtype))
    decoded = decode_image(encode(picture, "TIFF"))
    assert np.asarray(decoded)[0].tolist() == [[v] * 3 for v in expected]
    assert np.array_equal(to_rgb(picture), decoded)
    if max(values) <= 255 and expected == values:
        assert np.array_equal(picture.convert("RGB"), decoded)


@pytest.mark.parametrize("values", [[-5, 7], [np.nan, 0.5], [np.inf, 1]])
def test_grey_that_is_no_grey_is_a_bad_picture(values) -> None:
    dtype = np.int32 if min(values) < 0 else np.float32
    with pytest.raises(ImageProblemError, match="grey values are negative or not finite"):
        decode_image(encode(Image.fromarray(np.array([values], dtype)), "TIFF"))


Image.init()


# Pillow knows AVIF from 11.3 on.
@pytest.mark.parametrize("form", ["TGA", "PCX", "ICO", *(["AVIF"] if "AVIF" in Image.SAVE else [])])
def test_what_parseq_reads_is_read(form: str) -> None:
    picture = Image.effect_noise((32, 32), 60).convert("RGB")
    encoded = encode(picture, form)
    with Image.open(io.BytesIO(encoded)) as opened:
        assert np.array_equal(decode_image(encoded), opened.convert("RGB"))


@pytest.mark.parametrize("some", [b"<html><body>Not found</body></html>", bytes(4000), b"word"])
def test_no_picture_is_taken_for_one_without_a_mark(some: bytes) -> None:
    with pytest.raises(ImageProblemError, match="not an image"):
        decode_image(some)


def test_cmyk_jpeg_becomes_rgb() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    r, g, b = decode_image(encode(red, "JPEG", quality=95)).getpixel((8, 8))
    assert r > 240
    assert max(g, b) < 15


def photo() -> Image.Image:
    """Not a multiple of any block's size, with edges of colour that subsampling blurs."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 13, 3), np.uint8)
    return Image.fromarray(pixels).resize((117, 31), Image.Resampling.BICUBIC)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


JPEGS = {
    **{
        f"{sampling}, quality {quality}": encode(
            photo(), "JPEG", subsampling=sampling, quality=quality
        )
        for sampling in ("4:4:4", "4:2:2", "4:2:0")
        for quality in (1, 30, 75, 95, 100)
    },
    "4:4:0": simplejpeg.encode_jpeg(np.array(photo()), colorsubsampling="440"),
    "4:1:1": simplejpeg.encode_jpeg(np.array(photo()), colorsubsampling="411"),
    "progressive": encode(photo(), "JPEG", progressive=True),
    "optimised": encode(photo(), "JPEG", optimize=True),
    "restart markers": encode(photo(), "JPEG", restart_marker_blocks=2),
    "grey": encode(photo().convert("L"), "JPEG"),
    "grey, progressive": encode(photo().convert("L"), "JPEG", progressive=True),
    "profile and comment": encode(photo(), "JPEG", icc_profile=bytes(300), comment=b"word"),
    "bytes after the end": encode(photo(), "JPEG") + bytes(99),
    "1 x 1": encode(Image.new("RGB", (1, 1), (7, 80, 9)), "JPEG"),
    "1 x 70": encode(photo().resize((1, 70)), "JPEG"),
    "large": encode(photo().resize((1500, 700)), "JPEG"),
}
UNUSUAL_JPEGS = {
    "upright by EXIF": encode(photo(), "JPEG", exif=turned(1)),
    "CMYK": encode(photo().convert("CMYK"), "JPEG"),
    "RGB": encode(photo(), "JPEG", keep_rgb=True),
    # Between a table and the picture; libjpeg warns.
    "bytes between segments": encode(photo(), "JPEG").replace(b"\xff\xda", b"\0\0\xff\xda", 1),
}


@pytest.mark.parametrize("kind", [*JPEGS, *UNUSUAL_JPEGS])
def test_pixels_of_a_jpeg_are_pillows(kind: str) -> None:
    encoded = {**JPEGS, **UNUSUAL_JPEGS}[kind]
    assert (images._sound_jpeg(encoded) is None) == (kind in UNUSUAL_JPEGS)
    decoded = decode_image(encoded)
    assert decoded.mode == "RGB"
    with Image.open(io.BytesIO(encoded)) as opened:
        assert np.array_equal(decoded, opened.convert("RGB"))


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_picture_is_upright_as_exif_says(file_format: str, orientation: int) -> None:
    # Rows from the top and columns from the left of the upright picture, by the EXIF standard's
    # table of where row 0 and column 0 of the stored one are.
    upright = np.asarray(photo())
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    picture = Image.fromarray(np.ascontiguousarray(stored))
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    encoded = encode(picture, file_format, exif=turned(orientation), **options.get(file_format, {}))
    decoded = np.asarray(decode_image(encoded), np.int16)
    assert decoded.shape == upright.shape
    assert np.abs(decoded - upright).max() <= (6 if file_format == "JPEG" else 0)
    # A picture that a program has opened says the same.
    with Image.open(io.BytesIO(encoded)) as opened:
        assert np.array_equal(to_rgb(opened), decoded)


def test_deep_grey_and_pictures_turned_by_xmp_are_upright_too() -> None:
    deep = Image.fromarray(np.array([[1, 2, 3]], np.uint16))
    decoded = np.asarray(decode_image(encode(deep, exif=turned(6))))
    assert decoded[:, 0, 0].tolist() == [1, 2, 3]
    assert decode_image(encode(photo(), "JPEG", xmp=XMP)).size == (31, 117)


def test_damaged_exif_turns_nothing() -> None:
    for damage in (b"", b"II", b"\xff" * 40):
        encoded = encode(photo(), "JPEG", exif=b"Exif\0\0" + damage)
        assert np.array_equal(decode_image(encoded), decode_image(encode(photo(), "JPEG")))


def test_of_a_damaged_jpeg_becomes_what_pillow_makes_of_it(monkeypatch) -> None:
    def outcome(encoded: bytes) -> object:
        try:
            return decode_image(encoded).tobytes()
        except ImageProblemError as e:
            return str(e)

    rng = np.random.default_rng(0)
    damaged = []
    for encoded in (JPEGS["4:2:0, quality 75"], JPEGS["progressive"], JPEGS["grey"]):
        damaged += [encoded[:size] for size in range(1, len(encoded), 17)]
        damaged += [cut + b"\xff\xd9" for cut in damaged[-20:]]
        for _ in range(150):
            changed = bytearray(encoded)
            changed[rng.integers(2, len(encoded))] = rng.integers(256)
            damaged.append(bytes(changed))
    have = [outcome(encoded) for encoded in damaged]
    monkeypatch.setattr(images, "_sound_jpeg", lambda _: None)
    assert have == [outcome(encoded) for encoded in damaged]
    assert {"not an image", "damaged image"} < set(have)


def test_alpha_is_dropped_not_blended() -> None:
    clear = Image.new("RGBA", (3, 2), (10, 20, 30, 0))
    assert decode_image(encode(clear)).getpixel((0, 0)) == (10, 20, 30)


def test_palette_with_transparency_decodes_without_a_warning() -> None:
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    decoded = decode_image(encode(image, transparency=bytes([0, 128])))
    assert decoded.getpixel((0, 0)) == (200, 100, 50)


def test_one_pixel_is_an_image() -> None:
    view = stretch(decode_image(encode(Image.new("RGB", (1, 1), (7, 8, 9)))))
    assert view.shape == (32, 128, 3)
    assert (view == (7, 8, 9)).all()


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "empty image"),
        (b"\0" * 100, "not an image"),
        (b"<html>404</html>", "not an image"),
        (encode(noise(), "JPEG")[:-500], "damaged image"),
        (encode(noise())[:-500], "damaged image"),
        (encode(gradient(), "JPEG")[:20], "not an image"),
    ],
    ids=["empty", "zeros", "html", "truncated JPEG", "truncated PNG", "JPEG header"],
)
def test_broken_images_are_refused_with_a_short_reason(encoded: bytes, reason: str) -> None:
    with pytest.raises(ImageProblemError, match=f"^{reason}$"):
        decode_image(encoded)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_absurd_size_is_refused_before_decoding(file_format: str, monkeypatch) -> None:
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 8 * 32 - 1)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageProblemError, match="image too large"):
        decode_image(encode(gradient(), file_format))


def test_normalize_puts_channels_first_and_uses_each_channels_statistics() -> None:
    import torch

    views = torch.zeros(2, 32, 128, 3, dtype=torch.uint8)
    views[..., 1] = 255
    out = geometry.normalize(views, (0.5, 0.5, 0.25), (0.5, 0.25, 0.5))
    assert out.shape == (2, 3, 32, 128)
    assert out[1, :, 4, 5].tolist() == [-1.0, 2.0, -0.5]
