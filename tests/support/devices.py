"""Which device the tests run on that take one: a CPU, or by ``CLIPOCR_TEST_DEVICE=cuda`` a GPU.

    CLIPOCR_TEST_DEVICE=cuda python -m pytest -m device

Every other test is one of a CPU, on every machine: no GPU is shown to it, for which ``--device
auto`` would choose it.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

DEVICE = os.environ.get("CLIPOCR_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def assert_repeats(actual: Tensor, expected: Tensor) -> None:
    """Compare what two runs computed: on a CPU to the bit; a GPU adds up in no certain order."""
    if DEVICE == "cpu":
        assert torch.equal(actual, expected)
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
