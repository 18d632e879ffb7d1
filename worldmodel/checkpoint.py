"""Checkpoints of trainings: all that they need to go on, bit for bit, in one safetensors file, whole or not there at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .files import write_tensors

CHECKPOINT = "checkpoint.safetensors"
"""The file's name in a run folder."""


def use_bfloat16(asked: bool | None) -> bool:
    """Return whether a training multiplies matrices in bfloat16: as asked, or if None where this processor is fast in it.

    Without AVX-512, convolutions in bfloat16 took 13 times as long as in float32 (AMD EPYC with AVX2, torch 2.13).
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX512" if asked is None else asked


def write_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    header: Mapping[str, str],
) -> None:
    """Write weights, optimiser, random generators (torch's own too, of which dropout draws) and `header` into a run folder."""
    tensors = {f"{part}.{name}": tensor for part, module in modules.items() for name, tensor in module.state_dict().items()}
    tensors |= {"generator": generator.get_state(), "global_generator": torch.get_rng_state()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    write_tensors(folder / CHECKPOINT, tensors, header)


def read_header(folder: Path) -> dict[str, str]:
    """Return the header of a run folder's checkpoint.

    Raises:
        ValueError: there is no checkpoint, or it is broken.
    """
    path = folder / CHECKPOINT
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata())
    except (OSError, SafetensorError, TypeError) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: cannot go on from it ({str(error).splitlines()[0]}): start afresh in another folder")


def read_checkpoint(
    folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> dict[str, str]:
    """Restore what `write_checkpoint` wrote into the given objects; return its header.

    Raises:
        ValueError: there is no checkpoint, or it is broken or of other sizes.
    """
    path = folder / CHECKPOINT
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = dict(file.metadata())
        part = lambda head: {n.removeprefix(head): t for n, t in tensors.items() if n.startswith(head)}  # noqa: E731
        for name, module in modules.items():
            module.load_state_dict(part(f"{name}."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("optimizer.").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        generator.set_state(tensors["generator"])
        torch.set_rng_state(tensors["global_generator"])
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError) as error:
        raise _unusable(path, error) from error
    return header
