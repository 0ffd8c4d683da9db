"""Functions that Numba compiles, and a cache on disk which sees all that their code came from.

Numba's own cache asks whether the file of a function has changed. It runs old code after a change
of what the function calls in another file [1], and recompiles a whole file after any edit of it.
Here the name of an entry is a digest of the function's bytecode and, through everything that it
calls, of functions, constants, options, types of arguments and versions. Entries are files of a
:class:`~pyro_ext._lib.cache.CodeFolder`, below ``NUMBA_CACHE_DIR`` or in the user's cache: damaged
entries are recompiled, and entries that others could have written are ignored.

[1] https://github.com/numba/numba/issues/1833
"""

import hashlib
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
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.errors import NumbaWarning
from numba.core.serialize import dumps
from numba.core.types import Type

from pyro_ext._lib.cache import CodeFolder, cache_path

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
    # With NUMBA_DISABLE_JIT it is not a dispatcher; and code is loaded with its function's module.
    if hasattr(dispatcher, "py_func") and dispatcher.py_func.__module__ in sys.modules:
        dispatcher._cache = _Cache(dispatcher)
    return dispatcher


class _Cache(NullCache):
    """Cache in which Numba finds and stores the machine code of a function."""

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher = dispatcher
        self._name = dispatcher.py_func.__qualname__

    @property
    def cache_path(self) -> str:
        return str(self._folder.path)

    @property
    def _folder(self) -> CodeFolder:
        configured = numba.config.CACHE_DIR  # type: ignore[attr-defined]
        return CodeFolder(Path(configured, "pyro_ext") if configured else cache_path("numba"))

    def load_overload(self, signature: Any, target: Any) -> Any:
        target.refresh()
        key = self._key(signature, target.codegen())
        found = key and self._folder.find(key)
        return found and CompileResult._rebuild(target, *pickle.loads(found[1]))

    def save_overload(self, signature: Any, result: Any) -> None:
        if result.library.has_dynamic_globals:
            self._warn("its code holds addresses of this process")
        elif key := self._key(signature, result.codegen):
            self._folder.keep(key, ".nbc", dumps(result._reduce()))

    def _key(self, signature: Any, codegen: Any) -> str | None:
        """Digest of the function as it is now, its arguments' types and the processor."""
        try:
            code = _digest((_VERSIONS, self._dispatcher, signature, codegen.magic_tuple()))
        except TypeError as error:
            self._warn(str(error))
            return None
        return f"{re.sub('[^.a-zA-Z0-9_]', '', self._name)}-{code}"

    def _warn(self, reason: str) -> None:
        warnings.warn(f"{self._name} is not cached: {reason}", NumbaWarning, stacklevel=3)


def _digest(value: Any) -> str:
    return hashlib.sha256(_text(value, []).encode()).hexdigest()[:20]


def _text(value: Any, seen: list[FunctionType]) -> str:
    """Write all that machine code depends on in a value as text, the same in every process."""

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
    if name and str(module).partition(".")[0] in _LIBRARIES:
        return f"{module}.{name}"
    if isinstance(value, type) and hasattr(value, "_fields"):  # a named tuple
        return listed(module, name, value._fields, getattr(value, "_field_defaults", None))
    if not isinstance(value, FunctionType) or module not in sys.modules:
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
    """Return the names of globals in code, and of attributes, since code does not separate them."""
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*map(_names, inner))
