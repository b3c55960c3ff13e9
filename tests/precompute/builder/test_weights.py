"""The teacher's weights in a cache: those that made it, beside the rest, and never others."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch
from commands import invoke
from killing import killed_after
from natural_images import write_images
from safetensors.torch import load_file
from samples import TINY_TEACHER, WORDS, files_of, tiny_build, write_words

from clipocr.precompute.builder import weights
from clipocr.precompute.builder.build import build_cache, build_pool
from clipocr.precompute.builder.config import PoolConfig, WeightsConfig
from clipocr.precompute.builder.weights import add_weights
from clipocr.precompute.upkeep.config import CopyConfig
from clipocr.precompute.upkeep.copy import copy_cache
from clipocr.precompute.upkeep.verify import repair_cache, verify_cache
from clipocr.shared.cache.json_record import decode_record
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.clip.weights import load_weights
from clipocr.shared.errors import CacheCorruptError, CacheMismatchError, UsageError

FILE = "teacher/weights.safetensors"
RECORD = "commits/teacher.json"


@pytest.fixture
def own_cache(cache_path: Path, tmp_path: Path) -> Path:
    shutil.copytree(cache_path, tmp_path / "own.cache")
    return tmp_path / "own.cache"


@pytest.fixture(scope="module")
def kept(cache_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that keeps its teacher's weights; tests only read it."""
    out = tmp_path_factory.mktemp("kept") / "words.cache"
    shutil.copytree(cache_path, out)
    add_weights(WeightsConfig(cache=out))
    return out


@pytest.fixture(scope="module")
def teacher() -> dict[str, torch.Tensor]:
    """What open_clip's model of the teacher holds."""
    return load_weights(TINY_TEACHER, "fp32")[0].state_dict()


def test_they_are_the_teachers_and_make_it_again(
    kept: Path, teacher: dict[str, torch.Tensor]
) -> None:
    cache = FeatureCache.open(kept)
    found = cache.teacher_weights()
    assert found.keys() == teacher.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in teacher.items())
    # As another reader has them: ones and zeros in half precision, what was drawn as it was.
    stored = load_file(kept / FILE)
    assert stored["ln_final.weight"].dtype == torch.float16
    assert torch.equal(stored["token_embedding.weight"], teacher["token_embedding.weight"])


def test_a_part_of_them_can_be_read_from_an_address(
    kept: Path, teacher: dict[str, torch.Tensor]
) -> None:
    fsspec.filesystem("memory").put(f"{kept}/", "/kept.cache/", recursive=True)
    wanted = ["visual.proj", "logit_scale"]
    found = FeatureCache.open("memory://kept.cache").teacher_weights(wanted)
    assert list(found) == wanted
    assert all(torch.equal(found[name], teacher[name]) for name in wanted)


def test_stage_2_reads_them_without_open_clip(kept: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['open_clip'] = None\n"
        "from clipocr.shared.cache.reader import FeatureCache\n"
        f"print(FeatureCache.open({str(kept)!r}).teacher_weights(['visual.proj'])"
        "['visual.proj'].shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "torch.Size([64, 24])\n", done.stderr


def test_the_command_adds_them_once_and_touches_nothing_else(own_cache: Path) -> None:
    before = files_of(own_cache)
    result = invoke("cache", "weights", own_cache)
    assert result.exit_code == 0, result.stderr
    assert "random weights" in result.stderr
    assert result.stdout == f"Wrote {own_cache}/{FILE}: {TINY_TEACHER}, 7.6 MB.\n"
    added = files_of(own_cache)
    assert {n for n in added if added[n] != before.get(n)} == {FILE, RECORD, "sealed.json"}
    sealed = decode_record(added["sealed.json"], "seal")["commits"]["teacher"]
    assert sealed == decode_record(added[RECORD], "record")
    again = invoke("cache", "weights", own_cache)
    assert again.stdout.startswith("Found ")
    assert again.stdout.endswith(" MB; nothing was missing.\n")
    assert files_of(own_cache) == added


def test_what_is_there_is_left_and_the_teacher_not_loaded(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "load_weights", None)
    before = files_of(kept)
    *_, was_there = add_weights(WeightsConfig(cache=kept))
    assert was_there
    assert files_of(kept) == before


def test_killed_anywhere_the_same_command_goes_on(own_cache: Path, kept: Path) -> None:
    before, expected = files_of(own_cache), files_of(kept)
    for num_files in range(3):  # The weights, their record, the seal.
        killed_after(num_files, lambda: add_weights(WeightsConfig(cache=own_cache)))
        assert verify_cache(own_cache).faults == []
        for name, data in files_of(own_cache).items():
            assert data in (before.get(name), expected.get(name))
        with pytest.raises(CacheMismatchError, match="keeps no weights"):
            FeatureCache.open(own_cache).teacher_weights()
    add_weights(WeightsConfig(cache=own_cache))
    assert files_of(own_cache) == expected


def test_a_half_built_cache_takes_them_and_stays_half_built(own_cache: Path) -> None:
    (own_cache / "sealed.json").unlink()
    (own_cache / "commits/view0/unit-00001.json").unlink()
    add_weights(WeightsConfig(cache=own_cache))
    cache = FeatureCache.open(own_cache)
    assert not cache.is_sealed
    assert cache.teacher_weights(["logit_scale"]).keys() == {"logit_scale"}


def test_other_weights_are_refused_by_name(own_cache: Path) -> None:
    before = files_of(own_cache)
    result = invoke("cache", "weights", own_cache, "--teacher", "ViT-tiny-test/random:1")
    assert result.exit_code == 1
    assert "ViT-tiny-test/random:0 says (weights sha256 " in result.stderr
    assert "ViT-tiny-test/random:1 has other weights" in result.stderr
    assert files_of(own_cache) == before


def test_a_weights_file_must_be_passed_and_may_have_moved(
    tmp_path: Path, teacher: dict[str, torch.Tensor]
) -> None:
    write_words(tmp_path / "data" / "set", WORDS[:4])
    file, cache = tmp_path / "clip.pt", tmp_path / "cache"
    halves = {name: tensor.half().float() for name, tensor in teacher.items()}
    torch.save(halves, file)
    name = f"ViT-tiny-test/{file}"
    build_cache(tiny_build(tmp_path / "data", cache, teacher=name, activation="gelu"))
    with pytest.raises(UsageError, match=r"weights file clip.pt; pass it by --teacher"):
        add_weights(WeightsConfig(cache=cache))
    moved = file.rename(tmp_path / "moved.pt")
    _, record, _ = add_weights(WeightsConfig(cache=cache, teacher=f"ViT-tiny-test/{moved}"))
    # Half the bytes, because each number is one of float16.
    assert record.files[FILE].num_bytes - record.header_bytes == 2 * sum(
        tensor.numel() for tensor in halves.values()
    )
    found = FeatureCache.open(cache).teacher_weights()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in halves.items())


