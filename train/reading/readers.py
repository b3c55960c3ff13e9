"""What reads pictures of single words: a trained recogniser, or any function that somebody has.

Pictures are decoded on threads some batches ahead of the one that is read. One picture is one
word: finding the words of a page is another program's work.

Shapes: B batch, H and W height and width of the recogniser's views.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ...shared.ahead import map_ahead
from ...shared.charset import Charset
from ...shared.data.images import ImageProblemError, make_view
from ...shared.device import allow_fast_products, autocast, choose_device
from ...shared.errors import UsageError
from ...shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize
from ...shared.terminal import counted
from ..loop.checkpoint import build_recogniser, find_checkpoint, load_checkpoint, moment_of
from ..models.recogniser import Recogniser
from .options import ReadingOptions
from .pictures import ImageSource, load_picture
from .words import ReadWord, WordPicture

PictureReader = Callable[[list[Image.Image]], Sequence[str]]
"""Anybody's recogniser: RGB pictures as they were decoded, to one text each."""

_Decoded = tuple[WordPicture, Any, tuple[int, int] | None, str | None]
"""A picture, what was prepared of it, width and height, and why it cannot be decoded."""

_DECODE_THREADS = 2
_BATCHES_AHEAD = 2


class Text(NamedTuple):
    """What was read in one picture, as `ReadWord` has it; nothing passed through a test charset."""

    text: str
    character_confidence: tuple[float, ...] | None
    stage: str = ""
    drafts: Mapping[str, str] = {}
    word_confidence: float | None = None


class PictureBatchReader:
    """Reads pictures of single words in batches: a trained recogniser, a function, a file."""

    name: str
    """What tables and reports call it."""
    kind: str = "given as a function"
    """What it is, if it is no `Reader`."""
    batch_size: int
    checkpoint: Path | None = None
    """The file that was loaded, if one was."""
    moment: Mapping[str, float] = MappingProxyType({})
    """When the checkpoint was written, as far as it says: ``epoch``, ``step``, ``accuracy``."""
    charset: Charset | None = None
    """What it can write, if that is known."""
    max_label_length: int = 25
    """How long a label may be that counts for it: what PARSeq's protocol allows, or it can write.
    """

    @property
    def file(self) -> Path | None:
        """What it was loaded from, which tells it from others."""
        return self.checkpoint

    def prepare(self, picture: Image.Image) -> Any:
        """Return what `read_batch` takes of a picture; called on several threads."""
        return picture

    def prepare_word(self, word: WordPicture, picture: Image.Image) -> Any:
        """Return what `read_batch` takes of a picture of which it is known where it is from."""
        del word
        return self.prepare(picture)

    def read_batch(self, prepared: list[Any]) -> list[Text]:
        """Read prepared pictures, of which there is one at least."""
        raise NotImplementedError

    def words(
        self,
        pictures: Iterable[WordPicture],
        load: Callable[[WordPicture], Image.Image],
    ) -> Iterator[ReadWord]:
        """Read pictures in order. One that cannot be decoded is not read, and says why.

        Args:
            pictures: What to read, taken as it is needed.
            load: Returns a picture, or raises `ImageProblemError`; called on several threads.
        """

        def decode(picture: WordPicture) -> _Decoded:
            try:
                decoded = load(picture)
            except ImageProblemError as e:
                return picture, None, None, str(e)
            return picture, self.prepare_word(picture, decoded), decoded.size, None

        remaining = iter(pictures)
        batches = iter(lambda: list(islice(remaining, self.batch_size)), [])
        with ThreadPoolExecutor(_DECODE_THREADS) as executor:
            for batch in map_ahead(
                executor, lambda some: list(map(decode, some)), batches, _BATCHES_AHEAD
            ):
                sound = [prepared for _, prepared, _, problem in batch if problem is None]
                texts = iter(self.read_batch(sound) if sound else ())
                for picture, _, size_px, problem in batch:
                    read = Text("", ()) if problem is not None else next(texts)
                    yield ReadWord(
                        **{field.name: getattr(picture, field.name) for field in fields(picture)},
                        text=read.text,
                        adapted_text=read.text,
                        character_confidence=read.character_confidence,
                        size_px=size_px,
                        problem=problem,
                        stage=read.stage,
                        drafts=read.drafts,
                        word_confidence=read.word_confidence,
                    )


class ViewReader(PictureBatchReader):
    """Reads views, which are pictures of one size."""

    precision: str
    device: torch.device
    """Where it computes."""
    library: str
    """What computes, with its version."""
    num_parameters: int | None
    """None if it does not say."""

    def read_batch(self, prepared: list[Any]) -> list[Text]:
        """Read views."""
        return self.read_views(torch.from_numpy(np.stack(prepared)))

    def read_views(self, views: torch.Tensor) -> list[Text]:
        """Read a batch of views. Shape: (B, H, W, 3), uint8."""
        raise NotImplementedError


