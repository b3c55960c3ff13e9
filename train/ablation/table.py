"""What an ablation table says: variants of one run, as a TOML file writes them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...shared.errors import UsageError
from ...shared.options import require_known
from ..loop.config import TrainConfig
from ..methods import DEFAULT_METHOD

_NAME = re.compile(r"[\w.+-]*\w")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a table."""

    name: str
    cells: tuple[str, ...]
    """What stands in the row's leading columns."""
    settings: Mapping[str, Any]
    init: str = ""
    """Name of the pre-training, or of the variant above, that its runs begin with, each with that
    of its own seed."""
    cache: str = ""
    """What it trains on; "": the cache of all runs."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A run that is not evaluated; variants begin with it."""

    settings: Mapping[str, Any]
    """Besides those settings of the table that its method knows."""
    cache: str = ""
    """What it trains on; "": the cache of all runs."""


@dataclass(frozen=True, kw_only=True)
class AblationTable:
    """What to run, as a TOML file says it."""

    title: str
    columns: tuple[str, ...]
    """Leading columns."""
    settings: Mapping[str, Any]
    """Of every run, by the names of options of ``clipocr train``."""
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    pretrainings: Mapping[str, Pretraining] = field(default_factory=dict)
    """By name."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Those of the settings that are not the table's own: a caption names them."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UsageError(f"seeds are {self.seeds}, expected different whole numbers")
        all_settings = [self.settings, *(v.settings for v in self.variants)]
        all_settings += [p.settings for p in self.pretrainings.values()]
        if any("seed" in settings for settings in all_settings):
            raise UsageError("seed is no setting of a table; its runs take each of its seeds")

    def with_overrides(self, settings: Mapping[str, Any]) -> AblationTable:
        """Return the table with some settings of every run changed."""
        return replace(self, settings={**self.settings, **settings}, overrides=settings)

    def settings_of(self, entry: Variant | Pretraining) -> dict[str, Any]:
        """Return an entry's settings, with those of the table that its method knows."""
        known = self._names_of(entry)
        return {k: v for k, v in self.settings.items() if k in known} | dict(entry.settings)

    def known_names(self) -> set[str]:
        """Return the names of settings that the methods of its entries know."""
        entries: list[Variant | Pretraining] = [*self.pretrainings.values(), *self.variants]
        return {name for entry in entries for name in self._names_of(entry)}

    def _names_of(self, entry: Variant | Pretraining) -> tuple[str, ...]:
        """Return the names of settings that an entry's method knows."""
        method = entry.settings.get("method", self.settings.get("method", DEFAULT_METHOD))
        return TrainConfig.known_names(method)

    def with_rows(self, names: Sequence[str]) -> AblationTable:
        """Return the table with some of its variants.

        Raises:
            UsageError: there is none of a name, or one begins with one that is left out.
        """
        rows = {variant.name: variant for variant in self.variants}
        if unknown := [name for name in names if name not in rows]:
            raise UsageError(
                f"rows {', '.join(unknown)} are not in the table; expected some of "
                f"{', '.join(rows)}"
            )
        kept = tuple(variant for variant in self.variants if variant.name in names)
        for variant in kept:
            if variant.init in rows and variant.init not in names:
                raise UsageError(
                    f"row {variant.name} begins with {variant.init}; name that one too"
                )
        begun = {variant.init for variant in kept}
        pretrainings = {k: v for k, v in self.pretrainings.items() if k in begun}
        require_known(self.settings, self.known_names())
        some = replace(self, variants=kept, pretrainings=pretrainings)
        known = some.known_names()
        return replace(some, settings={k: v for k, v in self.settings.items() if k in known})


def run_name(name: str, seed: int) -> str:
    """Return the name of a run's folder."""
    return f"{name}-seed{seed}"


def shipped_tables() -> dict[str, str]:
    """Return the tables that come with clipocr: name to TOML text."""
    files = sorted(Path(__file__).with_name("tables").glob("*.toml"))
    return {path.stem: path.read_text(encoding="utf-8") for path in files}