def test_a_cache_without_them_says_how_to_add_them(cache: FeatureCache) -> None:
    with pytest.raises(CacheMismatchError, match=r"add them with: clipocr cache weights \S+cache$"):
        cache.teacher_weights()


# -- builds ----------------------------------------------------------------------------------------


def test_a_build_of_final_keeps_them_and_makes_them_again(
    data_root: Path, tmp_path: Path, kept: Path
) -> None:
    config = tiny_build(data_root, tmp_path / "cache", image_taps=("final",))
    killed_after(40, lambda: build_cache(config))
    build_cache(config)
    whole = files_of(config.out)
    assert whole[FILE] == (kept / FILE).read_bytes()
    assert "teacher" in json.loads(whole["sealed.json"])["commits"]

    (config.out / FILE).write_bytes(whole[FILE][:-1])
    repair = repair_cache(config.out, verify_cache(config.out))
    assert repair.taken_back == ("teacher",)
    assert build_cache(config).num_rows_built == 0
    assert files_of(config.out) == whole


def test_other_builds_keep_none(cache_path: Path, own_cache: Path, tmp_path: Path) -> None:
    assert FILE not in files_of(cache_path)
    images = write_images(tmp_path / "images")
    build_pool(PoolConfig(cache=own_cache, images=images, count=3, device="cpu"))
    pool = FeatureCache.open(own_cache).pool
    assert pool is not None
    assert pool.spec.image_names == ("final",)
    assert pool.is_sealed
    assert pool.committed.weights is None


# -- upkeep ----------------------------------------------------------------------------------------


def test_the_command_that_repairs_says_what_makes_them_again(own_cache: Path, kept: Path) -> None:
    add_weights(WeightsConfig(cache=own_cache))
    data = bytearray((own_cache / FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (own_cache / FILE).write_bytes(data)
    with pytest.raises(CacheCorruptError, match=rf"{FILE}: bytes .* are not what was committed"):
        FeatureCache.open(own_cache).teacher_weights()
    found = invoke("cache", "verify", own_cache)
    assert found.stdout.startswith(f"teacher\t{FILE}\tis not what was committed\n")
    repaired = invoke("cache", "verify", own_cache, "--repair")
    assert "cache weights, for its teacher's" in repaired.stdout
    assert not (own_cache / FILE).exists()
    add_weights(WeightsConfig(cache=own_cache))
    sound = invoke("cache", "verify", own_cache)
    assert "1 text table, weights of the teacher, not sealed.\n" in sound.stdout
    (own_cache / "sealed.json").write_bytes((kept / "sealed.json").read_bytes())
    assert files_of(own_cache) == files_of(kept)


def test_a_lost_manifest_is_made_again_beside_them(
    own_cache: Path, data_root: Path, kept: Path
) -> None:
    add_weights(WeightsConfig(cache=own_cache))
    (own_cache / "manifest.json").write_bytes(b"?")
    repair_cache(own_cache, verify_cache(own_cache))
    build_cache(tiny_build(data_root, own_cache))
    assert files_of(own_cache) == files_of(kept)


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_a_copy_takes_them(kept: Path, tmp_path: Path, fraction: float) -> None:
    config = CopyConfig(source=kept, out=tmp_path / "copy", fraction=fraction)
    cache = copy_cache(config).cache
    assert (tmp_path / "copy" / FILE).read_bytes() == (kept / FILE).read_bytes()
    assert cache.teacher_weights(["logit_scale"])["logit_scale"] > 0
    assert verify_cache(tmp_path / "copy").faults == []


def test_info_says_what_they_weigh(kept: Path, cache_path: Path) -> None:
    said = invoke("cache", "info", kept).stdout
    assert [line.split() for line in said.splitlines() if line.startswith("teacher's weights")] == [
        ["teacher's", "weights", "7.6", "MB"]
    ]
    assert f"| {FILE} " in said
    assert "teacher's weights" not in invoke("cache", "info", cache_path).stdout
