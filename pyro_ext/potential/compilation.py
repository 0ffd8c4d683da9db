"""Machine code of recorded graphs: made by PyTorch's compiler, kept for later processes."""

import contextlib
import hashlib
import importlib.util
import itertools
import json
import logging
import operator
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from pyro_ext._lib.cache import CodeFolder, cache_path
from pyro_ext._version import __version__
from pyro_ext.potential.graph_capture import collection_paused

TensorFunction = Callable[..., Any]

_ENTRY = "inductor_entry_cpp"  # what the compiler calls the function of a library
_ADDRESS = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"  # which the library reads as it is loaded
_OPTIONS = {
    "cpp_wrapper": True,  # otherwise Python calls the kernels, which is most of a short step
    "cpp_wrapper_build_separate": True,  # kernels are optimized, what calls them hardly
    "cpp_cache_precompile_headers": False,  # which takes longer than several graphs without it
    # What calls the kernels: a third faster to compile than with -O1, and as fast.
    "aot_inductor.compile_wrapper_opt_level": "Og",
    "aot_inductor.enable_line_tables": False,  # for debuggers
    # With new layouts of images, the compiler miscompiles convolutions of several networks at once.
    "layout_optimization": False,
}
# Vector instructions and patterns of large operations gain nothing for small tensors, and take half
# of the compiler's time.
_SMALL = {"cpp.simdlen": 1, "pattern_matcher": False}
_SMALL_ELEMENTS = 1 << 16
_MOST_IN_SINGLE_PRECISION = 1 << 10  # numbers that are added up one after the other
_MOST_KEPT_NUMBERS = 10_000  # of frozen tensors that are kept with machine code
_library_numbers = itertools.count()


def compile_graph(graph: GraphModule, *example: Tensor) -> TensorFunction:
    """Compile a captured graph to machine code.

    On the CPU the code is kept in the user's cache folder, by a digest of the graph, of versions
    and of the processor, and a later process loads it from there. Tensors that the graph has frozen
    are not part of the code.

    :param GraphModule graph: a captured function.
    :param example: its arguments.
    :returns: the function, for arguments of the same shapes and types.
    """
    if any(tensor.device.type != "cpu" for tensor in example):
        return _compile_in_memory(graph, *example)
    lifted, constants, structure = lift_constants(graph)
    arguments = [*(tensor.detach().contiguous() for tensor in example), *constants]
    shapes = [(tensor.shape, tensor.dtype) for tensor in example]
    key = _digest(lifted, arguments)
    return CompiledGraph(_entry(key, lifted, arguments), constants, structure, shapes, graph, key)


class CompiledGraph:
    """Machine code of a graph, and the tensors that the graph has frozen."""

    def __init__(
        self,
        entry: Callable[..., Any],
        constants: list[Tensor],
        structure: pytree.TreeSpec,
        shapes: list[tuple[torch.Size, torch.dtype]],
        graph: GraphModule | None,
        key: str,
    ) -> None:
        self._entry, self.constants, self.key = entry, constants, key
        self.structure, self._shapes, self._graph = structure, shapes, graph

    def __call__(self, *tensors: Tensor) -> Any:
        """Run it; the graph itself for other shapes."""
        if [(tensor.shape, tensor.dtype) for tensor in tensors] != self._shapes:
            if self._graph is None:
                raise ValueError(f"tensors must have the shapes {self._shapes}")
            return self._graph(*tensors)
        inputs = [*(tensor.detach().contiguous() for tensor in tensors), *self.constants]
        handles = self._entry(torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(inputs))
        outputs = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(handles)
        return pytree.tree_unflatten(outputs, self.structure)

    def with_constants(self, replaced: Mapping[int, Tensor]) -> "CompiledGraph | None":
        """The same code with other frozen tensors, ``None`` where it lacks one of them.

        :param Mapping replaced: new tensors of the same shapes and strides, by identity of the old.
        """
        if not replaced.keys() <= {id(constant) for constant in self.constants}:
            return None
        constants = [replaced.get(id(constant), constant) for constant in self.constants]
        return CompiledGraph(self._entry, constants, self.structure, self._shapes, None, self.key)


def keep_as(name: str, compiled: CompiledGraph, known: Sequence[Tensor]) -> None:
    """Let a later process find machine code by a name, without the graph; see :func:`kept_as`.

    :param str name: tells all that the graph was made from but numbers in frozen tensors.
    :param CompiledGraph compiled: the code.
    :param Sequence known: frozen tensors that the other process has numbers of its own for.
    """
    places = {id(tensor): place for place, tensor in enumerate(known)}
    own = [tensor for tensor in compiled.constants if id(tensor) not in places]
    if sum(tensor.numel() for tensor in own) > _MOST_KEPT_NUMBERS:
        return
    content = {
        "code": compiled.key,
        "num_results": compiled.structure.num_leaves,
        "constants": [places.get(id(each), each) for each in compiled.constants],
    }
    text = json.dumps(content, default=_as_plain).encode()
    CodeFolder(cache_path("compiled")).keep(_digest_of(_environment(name)), ".json", text)


