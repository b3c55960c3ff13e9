"""Every failure a user can meet, and what helps against damage.

Messages name the thing, its value, what was expected and the command that helps. `cli.py` prints
them as one line and exits with 1; anything else is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Collection, Iterator
from contextlib import contextmanager

MEND = (
    "Find and take back what is damaged with: clipocr cache verify CACHE --repair; then run the "
    "cache build command again"
)
"""What to do about a `CacheCorruptError`."""


class ClipocrError(Exception):
    """An expected failure, explained by its message."""


class UsageError(ClipocrError, ValueError):
    """Options that are wrong, or contradict each other."""


class DataError(ClipocrError, ValueError):
    """Input data that cannot be used: an LMDB, an image folder, a label file, a font."""


class TeacherError(ClipocrError, RuntimeError):
    """CLIP weights that cannot be loaded, or do not fit what was asked."""


class CheckpointError(ClipocrError, RuntimeError):
    """A student checkpoint that cannot be loaded."""


class TrainingError(ClipocrError, RuntimeError):
    """A training run that cannot go on."""


class ExportError(ClipocrError, RuntimeError):
    """An exported student that does not read as the student does."""


class OutOfMemoryError(ClipocrError, MemoryError):
    """The memory of a GPU or of the machine is not enough for what was asked."""


class HubError(ClipocrError, ConnectionError):
    """A hub of models does not answer, refuses to, or does not have what was asked for."""


class CacheError(ClipocrError):
    """Something is wrong with a feature cache."""


class CacheMissingError(CacheError, FileNotFoundError):
    """There is no cache here, or it is not built far enough for this command."""


class CacheMismatchError(CacheError, ValueError):
    """The cache is sound, but it is not the one this command needs."""


class CacheCorruptError(CacheError, OSError):
    """Bytes in the cache are not the bytes that were committed."""


class CacheUnavailableError(CacheError, ConnectionError):
    """Where the cache is stored does not answer, or refuses to."""


def nearest(name: str, known: Collection[str], advice: str) -> str:
    """Ask whether one of the known names nearest to a wrong one was meant, upper case or lower.

    Args:
        name: What was written.
        known: What could have been.
        advice: What to say where none is near.
    """
    by_lower = {one.lower(): one for one in sorted(known)}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3)
    return f"did you mean {' or '.join(by_lower[one] for one in near)}?" if near else advice


_OUT_OF_MEMORY = (
    *("DefaultCPUAllocator: can't allocate memory", "not enough memory: you tried to allocate"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
"""How PyTorch says so where it has no type for it."""


@contextmanager
def explained_memory(advice: str) -> Iterator[None]:
    """Raise `OutOfMemoryError` with an advice where memory runs out in the block.

    Args:
        advice: What takes less of it, as an order: ``pass a smaller --batch-size``. It may be
            longer than one sentence.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if isinstance(e, ClipocrError):
            raise
        # By name, because what only catches it must not import torch.
        is_of_gpu = type(e).__name__ == "OutOfMemoryError"
        said = " ".join(str(e).split())
        if not (isinstance(e, MemoryError) or is_of_gpu or any(t in said for t in _OUT_OF_MEMORY)):
            raise
        # What stands before is of PyTorch's source, and what follows of its allocator.
        reason = ". ".join((said.partition("] err == 0. ")[2] or said).split(". ")[:2])
        raise OutOfMemoryError(f"memory ran out ({reason or type(e).__name__}): {advice}") from e
