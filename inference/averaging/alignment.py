"""Permutations of hidden units that bring one network close to another."""

import copy
from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pyro_ext._lib import checks
from pyro_ext.inference.averaging.bezier_path import check_same_parameters


class _Axis(NamedTuple):
    """An axis along which a tensor holds units, each in so many elements that lie side by side."""

    units: int  # the number of a set of units
    dim: int
    repeats: int = 1


class _Tracer(fx.Tracer):
    """Takes each module that holds no other for one step."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children()) or super().is_leaf_module(
            m, module_qualified_name
        )


class _Units(fx.Interpreter):
    """Finds which axes of tensors and parameters hold the same units, by one run of a network."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.parents: list[int] = []  # of sets of units that are the same, up to the first
        self.axes: dict[fx.Node, _Axis] = {}
        self.parameters: dict[str, dict[int, _Axis]] = defaultdict(dict)  # by dimension
        self.reads: list[tuple[fx.Node, _Axis]] = []
        self.fixed: list[int] = []
        self.lost: list[str] = []
        self._written: dict[str, int] = {}
        self._values: dict[fx.Node, Any] = {}

    def root(self, units: int) -> int:
        """The first of the sets that are the same."""
        while self.parents[units] != units:
            units = self.parents[units]
        return units

    def run_node(self, n: fx.Node) -> Any:
        """Run a step, and follow the units through it."""
        value = self._values[n] = super().run_node(n)
        read = [node for node in n.all_input_nodes if node in self.axes]
        if n.op == "output":
            self.fixed += [self.axes[node].units for node in read]
            return value
        module = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, nn.Linear | _ConvNd) and not self._is_depthwise(module):
            self._weigh(n, module, value)
        elif read:
            self._pass_on(n, read, value)
            if module is not None and n in self.axes:
                self._scale(n, module, value.shape[self.axes[n].dim])
        return value

    @staticmethod
    def _is_depthwise(module: nn.Module) -> bool:
        return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels

    def _weigh(self, node: fx.Node, module: nn.Linear | _ConvNd, value: Tensor) -> None:
        """Take units in and put others out, as linear and convolution layers do."""
        name = str(node.target)
        if isinstance(module, _ConvNd) and (
            module.groups > 1 or isinstance(module, _ConvTransposeNd)
        ):
            raise ValueError(
                "module_b must have convolutions of one group, or of one for each channel, and "
                f"none that is transposed, got {name!r}, {module!r:.80}"
            )
        source = self.axes.get(node.all_input_nodes[0])
        if source is not None:
            self.reads.append((node.all_input_nodes[0], source))
            self._note(f"{name}.weight", source._replace(dim=1))
        if name not in self._written:
            self._written[name] = len(self.parents)
            self.parents.append(len(self.parents))
        for end in ("weight", "bias"):
            self._note(f"{name}.{end}", _Axis(self._written[name], 0))
        dim = value.dim() - 1 if isinstance(module, nn.Linear) else 1
        self.axes[node] = _Axis(self._written[name], dim)

    def _pass_on(self, node: fx.Node, read: list[fx.Node], value: Any) -> None:
        """Find the units of what keeps them, or lays out what belongs to each side by side."""
        found = []
        for source in read:
            axis, before = self.axes[source], self._values[source]
            size = before.shape[axis.dim]
            shape = value.shape if isinstance(value, Tensor) else ()
            if len(shape) > axis.dim and shape[axis.dim] == size:
                found.append(axis)
            elif len(shape) == 2 and axis.dim == 1 and shape[1] == before.shape[1:].numel():
                found.append(axis._replace(repeats=axis.repeats * before.shape[2:].numel()))
            elif isinstance(value, Tensor):
                self.lost.append(node.name)
        for axis in found[1:]:
            self._merge(found[0], axis)
        if found:
            self.axes[node] = found[0]

    def _note(self, name: str, axis: _Axis) -> None:
        """Note the units of a parameter; a layer that is used twice has the same each time."""
        self._merge(self.parameters[name].setdefault(axis.dim, axis), axis)

    def _merge(self, one: _Axis, other: _Axis) -> None:
        """Take two sets of units for the same."""
        self.parents[self.root(other.units)] = self.root(one.units)

    def _scale(self, node: fx.Node, module: nn.Module, size: int) -> None:
        """Note the parameters and buffers that a layer has for each unit."""
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.numel() == 1:
                continue
            dims = [dim for dim, length in enumerate(tensor.shape) if length == size]
            if len(dims) == 1 and tensor.numel() == size or self._is_depthwise(module):
                self._note(f"{node.target}.{name}", self.axes[node]._replace(dim=dims[0]))
            else:
                raise ValueError(
                    "module_b must consist of linear and convolution layers, and of others with at "
                    f"most one parameter for each unit, got {str(node.target)!r}, {module!r:.80}"
                )


