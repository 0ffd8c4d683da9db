"""Functions that Numba compiles, and a cache on disk which sees all that their code came from.

Numba's own cache asks whether the file of a function has changed. It runs old code after a change
of what the function calls in another file [1], and compiles a whole file anew after any edit of it.
Here the name of an entry is a digest of the function's bytecode and, through everything that it
calls, of functions, constants, options and versions. An entry is one file, so that processes that
compile the same function for different arguments do not overwrite each other's.

[1] https://github.com/numba/numba/issues/1833
"""

import contextlib
import hashlib
import inspect
import pickle
import re
import sys
import warnings
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from types import CodeType, EllipsisType, FunctionType, ModuleType, NoneType
from typing import Any, TypeVar, overload

import llvmlite
import numba
import numpy as np
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.dispatcher import Dispatcher
from numba.core.errors import NumbaWarning
from numba.core.types import Type

_VERSIONS = (numba.__version__, llvmlite.__version__, np.__version__, sys.version)
# What these packages hold is known by its name and their versions.
_LIBRARIES = {"builtins", "cmath", "math", "numba", "numpy", "operator"}
_PLAIN = (bool, int, float, complex, str, bytes, NoneType, EllipsisType, np.generic, np.dtype)
_OF_CODE = """co_code co_exceptiontable co_flags co_consts co_names co_varnames co_freevars
co_argcount co_posonlyargcount co_kwonlyargcount""".split()

F = TypeVar("F", bound=Callable[..., Any])


@overload
def compiled(function: F, /) -> F: ...
@overload
def compiled(**options: Any) -> Callable[[F], F]: ...
def compiled(function: Any = None, /, **options: Any) -> Any:
    """Compile a function of a module with :func:`numba.njit`, and keep its machine code on disk."""
    if function is None:
        return lambda function: compiled(function, **options)
    dispatcher: Any = numba.njit(**options)(function)
    if hasattr(dispatcher, "py_func"):  # not with NUMBA_DISABLE_JIT
        with contextlib.suppress(RuntimeError):  # no folder
            dispatcher._cache = _Cache(dispatcher)
    return dispatcher


class _Cache(FunctionCache):
    """Numba's cache of a function, with other keys and files."""

    def __init__(self, dispatcher: Any) -> None:
        FunctionCache.__init__(self, dispatcher.py_func)
        self._dispatcher = dispatcher
        source = Path(inspect.getfile(dispatcher.py_func))
        name = f"{source.stem}.{dispatcher.py_func.__qualname__}.{sys.implementation.cache_tag}"
        self._cache_file: Any = _Entries(Path(self._cache_path), re.sub("[<>]", "", name))

    def _index_key(self, sig: Any, codegen: Any) -> str | None:
        """Digests of the function as it is now, and of its arguments' types and the processor."""
        try:
            function = _digest((_VERSIONS, self._dispatcher))
            return f"{function}-{_digest((sig, codegen.magic_tuple()))}"
        except TypeError as error:
            warnings.warn(f"{self._name} is not cached: {error}", NumbaWarning, stacklevel=2)
            return None


class _Entries:
    """Files of a function, one for each key, in place of Numba's index and numbered files."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._files: Any = IndexDataCacheFile(folder, name, None)  # reads, and writes in one step

    def load(self, key: str | None) -> Any:
        try:
            return key and self._files._load_data(f"{self._name}-{key}.nbc")
        except (OSError, EOFError, pickle.UnpicklingError):
            return None

    def save(self, key: str | None, data: Any) -> None:
        if key is not None:
            with contextlib.suppress(OSError):
                self._files._save_data(f"{self._name}-{key}.nbc", data)
                self._remove_all_but(key.partition("-")[0])

    def flush(self) -> None:
        self._remove_all_but("")

    def _remove_all_but(self, digest: str) -> None:
        """Delete what was compiled from other states of the function."""
        for path in self._folder.glob(f"{self._name}-*.nbc"):
            if not path.name.startswith(f"{self._name}-{digest}-"):
                path.unlink(missing_ok=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(_text(value, []).encode()).hexdigest()[:20]


def _text(value: Any, seen: list[FunctionType]) -> str:
    """What machine code takes from a value, as a text that is the same in every process."""

    def listed(*parts: Any) -> str:
        return f"{type(value).__name__}({', '.join(_text(part, seen) for part in parts)})"

    if isinstance(value, _PLAIN):
        return f"{type(value).__name__}({value!r})"
    if isinstance(value, tuple):
        return listed(*value)
    if isinstance(value, set | frozenset):
        return listed(*sorted(_text(item, seen) for item in value))
    if isinstance(value, dict):
        return listed(*sorted(value.items(), key=itemgetter(0)))
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return listed(value.dtype, value.shape, value.strides, value.tobytes())
    if isinstance(value, Type):
        return listed(value.key)
    if isinstance(value, Dispatcher):
        return listed(value.targetoptions, value.py_func)
    if isinstance(value, CodeType):
        return listed(*(getattr(value, name) for name in _OF_CODE))
    name = getattr(value, "__qualname__", getattr(value, "__name__", ""))
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    if name and module.partition(".")[0] in _LIBRARIES:
        return f"{module}.{name}"
    if isinstance(value, type) and hasattr(value, "_fields"):  # a named tuple
        return listed(module, name, value._fields, getattr(value, "_field_defaults", None))
    if not isinstance(value, FunctionType):
        raise TypeError(f"{value!r} may change unseen")
    if value in seen:
        return f"function {seen.index(value)}"
    seen.append(value)
    code = value.__code__
    if code.co_consts[:1] == (value.__doc__,):
        code = code.replace(co_consts=(None, *code.co_consts[1:]))
    used = {name: value.__globals__[name] for name in _names(code) & value.__globals__.keys()}
    cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
    return listed(module, name, code, value.__defaults__, value.__kwdefaults__, used, cells)


def _names(code: CodeType) -> set[str]:
    """Names of globals in code, and of attributes, which are not told apart."""
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*map(_names, inner))
