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
them, ``X | None``, and any class whose option has a `parse`. On the command line a tuple is one
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import click
from click.core import ParameterSource

from .errors import UsageError

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is to be said of one option besides its type and default."""

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
    metavar: str | None = None
    default_text: str | None = None
    """What the help says of the default where its value says little, such as that of None."""
    type: click.ParamType[Any] | None = None
    """How click reads it, where the field's type does not say: an existing folder, for example."""
    parse: Callable[[Any], Any] | None = None
    """From what is written (a text, or what TOML and JSON know) to the field's value."""
    unparse: Callable[[Any], Any] | None = None
    """From the field's value to what JSON knows."""


def option(default: Any = dataclasses.MISSING, **about: Any) -> Any:
    """Declare a field of an `Options` class as an option, required if it has no default.

    Args:
        default: Of the field.
        about: Fields of `Option`.
    """
    return dataclasses.field(default=default, metadata={"option": Option(**about)})


def option_of(config: type[Options], field: str) -> Any:
    """Declare a field as the option that another class has already."""
    there = config.__dataclass_fields__[field]
    return dataclasses.field(default=there.default, metadata=there.metadata)


@dataclass(frozen=True, kw_only=True)
class _Field:
    """One option of a class, with its type taken apart."""

    name: str
    option: Option
    item: Any
    """The type; of a tuple that of its items, of ``X | None`` X."""
    is_tuple: bool
    is_optional: bool
    default: Any

    @property
    def expected(self) -> str:
        """Say what is possible, for messages."""
        about = self.option
        if about.choices:
            one = "one of " + ", ".join(about.choices)
        elif self.item in (int, float):
            one = "a whole number" if self.item is int else "a number"
            for word, bound in (
                ("from", about.minimum),
                ("above", about.above),
                ("to", about.maximum),
                ("below", about.below),
            ):
                one += f" {word} {bound:g}" if bound is not None else ""
        else:
            one = {bool: "true or false", Path: "a path"}.get(self.item, "a text")
        return f"a list, each {one}" if self.is_tuple else one


@dataclass(frozen=True, kw_only=True)
class Options:
    """A frozen dataclass whose fields are options. Ranges and choices are checked when it is made.

    A subclass that has a check of its own calls ``super().__post_init__()`` first.
    """

    def __post_init__(self) -> None:
        problems = []
        for field, some in _members(type(self)).items():
            if not isinstance(some, _Field):
                continue
            value = getattr(self, field)
            if value is None:
                is_sound = some.is_optional or some.default is None
            elif some.is_tuple:
                object.__setattr__(self, field, tuple(value))  # JSON and TOML know lists only.
                is_sound = all(_fits(some, item) for item in value)
            else:
                is_sound = _fits(some, value)
            if not is_sound:
                problems.append(f"{some.name} is {value!r}, expected {some.expected}")
        if problems:
            raise UsageError("; ".join(problems))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all options in the order of the fields, nested ones in place."""
        return tuple(some.name for some in _options(cls))

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
            if isinstance(some, _Field):
                if some.name in values:
                    others[field] = _parsed(some, values[some.name])
            elif field not in others:
                own = {name: values[name] for name in some.names() if name in values}
                others[field] = some.from_values(own)
        return cls(**others)

    def to_values(self) -> dict[str, Any]:
        """Return the values of all options by name, as JSON knows them: `from_values` inverted."""
        values: dict[str, Any] = {}
        for field, some in _members(type(self)).items():
            value = getattr(self, field)
            if isinstance(some, _Field):
                values[some.name] = _plain(some, value)
            else:
                values |= value.to_values()
        return values


def require_known(values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Check that values have no other names than these."""
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise UsageError(
            f"unknown setting {', '.join(map(repr, unknown))}; "
            f"expected some of {', '.join(sorted(names))}"
        )


def takes(config: type[Options]) -> Callable[..., Any]:
    """Make a click command take the options of a config.

    The command's function is called with ``given``, the values that stood on the command line, by
    the options' names: ``config.from_values(given)`` knows the defaults of the others, so a default
    is written once.
    """

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def call(*args: Any, **kwargs: Any) -> Any:
            context = click.get_current_context()
            given = {
                name: value
                for name in config.names()
                if (value := kwargs.pop(name)) is not None
                and context.get_parameter_source(name) is not ParameterSource.DEFAULT
            }
            return command(*args, given={**kwargs.pop("given", {}), **given}, **kwargs)

        wrapped: Any = call
        for some in reversed(list(_options(config))):
            wrapped = _click_option(some)(wrapped)
        return typing.cast(_Command, wrapped)

    return decorate


