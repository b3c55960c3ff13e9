"""Beginning a run with the weights of another student: fine-tuning, which resuming is not."""

from __future__ import annotations

import torch

from ...shared.errors import UsageError
from ..models.student import Student

_MAY_DIFFER = {"max_label_length", "dropout"}
_MOST_LISTED = 40


def inherit(student: Student, ancestor: Student) -> str:
    """Copy an ancestor's weights into a student; return what is not of it, or "".

    Charset and label length may be others: what belongs to a character goes to that character, and
    what belongs to a label position to that position. New ones keep what they were initialised to.

    Raises:
        UsageError: a student of another size.
    """
    sizes, wanted = vars(ancestor.config), vars(student.config)
    differing = [
        f"{name} is {sizes[name]}, this run's {wanted[name]}"
        for name in wanted
        if name not in _MAY_DIFFER and sizes[name] != wanted[name]
    ]
    if differing:
        raise UsageError(
            f"--init holds a student of another size ({'; '.join(differing)}); pass the --student "
            "it was trained with"
        )
    known = ancestor.tokenizer.charset.characters
    new = "".join(c for c in student.tokenizer.charset.characters if c not in known)
    theirs, own = ancestor.state_dict(), student.state_dict()
    num_positions = min(theirs["positions"].shape[1], own["positions"].shape[1])
    tokens = _shared_tokens(student, ancestor)
    classes = [(to, of) for to, of in tokens if to < student.tokenizer.num_classes]
    with torch.no_grad():
        for name, value in own.items():
            match name:
                case "positions":
                    value[:, :num_positions] = theirs[name][:, :num_positions]
                case "embedding.weight":
                    _copy_rows(value, theirs[name], tokens)
                case "head.weight" | "head.bias":
                    _copy_rows(value, theirs[name], classes)
                case _:
                    value.copy_(theirs[name])
    more = f" and {len(new) - _MOST_LISTED} others" if len(new) > _MOST_LISTED else ""
    parts = [f"characters {new[:_MOST_LISTED]}{more}"] if new else []
    if num_positions < own["positions"].shape[1]:
        parts.append(f"label positions from {num_positions + 1} on")
    return " and ".join(parts)


def _shared_tokens(student: Student, ancestor: Student) -> list[tuple[int, int]]:
    """Return the ids (of the student, of the ancestor) of every token that both have."""
    own, theirs = student.tokenizer, ancestor.tokenizer
    theirs_by_character = {c: i for i, c in enumerate(theirs.charset.characters, start=1)}
    shared = [
        (token_id, theirs_by_character[c])
        for token_id, c in enumerate(own.charset.characters, start=1)
        if c in theirs_by_character
    ]
    special = [(own.bos_id, theirs.bos_id), (own.pad_id, theirs.pad_id)]
    return [(own.eos_id, theirs.eos_id), *shared, *special]


def _copy_rows(value: torch.Tensor, given: torch.Tensor, rows: list[tuple[int, int]]) -> None:
    to, of = (torch.tensor(ids, device=value.device) for ids in zip(*rows, strict=True))
    value[to] = given.to(value.device)[of]
