"""Feature codecs side by side: bytes against fidelity, on the features of a cache you have.

    python benchmarks/codec_fidelity.py words.cache --plot codecs.png

The cache holds fp16 features. Codecs that are fit are fit to one part of its rows; all are judged
on other rows, as the project judges them (`measure_fidelity`). Beside clipocr's own codecs stand
what else one would think of: a general compressor, PCA truncation, product quantisation. Below
them stands what no codec of single tokens can beat if features are Gaussian: reverse water-filling
over the measured spectrum (Cover and Thomas, Elements of Information Theory, 10.3.3).

Shapes: N rows, B rows of a part, T tokens, D width, P bytes of a token.
"""

from __future__ import annotations

import argparse
import math
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

import numpy as np
import torch
from numcodecs import Blosc
from tabulate import tabulate
from torch import Tensor

from clipocr.shared.cache.codecs.codec import Codec as CodecName
from clipocr.shared.cache.codecs.codecs import feature_codec, measure_fidelity
from clipocr.shared.cache.codecs.klt import (
    Doubles,
    KltBasis,
    allocate_bits,
    fit_basis,
    gaussian_distortion,
)
from clipocr.shared.cache.codecs.quantize import standardise
from clipocr.shared.cache.names import PIXELS, part_of
from clipocr.shared.cache.reader import FeatureCache

GOAL_COSINE, GOAL_BYTES = 0.99, 10 * 1024
GOAL_SHAPE = (3, 17, 768)
"""Taps, tokens and width of ViT-B/16, which the goal was set for."""
JUDGED_PARTS, PART_ROWS = 4, 128
KLT_BITS = (0.25, 0.5, 1, 1.5, 2, 2.5, 3, 4)
"""Bits a value; one byte a token is 8 / D of them."""
PCA_BITS = (0.5, 1, 2, 4, 8)
OPQ_BITS = (0.25, 0.5, 1, 2)
OPQ_TOKENS, OPQ_STEPS = 8192, 10
TIMED_S = 0.2
LEAST_LOSS = 1e-7
"""Of a plot; below it is rounding."""


class Codec(Protocol):
    """What `FeatureCodec` does of encoding; what is stored may be a tensor or bytes."""

    name: str

    def target(self, features: Tensor) -> Tensor: ...

    def encode(self, features: Tensor) -> Any: ...

    def decode(self, stored: Any) -> Tensor: ...


