"""Part 2: what a GPU must do as a CPU does, and what it must not do: wait."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import lcl
from clipocr.precompute.builder.units import UnitBuilder
from clipocr.precompute.teacher.clip import Teacher, load_teacher
from clipocr.shared.cache.codecs.codec import Codec
from clipocr.shared.cache.codecs.codecs import feature_codec, filter_pixels, unfilter_pixels
from clipocr.shared.cache.codecs.klt import fit_basis
from clipocr.shared.cache.codecs.quantize import standardise
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.records import Committed
from clipocr.shared.charset import Charset
from clipocr.shared.data.word_lmdb import find_named_lmdbs
from clipocr.shared.device import allow_fast_products, autocast, choose_precision
from clipocr.train.data.batch import Batch
from clipocr.train.data.loader import CacheLoader
from clipocr.train.loop.config import TrainConfig, TrainPlace
from clipocr.train.loop.journal import Journal
from clipocr.train.loop.processes import Processes
from clipocr.train.loop.run import _Run, check_cache
from clipocr.train.methods.clip_ocr.settings import ClipOcr
from clipocr.train.models.config import SIZES, StudentConfig
from clipocr.train.models.student import Student
from clipocr.train.models.tokenizer import LabelTokenizer

from .place import Place

CPU = torch.device("cpu")
CHARSET = Charset.load("36")
TOKENIZER = LabelTokenizer(CHARSET, 25)


def main() -> None:
    place = Place.parse()
    results = place.begin(2)
    results.check("bytes of codecs", codec_bytes, place)
    results.check("a teacher repeats itself", teacher_repeats, place)
    caches = results.check("caches to read", build_caches, place)
    if caches is not None:
        exact, lossy = (Path(row["cache"]) for row in caches)
        results.check("batches, fp16", batches_equal, place, exact, True)
        results.check("batches, klt", batches_equal, place, lossy, False)
        results.check("sums of two epochs", sums_repeat, place, exact)
        results.check("waits in three steps", waits_of_steps, place, exact)
        results.check("waits in a unit", waits_of_builder, place, exact)
        results.check("one process of several", one_process_of_several, place, exact)
    results.check("LCL's products", lcl_errors, place)
    results.check("a student's logits", student_agrees, place)
    results.check("a batch without rows", empty_batch, place)
    results.check("dropout of attention", dropout_share, place)


def codec_bytes(place: Place) -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(0)
    width = place.sized(768, 64)
    features = torch.randn(64, 17, width, generator=generator) * torch.logspace(0, 2, width)
    features[3, 4] = 0
    views = torch.randint(256, (64, 32, 128, 3), dtype=torch.uint8, generator=generator)
    stored = torch.from_numpy(filter_pixels(views.numpy())).to(place.device)
    assert torch.equal(unfilter_pixels(stored).cpu(), views), "pixels differ"
    tokens = standardise(features).numpy()
    flat = tokens.reshape(-1, width)
    basis = fit_basis(len(tokens), tokens.sum(axis=0), flat.T @ flat)
    rows = []
    for name in ("fp16", "int8", "int4", f"klt:{width // 4}"):
        codec = Codec.parse(name)
        coder = feature_codec(codec, basis.table(codec.record_bytes) if codec.has_table else None)
        ours, theirs = coder.encode(features.to(place.device)).cpu(), coder.encode(features)
        differing = (ours.view(torch.uint8) != theirs.view(torch.uint8)).float().mean().item()
        decoded = coder.decode(theirs.to(place.device)).float().cpu()
        largest = (decoded - coder.decode(theirs).float()).abs().max().item()
        rows.append(
            {
                "codec": name,
                "share of bytes that differ": f"{differing:.1e}",
                "decoded, largest difference": f"{largest:.1e}",
            }
        )
        assert differing < 1e-3, rows
        assert largest < 2e-2, rows
    return rows


def load(place: Place, device: torch.device, precision: str) -> Teacher:
    return load_teacher(
        place.teacher, image_taps=place.image_taps, text_taps=place.text_taps,
        precision=precision, device=device,
    )  # fmt: skip


def teacher_repeats(place: Place) -> dict[str, object]:
    """The same bits for the same chunk; and how far they are from a CPU's in float32."""
    precision = "fp16" if place.device.type == "cuda" else "fp32"
    teacher, size = load(place, place.device, precision), place.sized(256, 8)
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(256, (size, 32, 128, 3), dtype=torch.uint8, generator=generator)
    first, again, moved = (
        teacher.image_features(views),
        teacher.image_features(views),
        teacher.image_features(views.roll(1, 0)),
    )
    assert all(torch.equal(first[name], again[name]) for name in first), "other bits"
    few = views[: place.sized(16, 8)]
    exact = load(place, CPU, "fp32").image_features(few)
    errors = [relative_error(first[name][: len(few)].cpu(), f) for name, f in exact.items()]
    assert max(errors) < 0.02, errors
    last = list(first)[-1]
    elsewhere = (moved[last].roll(-1, 0) != first[last]).float().mean().item()
    return {
        "precision": precision,
        "error against float32 on a CPU": f"{max(errors):.1e}",
        "values that differ at another place in the chunk": f"{elsewhere:.1e}",
    }


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.float() - expected.float()).norm() / expected.float().norm())


