"""A student's reading put together from modules: what an ONNX file of it computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from eager import Eager

from clipocr.shared.charset import Charset
from clipocr.train.deploy.export import check
from clipocr.train.models.config import StudentConfig, StudentSize
from clipocr.train.models.student import Student
from clipocr.train.models.tokenizer import LabelTokenizer

SIZE = StudentSize(width=32, patch_height_px=16, encoder_layers=4, encoder_heads=2, decoder_heads=4)


@pytest.mark.parametrize("decoder", ["causal", "permuted"])
def test_what_is_put_together_is_what_decode_computes(decoder: str) -> None:
    torch.manual_seed(0)
    student = Student(StudentConfig(size=SIZE, decoder=decoder),
                      LabelTokenizer(Charset.load("36"), 6)).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)

    @torch.no_grad()
    def read(views: np.ndarray) -> np.ndarray:
        return student.assemble(Eager(), torch.from_numpy(views)).softmax(dim=-1).numpy()

    views = np.random.default_rng(0).integers(0, 256, (40, 32, 128, 3), np.uint8)
    assert check(read, student, views, what="it").num_texts > 20
