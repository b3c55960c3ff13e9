from __future__ import annotations

import numpy as np

from clipocr.shared.hashing import mix


def test_splitmix64_reference_values() -> None:
    # The first output of the published generator, seeded with 0 and with 1234567.
    assert int(mix(0)[0]) == 0xE220A8397B1DCDAF
    assert int(mix(1234567)[0]) == 6457827717110365317


def test_keys_and_their_order_matter() -> None:
    rows = np.arange(1000)
    assert len(np.unique(mix(1, 2, rows))) == 1000
    assert not np.intersect1d(mix(1, 2, rows), mix(2, 1, rows)).size
    np.testing.assert_array_equal(mix(1, 2, rows)[17], mix(1, 2, 17)[0])


def test_bits_are_balanced() -> None:
    bits = np.unpackbits(mix(5, np.arange(4096)).view(np.uint8)).reshape(4096, 64)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.05