def build_caches(place: Place) -> list[dict[str, object]]:
    count = place.sized(8192, 64)
    data, rows = place.rendered("part2", count), []
    for codec in ("fp16", f"klt:{place.sized(192, 24)}"):
        cache = place.work / f"part2-{codec.replace(':', '-')}.cache"
        place.clipocr(
            "cache", "build", "--data", data, "--out", cache, "--teacher", place.teacher,
            "--codec", codec, "--image-taps", listed(place.image_taps),
            "--text-taps", listed(place.text_taps), "--device", place.device,
            "--unit-rows", place.sized(4096, 32), "--chunk-rows", place.sized(256, 8),
        )  # fmt: skip
        rows.append({"codec": codec, "rows": count, "cache": str(cache)})
    return rows


def listed(taps: Iterable[int]) -> str:
    return ",".join(map(str, taps))


def config_of(place: Place, batch_size: int, precision: str = "") -> TrainConfig:
    return TrainConfig(
        method=ClipOcr(
            student=StudentConfig(size=SIZES["tiny" if place.small else "small"]),
            image_taps=place.image_taps,
            text_taps=place.text_taps,
        ),
        charset=CHARSET,
        batch_size=batch_size,
        precision=precision or choose_precision("auto", place.device)[0],
        compile="off",
    )


def loader_of(place: Place, cache: Path, device: torch.device) -> CacheLoader:
    config = config_of(place, place.sized(320, 12))
    preflight = check_cache(config, FeatureCache.open(cache))
    return preflight.loader(batch_size=config.batch_size, seed=0, device=device)


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    assert batch.views is not None
    text = {f"text {name}": features for name, features in batch.text.items()}
    return {"views": batch.views, "token ids": batch.token_ids, **batch.images, **text}


def batches_equal(place: Place, cache: Path, exact: bool) -> dict[str, object]:
    """With the GPU's own work late, so that a copy that is not waited for would show."""
    late = torch.randn(place.sized(4096, 64), place.sized(4096, 64), device=place.device)
    num_batches, worst = 0, 0.0
    here, there = (loader_of(place, cache, device) for device in (place.device, CPU))
    for ours, theirs in zip(here.epoch(0), there.epoch(0), strict=True):
        for _ in range(20):
            late = (late @ late).clamp(-1, 1)
        assert ours.labels == theirs.labels
        expected = tensors_of(theirs)
        for name, tensor in tensors_of(ours).items():
            assert tensor.device.type == place.device.type, name
            got, want = tensor.cpu().float(), expected[name].float()
            if exact or name in ("views", "token ids") or name.startswith("text"):
                assert torch.equal(got, want), name
            worst = max(worst, float((got - want).abs().max()))
        num_batches += 1
    assert worst < 3e-2, worst
    return {"batches": num_batches, "largest difference": f"{worst:.1e}"}


def sums_repeat(place: Place, cache: Path) -> dict[str, object]:
    """Nothing is looked at before an epoch's end, so nothing waits."""
    sums = []
    for _ in range(2):
        of_epoch = [
            torch.stack([t.double().sum() for t in tensors_of(batch).values()])
            for batch in loader_of(place, cache, place.device).epoch(0)
        ]
        sums.append(torch.stack(of_epoch))
    assert torch.equal(*sums), "two epochs of the same batches differ"
    return {"batches": len(sums[0]), "tensors each": sums[0].shape[1]}


def run_on(place: Place, cache: Path, config: TrainConfig) -> _Run:
    opened = FeatureCache.open(cache)
    out = place.work / "none"
    return _Run(
        config,
        TrainPlace(cache=cache, out=out, device=str(place.device)),
        check_cache(config, opened),
        Processes(),
        Journal(out, config.epochs, is_silent=True),
        place.device,
        resume=False,
        init=None,
    )


