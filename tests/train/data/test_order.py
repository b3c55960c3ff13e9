from __future__ import annotations

import itertools

import numpy as np
import pytest

from clipocr.train.data.order import NUM_LANES, EpochOrder, lanes_of


def rows(order: EpochOrder) -> list[tuple[int, int]]:
    chunks, positions = order.locate(np.arange(order.num_rows))
    return list(zip(chunks.tolist(), positions.tolist(), strict=True))


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([8] * 9 + [3], id="fewer chunks than lanes"),
        pytest.param([256] * 300, id="more chunks than lanes"),
        pytest.param([1], id="one row"),
        pytest.param([5, 0, 0, 2, 0], id="chunks without usable rows"),
        pytest.param([64], id="one row per lane"),
    ],
)
def test_every_row_stands_at_one_place(sizes: list[int]) -> None:
    found = rows(EpochOrder(3, 1, np.asarray(sizes)))
    assert sorted(found) == [
        (chunk, row) for chunk, size in enumerate(sizes) for row in range(size)
    ]


def test_any_part_can_be_located_by_itself() -> None:
    order = EpochOrder(0, 0, np.full(70, 16))
    whole = rows(order)
    for start in (0, 1, 63, 64, 700, 1119):
        chunks, positions = EpochOrder(0, 0, np.full(70, 16)).locate(np.arange(start, 1120))
        assert list(zip(chunks.tolist(), positions.tolist(), strict=True)) == whole[start:]


def test_seed_and_epoch_decide_chunks_and_rows_within_them() -> None:
    sizes = np.full(20, 16)
    orders = {rows(EpochOrder(seed, epoch, sizes))[0] for seed in range(4) for epoch in range(4)}
    assert len(orders) > 8
    in_chunk = {
        tuple(row for chunk, row in rows(EpochOrder(0, epoch, sizes)) if chunk == 5)
        for epoch in range(8)
    }
    assert len(in_chunk) == 8


def test_a_batch_mixes_as_many_chunks_as_there_are_lanes() -> None:
    chunks, _ = EpochOrder(0, 0, np.full(1000, 256)).locate(np.arange(320))
    # Five rows of each lane, one or two of which go on to another chunk meanwhile.
    assert NUM_LANES <= len(set(chunks.tolist())) <= NUM_LANES + 2


def test_a_lane_goes_from_chunk_to_chunk() -> None:
    order = EpochOrder(0, 0, np.full(1000, 256))
    places = np.arange(order.num_rows)
    chunks, _ = order.locate(places[lanes_of(places) == 17])
    changes = np.count_nonzero(np.diff(chunks))
    # It ends in the chunk in which it began.
    assert changes == len(set(chunks.tolist())) <= 1000 / NUM_LANES + 2


@pytest.mark.parametrize("num_chunks", [640, 650, 64 * 63])
def test_lanes_turn_over_one_after_another(num_chunks: int) -> None:
    """320 rows are five of each lane, of 256 in a chunk: a batch opens one or two chunks."""
    order = EpochOrder(0, 0, np.full(num_chunks, 256))
    chunks, _ = order.locate(np.arange(320 * 100))
    in_lane = chunks.reshape(-1, NUM_LANES)
    opened = (in_lane[1:] != in_lane[:-1]).sum(axis=1)
    assert opened.max() == 1


def splitmix(seed: int, *keys: int) -> int:
    """SplitMix64 in Python's whole numbers."""

    def step(z: int) -> int:
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    mixed = step(seed)
    for key in keys:
        mixed = step(mixed ^ key)
    return mixed


def test_the_order_is_that_of_the_definition() -> None:
    # Runs that are resumed depend on it, so it must never change.
    seed, epoch, sizes = 5, 2, [30, 0, 41, 7, 64]
    chunks = sorted(range(5), key=lambda chunk: splitmix(seed, 0, epoch, chunk))
    stream = [
        (chunk, row)
        for chunk in chunks
        for row in sorted(range(sizes[chunk]), key=lambda r: splitmix(seed, 1, epoch, chunk, r))
    ]
    # 142 rows in 64 lanes: 14 lanes of three, then 50 of two.
    bounds = [*(3 * i for i in range(14)), *(42 + 2 * i for i in range(51))]
    lanes = []
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        # The largest chunk has 64 rows: lane i begins i rows after a multiple of that.
        shift = (i - start) % 64 % (stop - start)
        lanes.append(stream[start + shift : stop] + stream[start : start + shift])
    expected = [lane[turn] for turn in range(3) for lane in lanes if turn < len(lane)]
    assert rows(EpochOrder(seed, epoch, np.asarray(sizes))) == expected
