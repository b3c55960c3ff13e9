"""Options written once: a field of a config dataclass is the option of that name.

    @dataclass(frozen=True, kw_only=True)
    class TrainConfig(Options):
        epochs: int = option(5, help="Passes over the cache.", minimum=1)

From such a field come the click option (`takes`), the check of its range, the setting of that name
in an ablation table or in ``--set`` (`Options.from_values`), and the entry in ``run.json``
(`Options.to_values`). A field that is itself an `Options` class lends its fields to the class
around it, so names are flat wherever people write them. A field without `option` is none: it is
set by code.

Types that an option may have: ``bool``, ``int``, ``float``, ``str``, ``Path``, a tuple of one of
them, ``X | None``, and any type whose option has a `parse`. On the command line a tuple is one
argument, its items separated by commas, and ``none`` is the empty one; a tuple of paths is an
option that may be given more than once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from .errors import UsageError
from .help import GroupedOption

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: what its declaration says, and then what its field does."""

    default: Any
    help: str
    name: str = ""
    """As settings name it; ``--intra-weight`` is ``intra_weight``. Empty: the field's name."""
    choices: tuple[str, ...] = ()
    """Texts that are possible, before `parse`; empty: any."""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    """The value must be greater than this."""
    below: float | None = None
    """The value must be less than this."""
    group: str = ""
    """Title of the group in which a long help shows it; empty: that of the class."""
    alias: str = ""
    """Another name on the command line, such as ``lr``."""
    complete: Callable[[], Iterable[str]] | None = None
    """Returns what a shell may complete it to."""
    metavar: str | None = None
    default_text: str | None = None
    """What the help says of the default where its value says little, such as that of None."""
    type: click.ParamType[Any] | None = None
    """How click reads it, where the field's type does not say: an existing folder, for example."""
    is_fitted: bool = False
    """Whether code sets it when a run begins, and nobody writes it on a command line."""
    parse: Callable[[Any], Any] | None = None
    """From what is written (a text, or what TOML and JSON know) to the field's value."""
    unparse: Callable[[Any], Any] | None = None
    """From the field's value to what JSON knows."""

    item: Any = None
    """The field's type; of a tuple that of its items, of ``X | None`` X."""
    is_tuple: bool = False
    is_optional: bool = False

    @property
    def expected(self) -> str:
        """Say what is possible, for messages."""
        if self.choices:
            one = "one of " + ", ".join(self.choices)
        elif self.item in (int, float):
            one = "a whole number" if self.item is int else "a number"
            for word, bound in (
                ("from", self.minimum),
                ("above", self.above),
                ("to", self.maximum),
                ("below", self.below),
            ):
                one += f" {word} {bound:g}" if bound is not None else ""
        else:
            one = {bool: "true or false", Path: "a path"}.get(self.item, "a text")
        return f"a list, each {one}" if self.is_tuple else one

    def allows(self, value: Any) -> bool:
        """Return whether a value, or an item of a tuple, is possible."""
        if isinstance(value, bool) and self.item is not bool:
            return False
        if not isinstance(value, (int, float) if self.item is float else self.item):
            return False
        if self.choices and self.parse is None:
            return value in self.choices
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and not (self.item is float and not math.isfinite(value))
        )

    def read(self, value: Any) -> Any:
        """Return the field's value from what JSON, TOML or code say."""
        if value is None:
            return None
        if self.is_tuple:
            if not isinstance(value, list | tuple):
                raise UsageError(f"{self.name} is {value!r}, expected {self.expected}")
            return tuple(map(dataclasses.replace(self, is_tuple=False).read, value))
        if self.parse is not None and (isinstance(value, str) or not isinstance(value, self.item)):
            return self.parse(value)
        return Path(value) if self.item is Path and isinstance(value, str) else value

    def plain(self, value: Any) -> Any:
        """Return a field's value as JSON knows it."""
        if value is None:
            return None
        if self.is_tuple:
            return list(map(dataclasses.replace(self, is_tuple=False).plain, value))
        if self.unparse is not None:
            return self.unparse(value)
        return str(value) if isinstance(value, Path) else value

    def of_click(self) -> Callable[..., Any]:
        """Return the decorator that gives a command this option."""
        flag = "--" + self.name.replace("_", "-")
        if self.item is bool:
            # A flag that is off says only how to turn it on.
            names = flag if self.default is False else f"{flag}/--no-{flag[2:]}"
            shown = self.default is not False
            return click.option(
                names, self.name, is_flag=True, default=self.default, show_default=shown,
                help=self.help, cls=GroupedOption, group=self.group,
            )  # fmt: skip
        is_multiple = self.is_tuple and self.item is Path
        item_type = self._click_type()
        attributes: dict[str, Any] = {}
        if self.default_text is not None:
            attributes["show_default"] = self.default_text
        elif not is_multiple and self.default not in (dataclasses.MISSING, None):
            plain = self.plain(self.default)
            text = ",".join(map(str, plain)) or "none" if isinstance(plain, list) else str(plain)
            # For the help alone: `takes` leaves defaults to the config.
            attributes |= {"default": text, "show_default": True}
        if self.complete is not None:
            attributes["shell_complete"] = completing(self.complete)
        return click.option(
            *(flag, f"--{self.alias}") if self.alias else (flag,),
            self.name,
            cls=GroupedOption,
            group=self.group,
            help=self.help,
            metavar=self.metavar or self._metavar,
            type=_List(item_type) if self.is_tuple and not is_multiple else item_type,
            required=self.default is dataclasses.MISSING,
            multiple=is_multiple,
            **attributes,
        )

    @property
    def _metavar(self) -> str | None:
        letter = _METAVARS.get(None if self.choices or self.type else self.item)
        return f"{letter},..." if letter and self.is_tuple else letter

    def _click_type(self) -> click.ParamType[Any]:
        if self.type is not None:
            return self.type
        if self.choices:
            return click.Choice(self.choices)
        if self.item in (int, float):
            bounds: dict[str, Any] = {
                "min": self.minimum if self.above is None else self.above,
                "max": self.maximum if self.below is None else self.below,
                "min_open": self.above is not None,
                "max_open": self.below is not None,
            }
            if bounds["min"] is None and bounds["max"] is None:
                return click.INT if self.item is int else click.FLOAT
            return click.IntRange(**bounds) if self.item is int else click.FloatRange(**bounds)
        return click.Path(path_type=Path) if self.item is Path else click.STRING


