"""Pickles of plain data: numbers, texts, containers and numpy arrays. Nothing that a file names is ever imported or called.

A pickle is a program that can name any function and call it, so loading a foreign one with Python's own loader runs foreign code.
Here every instruction is looked at before the first one runs, and the few names that plain data need stand for builders of ours,
so that neither numpy's unpickling nor anything else can be reached by name. The documentation of `pickle` ("Restricting globals")
describes the way; the names are those that numpy 1 and numpy 2 write.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

REFUSED_INSTRUCTIONS = {
    **dict.fromkeys(("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"), "makes an object of a class"),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), "names a registered extension"),
    **dict.fromkeys(("PERSID", "BINPERSID"), "refers to an object outside of the file"),
    **dict.fromkeys(("NEXT_BUFFER", "READONLY_BUFFER"), "refers to a buffer outside of the file"),
}

KINDS = re.compile(r"b1|[iu][1248]|f[248]|U\d{1,4}")
"""Types of array elements that hold no Python object, as numpy writes them: truth values, numbers, texts."""


class RefusedPickleError(ValueError):
    """A pickle that holds more than plain data, or is damaged; the message says what was refused."""


class PlainArray:
    """An array read from a pickle; `numpy.asarray` makes it one. It is none yet, so that no instruction can alter one."""

    __slots__ = ("_array",)

    def __init__(self, array: np.ndarray | None = None):
        self._array = array

    def __setstate__(self, state: Any) -> None:
        """Take what numpy writes: (version, shape, type, whether columns come first, bytes).

        Raises:
            RefusedPickleError: the state is another one, or the bytes do not fill the shape.
        """
        if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[4], bytes | bytearray)):
            raise RefusedPickleError("an array whose state is not the one that numpy writes (shape, type, bytes)")
        self._array = _array(state[4], state[2], state[1], "F" if state[3] else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the array, empty if the pickle held no state for it."""
        return np.array([] if self._array is None else self._array, dtype=dtype)

    def __len__(self) -> int:
        """The size of the first dimension."""
        return len(np.asarray(self))


class _Kind:
    """The type of array elements, such as `f4`, with the byte order that its state names."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, *_: Any):
        if not isinstance(code, str) or not KINDS.fullmatch(code):
            raise RefusedPickleError(f"an array of type {code!r}: only numbers, truth values and texts are read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) >= 5 and state[1] in ("<", ">", "|", "=") and not any(state[2:5])):
            raise RefusedPickleError("an array type with parts or fields of its own")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Builder:
    """What a name in a pickle stands for. It can be called, and no instruction can change it."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]):
        self._build = build

    def __call__(self, *arguments: Any) -> Any:
        return self._build(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise RefusedPickleError("an instruction that changes a function")


def _array(data: Any, kind: Any, shape: Any, order: str) -> np.ndarray:
    """Return the array that `data` fills exactly."""
    if not isinstance(kind, _Kind) or not isinstance(data, bytes | bytearray) or order not in ("C", "F"):
        raise RefusedPickleError("an array without bytes or type")
    if not isinstance(shape, tuple) or any(type(size) is not int or size < 0 for size in shape) or len(shape) > 8:
        raise RefusedPickleError(f"an array of shape {shape!r:.80}")
    if math.prod(shape) * kind.dtype.itemsize != len(data) or kind.dtype.itemsize == 0:
        raise RefusedPickleError(f"an array of shape {shape} and type {kind.dtype} in {len(data)} bytes")
    return np.frombuffer(data, kind.dtype).reshape(shape, order=order)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _scalar(kind: Any, data: Any) -> Any:
    if isinstance(kind, _Kind) and kind.dtype.itemsize == 0:  # the empty text
        return ""
    return _array(data, kind, (1,), "C").item()


def _latin(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1":
        raise RefusedPickleError(f"bytes in the encoding {encoding!r:.80}")
    return text.encode("latin1")


def _nothing(*_: Any) -> Any:
    raise RefusedPickleError("a call of numpy.ndarray")


BUILDERS: dict[tuple[str, str], _Builder] = {
    ("numpy", "ndarray"): _Builder(_nothing),
    ("numpy", "dtype"): _Builder(_Kind),
    ("_codecs", "encode"): _Builder(_latin),
    ("collections", "OrderedDict"): _Builder(dict),
    **{(module, kind.__name__): _Builder(kind) for module in ("builtins", "__builtin__") for kind in (set, frozenset)},
    **{(module, "bytes"): _Builder(lambda: b"") for module in ("builtins", "__builtin__")},
}
"""Every name that a pickle may hold, and what it stands for; `numpy.ndarray` only as the argument of `_reconstruct`."""

for core in ("numpy.core", "numpy._core"):  # numpy 1, numpy 2
    BUILDERS[core + ".multiarray", "_reconstruct"] = _Builder(lambda *_: PlainArray())
    BUILDERS[core + ".multiarray", "scalar"] = _Builder(_scalar)
    BUILDERS[core + ".numeric", "_frombuffer"] = _Builder(
        lambda data, kind, shape, order: PlainArray(_array(data, kind, shape, order))
    )


class _Unpickler(pickle.Unpickler):
    """Python's unpickler, which knows no other names than `BUILDERS`."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = BUILDERS.get((module_name, global_name))
        if found is None:
            raise RefusedPickleError(f"the name {module_name}.{global_name}, which is neither an array nor a plain container")
        return found


def _check_instructions(data: bytes) -> None:
    """Raise unless `data` is whole and holds only instructions that build plain data and claim no more than what is there.

    Lengths are checked by reading what they announce, places in the memo (the list of parts that later ones refer to) against the
    number of instructions, since Python's loader makes room for whatever number it finds.
    """
    for number, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        if instruction.name in REFUSED_INSTRUCTIONS:
            raise RefusedPickleError(f"the instruction {instruction.name}, which {REFUSED_INSTRUCTIONS[instruction.name]}")
        if instruction.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= (argument or 0) <= number:
            raise RefusedPickleError(f"place {argument} of the memo after {number} instructions")


def load_plain(data: bytes) -> Any:
    """Return what a pickle of plain data holds: arrays as `PlainArray`, numpy's scalars as Python's.

    Raises:
        RefusedPickleError: it is damaged, or holds anything else; nothing of it has been run then but what builds plain data.
    """
    try:
        _check_instructions(data)
        return _Unpickler(io.BytesIO(data)).load()
    except RefusedPickleError:
        raise
    except (pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise RefusedPickleError(f"no whole pickle ({error})") from error