def _members(config: type[Options]) -> dict[str, _Field | type[Options]]:
    """Return the fields that are options, and those that lend theirs, by name and in order."""
    hints = typing.get_type_hints(config)
    members: dict[str, _Field | type[Options]] = {}
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
        members[field.name] = _Field(
            name=about.name or field.name,
            option=about,
            item=typing.get_args(item)[0] if is_tuple else item,
            is_tuple=is_tuple,
            is_optional=is_optional,
            default=field.default,
        )
    return members


def _options(config: type[Options]) -> Iterator[_Field]:
    for some in _members(config).values():
        if isinstance(some, _Field):
            yield some
        else:
            yield from _options(some)


def _fits(some: _Field, value: Any) -> bool:
    about = some.option
    if some.item is float and type(value) is int:
        value = float(value)
    if isinstance(value, bool) and some.item is not bool:
        return False
    return (
        isinstance(value, some.item)
        and (about.parse is not None or not about.choices or value in about.choices)
        and (about.minimum is None or value >= about.minimum)
        and (about.maximum is None or value <= about.maximum)
        and (about.above is None or value > about.above)
        and (about.below is None or value < about.below)
        and not (some.item is float and not math.isfinite(value))
    )


def _parsed(some: _Field, value: Any) -> Any:
    def one(item: Any) -> Any:
        if some.option.parse is not None and not isinstance(item, some.item):
            return some.option.parse(item)
        return Path(item) if some.item is Path and isinstance(item, str) else item

    if value is None:
        return None
    if not some.is_tuple:
        return one(value)
    if not isinstance(value, list | tuple):
        raise UsageError(f"{some.name} is {value!r}, expected {some.expected}")
    return tuple(map(one, value))


def _plain(some: _Field, value: Any) -> Any:
    def one(item: Any) -> Any:
        if some.option.unparse is not None:
            return some.option.unparse(item)
        return str(item) if isinstance(item, Path) else item

    if value is None:
        return None
    return [one(item) for item in value] if some.is_tuple else one(value)


# -- click ------------------------------------------------------------------------------------


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


def _item_type(some: _Field) -> click.ParamType[Any]:
    about = some.option
    if about.type is not None:
        return about.type
    if about.choices:
        return click.Choice(about.choices)
    if some.item in (int, float):
        bounds: dict[str, Any] = {
            "min": about.minimum if about.above is None else about.above,
            "max": about.maximum if about.below is None else about.below,
            "min_open": about.above is not None,
            "max_open": about.below is not None,
        }
        if bounds["min"] is None and bounds["max"] is None:
            return click.INT if some.item is int else click.FLOAT
        return click.IntRange(**bounds) if some.item is int else click.FloatRange(**bounds)
    return click.Path(path_type=Path) if some.item is Path else click.STRING


def _click_option(some: _Field) -> Callable[..., Any]:
    about, default = some.option, some.default
    flag = "--" + some.name.replace("_", "-")
    if some.item is bool and not some.is_tuple:
        # A flag that is off says only how to turn it on.
        names = flag if default is False else f"{flag}/--no-{flag[2:]}"
        return click.option(names, some.name, is_flag=True, default=default,
                            show_default=default is not False, help=about.help)  # fmt: skip
    attributes: dict[str, Any] = {
        "help": about.help,
        "metavar": about.metavar,
        "type": _item_type(some),
        "required": default is dataclasses.MISSING,
    }
    is_multiple = some.is_tuple and some.item is Path
    if is_multiple:
        attributes["multiple"] = True
    elif some.is_tuple:
        attributes["type"] = _List(attributes["type"])
    if about.default_text is not None:
        attributes["show_default"] = about.default_text
    elif not is_multiple and default not in (dataclasses.MISSING, None):
        plain = _plain(some, default)
        text = ",".join(map(str, plain)) or "none" if isinstance(plain, list) else str(plain)
        # For the help alone: `takes` leaves defaults to the config.
        attributes |= {"default": text, "show_default": True}
    return click.option(flag, some.name, **attributes)


# -- kinds of arguments -----------------------------------------------------------------------


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
        "auto", help="auto, cpu, cuda or cuda:N.", default_text="CUDA if there is one, else the CPU"
    )
    return text
