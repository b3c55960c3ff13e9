"""`clipocr ablate`: a table of runs over one cache, trained, evaluated and set side by side.

    table ──► one run per variant and seed ──► ablation.json of each ──► table.md, .csv, .png

Every run is an ordinary run folder. Finished runs are left alone, and so are results that are still
of the checkpoint, the test sets and the charset that count.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ...shared.cache.reader import FeatureCache
from ...shared.cache.storage import hash_file
from ...shared.charset import Charset
from ...shared.device import choose_device
from ...shared.errors import TrainingError
from ...shared.options import require_known
from ..evaluation.evaluate import evaluate_sets
from ..evaluation.options import EvalOptions
from ..evaluation.results import write_json
from ..evaluation.test_sets import TestSet, open_test_sets
from ..loop.checkpoint import find_checkpoint
from ..loop.config import TrainConfig, TrainPlace
from ..loop.curves import draw_curves
from ..loop.record import RUN_NAME, has_saved, read_record, require_same_run
from ..loop.run import check_cache, open_cache, settled, train
from ..reading.readers import load_reader
from .comparison import write_comparison
from .table import AblationTable, run_name

_RESULTS_NAME = "ablation.json"
"""In each run's folder. Not eval.json, which people write as they like."""


class AblationResult(NamedTuple):
    """How far a table came."""

    num_runs: int
    num_finished: int
    """Runs of all variants and seeds that are trained and evaluated, by whatever process."""
    failed: Mapping[str, str]
    """Run -> why this process gave it up."""


class _Run(NamedTuple):
    config: TrainConfig
    place: TrainPlace
    cache: FeatureCache
    init: str = ""
    """Name of the run that it begins with."""
    is_evaluated: bool = True

    @property
    def reads(self) -> tuple[Charset, int]:
        return self.config.charset, self.config.max_label_length


def ablate(
    table: AblationTable,
    place: TrainPlace,
    test_roots: Sequence[Path],
    *,
    only: tuple[int, int] = (0, 1),
) -> AblationResult:
    """Train and evaluate the runs of a table that are not finished, then draw the table.

    `place.out` is the folder of all runs and of the table. `only` is (i, n): take the runs whose
    number leaves i modulo n.

    Raises:
        UsageError: a setting is not possible, or a run was begun with others.
        CacheError: the cache lacks what a variant follows.
        DataError: the test data cannot be used.
        Interrupted: a signal ended it; the same call goes on.
    """
    # Everything first: what is wrong in the last row must not wait for the first run's end.
    cache = open_cache(place)
    runs = _plan_runs(table, place, cache)
    test_sets = {
        reads: open_test_sets(test_roots, *reads)
        for reads in {run.reads: None for run in runs.values() if run.is_evaluated}
    }
    failed: dict[str, str] = {}
    mine = [name for i, name in enumerate(runs) if i % only[1] == only[0]]
    try:
        for number, name in enumerate(mine, start=1):
            tqdm.write(f"run {number} of {len(mine)}: {name}", file=sys.stderr)
            run = runs[name]
            init = runs[run.init] if run.init else None
            if init is not None and not _is_finished(init):
                failed[name] = (
                    f"{init.place.out}, which it begins with, is not finished; run this again then"
                )
                continue
            try:
                _train_if_unfinished(run, None if init is None else init.place.out)
            except TrainingError as e:
                failed[name] = f"{e}. To try it again remove {run.place.out}"
                continue
            if run.is_evaluated:
                _evaluate_if_needed(run, test_sets[run.reads])
    finally:
        results = {
            name: _read_results(run.place.out) for name, run in runs.items() if run.is_evaluated
        }
        write_comparison(table, results, place.out, cache.spec.teacher)
    num_finished = sum(result is not None for result in results.values())
    return AblationResult(len(results), num_finished, failed)


def _plan_runs(table: AblationTable, place: TrainPlace, cache: FeatureCache) -> dict[str, _Run]:
    """Return every run by name, those that others begin with first, and check their caches.

    A run takes those settings of the table that its method knows. `cache` is that of `place`.
    """
    device = choose_device(place.device)
    require_known(table.settings, table.known_names())
    caches = {str(place.cache): cache}
    runs: dict[str, _Run] = {}

    def add(name: str, settings: Mapping[str, Any], own: TrainPlace, **more: Any) -> None:
        own = replace(own, out=place.out / name)
        if (address := str(own.cache)) not in caches:
            caches[address] = open_cache(own)
        cache = caches[address]
        config, _ = settled(TrainConfig.from_values(settings), cache, device)
        check_cache(config, cache)
        runs[name] = _Run(config, own, cache, **more)

    for name, pretraining in table.pretrainings.items():
        own = replace(place, cache=pretraining.cache or place.cache, val_data=())
        for seed in table.seeds:
            of_seed = {**table.settings_of(pretraining), "seed": seed}
            add(run_name(name, seed), of_seed, own, is_evaluated=False)
    for variant in table.variants:
        own = replace(place, cache=variant.cache or place.cache)
        for seed in table.seeds:
            of_seed = {**table.settings_of(variant), "seed": seed}
            init = run_name(variant.init, seed) if variant.init else ""
            add(run_name(variant.name, seed), of_seed, own, init=init)
    return runs


def _is_finished(run: _Run) -> bool:
    out = run.place.out
    return (out / RUN_NAME).exists() and len(read_record(out)["history"]) == run.config.epochs


def _train_if_unfinished(run: _Run, init: Path | None) -> None:
    out = run.place.out
    has_begun = (out / RUN_NAME).exists() and has_saved(out)
    if has_begun:
        record = read_record(out)
        require_same_run(
            out,
            had={k: record[k] for k in ("config", "validation")} | {"cache": record["cache"]["id"]},
            wanted={
                "config": run.config.to_values(),
                "validation": [str(root) for root in run.place.val_data],
                "cache": run.cache.manifest.cache_id,
            },
        )
        if _is_finished(run):
            return
    train(run.config, run.place, resume=has_begun, init=None if has_begun else init)
    draw_curves(out)


def _evaluate_if_needed(run: _Run, test_sets: Sequence[TestSet]) -> None:
    out = run.place.out
    checkpoint = find_checkpoint(out)
    # What the results are of: another checkpoint, label, picture size or charset changes it.
    of = {
        "checkpoint": hash_file(checkpoint),
        "charset": test_sets[0].charset.characters,
        "sets": {test_set.name: test_set.digest() for test_set in test_sets},
    }
    path = out / _RESULTS_NAME
    if path.exists() and json.loads(path.read_text(encoding="utf-8")).get("of") == of:
        return
    reader = load_reader(
        checkpoint,
        device=run.place.device,
        batch_size=EvalOptions.batch_size,
        clip=str(run.place.cache),
        clip_is_shared=True,
    )
    write_json(path, evaluate_sets(reader, test_sets).to_json() | {"of": of})


def _read_results(run: Path) -> dict[str, Any] | None:
    path = run / _RESULTS_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
