"""What PARSeq's own code would make of the same labels and pictures."""

from __future__ import annotations

import io
import random
import re
import string

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from clipocr.shared.charset import Charset
from clipocr.shared.data.images import decode_image, stretch
from clipocr.shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize


@pytest.mark.parametrize("size", [(20, 50), (64, 31), (200, 640), (32, 128), (1, 3)])
def test_a_student_sees_what_parseq_s_transform_makes(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    # strhub/data/module.py, get_transform, on what strhub/data/dataset.py opens.
    transform = transforms.Compose(
        [
            transforms.Resize((32, 128), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(0.5, 0.5),
        ]
    )
    expected = transform(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    view = torch.from_numpy(stretch(decode_image(buffer.getvalue())).copy())
    assert torch.equal(normalize(view[None], STUDENT_MEAN, STUDENT_STD)[0], expected)


@pytest.mark.parametrize("name", ["36", "62", "94", "upper"])
def test_labels_pass_through_the_charset_as_through_parseq_s_adapter(name: str) -> None:
    charset = (
        Charset(name=name, characters=string.ascii_uppercase)
        if name == "upper"
        else Charset.load(name)
    )

    def adapter(label: str) -> str:
        # strhub/data/utils.py, CharsetAdapter.
        if charset.characters == charset.characters.lower():
            label = label.lower()
        elif charset.characters == charset.characters.upper():
            label = label.upper()
        return re.sub(f"[^{re.escape(charset.characters)}]", "", label)

    rng = random.Random(0)
    alphabet = string.printable + "éßİK\u0308東🙂"
    for _ in range(500):
        label = "".join(rng.choices(alphabet, k=rng.randrange(12)))
        assert charset.adapt(label) == adapter(label)
