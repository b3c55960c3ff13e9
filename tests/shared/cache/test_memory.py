from __future__ import annotations

import threading

import numpy as np
import torch

from clipocr.shared.cache.memory import MemoryPool


def address(block: np.ndarray) -> int:
    return block.__array_interface__["data"][0]


def test_a_block_is_lent_again_once_nothing_refers_to_it() -> None:
    pool = MemoryPool()
    first = pool.take(1000)
    where = address(first)
    assert first.shape == (1000,)
    assert address(pool.take(1000)) != where
    del first
    assert address(pool.take(1000)) == where


def test_whatever_is_made_of_a_block_keeps_it() -> None:
    pool = MemoryPool()
    block = pool.take(4096)
    where = address(block)
    rows = block[8:].view(np.float16).reshape(4, -1)[1:3]
    tensor = torch.from_numpy(rows)[1:].flatten()
    parsed = np.frombuffer(block, "<u4")
    tensor.fill_(3.0)
    assert address(pool.take(4096)) != where
    del block
    assert address(pool.take(4096)) != where
    del rows
    assert address(pool.take(4096)) != where
    del parsed
    assert address(pool.take(4096)) != where
    assert (tensor == 3.0).all()
    del tensor
    assert address(pool.take(4096)) == where


def test_blocks_of_like_size_are_shared() -> None:
    pool = MemoryPool()
    where = address(pool.take(600))
    assert address(pool.take(1024)) == where
    assert pool.take(1025).shape == (1025,)
    assert pool.take(0).shape == (0,)


def test_threads_never_share_a_block() -> None:
    pool, wrong = MemoryPool(), []

    def work(number: int) -> None:
        for _ in range(2000):
            block = pool.take(64)
            block[:] = number
            if not (block == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
