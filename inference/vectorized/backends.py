"""Choice of how the steps of a run are taken, where it is left open."""

import os
import shutil
import sys

import torch

from pyro_ext.potential import Backend, BatchedFunction, warn_fallback
from pyro_ext.potential.batched import KernelBackend

# Seconds on a processor of some years ago.
_SECONDS_PER_OPERATION = 5e-6
_SECONDS_TO_COMPILE, _MORE_FOR_EACH_OPERATION = 4.0, 0.008
_COMPILERS = {"darwin": "clang++", "win32": "cl"}


def chosen_backend(
    backend: KernelBackend,
    function: BatchedFunction,
    num_evaluations: int,
    num_operations: int,
    device: torch.device,
    known: Backend | None,
) -> tuple[Backend, str]:
    """Choose how a function runs, and say so for a progress bar.

    :param str backend: what the kernel asks for.
    :param BatchedFunction function: what steps evaluate; its backend is set.
    :param int num_evaluations: how often.
    :param int num_operations: operations of a step beside those of the function.
    :param torch.device device: where it runs; devices other than CPUs compile only on request.
    :param str known: what was chosen before, for a run that goes on.
    :returns: the backend and the note.
    """
    graph = function.single()
    if graph is None:
        return function.backend, ""
    num_operations += len(graph.graph.nodes)
    note = ""
    if backend == "auto":
        pays = compiling_pays(num_operations, num_evaluations) and device.type == "cpu"
        function.backend = known or ("compile" if pays else "trace")
        if function.backend == "compile" and not _has_compiler():
            function.backend, note = "trace", "not compiled: no C++ compiler"
            warn_fallback("steps are not compiled", "running the graph", "no C++ compiler")
    if function.backend == "compile":
        note = f"compiling, some {_seconds_to_compile(num_operations):.0f} s, or loading"
    return function.backend, note


def compiling_pays(num_operations: int, num_evaluations: int) -> bool:
    """Tell whether compiling a loop pays off compared with running its small operations."""
    one_by_one = _SECONDS_PER_OPERATION * num_operations * num_evaluations
    return one_by_one > _seconds_to_compile(num_operations)


def _seconds_to_compile(num_operations: int) -> float:
    return _SECONDS_TO_COMPILE + _MORE_FOR_EACH_OPERATION * num_operations


def _has_compiler() -> bool:
    """Tell whether there is a C++ compiler where PyTorch looks for one."""
    name = os.environ.get("CXX", _COMPILERS.get(sys.platform, "g++"))
    return shutil.which(name) is not None