def kept_as(
    name: str, known: Sequence[Tensor], shapes: list[tuple[torch.Size, torch.dtype]]
) -> CompiledGraph | None:
    """Return machine code that :func:`keep_as` kept, for a function that returns a tuple.

    To find it by its graph, the graph would have to be recorded first.

    :param str name: as it was kept.
    :param Sequence known: frozen tensors in place of those that were known then.
    :param list shapes: shapes and types of arguments.
    """
    folder = CodeFolder(cache_path("compiled"))
    if (found := folder.find(_digest_of(_environment(name)))) is None:
        return None
    content = json.loads(found[1])
    if (library := folder.find(content["code"])) is None:
        return None
    constants = [
        known[each] if isinstance(each, int) else _from_plain(each) for each in content["constants"]
    ]
    structure = pytree.tree_structure((0,) * content["num_results"])
    with contextlib.suppress(OSError, ImportError):
        entry = _load(library[0])
        return CompiledGraph(entry, constants, structure, shapes, None, content["code"])
    return None


def _as_plain(tensor: Tensor) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(tensor.shape), "numbers": tensor.flatten().tolist()}


def _from_plain(content: Mapping[str, Any]) -> Tensor:
    numbers = torch.tensor(content["numbers"], dtype=getattr(torch, content["dtype"]))
    return numbers.reshape(content["shape"])


def _compile_in_memory(graph: GraphModule, *example: Tensor) -> TensorFunction:
    """Compile for other devices, whose code this process keeps."""
    options: dict[str, Any] = {"layout_optimization": False}
    compiled = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
    config = {"automatic_dynamic_shapes": False, "assume_static_by_default": True}
    with torch.no_grad(), torch._dynamo.config.patch(config), _deprecations_ignored():
        compiled(*example)
    return compiled


