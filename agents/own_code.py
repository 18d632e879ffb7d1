"""A user's own code, named on the command line as `module:attribute`: drivers and worlds."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any


def load_attribute(name: str, what: str = "policy", method: str = "act") -> Any:
    """Return what `module:attribute` names, the current folder included; `what` it is wanted for stands in the errors.

    Raises:
        ValueError: there is no such module or attribute; the message lists those with the `method` that is needed.
    """
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
    except Exception as error:
        raise ValueError(f"{what} {name!r}: {module_name} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        public = ", ".join(sorted(n for n, value in vars(module).items() if hasattr(value, method)))
        raise ValueError(f"{what} {name!r}: module {module_name!r} has no {attribute!r}; it has: {public or 'none of use'}")
    return getattr(module, attribute)
