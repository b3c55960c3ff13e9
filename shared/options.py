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
    """What is to be said of one option besides its name, type and default."""

    help: str
    name: str
    """As settings name it; ``--intra-weight`` is ``intra_weight``. Empty: the field's name."""
    choices: tuple[str, ...]
    """Texts that are possible; empty: any."""
    minimum: float | None
    maximum: float | None
    above: float | None
    """The value must be greater than this."""
    below: float | None
    """The value must be less than this."""
    metavar: str | None
    default_text: str | None
    """What the help says of the default where its value says little, such as that of None."""
    type: click.ParamType[Any] | None
    """How click reads it, where the field's type does not say: an existing folder, for example."""
    parse: Callable[[Any], Any] | None
    """From what is written (a text, or what TOML and JSON know) to the field's value."""
    unparse: Callable[[Any], Any] | None
    """From the field's value to what JSON knows."""


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    name: str = "",
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    metavar: str | None = None,
    default_text: str | None = None,
    type: click.ParamType[Any] | None = None,
    parse: Callable[[Any], Any] | None = None,
    unparse: Callable[[Any], Any] | None = None,
) -> Any:
    """Declare a field of an `Options` class as an option, required if it has no default."""
    about = Option(
        help=help,
        name=name,
        choices=choices,
        minimum=minimum,
        maximum=maximum,
        above=above,
        below=below,
        metavar=metavar,
        default_text=default_text,
        type=type,
        parse=parse,
        unparse=unparse,
    )
    return dataclasses.field(default=default, metadata={"option": about})


@dataclass(frozen=True, kw_only=True)
class _Field:
    """One option of a class, with its type taken apart."""

    field: str
    option: Option
    item: Any
    """The type; of a tuple that of its items, of ``X | None`` X."""
    is_tuple: bool
    is_optional: bool
    default: Any

    @property
    def name(self) -> str:
        return self.option.name or self.field

    @property
    def is_required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def expected(self) -> str:
        """Say what is possible, for messages."""
        about, one = self.option, ""
        if about.choices:
            one = "one of " + ", ".join(about.choices)
        elif self.item is bool:
            one = "true or false"
        elif self.item in (int, float):
            one = "a whole number" if self.item is int else "a number"
            for word, bound in (
                ("from", about.minimum),
                ("above", about.above),
                ("to", about.maximum),
                ("below", about.below),
            ):
                one += f" {word} {bound:g}" if bound is not None else ""
        elif self.item is Path:
            one = "a path"
        else:
            one = "a text"
        return f"a list, each {one}" if self.is_tuple else one


@dataclass(frozen=True, kw_only=True)
class Options:
    """A frozen dataclass whose fields are options. Ranges and choices are checked when it is made.

    A subclass that has a check of its own calls ``super().__post_init__()`` first.
    """

    def __post_init__(self) -> None:
        problems = []
        for some in _fields(type(self)):
            value = getattr(self, some.field)
            if some.is_tuple and value is not None:
                value = tuple(value)
                object.__setattr__(self, some.field, value)  # JSON and TOML know lists only.
            problem = _problem(some, value)
            if problem:
                problems.append(f"{some.name} is {problem}")
        if problems:
            raise UsageError("; ".join(problems))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all options, those of nested classes among them."""
        nested = (name for _, inner in _nested(cls) for name in inner.names())
        return (*(some.name for some in _fields(cls)), *nested)

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
        fields = {
            some.field: _parsed(some, values[some.name])
            for some in _fields(cls)
            if some.name in values
        }
        for field, inner in _nested(cls):
            if field not in others:
                own = {name: values[name] for name in inner.names() if name in values}
                fields[field] = inner.from_values(own)
        return cls(**fields, **others)

    def to_values(self) -> dict[str, Any]:
        """Return the values of all options by name, as JSON knows them: `from_values` inverted."""
        values = {
            some.name: _plain(some, getattr(self, some.field)) for some in _fields(type(self))
        }
        for field, _ in _nested(type(self)):
            values |= getattr(self, field).to_values()
        return values


def require_known(values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Check that values have no other names than these.

    Raises:
        UsageError: one has.
    """
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise UsageError(
            f"unknown setting {', '.join(map(repr, unknown))}; "
            f"expected some of {', '.join(sorted(names))}"
        )


def takes(config: type[Options], *, only: tuple[str, ...] | None = None) -> Callable[..., Any]:
    """Make a click command take the options of a config.

    The command's function is called with ``given``, the values that stood on the command line, by
    the options' names: ``config.from_values(given)`` knows the defaults of the others, so a default
    is written once.

    Args:
        config: Whose options.
        only: Names of those to take; None: all.
    """

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def call(*args: Any, **kwargs: Any) -> Any:
            context = click.get_current_context()
            given = {
                name: value
                for name in names
                if (value := kwargs.pop(name)) is not None
                and context.get_parameter_source(name) is not ParameterSource.DEFAULT
            }
            return command(*args, given={**kwargs.pop("given", {}), **given}, **kwargs)

        wrapped: Any = call
        for add in reversed(click_options(config, only)):
            wrapped = add(wrapped)
        return typing.cast(_Command, wrapped)

    names = [name for name in config.names() if only is None or name in only]
    return decorate


def click_options(
    config: type[Options], only: tuple[str, ...] | None = None
) -> list[Callable[..., Any]]:
    """Return the decorators that add options to a command, in the order of the fields."""
    return [
        _click_option(some) for some in _all_fields(config) if only is None or some.name in only
    ]