class Reader(ViewReader):
    """A trained recogniser that reads pictures of single words, from `load_reader`."""

    def __init__(
        self,
        recogniser: Recogniser,
        *,
        batch_size: int = ReadingOptions.batch_size,
        precision: str = ReadingOptions.precision,
        checkpoint: Path | None = None,
        teacher: str | None = None,
        moment: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Wrap a recogniser in eval mode, on its device.

        `checkpoint` is the file it was loaded from, `teacher` the ``MODEL/WEIGHTS`` that taught
        it, `moment` when the checkpoint was written.
        """
        self.name = str(checkpoint or type(recogniser).__name__)
        self.batch_size = batch_size
        self.recogniser = recogniser
        self.precision = precision
        self.checkpoint = checkpoint
        self.teacher = teacher
        self.moment = moment
        self.charset = recogniser.tokenizer.charset
        self.max_label_length = recogniser.tokenizer.max_label_length
        self.device = next(recogniser.parameters()).device
        self.library = f"PyTorch {torch.__version__}"
        # CLIP's among them, if it goes on with CLIP.
        self.num_parameters = sum(weight.numel() for weight in recogniser.reading_parameters())

    def read(self, image: ImageSource) -> ReadWord:
        """Read one picture.

        Raises:
            ImageProblemError: it is no picture, or damaged.
        """
        (word,) = self.read_all([image])
        if word.problem is not None:
            name = f"{os.fspath(image)}: " if isinstance(image, str | os.PathLike) else ""
            raise ImageProblemError(f"{name}{word.problem}")
        return word

    def read_all(self, images: Iterable[ImageSource]) -> Iterator[ReadWord]:
        """Read any number of pictures in batches, in order.

        A word whose picture is none, or damaged, has no text and says why in ``problem``.
        """
        pictures = (WordPicture(image=image) for image in images)
        return self.words(pictures, lambda picture: load_picture(picture.image))

    def prepare(self, picture: Image.Image) -> Any:
        """Return the view of a picture."""
        return make_view(picture, self.recogniser.tall, self.recogniser.view_px)

    def read_views(self, views: torch.Tensor) -> list[Text]:
        """Read a batch of views. Shape: (B, H, W, 3), uint8."""
        allow_fast_products(self.precision)
        views = views.to(self.device)
        with autocast(views.device, self.precision):
            stages = self.recogniser.decode_stages(normalize(views, STUDENT_MEAN, STUDENT_STD))
        tokenizer = self.recogniser.tokenizer
        *earlier, last = stages
        texts, confidences = tokenizer.decode(stages[last].float().softmax(dim=-1))
        drafts = {name: tokenizer.decode_ids(stages[name].argmax(dim=-1)) for name in earlier}
        return [
            Text(
                text,
                tuple(confidence.tolist()),
                last,
                {name: of_all[i] for name, of_all in drafts.items()},
            )
            for i, (text, confidence) in enumerate(zip(texts, confidences, strict=True))
        ]


class FunctionReader(PictureBatchReader):
    """Anybody's function, under its own name if it is given none."""

    def __init__(
        self,
        function: PictureReader,
        *,
        batch_size: int = ReadingOptions.batch_size,
        name: str | None = None,
    ) -> None:
        ReadingOptions(batch_size=batch_size)  # Checks its range.
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self.batch_size = batch_size
        self._function = function

    def read_batch(self, prepared: list[Any]) -> list[Text]:
        """Read pictures; what is not one text for each is a `UsageError`."""
        returned: Any = self._function(prepared)
        is_list = isinstance(returned, Iterable) and not isinstance(returned, str | bytes)
        texts = list(returned) if is_list else []
        if len(texts) != len(prepared) or not all(isinstance(text, str) for text in texts):
            shown = repr(texts if is_list else returned)
            raise UsageError(
                f"{self.name} returned {shown:.100} for "
                f"{counted(len(prepared), 'picture')}; expected a list with one str for each"
            )
        return [Text(text, None) for text in texts]


def load_reader(
    run: str | os.PathLike[str],
    *,
    device: str = ReadingOptions.device,
    batch_size: int = ReadingOptions.batch_size,
    precision: str = ReadingOptions.precision,
    clip: str | None = None,
    clip_is_shared: bool = False,
) -> Reader:
    """Return a reader of cropped words: what a run folder or checkpoint holds.

    ``reader.read(image)`` returns a word with ``text`` and ``confidence``; ``reader.read_all``
    takes any number of images and reads them in batches. An image is a path, an encoded image, a
    Pillow image or an array of pixels (RGB, uint8).

    Args:
        run: Run folder or checkpoint.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; auto is CUDA if there is one.
        batch_size: Pictures at once.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        clip: Where CLIP's weights are, for a recogniser that goes on with CLIP and does not hold
            them: ``MODEL/WEIGHTS``, or a cache; None: as the run names them.
        clip_is_shared: Whether that is said for others too, so that a recogniser that reads without
            CLIP is none the worse for it.

    Raises:
        CheckpointError: there is none, or it is damaged.
        UsageError: no such device.
    """
    # First: loading takes longer than checking.
    ReadingOptions(device=device, batch_size=batch_size, precision=precision)
    checkpoint = find_checkpoint(Path(run))
    saved = load_checkpoint(checkpoint)
    recogniser = build_recogniser(saved, checkpoint)
    if recogniser.needs_clip or not clip_is_shared:
        recogniser.bring_clip(clip)
    return Reader(
        recogniser.to(choose_device(device)),
        batch_size=batch_size,
        precision=precision,
        checkpoint=checkpoint,
        teacher=saved["teacher"],
        moment=moment_of(saved),
    )