def load_table(name_or_file: str) -> AblationTable:
    """Return a shipped table by name, or the one in a TOML file.

    Raises:
        UsageError: there is none, or it does not say what a table has to.
    """
    shipped = shipped_tables()
    if name_or_file in shipped:
        text = shipped[name_or_file]
    elif Path(name_or_file).is_file():
        text = Path(name_or_file).read_text(encoding="utf-8-sig")
    else:
        raise UsageError(
            f"{name_or_file} is neither a file nor a table that comes with clipocr; "
            f"expected a TOML file or one of {', '.join(shipped)}"
        )
    try:
        return _parse_table(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, UsageError) as e:
        raise UsageError(f"table {name_or_file}: {e}") from None


def _parse_table(data: Mapping[str, Any]) -> AblationTable:
    optional = {"settings", "seeds", "pretraining"}
    _require_keys("the table", data, {"title", "columns", "variants"}, optional)
    pretrainings = {}
    for number, entry in enumerate(data.get("pretraining", []), start=1):
        where = f"pretraining {number}"
        _require_keys(where, entry, {"name", "settings"}, {"cache"})
        pretrainings[_folder_name(where, entry)] = Pretraining(
            settings=entry["settings"], cache=str(entry.get("cache", ""))
        )
    columns = tuple(map(str, data["columns"]))
    variants: list[Variant] = []
    for number, entry in enumerate(data["variants"], start=1):
        where = f"variant {number}"
        _require_keys(where, entry, {"name", "cells"}, {"settings", "init", "cache"})
        name, cells = _folder_name(where, entry), tuple(map(str, entry["cells"]))
        if len(cells) != len(columns):
            raise UsageError(f"{where} has {len(cells)} cells for {len(columns)} columns")
        init = str(entry.get("init", ""))
        before = [*pretrainings, *(variant.name for variant in variants)]
        if init and init not in before:
            raise UsageError(
                f"{where} begins with {init!r}, expected one of the pretrainings, or of the "
                f"variants above it: {', '.join(before) or '(none)'}"
            )
        settings, cache = entry.get("settings", {}), str(entry.get("cache", ""))
        variants.append(Variant(name=name, cells=cells, settings=settings, init=init, cache=cache))
    names = [*pretrainings, *(variant.name for variant in variants)]
    if not variants or len(set(names)) != len(names):
        raise UsageError(f"variants are named {', '.join(names) or 'nothing'}; names must differ")
    return AblationTable(
        title=str(data["title"]),
        columns=columns,
        settings=data.get("settings", {}),
        seeds=tuple(data.get("seeds", [0, 1, 2])),
        variants=tuple(variants),
        pretrainings=pretrainings,
    )


def _folder_name(where: str, entry: Mapping[str, Any]) -> str:
    name = str(entry["name"])
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{where} is named {name!r}, expected letters, digits, '.', '_', '+', '-': "
            "it names a folder"
        )
    return name


def _require_keys(where: str, data: Any, needed: set[str], optional: set[str]) -> None:
    """Check the names and the kinds of what a table or a variant states."""
    if not isinstance(data, dict):
        raise UsageError(f"{where} is {data!r}, expected {', '.join(sorted(needed))}")
    missing, unknown = sorted(needed - set(data)), sorted(set(data) - needed - optional)
    if missing or unknown:
        raise UsageError(
            f"{where} lacks {', '.join(missing) or 'nothing'} and has unknown "
            f"{', '.join(unknown) or 'nothing'}; expected {', '.join(sorted(needed))}"
            f" and perhaps {', '.join(sorted(optional))}"
        )
    for name in set(data) - {"title", "name", "init", "cache"}:
        kind, expected = (dict, "NAME = VALUE pairs") if name == "settings" else (list, "a list")
        if not isinstance(data[name], kind):
            raise UsageError(f"{where}: {name} is {data[name]!r}, expected {expected}")
