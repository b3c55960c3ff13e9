"""The smallest student that tests train, and the method that trains it from the tiny teacher."""

from __future__ import annotations

from clipocr.train.loop.config import TrainConfig
from clipocr.train.methods.clip_ocr.settings import ClipOcr
from clipocr.train.models.config import StudentConfig, StudentSize

SMALL_STUDENT = StudentConfig(
    size=StudentSize(
        width=32, patch_height_px=16, encoder_layers=4, encoder_heads=2, decoder_heads=2
    )
)
SMALL_METHOD = ClipOcr(student=SMALL_STUDENT, image_taps=(1, 2, 3), text_taps=(1, 2, 3))
SMALL_RUN = TrainConfig(
    method=SMALL_METHOD,
    epochs=3,
    batch_size=16,
    learning_rate=2e-3,
    # As on a CPU, whatever the device.
    precision="fp32",
    compile="off",
)
