"""Tables of runs: every table of the paper, in miniature, over one tiny cache."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from natural_images import write_images
from PIL import Image
from samples import EQUAL_TEACHER, WORDS, tiny_build, write_words

from clipocr.precompute.builder.build import build_cache, build_labels, build_pool
from clipocr.precompute.builder.config import LabelsConfig, PoolConfig, TextConfig
from clipocr.precompute.builder.text import add_text_table
from clipocr.shared.charset import Charset
from clipocr.shared.errors import CacheMismatchError, TrainingError, UsageError
from clipocr.shared.interrupts import Interrupted
from clipocr.train.ablation import runs as ablate_module
from clipocr.train.ablation.runs import ablate, plan
from clipocr.train.ablation.table import AblationTable, load_table, shipped_tables
from clipocr.train.loop import optimizer as optimizer_module
from clipocr.train.loop.config import TrainConfig, TrainPlace
from clipocr.train.loop.curves import draw_curves

MINIATURE = {
    "student": "tiny",
    "image_taps": [1, 2, 3],
    "text_taps": [1, 2, 3],
    "batch_size": 36,
    "epochs": 1,
    "learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def ablation_cache(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with word tokens and tokens in the joint space too, for table 7."""
    out = tmp_path_factory.mktemp("cache") / "words.cache"
    build_cache(tiny_build(data_root, out, image_taps=(1, 2, 3, "final")))
    add_text_table(
        TextConfig(cache=out, charset=Charset.load("36"), tokenizer="word", device="cpu")
    )
    return out


@pytest.fixture(scope="module")
def test_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("test")
    write_words(root / "SVT", ["alpha", "tango", "zulu"])
    write_words(root / "IIIT5k", ["kilo", "papa"])
    return root


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    # The curves of a run take longer to draw than the run takes.
    monkeypatch.setattr(ablate_module, "draw_curves", lambda _: None)


def miniature(name: str, seeds: tuple[int, ...] = (0,)) -> AblationTable:
    table = load_table(name)
    return replace(table, settings={**table.settings, **MINIATURE}, seeds=seeds)


def place(cache: Path, out: Path) -> TrainPlace:
    return TrainPlace(cache=cache, out=out, device="cpu")


def first_losses(out: Path, table: AblationTable) -> dict[str, tuple[tuple[str, float], ...]]:
    """Return every variant's loss terms of the first epoch."""
    found = {}
    for variant in table.variants:
        record = json.loads((out / f"{variant.name}-seed0" / "run.json").read_text())
        found[variant.name] = tuple(
            (k, v) for k, v in record["history"][0].items() if k.startswith("loss/")
        )
    return found


def test_the_tables_of_the_paper_are_there() -> None:
    assert list(shipped_tables()) == [
        "clip4str", "dptr", "table1", "table12", "table2", "table3", "table4", "table5", "table6",
        "table7",
    ]  # fmt: skip
    rows = {name: len(load_table(name).variants) for name in shipped_tables()}
    assert rows == {
        "table1": 4, "table2": 4, "table3": 5, "table4": 4, "table5": 5, "table6": 4,
        "table7": 3, "table12": 3, "dptr": 8, "clip4str": 6,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table4", "table5", "table6",
                                  "table7", "table12"])  # fmt: skip
def test_every_switch_of_the_paper_changes_the_loss(
    name: str, ablation_cache: Path, test_root: Path, tmp_path: Path
) -> None:
    table = miniature(name)
    result = ablate(table, place(ablation_cache, tmp_path), [test_root])
    assert (result.num_finished, result.num_runs) == (len(table.variants), len(table.variants))
    losses = first_losses(tmp_path, table)
    # One epoch of the same batches from the same weights: only the switch can differ.
    assert len(set(losses.values())) == len(table.variants)
    if name == "table1":
        image = {"image_1", "image_2", "image_3"}
        text = {"word", "text_1", "text_2", "text_3"}
        always = {"recognition", "total"}
        terms = {k: {term.removeprefix("loss/") for term, _ in v} for k, v in losses.items()}
        assert terms == {
            "baseline": always,
            "image": always | image,
            "text": always | text,
            "both": always | image | text,
        }


