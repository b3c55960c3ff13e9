"""Cached is online: the test that the whole idea is sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from online import OnlineLoader, online_loader
from runs import note_steps
from samples import TINY_TEACHER, tiny_build
from small_student import SMALL_METHOD

from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.teacher.clip import load_teacher
from clipocr.shared.cache.reader import FeatureCache
from clipocr.train.data.preflight import Preflight
from clipocr.train.loop.checkpoint import load_checkpoint
from clipocr.train.loop.config import TrainConfig, TrainPlace
from clipocr.train.loop.log import Meter
from clipocr.train.loop.run import train

CONFIG = TrainConfig(
    method=SMALL_METHOD,
    epochs=8,
    batch_size=12,
    learning_rate=2e-3,
)


FULL_CONTEXT = 27
"""SOT, 25 characters, EOT: what the text table is computed at."""


@pytest.fixture(params=["fp16"])
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cache_of_codec(codec: str, cache_path: Path, data_root: Path, tmp_path: Path) -> Path:
    if codec == "fp16":
        return cache_path
    build_cache(tiny_build(data_root, tmp_path / "words.cache", codec=codec))
    return tmp_path / "words.cache"


@pytest.fixture
def online(cache_of_codec: Path, data_root: Path) -> Callable[[int | None], OnlineLoader]:
    cache = FeatureCache.open(cache_of_codec)
    teacher = load_teacher(
        TINY_TEACHER,
        image_taps=(1, 2, 3),
        text_taps=(1, 2, 3),
        precision="fp32",
        device=torch.device("cpu"),
    )
    sources = {"MJ/train": data_root / "MJ" / "train", "ST": data_root / "ST"}
    return lambda context: online_loader(
        cache, sources, teacher, batch_size=CONFIG.batch_size, seed=CONFIG.seed, context=context
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "epochs"), [("fp16", 8), ("int8", 2), ("int4", 2), ("klt:24", 2)], indirect=["codec"]
)
def test_a_cached_run_is_an_online_run_bit_for_bit(
    cache_of_codec: Path,
    epochs: int,
    online: Callable[[int | None], OnlineLoader],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """48 steps with dropout, official losses, and a batch size that no chunk divides.

    Of lossy codecs a few steps: both runs see what the codec leaves.
    """
    steps = note_steps(monkeypatch)
    place = TrainPlace(
        cache=cache_of_codec,
        out=tmp_path / "cached",
        device="cpu",
    )
    config, num_steps = replace(CONFIG, epochs=epochs), 6 * epochs
    assert train(config, place).num_steps == num_steps
    monkeypatch.setattr(Preflight, "loader", lambda *_args, **_options: online(FULL_CONTEXT))
    train(config, replace(place, out=tmp_path / "online"))

    assert len(steps) == 2 * num_steps
    assert torch.equal(torch.stack(steps[:num_steps]), torch.stack(steps[num_steps:]))
    a, b = (load_checkpoint(tmp_path / name / "last.pt") for name in ("cached", "online"))
    for left, right in (
        (a["recogniser"], b["recogniser"]),
        (a["training"]["trainee"], b["training"]["trainee"]),
    ):
        assert left.keys() == right.keys()
        assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_features_differ_from_the_official_batch_length_by_rounding_alone(
    online: Callable[[int | None], OnlineLoader],
) -> None:
    """The official code encodes labels at the length of the batch, a cache all at one.

    The encoder is causal, so the numbers are the same but for how a matrix product of another size
    is summed: of fp16's 11 bits the last one differs, in about one value of a hundred.
    """
    at_once, by_batch = online(FULL_CONTEXT), online(None)
    for a, b in zip(at_once.epoch(0), by_batch.epoch(0), strict=True):
        assert all(torch.equal(a.images[name], b.images[name]) for name in a.images)
        for left, right in [(a.text[name], b.text[name]) for name in a.text]:
            torch.testing.assert_close(left, right, rtol=2**-10, atol=1e-4)
            assert (left != right).float().mean() < 0.02


@pytest.mark.parametrize(
    ("codec", "share"), [("int8", 0.01), ("int4", 0.03), ("klt:24", 0.03)], indirect=["codec"]
)
def test_the_losses_of_a_lossy_codec_are_those_of_the_exact_one(
    cache_path: Path,
    cache_of_codec: Path,
    share: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An epoch from each: the first LayerNorm makes standardised tokens the teacher's again."""
    steps: list[torch.Tensor] = []
    # The last value is the norm of the gradient.
    monkeypatch.setattr(Meter, "add", lambda _meter, values: steps.append(values[:-1]))
    for name, path in (("exact", cache_path), ("lossy", cache_of_codec)):
        place = TrainPlace(
            cache=path,
            out=tmp_path / name,
            device="cpu",
        )
        train(replace(CONFIG, epochs=1), place)
    exact, lossy = torch.stack(steps[:6]), torch.stack(steps[6:])
    assert torch.isfinite(exact).all()
    torch.testing.assert_close(lossy, exact, rtol=share, atol=share)
    assert not torch.equal(lossy, exact)