class _Reader(fx.Interpreter):
    """Keeps what some steps of a network return."""

    def __init__(self, module: fx.GraphModule, kept: set[fx.Node]) -> None:
        super().__init__(module)
        self.kept = {node.name for node in kept}
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.kept:
            self.values[n.name] = value
        return value


@torch.no_grad()
def align_units(module_a: nn.Module, module_b: nn.Module, inputs: Tensor) -> nn.Module:
    """Permute the hidden units of a network to match those of another [1].

    Units are matched so that the sum of correlations between their activations is largest.
    Activations are taken as the next linear or convolution layer sees them. Layers whose outputs
    are added, as in the stages of a residual network, share one permutation, by correlations summed
    over these layers. The network still computes the same function, which is checked.

    :param torch.nn.Module module_a: the network to match.
    :param torch.nn.Module module_b: a network of the same architecture, made of linear and
        convolution layers, normalizations and operations on single units, which :mod:`torch.fx` can
        trace.
    :param Tensor inputs: inputs at which activations are compared. **Shape:** ``(n, *event)``.
    :returns: a copy of ``module_b`` with permuted units.
    :raises ValueError: for other architectures; the message names the layer.

    [1] Y. Li, J. Yosinski, J. Clune, H. Lipson, J. Hopcroft (2016),
    Convergent learning: do different neural networks learn the same representations?

    Example::

        >>> from pyro_ext.nn import MLP
        >>> network, inputs = MLP(3, [8], 2), torch.randn(50, 3)
        >>> other = MLP(3, [8], 2)
        >>> order = torch.randperm(8)
        >>> other.load_state_dict({
        ...     name: value[order] if name.startswith("0") else value[:, order]
        ...     if name == "2.weight" else value for name, value in network.state_dict().items()})
        <All keys matched successfully>
        >>> torch.equal(align_units(network, other, inputs)[0].weight, network[0].weight)
        True
    """
    check_same_parameters(module_a, module_b, "module_b")
    like = next(module_b.parameters())
    inputs = checks.as_tensor("inputs", inputs, "(n, ...)", like=like, finite=True)
    aligned = copy.deepcopy(module_b).eval()
    with checks.named_in_errors("inputs", inputs):
        before = aligned(inputs)
    checks.instance("module_b", before, Tensor, "a network that returns a tensor")
    try:
        graph = _Tracer().trace(aligned)
    except Exception as error:
        raise ValueError(
            f"module_b must be a network that torch.fx can trace, got {type(module_b).__name__}: "
            f"{error}"
        ) from error
    graphs = [fx.GraphModule(m, graph) for m in (copy.deepcopy(module_a).eval(), aligned)]
    units = _Units(graphs[1])
    units.run(inputs)
    orders = _orders(units, graphs, inputs)
    for name, tensor in aligned.state_dict().items():
        for axis in units.parameters.get(name, {}).values():
            order = orders.get(units.root(axis.units))
            if order is not None:
                each = order[:, None] * axis.repeats + torch.arange(axis.repeats).to(order)
                tensor.copy_(tensor.index_select(axis.dim, each.flatten()))
    after = aligned(inputs)
    tolerance = torch.finfo(like.dtype).eps ** 0.5 * float(before.abs().max())
    if not float((after - before).abs().max()) <= tolerance:
        where = f" at {units.lost[0]!r}" if units.lost else ""
        raise ValueError(
            "module_b must keep its units apart between linear and convolution layers, got "
            f"{type(module_b).__name__}, which mixes or reorders them{where}"
        )
    return aligned.train(module_b.training)


def _orders(units: _Units, graphs: list[fx.GraphModule], inputs: Tensor) -> dict[int, Tensor]:
    """Find the permutation of the second network's units that best matches the first, by set."""
    fixed = {units.root(number) for number in units.fixed}
    reads = {node: axis for node, axis in units.reads if units.root(axis.units) not in fixed}
    readers = [_Reader(graph, set(reads)) for graph in graphs]
    for reader in readers:
        reader.run(inputs)
    from scipy.optimize import linear_sum_assignment

    correlations: dict[int, Tensor] = {}
    for node, axis in reads.items():
        a, b = (_standardized(reader.values[node.name], axis) for reader in readers)
        root = units.root(axis.units)
        correlations[root] = correlations.get(root, 0) + a.T @ b / len(a)
    return {
        root: torch.from_numpy(linear_sum_assignment(sums.cpu().numpy(), maximize=True)[1]).to(
            inputs.device
        )
        for root, sums in correlations.items()
    }


def _standardized(activations: Tensor, axis: _Axis) -> Tensor:
    """Activations with mean 0 and variance 1, a column for each unit; zeros where constant."""
    by_unit = activations.movedim(axis.dim, -1).unflatten(-1, (-1, axis.repeats)).movedim(-1, 0)
    rows = by_unit.flatten(0, -2)
    deviations = rows - rows.mean(0)
    scale = deviations.square().mean(0).sqrt()
    return torch.where(scale > 1e-6 * scale.max(), deviations / scale, 0.0)