def test_variants_begin_with_their_pretraining(test_root: Path, tmp_path: Path) -> None:
    """Each with that of its seed; they share it, and it is no row of the table.

    One is pre-trained on a lexicon's cache.
    """
    write_words(tmp_path / "data" / "words", WORDS)
    cache = tmp_path / "words.cache"
    build_cache(tiny_build(tmp_path / "data", cache, teacher=EQUAL_TEACHER))
    add_text_table(TextConfig(cache=cache, charset=Charset.load("36"), tokenizer="prompt"))
    build_pool(PoolConfig(cache=cache, images=write_images(tmp_path / "images"), device="cpu"))
    sizes = {"decoder_layers": 4, "decoder_width": 32, "decoder_heads": 4, "permutations": 2}
    lexicon = tmp_path / "lexicon.cache"
    words = tmp_path / "words.txt"
    words.write_text("\n".join(WORDS[::-1]))
    taps = (1, 2, 3)
    build_labels(
        LabelsConfig(words=words, out=lexicon, teacher=EQUAL_TEACHER, text_taps=taps, device="cpu")
    )
    table = miniature("dptr")
    own = {
        name: replace(pretraining, settings={**pretraining.settings, "held_out_share": 0.2})
        for name, pretraining in table.pretrainings.items()
    }
    own["pretrain-0"] = replace(own["pretrain-0"], cache=str(lexicon))
    shared = {**table.settings, **sizes, "batch_size": 16}
    table = replace(table, settings=shared, pretrainings=own)
    here = place(cache, tmp_path / "out")
    others = ablate(table, here, [test_root], only=(1, 2))
    assert "which it begins with, is not finished" in others.failed["ratio-0.05-seed0"]
    result = ablate(table, here, [test_root])
    assert (result.num_finished, result.num_runs, result.failed) == (8, 8, {})
    rows = (here.out / "table.md").read_text()
    assert "pretrain" not in rows
    begun = {}
    for variant in table.variants:
        record = json.loads((here.out / f"{variant.name}-seed0" / "run.json").read_text())
        begun[variant.name] = record["init"] and Path(record["init"]["checkpoint"]).parent.name
    assert begun == {
        "scratch": None,
        "scratch-no-fmu": None,
        "no-orp": "pretrain-0-seed0",
        "ratio-0.05": "pretrain-0.05-seed0",
        "ratio-0.1": "pretrain-seed0",
        "ratio-0.2": "pretrain-0.2-seed0",
        "no-fmu": "pretrain-seed0",
        "with-clip-ocr": "pretrain-seed0",
    }
    losses = first_losses(here.out, table)
    assert len(set(losses.values())) == len(losses)
    caches = {
        name: json.loads((here.out / f"{name}-seed0" / "run.json").read_text())["place"]["cache"]
        for name in ("pretrain", "pretrain-0", "no-orp")
    }
    assert caches == {"pretrain": str(cache), "pretrain-0": str(lexicon), "no-orp": str(cache)}


def test_a_variant_begins_with_one_above_it_on_a_cache_of_its_own(
    ablation_cache: Path, data_root: Path, test_root: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.cache"
    build_cache(tiny_build(data_root, other, seed=1))
    table = miniature("table7")
    first = table.variants[0]
    second = replace(first, name="on", init=first.name, cache=str(other))
    out = tmp_path / "out"
    ablate(replace(table, variants=(first, second)), place(ablation_cache, out), [test_root])
    record = json.loads((out / "on-seed0" / "run.json").read_text())
    assert Path(record["init"]["checkpoint"]).parent == out / "char-seed0"
    assert record["place"]["cache"] == str(other)


def test_the_table_is_mean_and_spread_of_its_runs(
    ablation_cache: Path, test_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablate_module, "draw_curves", draw_curves)
    table = miniature("table12", seeds=(0, 1))
    ablate(table, place(ablation_cache, tmp_path), [test_root])
    for variant in table.variants:
        for seed, accuracy in ((0, 50.0), (1, 100.0)):
            path = tmp_path / f"{variant.name}-seed{seed}" / "ablation.json"
            record = json.loads(path.read_text())
            record["sets"]["SVT"]["accuracy"] = accuracy
            path.write_text(json.dumps(record))
    ablate(table, place(ablation_cache, tmp_path), [test_root])
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == f"**{table.title}**"
    headers = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    # In the paper's order, not the alphabet's.
    assert headers == ["Distillation layers", "IIIT5k", "SVT", "Avg of 2 sets", "p", "runs"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:7]]
    assert [row[0] for row in rows] == ["(1)", "(1, 3)", "(1, 2, 3, 4)"]
    assert {row[2] for row in rows} == {f"75.00 ± {statistics.stdev((50, 100)):.2f}"}
    assert {row[5] for row in rows} == {"2/2"}
    with (tmp_path / "table.csv").open() as file:
        plain = list(csv.DictReader(file))
    assert plain[0]["SVT mean"] == "75.0000"
    assert plain[0]["SVT std"] == f"{statistics.stdev((50, 100)):.4f}"
    for picture_path in (tmp_path / "table.png", tmp_path / "1-seed0" / "curves.png"):
        with Image.open(picture_path) as picture:
            assert min(picture.size) > 100