def _all_fields(config: type[Options]) -> Iterator[_Field]:
    own = {some.field: some for some in _fields(config)}
    nested = dict(_nested(config))
    for field in dataclasses.fields(config):
        if field.name in own:
            yield own[field.name]
        elif field.name in nested:
            yield from _all_fields(nested[field.name])


def _fields(config: type[Options]) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(config)
    found = []
    for field in dataclasses.fields(config):
        about = field.metadata.get("option")
        if about is None:
            continue
        item = hints[field.name]
        is_optional = isinstance(item, types.UnionType) and types.NoneType in typing.get_args(item)
        if is_optional:
            (item,) = (kind for kind in typing.get_args(item) if kind is not types.NoneType)
        is_tuple = typing.get_origin(item) is tuple
        if is_tuple:
            item = typing.get_args(item)[0]
        found.append(
            _Field(
                field=field.name,
                option=about,
                item=item,
                is_tuple=is_tuple,
                is_optional=is_optional,
                default=field.default,
            )
        )
    return tuple(found)


def _nested(config: type[Options]) -> Iterator[tuple[str, type[Options]]]:
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        if "option" not in field.metadata and isinstance(kind, type) and issubclass(kind, Options):
            yield field.name, kind


def _problem(some: _Field, value: Any) -> str:
    """Return the value and what was expected, or nothing if it is possible."""
    if value is None:
        is_sound = some.is_optional or some.default is None
    else:
        is_sound = all(_fits(some, item) for item in (value if some.is_tuple else (value,)))
    return "" if is_sound else f"{value!r}, expected {some.expected}"


def _fits(some: _Field, value: Any) -> bool:
    about = some.option
    if about.parse is not None:
        return not isinstance(some.item, type) or isinstance(value, some.item)
    if some.item is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if some.item in (int, float, bool) and type(value) is not some.item:
        return False
    if isinstance(some.item, type) and not isinstance(value, some.item):
        return False
    if about.choices and value not in about.choices:
        return False
    return (
        (about.minimum is None or value >= about.minimum)
        and (about.maximum is None or value <= about.maximum)
        and (about.above is None or value > about.above)
        and (about.below is None or value < about.below)
        and not (some.item is float and not math.isfinite(value))
    )


def _parsed(some: _Field, value: Any) -> Any:
    if value is None or (value == () and some.is_tuple):
        return value

    def one(item: Any) -> Any:
        if some.option.parse is not None and not (
            isinstance(some.item, type) and isinstance(item, some.item)
        ):
            return some.option.parse(item)
        return Path(item) if some.item is Path and isinstance(item, str) else item

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
        lowest = about.minimum if about.above is None else about.above
        highest = about.maximum if about.below is None else about.below
        if lowest is None and highest is None:
            return click.INT if some.item is int else click.FLOAT
        bounds: dict[str, Any] = {
            "min": lowest,
            "max": highest,
            "min_open": about.above is not None,
            "max_open": about.below is not None,
        }
        if some.item is int:
            for end in ("min", "max"):
                bounds[end] = None if bounds[end] is None else int(bounds[end])
        return click.IntRange(**bounds) if some.item is int else click.FloatRange(**bounds)
    return click.Path(path_type=Path) if some.item is Path else click.STRING


def _click_option(some: _Field) -> Callable[..., Any]:
    about = some.option
    flag = "--" + some.name.replace("_", "-")
    attributes: dict[str, Any] = {"help": about.help, "metavar": about.metavar}
    if some.item is bool and not some.is_tuple:
        # A flag that is off says only how to turn it on.
        names = flag if some.default is False else f"{flag}/--no-{flag[2:]}"
        shown = some.default is not False
        return click.option(names, some.name, is_flag=True, default=some.default,
                            show_default=shown, help=about.help)  # fmt: skip
    kind = _item_type(some)
    if some.is_tuple and some.item is Path:
        attributes |= {"type": kind, "multiple": True}
    else:
        attributes["type"] = _List(kind) if some.is_tuple else kind
    attributes["required"] = some.is_required
    if attributes.get("multiple") and not some.default:
        pass  # None is given, which the help need not say.
    elif about.default_text is not None:
        attributes["show_default"] = about.default_text
    elif not some.is_required and some.default is not None:
        plain = _plain(some, some.default)
        text = ",".join(map(str, plain)) or "none" if isinstance(plain, list) else str(plain)
        # For the help alone: `takes` leaves defaults to the config.
        attributes |= {"default": text, "show_default": True}
    return click.option(flag, some.name, **attributes)


# -- kinds of arguments -----------------------------------------------------------------------


class CachePlace(click.Path):
    """An existing folder, or an address, which is passed on as it is."""

    def __init__(self) -> None:
        super().__init__(exists=True, file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check a folder; leave an address alone."""
        return value if "://" in str(value) else super().convert(value, param, ctx)


class NewCache(click.Path):
    """The folder of a cache that is to be written."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

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
CACHE = CachePlace()
NEW_CACHE = NewCache()


def num_cores() -> int:
    """Return the cores this process may use: under Slurm and in containers fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_option() -> str:
    """Declare a field of an `Options` class as the option ``--device``."""
    text: str = option(
        "auto", help="auto, cpu, cuda or cuda:N.", default_text="CUDA if there is one, else the CPU"
    )
    return text
