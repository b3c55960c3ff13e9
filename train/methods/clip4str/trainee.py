"""CLIP4STR's training step: permuted language modelling in both branches.

Official code: ``strhub/models/vl_str/system.py``, ``training_step``.

Shapes: B batch, K orders, L label positions, T image tokens, M text tokens, E joint width.
"""

from __future__ import annotations

from torch import Tensor

from ...data.batch import Batch
from ...models.orders import draw_orders
from ...models.tokenizer import LabelTokenizer
from ..base import Shapes
from ..recognition import recognition_loss
from ..trainee import Trainee
from .adapters import Ladder
from .recogniser import Clip4StrRecogniser
from .settings import Clip4Str


class Clip4StrTrainee(Trainee):
    """The recogniser; nothing beside it is trained."""

    recogniser: Clip4StrRecogniser

    def __init__(self, method: Clip4Str, tokenizer: LabelTokenizer, shapes: Shapes) -> None:
        super().__init__()
        self.method = method
        self.recogniser = method.recogniser(tokenizer)
        assert shapes.teacher_weights is not None, "a cache says where its teacher's weights are"
        self.recogniser.begin_with(shapes.teacher_weights)
        self.term_names = ("visual", "cross") if method.cross else ("visual",)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of each branch over all orders.

        What the cross branch is told of the text is the visual branch's own prediction, order by
        order. Its loss reaches neither the visual branch nor the image encoder.
        """
        model, method = self.recogniser, self.method
        features = batch.images
        if method.tune == "all":
            features = model.features(model.normalized(batch.normalized_views()))
        memory_BTE = model.memory(features)
        orders_KP = draw_orders(batch.num_positions - 1, method.permutations)
        _, logits, targets = model.visual(memory_BTE, batch.token_ids, orders_KP)
        terms = {"visual": recognition_loss(logits, targets)}
        if model.cross is not None:
            tokens = model.text_tokens(logits.detach())
            of_orders_BKME = tokens.view(-1, len(orders_KP), *tokens.shape[1:])
            _, logits, targets = model.cross(
                memory_BTE.detach(), batch.token_ids, orders_KP, of_orders_BKME
            )
            terms["cross"] = method.cross_weight * recognition_loss(logits, targets)
        return terms

    def learning_rate_ratio(self, name: str) -> float:
        """Return how fast a parameter learns: CLIP's own, and copies of them, more slowly."""
        is_clips = name.startswith(("recogniser.image_encoder.", "recogniser.text_encoder."))
        is_ladder = isinstance(self.recogniser.adapter, Ladder) and ".adapter." in name
        return self.method.encoder_rate_ratio if is_clips or is_ladder else 1.0
