"""What reads images of words: all that evaluation, reading, export, hub and checkpoints know.

Shapes: B batch, L label positions (characters and EOS), C characters of the charset.
"""

from __future__ import annotations

from torch import Tensor, nn

from .tokenizer import LabelTokenizer


class Recogniser(nn.Module):
    """A model that reads images of single words.

    A subclass sets `tokenizer` and defines `decode`; the other methods have defaults.
    """

    tokenizer: LabelTokenizer
    """Charset and longest label, which are fixed when a recogniser is made."""

    def decode(self, images: Tensor, max_length: int | None = None) -> Tensor:
        """Read images, without gradients.

        Args:
            images: Normalised images. Shape: (B, 3, 32, 128).
            max_length: Longest label to write; None: the tokenizer's.

        Returns:
            Logits; what follows a row's first EOS is noise. Shape: (B, L, C + 1).
        """
        raise NotImplementedError
