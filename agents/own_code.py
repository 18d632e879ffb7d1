"""A user's own code, named on the command line as `module:attribute`: drivers and worlds."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def load_own(name: str, what: str, methods: Sequence[str], see: str) -> Any:
    """Return the object that `module:attribute` names, or that the class or function there makes without arguments.

    Args:
        name: `module:attribute`; modules of the current folder are found too.
        what: it is wanted for, and `see` where that is described; both stand in the errors.
        methods: it must have.
        see: a name to look up.

    Raises:
        ValueError: there is no such module or attribute, it cannot be imported or made, or it lacks one of the `methods`.
    """
    found = _attribute(name, what, methods[0])
    lacking = lambda thing: [method for method in methods if not callable(getattr(thing, method, None))]  # noqa: E731
    if inspect.isclass(found) or (callable(found) and lacking(found)):
        needed = [p.name for p in inspect.signature(found).parameters.values() if _is_needed(p)]
        if needed:
            told = f"{what} {name!r} needs arguments ({', '.join(needed)}), wanted none"
            raise ValueError(f"{told}: give an object or a function without any")
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise ValueError(f"{what} {name!r} raised {type(error).__name__} when it was made: {error}") from error
    if lacking(found):
        raise ValueError(f"{what} {name!r} is a {type(found).__name__} without {' and '.join(lacking(found))}: see {see}")
    return found


def _is_needed(parameter: inspect.Parameter) -> bool:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in variadic


def _attribute(name: str, what: str, method: str) -> Any:
    """Return what `module:attribute` names; errors list the attributes there that have the `method`."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{what} {name!r}: wanted module:attribute, such as my_module:MyClass")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"{what} {name!r}: {module_name} imports {error.name}, which is not installed") from error
        raise ValueError(
            f"{what} {name!r}: there is no module {module_name!r} in {here} or among the installed ones: "
            "write module:attribute, without .py"
        ) from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{what} {name!r}: {module_name} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        public = ", ".join(sorted(n for n, value in vars(module).items() if hasattr(value, method)))
        raise ValueError(f"{what} {name!r}: module {module_name!r} has no {attribute!r}; it has: {public or 'none of use'}")
    return getattr(module, attribute)
