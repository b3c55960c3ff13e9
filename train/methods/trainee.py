"""All that a run trains, as one module: a recogniser, and what is needed beside it for the loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..data.batch import Batch
from ..models.recogniser import Recogniser, RecogniserPart


class Trainee(nn.Module):
    """What a method trains: the module whose gradients processes share.

    A subclass sets `recogniser` and `term_names`, and defines `forward`. Its parameters are
    initialised when it is made, from torch's global generator, which the run has seeded.
    """

    recogniser: Recogniser | None
    """What is left when training ends; None: nothing that reads images. Checkpoints hold its
    weights apart from those of the rest, which serve training alone."""
    part: RecogniserPart | None
    """What one without a recogniser leaves to other runs, which begin with it by ``--init``."""
    notes: tuple[str, ...] = ()
    """What a user should know of it when a run begins."""
    term_names: tuple[str, ...]
    """Names of the terms that `forward` returns."""

    def __init__(self) -> None:
        super().__init__()
        self.part = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of a batch, float32 scalars; the loss is their sum.

        It runs under the autocast of the run's precision, and its dropout is seeded anew before
        every call.
        """
        raise NotImplementedError

    def read(self, batch: Batch) -> list[str]:
        """Return the labels that it reads in the features of held-out labels, in eval mode.

        For methods that hold labels out; see `Needs`.
        """
        raise NotImplementedError

    def learning_rate_ratio(self, name: str) -> float:
        """Return how fast a parameter learns, in multiples of the run's learning rate."""
        del name
        return 1.0

    def compilable(self) -> Sequence[nn.Module]:
        """Return the parts that torch.compile may fuse."""
        return ()
