from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clipocr.shared.charset import Charset
from clipocr.shared.data.images import ImageProblemError
from clipocr.train.models.config import StudentConfig, StudentSize
from clipocr.train.models.recogniser import ImageAttention
from clipocr.train.models.student import Student
from clipocr.train.models.tokenizer import LabelTokenizer
from clipocr.train.report.pictures import attention_pictures, picture_uri

CONFIG = StudentConfig(
    size=StudentSize(
        width=8,
        patch_height_px=16,
        patch_width_px=16,
        encoder_layers=4,
        encoder_heads=1,
        decoder_heads=1,
    )
)


def png(width: int, height: int, comment: str = "") -> bytes:
    buffer, info = io.BytesIO(), PngInfo()
    info.add_text("comment", comment)
    Image.new("RGB", (width, height), (200, 200, 200)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def decoded(uri: str) -> Image.Image:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_pictures_are_encoded_anew_and_bounded() -> None:
    small = picture_uri(png(50, 20, "<script>alert(1)</script>"))
    assert decoded(small).size == (50, 20)
    assert b"script" not in base64.b64decode(small.partition(",")[2])
    assert decoded(picture_uri(png(4000, 100))).size == (320, 8)
    assert decoded(picture_uri(png(100, 4000))).height == 96
    with pytest.raises(ImageProblemError, match="not an image"):
        picture_uri(b"<svg onload='alert(1)'/>")


class Staring(Student):
    """Looks at one place of a grid of 2 by 8 per position: the first, the second, ..."""

    def image_attention(self, images: torch.Tensor, token_ids_BL: torch.Tensor) -> ImageAttention:
        del images
        num_positions = token_ids_BL.shape[1] - 1
        places = torch.zeros(1, num_positions, 2, 8)
        for position in range(num_positions):
            places[0, position, 0, position] = 0.75
        return ImageAttention(places=places, elsewhere=torch.full((1, num_positions), 0.25))


def test_heat_is_where_the_decoder_looked() -> None:
    student = Staring(CONFIG, LabelTokenizer(Charset.load("36"), 4)).eval()
    seen = attention_pictures(student, png(64, 16), "ab")
    assert [some.character for some in seen] == ["a", "b", ""]
    assert [some.elsewhere for some in seen] == [0.25] * 3
    for i, some in enumerate(seen):
        # The picture is grey; colour is where the weights are: 16 pixels a patch.
        pixels = np.asarray(decoded(some.picture)).astype(int)
        colourful = np.abs(pixels[..., 0] - pixels[..., 2])[:16].mean(axis=0)
        assert colourful.shape == (128,)
        assert abs(int(colourful.argmax()) - (16 * i + 8)) <= 8
        assert colourful[16 * i + 40 :].max() < 10


@pytest.mark.parametrize(("text", "num_pictures"), [("", 1), ("abcd", 5), ("abcde", 5)])
def test_texts_of_any_length_have_attention(text: str, num_pictures: int) -> None:
    # Five positions: "abcd" and EOS, or five characters without one.
    torch.manual_seed(0)
    student = Student(CONFIG, LabelTokenizer(Charset.load("36"), 4)).eval()
    assert len(attention_pictures(student, png(64, 16), text)) == num_pictures


def test_a_recogniser_that_cannot_say_has_no_pictures() -> None:
    class Silent(Student):
        def image_attention(self, images: torch.Tensor, token_ids_BL: torch.Tensor) -> None:
            del images, token_ids_BL

    student = Silent(CONFIG, LabelTokenizer(Charset.load("36"), 4)).eval()
    assert attention_pictures(student, png(64, 16), "ab") is None
