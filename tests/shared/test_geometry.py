"""Sizes of pictures: which are those of a page."""

import pytest

from clipocr.shared.geometry import looks_like_a_page


@pytest.mark.parametrize(
    ("width_px", "height_px", "is_page"),
    [
        (1240, 1754, True),  # a page at 150 dpi
        (1600, 900, True),  # a photograph
        (1080, 2340, True),  # a telephone's screen
        (800, 600, True),
        (2000, 60, True),  # a line of a page at 300 dpi
        (40, 1000, True),
        (2008, 772, False),  # the highest word of IIIT5K, "COTTAGE"
        (2836, 456, False),  # the widest, "MECHANIC"
        (183, 10, False),  # the longest for its height, "GrassRootsMarketing"
        (491, 600, False),  # a single digit of IIIT5K
        (20, 215, False),  # the tallest word of ICDAR 2015, "TOPSHOP"
        (197, 658, False),  # another of its vertical words
        (100, 32, False),
        (1, 1, False),
    ],
)
def test_no_real_word_looks_like_a_page(width_px: int, height_px: int, is_page: bool) -> None:
    assert looks_like_a_page(width_px, height_px) is is_page
