"""The contact sheet: the pixels of the cache and the colours of its features, nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import invoke
from PIL import Image
from samples import WORDS, tiny_build, write_words

from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.inspect.options import RowChoice, ShowOptions
from clipocr.precompute.inspect.show import color_tokens, patch_grid, show_cache
from clipocr.shared.cache.codecs.codecs import unfilter_pixels
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.words import WordReader
from clipocr.shared.errors import CacheMissingError
from clipocr.shared.geometry import ViewSize


def read_sheet(path: Path) -> np.ndarray:
    """Return the sheet with each pixel as one number, 0xRRGGBB."""
    with Image.open(path) as sheet:
        return packed(np.asarray(sheet.convert("RGB")))


def packed(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)


def contains(sheet: np.ndarray, pixels: np.ndarray) -> bool:
    """Whether `pixels` are somewhere in the sheet, unchanged."""
    part = packed(pixels)
    height, width = part.shape
    room = sheet[: len(sheet) - height + 1, : sheet.shape[1] - width + 1]
    return any(
        np.array_equal(sheet[y : y + height, x : x + width], part)
        for y, x in np.argwhere(room == part[0, 0])
        if sheet[y + height // 2, x + width // 2] == part[height // 2, width // 2]
        and sheet[y + height - 1, x + width - 1] == part[-1, -1]
    )


def magnified(pixels: np.ndarray, factor: int) -> np.ndarray:
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def views_of(cache: FeatureCache, view_idx: int) -> np.ndarray:
    stored = cache.image_reader(view_idx, "pixels").all()
    return unfilter_pixels(torch.from_numpy(stored.copy())).numpy()


def test_colors_are_principal_components() -> None:
    rng = np.random.default_rng(0)
    # Three directions of falling strength in twenty dimensions, and a little noise.
    basis = np.linalg.qr(rng.normal(size=(20, 3)))[0]
    strengths = rng.uniform(-1, 1, (200, 3)) * [9, 3, 1]
    tokens = (strengths @ basis.T + rng.normal(0, 1e-3, (200, 20)) + 5).astype(np.float32)
    colors, explained = color_tokens(tokens.reshape(50, 4, 20))
    assert colors.shape == (50, 4, 3)
    assert explained == pytest.approx(1, abs=1e-4)
    for channel, expected in zip(colors.reshape(-1, 3).T, strengths.T, strict=True):
        inner = (channel > 0) & (channel < 255)
        assert inner.sum() > 180
        correlation = np.corrcoef(channel[inner], expected[inner])[0, 1]
        assert abs(correlation) > 0.98
        assert (channel == 0).any()
        assert (channel == 255).any()


@pytest.mark.parametrize(
    ("tokens", "gray_channels"),
    [
        (np.ones((1, 1, 8), np.float32), [0, 1, 2]),  # One token has no direction.
        (np.full((3, 4, 8), 7.5, np.float32), [0, 1, 2]),
        (np.arange(8, dtype=np.float32).reshape(1, 4, 2), [1, 2]),  # All on one line.
    ],
)
def test_what_does_not_vary_is_gray(tokens: np.ndarray, gray_channels: list[int]) -> None:
    colors, _ = color_tokens(tokens)
    assert (colors[..., gray_channels] == 128).all()


def test_one_basis_and_one_scale_for_all() -> None:
    tokens = np.random.default_rng(1).normal(size=(6, 16, 32)).astype(np.float32)
    colors, _ = color_tokens(np.concatenate([tokens, tokens[::-1]]))
    np.testing.assert_array_equal(colors[:6], colors[6:][::-1])


@pytest.mark.parametrize(
    ("num_patches", "grid", "size"),
    [
        *[(16, (2, 8), "32x128"), (4, (1, 4), "32x128"), (36, (3, 12), "32x128")],
        *[(17, (1, 17), "32x128"), (1, (1, 1), "32x128")],
        *[(196, (14, 14), "224x224"), (8, (2, 4), "32x64"), (8, (4, 2), "64x32")],
    ],
)
def test_patches_lie_as_in_the_view(num_patches: int, grid: tuple[int, int], size: str) -> None:
    assert patch_grid(num_patches, ViewSize.parse(size)) == grid


def test_a_sheet_holds_every_view_and_its_colors(cache_path: Path, tmp_path: Path) -> None:
    cache = FeatureCache.open(cache_path)
    out = tmp_path / "sheet.png"
    summary = show_cache(cache_path, ShowOptions(out=out, rows=500, array="block2"))
    assert (summary.num_rows, summary.num_views, summary.array) == (73, 1, "block2")
    sheet = read_sheet(out)
    assert sheet.shape[1::-1] == summary.size_px
    bad = next(row for u in cache.units() for row in cache.unit(0, u).bad_rows)
    good = [row for row in range(73) if row != bad]
    views = views_of(cache, 0)
    for row in good[::12]:
        assert contains(sheet, magnified(views[row], 2)), row
    assert not contains(sheet, magnified(views[bad], 2))  # Never its black stand-in.
    assert (sheet == 0xFBEAE9).sum() > 5000  # Said in its place.
    tokens = cache.image_reader(0, "block2").all()[:, 1:].astype(np.float32)
    # The order of the tokens does not matter to the basis, so all rows' colours can be redone.
    colors, _ = color_tokens(tokens[good])
    for of_row in colors[::12]:
        assert contains(sheet, magnified(of_row.reshape(2, 8, 3), 32))


@pytest.mark.parametrize("num_views", [2, 3])
def test_views_stand_side_by_side(data_root: Path, tmp_path: Path, num_views: int) -> None:
    path = tmp_path / "cache"
    build_cache(tiny_build(data_root, path, augment="randaugment", views=num_views))
    cache = FeatureCache.open(path)
    out = tmp_path / "sheet.png"
    summary = show_cache(path, ShowOptions(out=out, rows=73))
    assert (summary.num_views, summary.array) == (num_views, "block3")
    assert summary.size_px[0] <= 1680
    sheet = read_sheet(out)
    for view_idx in range(num_views):
        views = views_of(cache, view_idx)
        assert contains(sheet, magnified(views[40], 2))


def test_a_view_that_is_not_built_yet_is_left_blank(data_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    build_cache(tiny_build(data_root, path, augment="randaugment", views=2))
    (path / "sealed.json").unlink()
    (path / "commits/view1/unit-00001.json").unlink()
    summary = show_cache(path, ShowOptions(out=tmp_path / "sheet.png", rows=73))
    assert (summary.num_rows, summary.num_views) == (73, 2)
    sheet = read_sheet(tmp_path / "sheet.png")
    assert (sheet == 0xF1F3F6).sum() > 32 * 20_000
    for unit in ("view0/unit-00000", "view0/unit-00001", "view0/unit-00002"):
        (path / f"commits/{unit}.json").unlink()
    with pytest.raises(CacheMissingError, match="has no finished unit"):
        show_cache(path, ShowOptions(out=tmp_path / "sheet.png"))


def test_a_cache_of_bad_images_and_long_labels_is_drawn(tmp_path: Path) -> None:
    labels = [*WORDS[:2], "internationalisation-25-xx"[:25]]
    write_words(tmp_path / "data" / ("a_long_name" * 9), labels, {1: b"", 3: b"x"})
    build_cache(tiny_build(tmp_path / "data", tmp_path / "cache"))
    summary = show_cache(tmp_path / "cache", ShowOptions(out=tmp_path / "sheet.png"))
    assert summary.num_rows == 3


def test_the_seed_decides_which_rows(cache_path: Path, tmp_path: Path) -> None:
    sheets = []
    for seed in (0, 0, 1):
        show_cache(
            cache_path, ShowOptions(out=tmp_path / "a.png", rows=4, choice=RowChoice(seed=seed))
        )
        sheets.append((tmp_path / "a.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


def test_only_rows_of_labels_and_keys_are_drawn(cache_path: Path, tmp_path: Path) -> None:
    cache = FeatureCache.open(cache_path)
    reader, out = WordReader(cache, ()), tmp_path / "sheet.png"
    # Both sources hold delta, MJ/train twice.
    chosen = reader.rows_of(["two", "DELTA"], ["ST/image-000000001"], seed=0)
    assert [{row.key for row in rows} for rows in chosen.values()] == [
        {f"MJ/train/image-0000000{i}" for i in ("28", "58")},
        {"MJ/train/image-000000004", "MJ/train/image-000000034", "ST/image-000000004"},
        {"ST/image-000000001"},
    ]
    # Each of the three has the share of one row, the first.
    args = ("--labels", "two,DELTA", "--keys", "ST/image-000000001", "--rows", 5)
    result = invoke("cache", "show", cache_path, "--out", out, *args)
    assert f"Wrote {out}: 3 rows by 1 view" in result.stdout
    sheet, views = read_sheet(out), views_of(cache, 0)
    drawn = [r for r in range(73) if contains(sheet, magnified(views[r], 2))]
    labels = {reader.row(row_idx).label for row_idx in drawn}
    assert labels == {"TWO", "delta", "alpha"}
    assert {rows[0].idx for rows in chosen.values()} <= {*drawn}


def test_a_row_that_is_not_there_is_named(cache_path: Path, tmp_path: Path) -> None:
    for args in (("--labels", "alpha,nowhere"), ("--keys", "ST/image-000000099,ST/nowhere")):
        result = invoke("cache", "show", cache_path, "--out", tmp_path / "a.png", *args)
        assert result.exit_code == 1
        assert re.search(
            r"no finished row of .*words\.cache is .*nowhere; expected labels such as \S+, or keys "
            r"such as (MJ/train|ST)/image-0000000\d\d$",
            result.stderr.strip(),
        )
        assert not (tmp_path / "a.png").exists()


def test_the_command_says_what_it_wrote(cache_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    args = ("cache", "show", cache_path, "--out", out, "--rows", 3, "--array")
    result = invoke(*args, "block1")
    assert result.exit_code == 0, result.stderr
    height, width = read_sheet(out).shape
    assert result.stdout == f"Wrote {out}: 3 rows by 1 view, block1, {width}x{height} pixels.\n"
    assert "random weights" in result.stderr
    refused = invoke(*args, "block9")
    assert refused.exit_code == 1
    assert "holds image arrays block1, block2, block3" in refused.stderr
