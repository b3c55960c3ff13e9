"""The settings of CLIP-OCR; the defaults are the official code's.

    student   encoder 1    2    3    4     decoder 1    2    3    4
                      |    |    |    |             |    |    |    |
    teacher     image 3    6    9   EOT       text 9    6    3    label

The teacher's numbers are blocks; its text encoder is read backwards, from meaning to characters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from ....shared.cache.names import EOT, LABEL_TOKENIZERS, block_name
from ....shared.errors import UsageError
from ....shared.options import Options, option
from ...models.config import NUM_STAGES, StudentConfig
from ..base import Method, Needs, Shapes, TextNeeds

if TYPE_CHECKING:
    from ...models.student import Student
    from ...models.tokenizer import LabelTokenizer
    from .trainee import ClipOcrTrainee

STAGES = tuple(range(1, NUM_STAGES))
"""Stages that a tap can supervise: all but the last, which ends in the EOT or in the label."""


@dataclass(frozen=True, kw_only=True)
class LossSettings(Options):
    """What compares aligned features.

    The kinds that table 3 compares, each a mean over rows:

    - ``lcl``, Eq. 7: student rows shall relate to each other as the teacher's do, and match them.
    - ``l1``, Eq. 4: mean absolute difference over the width, of features as the heads return them.
    - ``cosine``: 1 - cosine similarity.
    - ``kl``: KL(softmax of the teacher || softmax of the student) over the width. The paper says no
      more; the temperature is 1.
    """

    group: ClassVar[str] = "Loss"

    kind: str = option(
        "lcl",
        name="loss",
        choices=("lcl", "l1", "cosine", "kl"),
        help="Loss between features of student and teacher (table 3); lcl is the paper's.",
    )
    """Weights, temperature and scope concern ``lcl`` alone."""
    intra_weight: float = option(5.0, help="Weight lambda_1 of LCL (tables 2, 5).", minimum=0)
    """Of Eq. 7; at 0 the term costs nothing. The paper prints "lambda_1 5 and lambda_1 0.1"; tables
    5, 6 and the code settle which is which."""
    inter_weight: float = option(0.1, help="Weight lambda_2 of LCL (tables 2, 6).", minimum=0)
    """Of Eq. 7; at 0 the term costs nothing."""
    temperature: float = option(0.03, help="Temperature tau of LCL (table 4).", above=0)
    """Of Eq. 6."""
    scope: str = option(
        "batch",
        choices=("batch", "sample"),
        help="Which tokens LCL relates: all of the batch, as in the official code, or those of one "
        "sample, as in the paper.",
    )
    """What a row relates to. ``batch``: every row there is, as in the official code, so that the
    value depends on the batch size. ``sample``: rows of its own sequence, as the paper writes it;
    the loss is the mean over samples. A class token, T = 1, has only the batch to relate to."""
    gather: str = option(
        "inter",
        choices=("none", "inter", "all"),
        help="Which terms of LCL see tokens of other processes: none; inter, as in the official "
        "code; or all, which equals the loss of a single process.",
    )
    """Whose rows count in a run of several processes. ``none``: one's own. ``inter``: the teacher
    rows of all are candidates in Eq. 6, constants unless one's own, as in the official code.
    ``all``: the loss of one process that holds all rows, see `global_mean`."""


@dataclass(frozen=True, kw_only=True)
class ClipOcr(Method):
    """A whole student, aligned with CLIP stage by stage, Eq. 3."""

    name: ClassVar[str] = "clip-ocr"
    summary: ClassVar[str] = "a whole student, aligned with CLIP stage by stage"

    student: StudentConfig = field(default_factory=StudentConfig)
    image_taps: tuple[int, ...] = option(
        (3, 6, 9),
        help="Blocks of the teacher's image encoder that teach encoder stages 1, 2 and 3.",
        minimum=1,
    )
    """Teacher image blocks that supervise encoder stages 1, 2, 3."""
    text_taps: tuple[int, ...] = option(
        (3, 6, 9),
        help="Blocks of the teacher's text encoder that teach decoder layers 3, 2 and 1.",
        minimum=1,
    )
    """Teacher text blocks that supervise decoder layers 3, 2, 1: shallow text, deep decoder."""
    image_stages: tuple[int, ...] = option(
        STAGES, help="Encoder stages to teach; none: no image distillation (table 1)."
    )
    text_stages: tuple[int, ...] = option(
        STAGES,
        help="Decoder layers to teach; none: no text distillation (tables 1, 12).",
    )
    word: bool = option(
        True,
        help="Whether the teacher's embedding of the whole label (EOT) teaches the class token.",
    )
    """GAM, Eq. 2."""
    tokenizer: str = option(
        "char",
        choices=LABEL_TOKENIZERS,
        help="Text features to learn from: of the label spelled (char), or whole (word, table 7).",
    )
    mask_pads: bool = option(
        False,
        help="Leave positions after the label's end out of the text losses. The official code "
        "keeps them in.",
    )
    loss: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_taps", "text_taps"):
            taps = getattr(self, name)
            if len(taps) != len(STAGES) or list(taps) != sorted(set(taps)):
                raise UsageError(
                    f"{name} is {taps}, expected {len(STAGES)} block numbers, each above the last"
                )
        for name in ("image_stages", "text_stages"):
            stages = getattr(self, name)
            if list(stages) != sorted(set(stages) & set(STAGES)):
                raise UsageError(
                    f"{name} is {stages}, expected some of {STAGES}, each above the last, or none"
                )

        num_layers = self.student.decoder_config.layers
        if self.text_stages and num_layers < NUM_STAGES:
            raise UsageError(
                f"decoder_layers is {num_layers}, and text stages need {NUM_STAGES} or more; pass "
                "text_stages none"
            )

    def image_array(self, stage: int) -> str:
        """Return the image array that supervises an encoder stage."""
        return block_name(self.image_taps[stage - 1])

    def text_array(self, stage: int) -> str:
        """Return the text array that supervises a decoder layer: the last for the first, Eq. 3."""
        return block_name(self.text_taps[-stage])

    def needs(self) -> Needs:
        """Return what the supervised stages follow.

        The text table is needed even if none of its arrays is: it decides which rows are usable,
        and variants of a table of runs have to train on the same rows.
        """
        text = tuple(self.text_array(stage) for stage in reversed(self.text_stages))
        return Needs(
            images=tuple(self.image_array(stage) for stage in self.image_stages),
            text=TextNeeds(tokenizer=self.tokenizer, arrays=(*text, EOT) if self.word else text),
            num_taps=len(STAGES),
            # Pads are rows of LCL. Officially each process has its own; as the loss of one process
            # has those of the longest label.
            pads_together=self.loss.gather == "all",
        )

    def recogniser(self, tokenizer: LabelTokenizer) -> Student:
        """Return the student."""
        from ...models.student import Student

        return Student(self.student, tokenizer)

    def trainee(self, tokenizer: LabelTokenizer, shapes: Shapes) -> ClipOcrTrainee:
        """Return the student with the heads that join it to the teacher."""
        from .trainee import ClipOcrTrainee

        return ClipOcrTrainee(self, tokenizer, shapes)
