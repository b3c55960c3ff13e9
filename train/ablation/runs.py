"""`clipocr ablate`: a table of runs over one cache, trained, evaluated and set side by side.

    table ──► one run per variant and seed ──► ablation.json of each ──► table.md, .csv, .tex, .png

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
from .comparison import RowSource, RunResults, write_comparison
from .table import AblationTable, run_name

_RESULTS_NAME = "ablation.json"
"""In each run's folder. Not eval.json, which people write as they like."""

_PREDICTIONS_NAME = "ablation.predictions.jsonl"


class AblationResult(NamedTuple):
    """How far a table came."""

    num_runs: int
    num_finished: int
    """Runs of all variants and seeds that are trained and evaluated, by whatever process."""
    failed: Mapping[str, str]
    """Run -> why this process gave it up."""


class PlannedRun(NamedTuple):
    """A run of a table, and how far it is."""

    name: str
    state: str
    """``train``, ``go on after epoch N of M``, ``evaluate`` or ``finished``."""
    settings: Mapping[str, Any]
    """What the table says of it, by name."""
    cache: str
    init: str
    """Name of the run that it begins with; empty of one that begins at random."""


class _Run(NamedTuple):
    settings: Mapping[str, Any]
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
    runs, test_sets = _prepare(table, place, test_roots)
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
        sources = {}
        for variant in table.variants:
            run = runs[run_name(variant.name, table.seeds[0])]
            cache_name = str(run.place.cache).rstrip("/").rpartition("/")[2]
            teacher = run.cache.spec.teacher
            sources[variant.name] = RowSource(cache=cache_name, teacher=teacher)
        write_comparison(table, results, place.out, sources)
    num_finished = sum(result is not None for result in results.values())
    return AblationResult(len(results), num_finished, failed)


def plan(
    table: AblationTable, place: TrainPlace, test_roots: Sequence[Path], *, only: tuple[int, int]
) -> list[PlannedRun]:
    """Return what `ablate` would do with the same arguments, and write nothing.

    Raises:
        As of `ablate`.
    """
    runs, test_sets = _prepare(table, place, test_roots)
    planned = []
    for i, (name, run) in enumerate(runs.items()):
        if i % only[1] == only[0]:
            state = _state(run, test_sets.get(run.reads, ()))
            planned.append(PlannedRun(name, state, run.settings, str(run.place.cache), run.init))
    return planned


def _state(run: _Run, test_sets: Sequence[TestSet]) -> str:
    if not _has_begun(run):
        return "train"
    num_epochs = len(read_record(run.place.out)["history"])
    if num_epochs < run.config.epochs:
        return f"go on after epoch {num_epochs} of {run.config.epochs}"
    if run.is_evaluated and not _is_evaluated(run, _evaluated_of(run, test_sets)):
        return "evaluate"
    return "finished"


def _prepare(
    table: AblationTable, place: TrainPlace, test_roots: Sequence[Path]
) -> tuple[dict[str, _Run], dict[tuple[Charset, int], list[TestSet]]]:
    """Return every run by name, and the test sets as those that read alike have them."""
    runs = _plan_runs(table, place, open_cache(place))
    alike = {run.reads: None for run in runs.values() if run.is_evaluated}
    return runs, {reads: open_test_sets(test_roots, *reads) for reads in alike}


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
        runs[name] = _Run(settings, config, own, cache, **more)

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


def _has_begun(run: _Run) -> bool:
    """Return whether there is something to go on with.

    Raises:
        UsageError: it was begun otherwise than it is to go on.
    """
    out = run.place.out
    if not ((out / RUN_NAME).exists() and has_saved(out)):
        return False
    record = read_record(out)
    require_same_run(
        out,
        had={
            "config": record["config"],
            "cache": record["cache"]["id"],
            "val_data": record["place"]["val_data"],
        },
        wanted={
            "config": run.config.to_values(),
            "cache": run.cache.manifest.cache_id,
            "val_data": run.place.to_values()["val_data"],
        },
    )
    return True


def _train_if_unfinished(run: _Run, init: Path | None) -> None:
    has_begun = _has_begun(run)
    if has_begun and _is_finished(run):
        return
    train(run.config, run.place, resume=has_begun, init=None if has_begun else init)
    draw_curves(run.place.out)


def _evaluated_of(run: _Run, test_sets: Sequence[TestSet]) -> dict[str, Any]:
    """Return what results are of: another checkpoint, label, picture size or charset changes it."""
    return {
        "checkpoint": hash_file(find_checkpoint(run.place.out)),
        "charset": test_sets[0].charset.characters,
        "sets": {test_set.name: test_set.digest() for test_set in test_sets},
    }


def _is_evaluated(run: _Run, of: Mapping[str, Any]) -> bool:
    """Return whether there are results of that, and what was read."""
    path = run.place.out / _RESULTS_NAME
    return (
        path.exists()
        and path.with_name(_PREDICTIONS_NAME).exists()
        and json.loads(path.read_text(encoding="utf-8")).get("of") == of
    )


def _evaluate_if_needed(run: _Run, test_sets: Sequence[TestSet]) -> None:
    of = _evaluated_of(run, test_sets)
    if _is_evaluated(run, of):
        return
    reader = load_reader(
        find_checkpoint(run.place.out),
        device=run.place.device,
        batch_size=EvalOptions.batch_size,
        clip=str(run.place.cache),
        clip_is_shared=True,
    )
    evaluation = evaluate_sets(reader, test_sets)
    path = run.place.out / _RESULTS_NAME
    # First: what is there of the words is of the figures, even if it ends between the two.
    path.unlink(missing_ok=True)
    evaluation.write_predictions(path)
    write_json(path, evaluation.to_json() | {"of": of})


def _read_results(run: Path) -> RunResults | None:
    path = run / _RESULTS_NAME
    if not path.exists():
        return None
    outcomes = {}
    if (words := path.with_name(_PREDICTIONS_NAME)).exists():
        with words.open(encoding="utf-8") as file:
            for word in map(json.loads, file):
                outcomes[word["set"], word["image"]] = word["is_correct"]
    return RunResults(figures=json.loads(path.read_text(encoding="utf-8")), outcomes=outcomes)