class BloscCodec:
    """Half precision through the compressor one would reach for first."""

    name = "fp16 + bitshuffle + zstd"
    _blosc = Blosc("zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)

    def target(self, features: Tensor) -> Tensor:
        return features

    def encode(self, features: Tensor) -> Any:
        self._shape = features.shape
        return self._blosc.encode(features.half().numpy())

    def decode(self, stored: Any) -> Tensor:
        values = np.frombuffer(self._blosc.decode(stored), np.float16)
        return torch.from_numpy(values.copy()).view(self._shape)


class PcaCodec:
    """The first components of a standardised token, in half precision."""

    def __init__(self, basis: KltBasis, record_bytes: int) -> None:
        self.name = f"pca:{record_bytes}"
        self._mean = torch.from_numpy(basis.mean).float()
        self._kept = torch.from_numpy(basis.directions[: record_bytes // 2].copy()).float()

    def target(self, features: Tensor) -> Tensor:
        return standardise(features)

    def encode(self, features: Tensor) -> Tensor:
        return ((standardise(features).float() - self._mean) @ self._kept.T).half()

    def decode(self, stored: Tensor) -> Tensor:
        return stored.float() @ self._kept + self._mean


class OpqCodec:
    """Product quantisation: a byte for each of P groups of components, the nearest of 256 means.

    Components are dealt to the groups so that the product of their variances is about the same in
    each (the parametric solution of Ge et al., Optimized Product Quantization, 2013, 3.2).
    """

    def __init__(self, basis: KltBasis, features: Tensor, num_groups: int) -> None:
        self.name = f"opq:{num_groups}"
        size = len(basis.variances) // num_groups
        logs, groups = [0.0] * num_groups, [[] for _ in range(num_groups)]
        for k, variance in enumerate(basis.variances.tolist()):
            free = [g for g in range(num_groups) if len(groups[g]) < size]
            smallest = min(free, key=logs.__getitem__)
            groups[smallest].append(k)
            logs[smallest] += math.log(max(variance, 1e-9))
        order = [k for group in groups for k in group]
        self._mean = torch.from_numpy(basis.mean).float()
        self._rotation = torch.from_numpy(basis.directions[order]).float()
        tokens = self._groups(features).flatten(0, 1)
        chosen = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
        tokens = tokens[chosen[:OPQ_TOKENS]]
        self._means = torch.stack([k_means(tokens[:, g], 256) for g in range(num_groups)])

    def _groups(self, features: Tensor) -> Tensor:
        """Shape: (B, T, D) -> (B, T, P, D / P)."""
        components = (standardise(features).float() - self._mean) @ self._rotation.T
        return components.unflatten(-1, (-1, components.shape[-1] // int(self.name[4:])))

    def target(self, features: Tensor) -> Tensor:
        return standardise(features)

    def encode(self, features: Tensor) -> Tensor:
        groups = self._groups(features).flatten(0, 1)
        codes = [torch.cdist(groups[:, g], m).argmin(1) for g, m in enumerate(self._means)]
        return torch.stack(codes, dim=-1).to(torch.uint8).unflatten(0, features.shape[:2])

    def decode(self, stored: Tensor) -> Tensor:
        groups = self._means[torch.arange(len(self._means)), stored.long()]
        return groups.flatten(-2) @ self._rotation + self._mean


def k_means(points: Tensor, num_means: int) -> Tensor:
    """Return the means after some of Lloyd's steps. Shape: (N, D) -> (num_means, D)."""
    means = points[:num_means].clone()
    for _ in range(OPQ_STEPS):
        nearest = torch.cdist(points, means).argmin(1)
        counts = torch.bincount(nearest, minlength=num_means)[:, None]
        sums = torch.zeros_like(means).index_add_(0, nearest, points)
        means = torch.where(counts > 0, sums / counts, means)
    return means


@dataclass(frozen=True, kw_only=True)
class Tap:
    """Features of a tap, and what was fit to one part of them."""

    fitted: Tensor
    """Shape: (N, T, D)."""
    judged: Tensor
    """Other rows."""
    basis: KltBasis


@dataclass(frozen=True, kw_only=True)
class Score:
    """One codec on all taps."""

    name: str
    token_bytes: float
    cosine_p50: float
    """Of the worst tap, as are the next two."""
    cosine_p01: float
    gram_l1: float
    encode_us: float
    """Of one row of one tap."""
    decode_us: float

    @property
    def family(self) -> str:
        return self.name.partition(":")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path, help="with codec fp16")
    parser.add_argument("--fit-rows", type=int, default=3072)
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    args = parser.parse_args()
    torch.set_num_threads(1)  # Of one core all times are.
    cache = FeatureCache.open(args.cache)
    if cache.spec.codec != "fp16":
        parser.error(f"{args.cache} holds {cache.spec.codec} features; build it with --codec fp16")
    # The tokens of `final` are of another width.
    blocks = [tap for tap in cache.spec.image_taps if isinstance(tap, int)]
    taps = {tap: read_tap(cache, tap, args.fit_rows) for tap in blocks}
    pixels_name = cache.spec.image_layouts(0)[PIXELS].name
    pixels = sum(
        file.num_bytes
        for unit_idx in cache.units()
        for name, file in cache.unit(0, unit_idx).files.items()
        if part_of(name) == pixels_name
    )
    shape = (len(taps), *next(iter(taps.values())).judged.shape[1:])
    print(f"Teacher {cache.spec.teacher.name}, {shape[0]} taps of {shape[1]} tokens of {shape[2]};")
    print(f"fit to {args.fit_rows:,} rows, judged on {JUDGED_PARTS * PART_ROWS:,} others.\n")
    scores = [judge(name, make, taps) for name, make in codecs(shape[2]).items()]
    print(codec_table(scores, shape, pixels / cache.spec.num_rows))
    print()
    print(bound_table(taps))
    if args.plot:
        draw(scores, taps, shape, args.plot)
        print(f"\nDrew {args.plot}.")


def read_tap(cache: FeatureCache, tap: int, num_fitted: int) -> Tap:
    """Read the first good rows, which are a fair sample, and fit a basis to `num_fitted`."""
    num_rows = num_fitted + JUDGED_PARTS * PART_ROWS
    bad = {row for unit in cache.units() for row in cache.unit(0, unit).bad_rows}
    stop = min(num_rows + len(bad), cache.spec.num_rows)
    rows = cache.image_reader(0, f"block{tap}").rows(0, stop)
    good = [row for row in range(stop) if row not in bad][:num_rows]
    if len(good) < num_rows:
        raise SystemExit(f"the cache has {len(good):,} rows, {num_rows:,} are needed: --fit-rows")
    features = torch.from_numpy(rows[good]).float()
    fitted, judged = features[:num_fitted], features[num_fitted:]
    tokens = standardise(fitted)
    flat = tokens.flatten(0, 1)
    basis = fit_basis(len(tokens), tokens.sum(dim=0).numpy(), (flat.T @ flat).numpy())
    return Tap(fitted=fitted, judged=judged, basis=basis)


def codecs(width: int) -> dict[str, Callable[[Tap], Codec]]:
    """Return what makes each codec, by its name; those with a rate from low to high."""

    def rates(all_bits: tuple[float, ...]) -> list[int]:
        return [round(bits * width / 8) for bits in all_bits]

    def klt(p: int) -> Callable[[Tap], Codec]:
        return lambda tap: klt_codec(tap, p)

    def pca(p: int) -> Callable[[Tap], Codec]:
        return lambda tap: PcaCodec(tap.basis, p)

    def opq(p: int) -> Callable[[Tap], Codec]:
        return lambda tap: OpqCodec(tap.basis, tap.fitted, p)

    fp16, int8, int4 = (feature_codec(CodecName.parse(k)) for k in ("fp16", "int8", "int4"))
    fixed = (fp16, BloscCodec(), int8, int4)
    return {
        **{codec.name: lambda _, codec=codec: codec for codec in fixed},
        **{f"klt:{p}": klt(p) for p in rates(KLT_BITS)},
        **{f"pca:{p}": pca(p) for p in rates(PCA_BITS)},
        **{f"opq:{p}": opq(p) for p in rates(OPQ_BITS)},
    }


def klt_codec(tap: Tap, num_bytes: int) -> Codec:
    """Return ``klt`` of that many bytes a token, fit to a tap."""
    name = CodecName(kind="klt", record_bytes=num_bytes)
    return feature_codec(name, tap.basis.table(num_bytes))


def judge(name: str, make: Callable[[Tap], Codec], taps: dict[int, Tap]) -> Score:
    """Encode and decode the judged rows of every tap."""
    num_bytes, fidelity, encode_s, decode_s = [], [], [], []
    for tap in taps.values():
        codec = make(tap)
        of_parts = []
        for part in tap.judged.split(PART_ROWS):
            stored = codec.encode(part)
            num_bytes.append(len(stored) if isinstance(stored, bytes) else stored.nbytes)
            of_parts.append(measure_fidelity(codec.target(part), codec.decode(stored)))
        fidelity.append({key: mean(f[key] for f in of_parts) for key in of_parts[0]})
        encode_s.append(best_seconds(codec.encode, part))
        decode_s.append(best_seconds(codec.decode, stored))
    return Score(
        name=name,
        token_bytes=mean(num_bytes) / (PART_ROWS * part.shape[1]),
        cosine_p50=min(f["cosine_p50"] for f in fidelity),
        cosine_p01=min(f["cosine_p01"] for f in fidelity),
        gram_l1=max(f["gram_l1"] for f in fidelity),
        encode_us=1e6 * mean(encode_s) / PART_ROWS,
        decode_us=1e6 * mean(decode_s) / PART_ROWS,
    )


def best_seconds(function: Callable[[Any], object], argument: Any) -> float:
    """Return the best CPU time of a call on one core, of those that a moment allows."""
    times, end = [], time.perf_counter() + TIMED_S
    while len(times) < 2 or time.perf_counter() < end:
        started = time.thread_time()
        function(argument)
        times.append(time.thread_time() - started)
    return min(times)


def codec_table(scores: list[Score], shape: tuple[int, int, int], pixel_bytes: float) -> str:
    num_taps, num_tokens, width = shape
    rows = [
        (
            *(score.name, f"{score.token_bytes:.0f}", f"{8 * score.token_bytes / width:.2f}"),
            f"{(sample := num_taps * num_tokens * score.token_bytes):,.0f}",
            f"{sample + pixel_bytes:,.0f}",
            *(f"{score.cosine_p50:.5f}", f"{score.cosine_p01:.5f}", f"{score.gram_l1:.5f}"),
            *(f"{score.encode_us:.0f}", f"{score.decode_us:.0f}"),
        )
        for score in scores
    ]
    headers = ["codec", "B/token", "bits/value", "B/sample", "+ pixels", "cosine p50", "p01"]
    return markdown(rows, [*headers, "Gram L1", "encode µs", "decode µs"])


def bound_table(taps: dict[int, Tap]) -> str:
    """What the goal's cosine takes of each tap: at least, by klt's arithmetic, and as measured.

    The last column is what a sample of the goal's shape would take with as many bits a value.
    """
    rows = []
    for number, tap in taps.items():
        variances = tap.basis.variances
        width, needed = len(variances), least_klt_bytes(tap)
        goal_kb = math.prod(GOAL_SHAPE) * needed / width / 1024
        rows.append(
            (
                *(f"{number}", f"{spectrum_slope(variances):.2f}"),
                f"{num_components(variances, 0.9)} of {width}",
                *(f"{shannon_bytes(variances):.1f}", f"{predicted_klt_bytes(variances)}"),
                *(f"{needed}", f"{8 * needed / width:.2f}", f"{goal_kb:.1f}"),
            )
        )
    headers = ["tap", "slope a", "90 % of variance in", "Shannon B/token", "klt by variances"]
    headers += ["klt measured", "bits/value", f"KB/sample at width {GOAL_SHAPE[2]}"]
    return markdown(rows, headers)


def spectrum_slope(variances: Doubles) -> float:
    """Return a of variances i^-a, fit to those that matter to the goal's cosine.

    The rest is below the water: no bit is spent on it, and its last values are rounding.
    """
    above = variances[variances > water_level(variances, 1 - GOAL_COSINE**2)]
    logs = np.log(np.arange(1, len(above) + 1)), np.log(above)
    return -float(np.polyfit(*logs, deg=1)[0])


def water_level(variances: Doubles, distortion: float) -> float:
    """Return the level at which water over the variances is that share of them."""
    low, high = 0.0, float(variances.max())
    for _ in range(60):
        middle = (low + high) / 2
        is_low = np.minimum(variances, middle).sum() < distortion * variances.sum()
        low, high = (middle, high) if is_low else (low, middle)
    return high


def shannon_bytes(variances: Doubles, cosine: float = GOAL_COSINE) -> float:
    """Return the bytes a token that a Gaussian of these variances takes at least.

    Its best code loses 1 - cosine^2 of the variance: what is decoded is what is expected, so it is
    shorter than what was encoded by just the cosine between them. That is over all tokens; the
    median token may be a little better off.
    """
    level = water_level(variances, 1 - cosine**2)
    return float(np.log2(np.maximum(variances / level, 1.0)).sum()) / 16


def predicted_klt_bytes(variances: Doubles) -> int:
    """Return the bytes a token that klt needs for the goal's cosine, of Gaussian features."""

    def cosine(num_bytes: int) -> float:
        bits = allocate_bits(variances, 8 * num_bytes)
        lost = sum(
            v * gaussian_distortion(b) for v, b in zip(variances, bits.tolist(), strict=True)
        )
        return math.sqrt(1 - lost / float(variances.sum()))

    return least_bytes(cosine, len(variances))


def least_klt_bytes(tap: Tap) -> int:
    """Return the bytes a token that klt needs for the goal's cosine, on the judged rows."""
    part = tap.judged[:PART_ROWS]

    def cosine(num_bytes: int) -> float:
        codec = klt_codec(tap, num_bytes)
        decoded = codec.decode(codec.encode(part))
        return measure_fidelity(codec.target(part), decoded)["cosine_p50"]

    return least_bytes(cosine, len(tap.basis.variances))


def least_bytes(cosine: Callable[[int], float], most: int) -> int:
    """Return the fewest bytes that reach the goal's cosine."""
    return bisect_left(range(1, most), GOAL_COSINE, key=cosine) + 1


def num_components(variances: Doubles, share: float) -> int:
    """Return how many components hold that share of the variance."""
    return int(np.searchsorted(np.cumsum(variances) / variances.sum(), share)) + 1


def markdown(rows: list[tuple[str, ...]], headers: list[str]) -> str:
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


STYLES = {
    "klt": ("#0072B2", "o", "klt: transform coding"),
    "pca": ("#E69F00", "s", "PCA truncation, fp16"),
    "opq": ("#009E73", "^", "product quantisation, rotated"),
}
"""Colours of Okabe and Ito, which the colour-blind can tell apart, and markers for print."""


def draw(
    scores: list[Score], taps: dict[int, Tap], shape: tuple[int, int, int], path: Path
) -> None:
    """Draw bytes a sample against what is lost, both in logarithms."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_tokens = shape[0] * shape[1]
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    losses = np.geomspace(5e-1, 1e-5, 60)
    floor = [
        num_tokens * max(shannon_bytes(tap.basis.variances, 1 - loss) for tap in taps.values())
        for loss in losses.tolist()
    ]
    axis.plot(
        floor, losses, "--", color="0.4", label="Shannon bound of the mean token, if Gaussian"
    )
    for family, (color, marker, label) in STYLES.items():
        line = [score for score in scores if score.family == family]
        sizes = [num_tokens * score.token_bytes for score in line]
        axis.plot(sizes, [loss(s) for s in line], color=color, marker=marker, label=label)
    for score in scores:
        if score.family in STYLES:
            continue
        place = num_tokens * score.token_bytes, loss(score)
        axis.plot(*place, color="#D55E00", marker="D", linestyle="none")
        offset, side = ((-9, -4), "right") if "+" in score.name else ((0, 9), "center")
        axis.annotate(score.name, place, offset, textcoords="offset points", ha=side)
    line = {"color": "0.6", "linewidth": 0.8, "zorder": 0}
    text = {"textcoords": "offset points", "color": "0.35"}
    axis.axhline(1 - GOAL_COSINE, **line)
    of_axis = ("axes fraction", "data")
    axis.annotate(
        f"cosine {GOAL_COSINE}", (1, 1 - GOAL_COSINE), (-4, 4), xycoords=of_axis, ha="right", **text
    )
    goal_bytes = GOAL_BYTES * math.prod(shape) / math.prod(GOAL_SHAPE)
    axis.axvline(goal_bytes, **line)
    axis.annotate(
        f"{8 * GOAL_BYTES / math.prod(GOAL_SHAPE):.2f} bits/value,\n10 KB at width {GOAL_SHAPE[2]}",
        *((goal_bytes, 1), (4, -5)),
        va="top",
        xycoords=("data", "axes fraction"),
        **text,
    )
    least = num_tokens * min(score.token_bytes for score in scores)
    axis.set(xscale="log", yscale="log", xlim=(least / 1.5, None))
    axis.set(xlabel="features, bytes a sample", ylabel="1 - median centred cosine, worst tap")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=160)


def loss(score: Score) -> float:
    return max(1 - score.cosine_p50, LEAST_LOSS)


if __name__ == "__main__":
    main()