def test_finished_runs_are_left_alone_and_shares_make_a_whole(
    ablation_cache: Path, test_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, here = miniature("table4"), place(ablation_cache, tmp_path)
    trained: list[str] = []
    real = ablate_module.train

    def train(config: object, place: TrainPlace, **options: bool) -> object:
        trained.append(place.out.name)
        return real(config, place, **options)

    monkeypatch.setattr(ablate_module, "train", train)
    assert ablate(table, here, [test_root], only=(0, 2)).num_finished == 2
    assert trained == ["tau-0.01-seed0", "tau-0.05-seed0"]
    assert "1/1" in (tmp_path / "table.md").read_text()
    assert "0/1" in (tmp_path / "table.md").read_text()
    assert ablate(table, here, [test_root], only=(1, 2)).num_finished == 4
    assert len(trained) == 4
    assert ablate(table, here, [test_root]).num_finished == 4
    assert len(trained) == 4


def test_a_plan_says_what_would_be_done_and_writes_nothing(
    ablation_cache: Path, test_root: Path, tmp_path: Path
) -> None:
    table, here = miniature("table4"), place(ablation_cache, tmp_path / "out")

    def states(only: tuple[int, int] = (0, 1)) -> list[str]:
        return [run.state for run in plan(table, here, [test_root], only=only)]

    assert states() == ["train"] * 4
    assert not here.out.exists()
    ablate(table, here, [test_root], only=(0, 2))
    first, second, *_ = runs = plan(table, here, [test_root], only=(0, 1))
    assert [run.name for run in runs[:2]] == ["tau-0.01-seed0", "tau-0.03-seed0"]
    assert (first.state, second.state) == ("finished", "train")
    assert second.settings["temperature"] == 0.03
    assert second.settings["epochs"] == 1
    assert (second.settings["seed"], second.cache) == (0, str(ablation_cache))
    assert states(only=(1, 2)) == ["train"] * 2
    # What was read is kept, and figures without it are made again.
    (here.out / first.name / "ablation.predictions.jsonl").unlink()
    assert states()[0] == "evaluate"
    record = here.out / first.name / "run.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"history": []}))
    assert states()[0] == "go on after epoch 0 of 1"
    other = replace(table, settings={**table.settings, "learning_rate": 2e-3})
    with pytest.raises(UsageError, match="begun differently: learning_rate was"):
        plan(other, here, [test_root], only=(0, 1))


def test_what_each_run_read_is_kept(ablation_cache: Path, test_root: Path, tmp_path: Path) -> None:
    table = replace(miniature("table4"), variants=miniature("table4").variants[:2])
    ablate(table, place(ablation_cache, tmp_path), [test_root])
    for variant in table.variants:
        lines = (tmp_path / f"{variant.name}-seed0" / "ablation.predictions.jsonl").read_text()
        words = list(map(json.loads, lines.splitlines()))
        assert [word["label"] for word in words] == ["kilo", "papa", "alpha", "tango", "zulu"]
    # One epoch of a tiny student reads nothing, so that no word is read by one run alone.
    assert "| 1.0000 |" in (tmp_path / "table.md").read_text().splitlines()[5]


def test_a_stopped_table_goes_on(
    ablation_cache: Path, test_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = miniature("table7")
    whole, parts = place(ablation_cache, tmp_path / "whole"), place(ablation_cache, tmp_path / "b")
    ablate(table, whole, [test_root])
    real = optimizer_module.one_cycle

    def stop_at_1(step: int, *rest: float) -> float:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(step, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(optimizer_module, "one_cycle", stop_at_1)
        with pytest.raises(Interrupted):
            ablate(table, parts, [test_root])
    ablate(table, parts, [test_root])
    assert first_losses(tmp_path / "b", table) == first_losses(tmp_path / "whole", table)


def test_a_failed_run_does_not_stop_the_others(
    ablation_cache: Path, test_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, real = miniature("table7"), ablate_module.train

    def train(config: object, place: TrainPlace, **options: bool) -> object:
        if place.out.name.startswith("char"):
            raise TrainingError("total is not finite")
        return real(config, place, **options)

    monkeypatch.setattr(ablate_module, "train", train)
    result = ablate(table, place(ablation_cache, tmp_path), [test_root])
    assert list(result.failed) == ["char-seed0"]
    assert result.failed["char-seed0"].startswith("total is not finite. To try it again remove ")
    assert result.num_finished == 2


def test_another_setting_for_a_run_that_is_there_is_refused(
    ablation_cache: Path, test_root: Path, tmp_path: Path
) -> None:
    table, here = miniature("table7"), place(ablation_cache, tmp_path)
    ablate(table, here, [test_root])
    other = replace(table, settings={**table.settings, "learning_rate": 2e-3})
    with pytest.raises(
        UsageError, match=r"begun differently: learning_rate was 0.001, now 0.002\. Go on"
    ):
        ablate(other, here, [test_root])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = ", "table .*: Invalid value"),
        ('title = "x"', "lacks columns, variants and has unknown nothing"),
        ('title = "x"\ncolumns = []\nvariants = []\nsede = 1', "has unknown sede"),
        (
            'title = "x"\ncolumns = []\nvariants = [{name = "v", cells = []}]\nseeds = 0',
            "seeds is 0, expected a list",
        ),
        ('title = "x"\ncolumns = []\nvariants = {}', "variants is {}, expected a list"),
        ('title = "x"\ncolumns = []\nvariants = [3]', "variant 1 is 3, expected cells, name"),
        (
            'title = "x"\ncolumns = []\nvariants = [{name = "../v", cells = []}]',
            r"variant 1 is named '../v', expected letters",
        ),
        (
            'title = "x"\ncolumns = []\nvariants = [{name = "v", cells = [], settings = 3}]',
            "variant 1: settings is 3, expected NAME = VALUE",
        ),
        (
            'title = "x"\ncolumns = []\nseeds = [1, 1]\nvariants = [{name = "v", cells = []}]',
            r"seeds are \(1, 1\), expected different",
        ),
        (
            'title = "x"\ncolumns = []\nsettings = {seed = 1}\n'
            'variants = [{name = "v", cells = []}]',
            "seed is no setting of a table",
        ),
        ('title = "x"\ncolumns = []\nvariants = []', "named nothing; names must differ"),
        (
            'title = "x"\ncolumns = ["a"]\nvariants = [{name = "v", cells = []}]',
            "variant 1 has 0 cells for 1 columns",
        ),
        (
            'title = "x"\ncolumns = []\nvariants = [{name = "v", cells = [], init = "p"}]',
            r"variant 1 begins with 'p', expected one of the pretrainings, or of the variants "
            r"above it: \(none\)",
        ),
        (
            'title = "x"\ncolumns = []\npretraining = [{name = "v", settings = {}}]\n'
            'variants = [{name = "v", cells = []}]',
            "named v, v; names must differ",
        ),
        (
            'title = "x"\ncolumns = []\n'
            'variants = [{name = "v", cells = []}, {name = "v", cells = []}]',
            "named v, v; names must differ",
        ),
    ],
)
def test_a_table_that_says_too_little_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_table(str(path))


def test_rows_can_be_left_out(cache_path: Path, test_root: Path, tmp_path: Path) -> None:
    """Those that a cache has not what for, here tokens of words and in the joint space."""
    table = miniature("table7").with_rows(["char"])
    result = ablate(table, place(cache_path, tmp_path), [test_root])
    assert (result.num_finished, result.num_runs) == (1, 1)
    table = load_table("dptr").with_rows(["scratch", "no-orp"])
    assert ([v.name for v in table.variants], [*table.pretrainings]) == (
        ["scratch", "no-orp"],
        ["pretrain-0"],
    )
    # Settings that only others know go with them.
    assert "student" not in miniature("table7").with_rows(["clip"]).settings
    with pytest.raises(UsageError, match="rows chars are not in the table; expected some of char"):
        miniature("table7").with_rows(["chars"])
    first, second, _ = table7 = miniature("table7").variants
    chained = replace(miniature("table7"), variants=(first, replace(second, init=first.name)))
    with pytest.raises(UsageError, match="row word begins with char; name that one too"):
        chained.with_rows([table7[1].name])


def test_a_wrong_setting_is_found_before_the_first_run(
    ablation_cache: Path, test_root: Path, tmp_path: Path
) -> None:
    table = miniature("table7")
    wrong = replace(table.variants[1], settings={"tokenizer": "words"})
    with pytest.raises(UsageError, match="tokenizer is 'words'"):
        ablate(
            replace(table, variants=(table.variants[0], wrong)),
            place(ablation_cache, tmp_path / "out"),
            [test_root],
        )
    assert not (tmp_path / "out").exists()


def test_what_the_cache_lacks_is_found_before_the_first_run(
    cache_path: Path, test_root: Path, tmp_path: Path
) -> None:
    # Of table 7 the second variant needs word tokens, which this cache has not.
    with pytest.raises(CacheMismatchError, match=r"cache text .* --tokenizer word"):
        ablate(miniature("table7"), place(cache_path, tmp_path / "out"), [test_root])
    assert not (tmp_path / "out").exists()


def test_runs_of_another_cache_are_not_taken_for_this_one_s(
    cache_path: Path, data_root: Path, test_root: Path, tmp_path: Path
) -> None:
    table = replace(miniature("table4"), variants=miniature("table4").variants[:1])
    ablate(table, place(cache_path, tmp_path / "out"), [test_root])
    build_cache(tiny_build(data_root, tmp_path / "other", seed=1))
    with pytest.raises(UsageError, match=r"begun differently: cache was '\w+', now '\w+'"):
        ablate(table, place(tmp_path / "other", tmp_path / "out"), [test_root])
    with pytest.raises(UsageError, match=r"val_data was \[\], now \["):
        ablate(
            table,
            replace(place(cache_path, tmp_path / "out"), val_data=(test_root,)),
            [test_root],
        )


def test_results_are_made_anew_when_what_they_are_of_changed(
    cache_path: Path, test_root: Path, tmp_path: Path
) -> None:
    table = replace(miniature("table4"), variants=miniature("table4").variants[:1])
    here, path = place(cache_path, tmp_path), tmp_path / "tau-0.01-seed0" / "ablation.json"
    ablate(table, here, [test_root])
    first = path.stat().st_mtime_ns
    # What people write with clipocr eval is theirs.
    (path.parent / "eval.json").write_text("{}")
    ablate(table, here, [test_root])
    assert path.stat().st_mtime_ns == first
    more = tmp_path / "more"
    write_words(more / "SVT", ["alpha", "tango", "yankee"])
    ablate(table, here, [more])
    assert list(json.loads(path.read_text())["sets"]) == ["SVT"]
    assert "RANDOM weights" in (tmp_path / "table.md").read_text()


def test_a_table_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(
        UsageError, match=r"table99 is neither a file .* one of clip4str, dptr, table1"
    ):
        load_table("table99")


def test_the_file_that_the_docs_show_is_a_table(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "ablation.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(.*?)^```$", page, flags=re.M | re.S)
    path = tmp_path / "mine.toml"
    path.write_text(block, encoding="utf-8")
    table = load_table(str(path))
    assert [(v.name, v.init, v.cache) for v in table.variants] == [
        ("low", "", ""),
        ("low-then-real", "low", "real.cache"),
    ]
    for entry in (*table.variants, *table.pretrainings.values()):
        TrainConfig.from_values(table.settings_of(entry))
