"""Any function from pictures to texts, measured as a student is, and compared with one.

    python examples/evaluate_any_callable.py run data/test

Here it is the student again, on pictures of half the size; put your own model in its place.
"""

import sys
from typing import Any

from PIL import Image

import clipocr


def compare(ours: Any, theirs: Any, data: str) -> None:
    """Print the table of each, and both side by side on the same words."""
    first, second = clipocr.evaluate(ours, data), clipocr.evaluate(theirs, data)
    print(first.table(), second.table(), first.table(second), sep="\n\n")


def main(run: str, data: str) -> None:
    """Compare a student with itself on pictures of half the size."""
    reader = clipocr.load(run)

    def at_half_size(pictures: list[Image.Image]) -> list[str]:
        halves = [picture.reduce(2) for picture in pictures]
        return [word.text for word in reader.read_all(halves)]

    compare(reader, at_half_size, data)


if __name__ == "__main__":
    main(*sys.argv[1:])
