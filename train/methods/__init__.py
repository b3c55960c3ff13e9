"""Which methods there are: the folders beside this file, and what other packages bring.

A folder ``my_method`` here is the method ``my-method``; its ``__init__.py`` names the class as
``METHOD``. Another package brings one as an entry point of the group ``clipocr.methods``, under
the method's name. None is imported before it is asked for, so a broken one is in nobody's way.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from typing import Any

from ...shared.errors import UsageError
from .base import Method

DEFAULT_METHOD = "clip-ocr"
ENTRY_POINTS = "clipocr.methods"


def method_names() -> tuple[str, ...]:
    """Return the names of all methods, the default first, then as the alphabet has them."""
    found = {*_folders(), *_entry_points()}
    return (DEFAULT_METHOD, *sorted(found - {DEFAULT_METHOD}))


def find_method(name: Any) -> type[Method]:
    """Return the method of that name: its class, whose fields are its settings.

    Raises:
        UsageError: there is none, or what another package brings is none.
    """
    if not isinstance(name, str):
        raise UsageError(f"method is {name!r}, expected a name")
    # Folders first: to look for entry points takes a tenth of a second.
    if name in _folders():
        package = importlib.import_module(f".{_folders()[name]}", __name__)
        found, origin = package.METHOD, package.__name__
    elif name in (points := _entry_points()):
        origin = points[name].value
        try:
            found = points[name].load()
        except (ImportError, AttributeError) as e:
            raise UsageError(f"method {name} ({origin}) cannot be imported: {e}") from e
    else:
        raise UsageError(f"method is {name!r}, expected one of {', '.join(method_names())}")
    if not (isinstance(found, type) and issubclass(found, Method) and found.name == name):
        raise UsageError(
            f"{origin} is not the method {name}; expected a subclass of "
            f"{Method.__module__}.Method whose name is {name!r}"
        )
    return found


def _folders() -> dict[str, str]:
    """Return method name -> folder."""
    return {
        module.name.replace("_", "-"): module.name
        for module in pkgutil.iter_modules(__path__)
        if module.ispkg
    }


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