@contextlib.contextmanager
def _deprecations_ignored() -> Iterator[None]:
    """Only PyTorch runs inside, which uses what it deprecates and logs what it lacks."""
    logger = logging.getLogger("torch._inductor.ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


# Graphs without constants ------------------------------------------------------------------------


def lift_constants(graph: GraphModule) -> tuple[GraphModule, list[Tensor], pytree.TreeSpec]:
    """Make arguments of the tensors that a graph, and loops in it, have frozen."""
    constants = {id(tensor): tensor for tensor in _frozen_tensors(graph)}
    lifted = _with_arguments(graph, list(constants))
    (output,) = lifted.graph.find_nodes(op="output")
    leaves, structure = pytree.tree_flatten(output.args[0])
    output.args = (tuple(leaves),)
    lifted.recompile()
    return lifted, list(constants.values()), structure


def _frozen_tensors(module: GraphModule) -> Iterator[Tensor]:
    for node in module.graph.find_nodes(op="get_attr"):
        value = operator.attrgetter(node.target)(module)
        if isinstance(value, GraphModule):
            yield from _frozen_tensors(value)
        else:
            yield value


def _with_arguments(module: GraphModule, identities: Sequence[int]) -> GraphModule:
    """Copy a graph whose frozen tensors become arguments, in the given order."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    parts: dict[str, GraphModule] = {}
    for node in module.graph.find_nodes(op="placeholder"):
        copies[node] = graph.node_copy(node)
    arguments = {
        identity: graph.placeholder(f"constant{number}")
        for number, identity in enumerate(identities)
    }
    for node in module.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "get_attr":
            value = operator.attrgetter(node.target)(module)
            if not isinstance(value, GraphModule):
                copies[node] = arguments[id(value)]
                continue
            parts[node.target] = _with_arguments(value, identities)
        copy = copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.target is torch.ops.higher_order.while_loop:
            condition, body, carried, additional = cast(tuple[Any, ...], copy.args)
            copy.args = (condition, body, carried, (*additional, *arguments.values()))
    return GraphModule(parts, graph)


# Libraries of machine code -----------------------------------------------------------------------


def _entry(key: str, graph: GraphModule, arguments: Sequence[Tensor]) -> Callable[..., Any]:
    """Entry function of the machine code of a graph, from the cache where it is there."""
    folder = CodeFolder(cache_path("compiled"))
    if found := folder.find(key):
        with contextlib.suppress(OSError, ImportError):
            return _load(found[0])
    library = _make_library(graph, arguments)
    folder.keep(key, library.suffix, library.read_bytes())
    return _load(library)


def _digest(graph: GraphModule, arguments: Sequence[Tensor]) -> str:
    """Digest of all that the machine code depends on."""
    modules = [module for module in graph.modules() if isinstance(module, GraphModule)]
    content = [
        *(module.code for module in modules),
        *(str((x.shape, x.stride(), x.dtype, str(x.device))) for x in arguments),
    ]
    return _digest_of(_environment(*content))


def _environment(*content: str) -> list[str]:
    """Add versions, processor and options to what is given: machine code depends on them."""
    return [
        *content,
        str((__version__, torch.__version__, torch.version.git_version, sys.implementation)),
        str((sorted(torch.cpu.get_capabilities().items()), torch.get_num_threads())),
        str((torch.get_float32_matmul_precision(), _OPTIONS, _SMALL, _MOST_IN_SINGLE_PRECISION)),
        *sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith("TORCHINDUCTOR_")),
    ]


def _digest_of(content: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(content).encode()).hexdigest()


@collection_paused()
@_deprecations_ignored()
def _make_library(graph: GraphModule, arguments: Sequence[Tensor]) -> Path:
    """Compile a graph, and return the path of its library in the compiler's own folder."""
    from torch._inductor import cpu_vec_isa
    from torch._inductor.exc import CppCompileError

    try:
        # Else up to five programs are compiled to see whether the compiler knows the processor.
        with mock.patch.object(cpu_vec_isa.VecISA, "check_build", return_value=True):
            return _compiled_library(graph, arguments, {})
    except Exception as error:
        if not isinstance(getattr(error, "inner_exception", error), CppCompileError):
            raise
        # It may not know all instructions; what it was thought to know is cached.
        return _compiled_library(graph, arguments, {"cpp.simdlen": 1})


def _compiled_library(
    graph: GraphModule, arguments: Sequence[Tensor], options: Mapping[str, Any]
) -> Path:
    """Compile a graph with further options of PyTorch's compiler."""
    # Imported here: the compiler is slow to import, and most processes find their code made.
    from torch._inductor import codecache, config
    from torch._inductor.compile_fx import _recursive_joint_graph_passes, compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
    fake = [mode.from_tensor(argument) for argument in arguments]
    is_small = _is_small(graph, arguments)
    options = {**_OPTIONS, **(_SMALL if is_small else {}), **options}
    build = partial(_built_side_by_side, codecache._worker_compile_cpp)
    side_by_side = mock.patch.object(codecache, "_worker_compile_cpp", build)
    with torch.no_grad(), config.patch(options), side_by_side, tracing(TracingContext(mode)):
        with mode:
            record = make_fx(lambda *x: graph(*x), decomposition_table=select_decomp_table())(*fake)
        if not is_small:
            _recursive_joint_graph_passes(record)
        compiled: Any = compile_fx_inner(record, fake, cpp_wrapper=True, is_inference=True)
    return Path(compiled.current_callable.__globals__["inductor_entry"].__self__.__file__)


def _built_side_by_side(
    build: Callable[[str, Sequence[Any]], None], lock_path: str, builders: Sequence[Any]
) -> None:
    """Run the compiler for kernels and for what calls them at the same time, then the linker."""
    *sources, last = builders
    with ThreadPoolExecutor(max(1, len(sources))) as pool:
        for number, source in enumerate(sources):
            pool.submit(build, f"{lock_path}.{number}", (source,))
    build(lock_path, (*sources, last))  # which passes over what is there, and raises what failed


def _is_small(graph: GraphModule, arguments: Sequence[Tensor]) -> bool:
    """Tell whether all tensors are small, and sums over them short for their precision."""
    modules = [module for module in graph.modules() if isinstance(module, GraphModule)]
    values = [node.meta.get("val") for module in modules for node in module.graph.nodes]
    tensors = [*arguments, *(value for value in values if isinstance(value, Tensor))]
    return all(
        tensor.numel() <= _SMALL_ELEMENTS
        and (
            tensor.dtype != torch.float32
            or max(tensor.shape, default=0) <= _MOST_IN_SINGLE_PRECISION
        )
        for tensor in tensors
    )


def _load(library: Path) -> Callable[..., Any]:
    """Load a library, which is an extension module."""
    before = os.environ.get(_ADDRESS)
    guards: Any = torch._C._dynamo.guards
    os.environ[_ADDRESS] = str(guards._torchinductor_pyobject_tensor_data_ptr)
    try:
        name = f"pyro_ext_compiled{next(_library_numbers)}.{_ENTRY}"
        spec = importlib.util.spec_from_file_location(name, library)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del os.environ[_ADDRESS]
        else:
            os.environ[_ADDRESS] = before
    entry: Callable[..., Any] = getattr(module, _ENTRY)
    return entry
