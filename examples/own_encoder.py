"""A student with an encoder of your own: a small ConvNeXt that timm is told of under a name.

    python examples/own_encoder.py words.cache run word.png

Import this file wherever the run is read again. A model that timm knows needs its name alone.
"""

import sys
from typing import Any

from timm.models import ConvNeXt, register_model

import clipocr


@register_model
def my_convnext(**_: Any) -> ConvNeXt:
    """Build the encoder; what timm passes along, such as a size of pictures, it does without."""
    return ConvNeXt(num_classes=0, depths=(1, 1, 2, 1), dims=(32, 64, 96, 128))


def main(cache: str, run: str, picture: str, epochs: int = 3) -> None:
    """Train a student on a cache, and read a picture with it."""
    summary = clipocr.train(
        cache=cache,
        out=run,
        student="tiny",
        encoder="my_convnext",
        epochs=epochs,
        batch_size=16,
        learning_rate=1e-3,
    )
    print(f"{summary.num_steps} steps, loss {summary.first_loss:.3f}, then {summary.last_loss:.3f}")
    word = clipocr.load(run).read(picture)
    print(f"{picture} is read as {word.text}, confidence {word.confidence:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