@contextmanager
def noted_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Collect the lines at which the host waits for a GPU; a CPU has none."""
    found: Counter[str] = Counter()
    if device.type != "cuda":
        yield found
        return

    def note(_message: object, _category: object, file: str, line: int, *_: object) -> None:
        found[f"{file.rpartition('/clipocr/')[2]}:{line}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def waits_of_steps(place: Place, cache: Path) -> list[dict[str, object]]:
    run = run_on(place, cache, config_of(place, place.sized(320, 8)))
    epoch = run.loader.epoch(0)
    for _ in range(3):
        run._take_step(run.trainee, epoch, 1, 1 << 20)
    with noted_waits(place.device) as found:
        for _ in range(3):
            run._take_step(run.trainee, epoch, 1, 1 << 20)
    run.meter.check(run.step)
    assert not found, f"the host waits at {dict(found)}"
    return [{"steps": 3, "waits": 0}]


def waits_of_builder(place: Place, cache: Path) -> list[dict[str, object]]:
    """But for a unit's first chunk, whose fidelity is measured."""
    opened = FeatureCache.open(cache)
    record = opened.committed.units[0, 0]
    (opened.folder.root / f"commits/{record.name}.json").unlink()
    others = {key: unit for key, unit in opened.committed.units.items() if key != (0, 0)}
    texts = opened.committed.texts
    opened = FeatureCache(opened.storage, opened.manifest, Committed(units=others, texts=texts))
    teacher = load(place, place.device, opened.spec.teacher.precision)
    sources = find_named_lmdbs((place.rendered("part2", place.sized(8192, 64)),))
    with noted_waits(place.device) as found:
        num_rows = UnitBuilder(opened, teacher, sources, 0).build([(0, 0)])
    assert opened.committed.units[0, 0].files == record.files, "a unit has other bytes"
    num_chunks = num_rows // opened.spec.chunk_rows
    often = {line: count for line, count in found.items() if count >= num_chunks}
    assert not often, f"the host waits in each of {num_chunks} chunks at {often}"
    return [{"chunks": num_chunks, "waits of the first": sum(found.values())}]


def one_process_of_several(place: Place, cache: Path) -> dict[str, object]:
    import torch.distributed as dist

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29577")
    backend = "nccl" if place.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=0, world_size=1)
    try:
        run = run_on(place, cache, config_of(place, place.sized(64, 8)))
        trainee = DistributedDataParallel(run.trainee, gradient_as_bucket_view=True)
        epoch = run.loader.epoch(0)
        for parts in (1, 2, 1):
            run._take_step(trainee, epoch, parts, 1 << 20)
        run.meter.check(run.step)
        return {"backend": backend, "loss": round(run.meter.latest()["total"], 3)}
    finally:
        dist.destroy_process_group()


def lcl_errors(place: Place) -> list[dict[str, object]]:
    """Against float64; half precision may be as far from it as TF32, and no further."""
    names = ("batch", "side", "of", "float32", "TF32", "half")
    batch_sizes = (4,) if place.small else (320, 1024)
    rows = [dict(zip(names, row, strict=True)) for row in lcl.error_rows(batch_sizes, place.device)]
    for row in rows:
        assert float(row["half"]) <= 1.5 * float(row["TF32"]) + 1e-6, row
    return rows


def student_agrees(place: Place) -> list[dict[str, object]]:
    torch.manual_seed(0)
    student = Student(StudentConfig(size=SIZES["tiny" if place.small else "small"]), TOKENIZER)
    student.eval()
    images, ids = torch.randn(8, 3, 32, 128), TOKENIZER.encode(["abc", "hello", "z", "0123"] * 2)
    rows: list[dict[str, object]] = []
    with torch.no_grad():
        expected = student(images, ids).logits
        student.to(place.device)
        for precision, most in (("fp32", 1e-4), ("bf16", 0.05), ("fp16", 0.02)):
            allow_fast_products(precision)
            with autocast(place.device, precision):
                logits = student(images.to(place.device), ids.to(place.device)).logits
            error = relative_error(logits.cpu(), expected)
            rows.append({"precision": precision, "relative error": f"{error:.1e}"})
            assert error < most, rows
    return rows


def empty_batch(place: Place) -> None:
    student = Student(StudentConfig(size=SIZES["tiny"]), TOKENIZER).train().to(place.device)
    for precision in ("fp32", "bf16", "fp16"):
        student.zero_grad()
        with autocast(place.device, precision):
            output = student(
                torch.empty(0, 3, 32, 128, device=place.device),
                TOKENIZER.encode([], 7).to(place.device),
            )
        stages = (*output.encoder_stages, *output.decoder_stages, output.logits)
        sum(t.float().sum() for t in stages).backward()
        assert all(p.grad is not None and not p.grad.any() for p in student.parameters())


def dropout_share(place: Place) -> dict[str, object]:
    """cuDNN's attention knows multiples of a sixteenth only; it is not to be the one at work."""
    settings = {"device": place.device, "dtype": torch.bfloat16}
    queries = torch.zeros(64, 12, 26, 32, **settings)
    keys = torch.zeros(64, 12, 128, 32, **settings)
    values = torch.eye(128, 32, **settings).expand(64, 12, -1, -1).contiguous()
    out = F.scaled_dot_product_attention(queries, keys, values, dropout_p=0.1)
    share = float((out == 0).float().mean())
    assert abs(share - 0.1) < 0.01, share
    return {"asked for": 0.1, "dropped": round(share, 4)}


if __name__ == "__main__":
    main()
