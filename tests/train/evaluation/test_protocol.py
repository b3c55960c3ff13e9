"""Which folder is which benchmark, and what is averaged together."""

from __future__ import annotations

import pytest

from clipocr.train.evaluation.protocol import benchmark_of, find_groups, set_order, shown_title

SIX = {"IIIT5k": 3000, "SVT": 647, "IC13_857": 857, "IC15_1811": 1811, "SVTP": 645, "CUTE80": 288}
OTHER_SIX = {"IC13_1015": 1015, "IC15_2077": 2077}


def groups_and_remarks(sizes: dict[str, int]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    return find_groups({name: (size, size) for name, size in sizes.items()})


@pytest.mark.parametrize(
    ("folder", "benchmark"),
    [
        ("IIIT5k", "IIIT5k"),
        ("test/IIIT5K_3000", "IIIT5k"),
        ("iiit5k_test.lmdb", "IIIT5k"),
        ("SVT_647", "SVT"),
        ("SVTP_645", "SVTP"),
        ("CUTE80_288", "CUTE80"),
        ("ic13_857", "IC13_857"),
        ("ICDAR2013_1015", "IC13_1015"),
        ("IC15-2077", "IC15_2077"),
        ("ArT", "ArT"),
        ("COCOv1.4", "COCOv1.4"),
        ("coco-text", "COCOv1.4"),
        ("Uber", "Uber"),
        ("OST/weak", "OST weak"),
        ("OST_heavy", "OST heavy"),
        ("wordart_test", "WordArt"),
        ("u14m/multi_oriented", "Union14M multi_oriented"),
        ("U14M-MultiWords", "Union14M multi_words"),
        ("Union14M/general", "Union14M general"),
        ("IC13", None),  # Which of three versions it is, its name does not say.
        ("my_words", None),
        ("test", None),
    ],
)
def test_benchmarks_are_known_by_their_folders(folder: str, benchmark: str | None) -> None:
    assert benchmark_of(folder) == benchmark


def test_both_conventions_have_the_samples_they_are_named_after() -> None:
    groups, remarks = groups_and_remarks({**SIX, **OTHER_SIX})
    sizes = {**SIX, **OTHER_SIX}
    assert sum(sizes[name] for name in groups["six benchmarks (7,248)"]) == 7248
    assert sum(sizes[name] for name in groups["six benchmarks (7,672)"]) == 7672
    assert list(groups)[-1] == "total"
    assert groups["total"] == tuple(sizes)
    assert remarks == []


def test_a_group_that_lacks_a_set_is_not_averaged_but_named() -> None:
    groups, remarks = groups_and_remarks({k: v for k, v in SIX.items() if k != "SVTP"})
    assert list(groups) == ["total"]
    assert remarks == [
        "six benchmarks (7,248): no mean; not there: SVTP",
        "six benchmarks (7,672): no mean; not there: IC13_1015, IC15_2077, SVTP",
    ]


def test_own_sets_alone_are_just_averaged() -> None:
    groups, remarks = find_groups({"mine": (3, 4), "yours": (5, 5)})
    assert groups == {"total": ("mine", "yours")}
    assert remarks == []


def test_a_set_of_another_size_is_said() -> None:
    _, remarks = find_groups({"SVT": (645, 646)})
    assert remarks[0].startswith("SVT has 645 samples that count, the published SVT has 647")
    # The published number may be of all samples, or of those that the filter leaves.
    _, remarks = find_groups({"SVT": (640, 647)})
    assert not any("published" in remark for remark in remarks)


def test_of_two_folders_of_a_benchmark_the_one_of_the_published_size_counts() -> None:
    sizes = {f"test/{name}": size for name, size in SIX.items()}
    groups, remarks = groups_and_remarks({"a/IIIT5k": 2000, **sizes})
    assert groups["six benchmarks (7,248)"] == tuple(sizes)
    assert "IIIT5k is there as a/IIIT5k, test/IIIT5k; means take test/IIIT5k" in remarks


def test_benchmarks_stand_in_the_order_of_papers_then_others_by_name() -> None:
    names = ["zebra", "CUTE80", "SVT", "Uber", "test/SVTP", "IC15_1811", "alpha", "iiit5k_3000",
             "IC13_1015", "IC13_857", "OST/heavy", "OST/weak"]  # fmt: skip
    assert sorted(names, key=set_order) == [
        "iiit5k_3000", "SVT", "IC13_857", "IC13_1015", "IC15_1811", "test/SVTP", "CUTE80",
        "Uber", "OST/weak", "OST/heavy", "alpha", "zebra",
    ]  # fmt: skip


def test_a_mean_of_all_sets_says_of_how_many() -> None:
    assert shown_title("total", 5) == "total of 5 sets"
    assert shown_title("total", 1) == "total"
    assert shown_title("OST", 2) == "OST"