_METAVARS: Mapping[Any, str] = {int: "N", float: "X"}


def completing(find: Callable[[], Iterable[str]]) -> Callable[..., list[CompletionItem]]:
    """Return the callback by which click completes an argument to one of several texts."""

    def complete(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
        return [CompletionItem(text) for text in find() if text.startswith(begun)]

    return complete


def option(default: Any = dataclasses.MISSING, **about: Any) -> Any:
    """Declare a field of an `Options` class as an option, required if it has no default.

    Args:
        default: Of the field.
        about: Fields of `Option`.
    """
    return dataclasses.field(default=default, metadata={"option": Option(default=default, **about)})


def option_of(config: type[Options], field: str) -> Any:
    """Declare a field as the option that another class has already."""
    there = config.__dataclass_fields__[field]
    return dataclasses.field(default=there.default, metadata=there.metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """A frozen dataclass whose fields are options. Ranges and choices are checked when it is made.

    A subclass that has a check of its own calls ``super().__post_init__()`` first.
    """

    group: ClassVar[str] = ""
    """Title under which a long help shows the options."""

    def __post_init__(self) -> None:
        problems = []
        for field, some in _members(type(self)).items():
            value = getattr(self, field)
            if not isinstance(some, Option) or (value is None and some.is_optional):
                continue
            if not all(map(some.allows, value if some.is_tuple else (value,))):
                problems.append(f"{some.name} is {value!r}, expected {some.expected}")
        if problems:
            raise UsageError("; ".join(problems))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all options in the order of the fields, nested ones in place."""
        return tuple(some.name for some in _options(cls))

    @classmethod
    def own(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of some values that are of this class's options."""
        return {name: values[name] for name in cls.names() if name in values}

    @classmethod
    def from_values(cls, values: Mapping[str, Any], **others: Any) -> Self:
        """Return the config that flat values mean; what they do not name has its default.

        Args:
            values: By the options' names, as JSON and TOML know them, or as the fields have them.
            others: Fields that are no options.

        Raises:
            UsageError: a name is unknown, or a value is not possible.
        """
        require_known(values, cls.names())
        for field, some in _members(cls).items():
            if isinstance(some, Option):
                if some.name in values:
                    others[field] = some.read(values[some.name])
            elif field not in others:
                others[field] = some.from_values(some.own(values))
        return cls(**others)

    def to_values(self) -> dict[str, Any]:
        """Return the values of all options by name, as JSON knows them: `from_values` inverted."""
        values: dict[str, Any] = {}
        for field, some in _members(type(self)).items():
            value = getattr(self, field)
            if isinstance(some, Option):
                values[some.name] = some.plain(value)
            else:
                values |= value.to_values()
        return values


def require_known(values: Mapping[str, Any], names: Collection[str]) -> None:
    """Check that values have no other names than these."""
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise UsageError(
            f"unknown setting {', '.join(map(repr, unknown))}; "
            f"expected some of {', '.join(sorted(names))}"
        )


def takes(
    config: type[Options], defaults: Mapping[str, Any] = MappingProxyType({})
) -> Callable[..., Any]:
    """Make a click command take the options of a config.

    The command's function is called with ``given``, the values that stood on the command line, by
    the options' names: ``config.from_values(given)`` knows the defaults of the others, so a default
    is written once. `defaults` are those that the help shows instead of the config's.
    """

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def call(*args: Any, **kwargs: Any) -> Any:
            context = click.get_current_context()
            given = {
                name: value
                for name in config.names()
                if (value := kwargs.pop(name, None)) is not None
                and context.get_parameter_source(name) is not ParameterSource.DEFAULT
            }
            return command(*args, given={**kwargs.pop("given", {}), **given}, **kwargs)

        wrapped: Any = call
        for some in reversed([some for some in _options(config) if not some.is_fitted]):
            if some.name in defaults:
                some = dataclasses.replace(some, default_text=str(defaults[some.name]))
            wrapped = some.of_click()(wrapped)
        return typing.cast(_Command, wrapped)

    return decorate


def _members(config: type[Options]) -> dict[str, Option | type[Options]]:
    """Return the fields that are options, and those that lend theirs, by name and in order."""
    hints = typing.get_type_hints(config)
    members: dict[str, Option | type[Options]] = {}
    for field in dataclasses.fields(config):
        item, about = hints[field.name], field.metadata.get("option")
        if about is None:
            if isinstance(item, type) and issubclass(item, Options):
                members[field.name] = item
            continue
        is_optional = isinstance(item, types.UnionType) and types.NoneType in typing.get_args(item)
        if is_optional:
            (item,) = (kind for kind in typing.get_args(item) if kind is not types.NoneType)
        is_tuple = typing.get_origin(item) is tuple
        members[field.name] = dataclasses.replace(
            about,
            name=about.name or field.name,
            group=about.group or config.group,
            item=typing.get_args(item)[0] if is_tuple else item,
            is_tuple=is_tuple,
            is_optional=is_optional,
        )
    return members


def _options(config: type[Options]) -> Iterator[Option]:
    for some in _members(config).values():
        if isinstance(some, Option):
            yield some
        else:
            yield from _options(some)


# -- kinds of arguments -----------------------------------------------------------------------


class _List(click.ParamType):  # type: ignore[type-arg]  # generic in new versions only
    """Items separated by commas; ``none`` is the empty list."""

    def __init__(self, item: click.ParamType[Any]) -> None:
        self.item = item
        self.name = f"{item.name},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert each item."""
        if not isinstance(value, str):
            return tuple(value)
        parts = [] if value == "none" else value.split(",")
        return tuple(self.item.convert(part, param, ctx) for part in parts)


class _CachePlace(click.Path):
    """An existing folder, or an address, which is passed on as it is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check a folder; leave an address alone."""
        return value if "://" in str(value) else super().convert(value, param, ctx)


class _NewCache(click.Path):
    """The folder of a cache that is to be written."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an address."""
        if "://" in str(value):
            self.fail(
                f"{value} is an address, and caches are only written to folders. Write it to a "
                "folder, then upload that (aws s3 sync, hf upload, ...)",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
PATH = click.Path(exists=True, path_type=Path)
NEW_PATH = click.Path(path_type=Path)
CACHE = _CachePlace(exists=True, file_okay=False, path_type=Path)
NEW_CACHE = _NewCache(path_type=Path)


def num_cores() -> int:
    """Return the cores this process may use: under Slurm and in containers fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_option() -> str:
    """Declare a field of an `Options` class as the option ``--device``."""
    text: str = option(
        "auto",
        help="Where to compute: auto, cpu, cuda or cuda:N.",
        default_text="CUDA if there is one, else the CPU",
    )
    return text


def json_option() -> bool:
    """Declare a field of an `Options` class as the option ``--json``."""
    is_wanted: bool = option(False, help="Print JSON with unrounded figures instead of tables.")
    return is_wanted
