"""The benchmarks of the field: which folder is which, and which of them are averaged together.

Sets and groups are those of PARSeq (``strhub/data/module.py``: ``TEST_BENCHMARK_SUB``,
``TEST_BENCHMARK``, ``TEST_NEW``) and of OpenOCR (``tools/eval_rec_all_en.py``). A set is known by
its folder's name. A group is averaged only when all of it is there: the mean of five of the six
benchmarks looks like the number that papers print, and is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_BENCHMARKS = {
    "IIIT5k": (3000, "iiit5k3000 iiit iiit3000 iiit5kwords"),
    "SVT": (647, "svt647"),
    "IC13_857": (857, "icdar13857 icdar2013857"),
    "IC13_1015": (1015, "icdar131015 icdar20131015"),
    "IC13_1095": (1095, "icdar131095 icdar20131095"),
    "IC15_1811": (1811, "icdar151811 icdar20151811"),
    "IC15_2077": (2077, "icdar152077 icdar20152077"),
    "SVTP": (645, "svtp645 svtperspective"),
    "CUTE80": (288, "cute cute288 cute80288 ct80"),
    "ArT": (35149, ""),
    "COCOv1.4": (9825, "coco cocotext"),
    "Uber": (80551, "ubertext"),
    "OST weak": (2416, "weak wost weakost"),
    "OST heavy": (2416, "heavy host heavyost"),
    "WordArt": (1511, ""),
    "Union14M curve": (2426, "curve"),
    "Union14M multi_oriented": (1369, "multioriented"),
    "Union14M artistic": (900, "artistic"),
    "Union14M contextless": (779, "contextless"),
    "Union14M salient": (1585, "salient"),
    "Union14M multi_words": (829, "multiwords"),
    "Union14M general": (400000, "general"),
}
"""Canonical name -> published number of samples, and other names in `_plain` spelling."""

_GROUPS = {
    "six benchmarks (7,248)": ["IIIT5k", "SVT", "IC13_857", "IC15_1811", "SVTP", "CUTE80"],
    "six benchmarks (7,672)": ["IIIT5k", "SVT", "IC13_1015", "IC15_2077", "SVTP", "CUTE80"],
    "ArT, COCO-Text, Uber": ["ArT", "COCOv1.4", "Uber"],
    "OST": ["OST weak", "OST heavy"],
    "Union14M": [name for name in _BENCHMARKS if name.startswith("Union14M")],
}

PAPER_GROUP = "six benchmarks (7,248)"
"""The group of CLIP-OCR's tables, whose average is weighted by samples."""

WEIGHTED = "weighted by samples"
PLAIN = "plain mean of sets"
"""The names of a group's two means."""

TOTAL = "total"
"""The group of every set."""


def benchmark_of(set_name: str) -> str | None:
    """Return the canonical name of a test set by its folder's name, or None if it is no benchmark.

    Case, punctuation and a trailing ``test`` or ``.lmdb`` do not matter.
    """
    return _BY_SPELLING.get(_plain(set_name.rpartition("/")[2]))


def set_order(set_name: str) -> tuple[int, str]:
    """Order benchmarks as the columns of papers, then other sets by name."""
    benchmark = benchmark_of(set_name)
    return len(_BENCHMARKS) if benchmark is None else [*_BENCHMARKS].index(benchmark), set_name


def shown_title(title: str, num_sets: int) -> str:
    """Return what tables call a group. The one of every set says how many they are.

    "total" alone would look like the mean of a whole group.
    """
    return f"{TOTAL} of {num_sets} sets" if title == TOTAL and num_sets > 1 else title


def find_groups(
    sizes: Mapping[str, tuple[int, int]],
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return the names of each complete group's sets by its title, the last of all, and remarks.

    Remarks are of sets that are missing from a group, there twice, or of an unpublished size.

    Args:
        sizes: Of each set by name: samples that count, and samples that it holds.
    """
    found, remarks = _find_benchmarks(sizes)
    groups: dict[str, tuple[str, ...]] = {}
    for title, members in _GROUPS.items():
        missing = [name for name in members if name not in found]
        if not missing:
            groups[title] = tuple(found[name] for name in members)
        elif len(missing) < len(members):
            remarks.append(f"{title}: no mean; not there: {', '.join(missing)}")
    groups[TOTAL] = tuple(sizes)
    return groups, remarks


def _find_benchmarks(sizes: Mapping[str, tuple[int, int]]) -> tuple[dict[str, str], list[str]]:
    """Return set name by canonical name, and remarks."""
    candidates: dict[str, list[str]] = {}
    for name in sizes:
        if (benchmark := benchmark_of(name)) is not None:
            candidates.setdefault(benchmark, []).append(name)
    found, remarks = {}, []
    for benchmark, names in candidates.items():
        expected = _BENCHMARKS[benchmark][0]
        # IIIT5k and the like are also names of folders to validate on.
        fitting = [name for name in names if expected in sizes[name]]
        chosen = found[benchmark] = (fitting or names)[0]
        if len(names) > 1:
            remarks.append(f"{benchmark} is there as {', '.join(names)}; means take {chosen}")
        if not fitting:
            remarks.append(
                f"{chosen} has {sizes[chosen][0]:,} samples that count, the published {benchmark} "
                f"has {expected:,}: its figures are not comparable with published ones"
            )
    return found, remarks


def _plain(folder: str) -> str:
    letters = re.sub("[^a-z0-9]", "", folder.lower())
    return re.sub("^u14m", "union14m", letters).removesuffix("lmdb").removesuffix("test")


_BY_SPELLING = {
    spelling: name
    for name, (_, others) in _BENCHMARKS.items()
    for spelling in (_plain(name), *others.split())
}
