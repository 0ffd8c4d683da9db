r"""Low-rank adapters of linear layers, and their files.

A product of two thin matrices is added to a frozen layer :math:`W_0`:
:math:`W_0 + \frac{\alpha}{r} B A` [1]. Among all pairs with the same product, there is one in which
:math:`A` has orthonormal rows [2].

[1] E. Hu, Y. Shen, P. Wallis, Z. Allen-Zhu, Y. Li, S. Wang, L. Wang, W. Chen (2022), LoRA: low-rank
adaptation of large language models.

[2] S. Lee, S. Park, D. B. Lee, D. Wagner, H. Seong, T. Bocklet, J. Lee, S. J. Hwang (2025), FedSVD:
adaptive orthogonalization for private federated learning with LoRA.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import linear

from pyro_ext._lib import checks


class LoRALinear(nn.Module):
    r"""A frozen linear layer plus an adapter: :math:`(W_0 + \frac{\alpha}{r} B A) x + b`.

    Initially, :math:`B` is zero and the entries of :math:`A` are uniform on
    :math:`\pm 1 / \sqrt{d_\text{in}}` [1]. Code that reads :attr:`weight` and :attr:`bias` instead
    of calling the layer, such as :class:`torch.nn.MultiheadAttention`, gets the adapted ones.

    :param torch.nn.Linear base: the layer; it is copied, and the copy is frozen.
    :param int rank: :math:`r`, at most the number of inputs.
    :param float alpha: :math:`\alpha`, by default :math:`r`.
    :param bool train_A: whether :math:`A` is trained; :math:`B` always is.
    :param float dropout: the probability of dropping an input of the adapter during training.
    :param torch.Generator generator: the generator for :math:`A`. Default: PyTorch's global one.
    :raises TypeError: for other kinds of layers.
    :raises ValueError: if numbers are out of range.

    [1] E. Hu et al. (2022), LoRA: low-rank adaptation of large language models, section 4.1.

    Example::

        >>> layer = LoRALinear(torch.nn.Linear(6, 4), rank=2)
        >>> layer(torch.ones(3, 6)).shape, layer.delta().shape, bool(layer.delta().any())
        (torch.Size([3, 4]), torch.Size([4, 6]), False)
        >>> [name for name, p in layer.named_parameters() if p.requires_grad]
        ['A', 'B']
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int = 8,
        alpha: float | None = None,
        *,
        train_A: bool = True,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        checks.instance("base", base, nn.Linear, "a torch.nn.Linear, of which alone LoRA is made")
        self.rank = checks.integer("rank", rank, 1)
        if rank > base.in_features:
            raise ValueError(f"rank must be at most the {base.in_features} inputs, got {rank}")
        checks.optional(checks.number, "alpha", alpha, above=0.0)
        self.alpha = float(rank if alpha is None else alpha)
        self.dropout = checks.number("dropout", dropout, least=0.0, below=1.0)
        checks.boolean("train_A", train_A)
        checks.optional(
            checks.instance, "generator", generator, torch.Generator, "a torch.Generator"
        )
        self.base = copy.deepcopy(base).requires_grad_(False)
        weight = self.base.weight
        self.A = nn.Parameter(weight.new_empty(rank, base.in_features), requires_grad=train_A)
        self.B = nn.Parameter(weight.new_empty(base.out_features, rank))
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Reset the adapter, with :math:`B` at zero.

        :param torch.Generator generator: the generator for :math:`A`. Default: PyTorch's global
            one.
        """
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5.0), generator=generator)
        self.B.zero_()

    @property
    def scale(self) -> float:
        r""":math:`\alpha / r`."""
        return self.alpha / self.rank

    @property
    def weight(self) -> Tensor:
        """The adapted weight. **Shape:** ``(out_features, in_features)``."""
        return self.base.weight + self.scale * self.delta()

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer."""
        return self.base.bias

    def delta(self) -> Tensor:
        """The product :math:`B A`, without its scale. **Shape:** that of :attr:`weight`."""
        return self.B @ self.A

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        :param Tensor x: **Shape:** ``(*batch, in_features)``.
        :returns: **Shape:** ``(*batch, out_features)``.
        """
        inner = drop(x, self.dropout, self.training) if self.dropout else x
        return self.base(x) + self.scale * linear(linear(inner, self.A), self.B)  # type: ignore[no-any-return]

    @torch.no_grad()
    def refactorize(self) -> None:
        r"""Give :math:`A` orthonormal rows and :math:`B` orthogonal columns, with the same product.

        They are the factors of :math:`B A = U S V^\top`, namely :math:`A = V^\top` and
        :math:`B = U S`, computed from decompositions of the thin factors only. If the product does
        not have full rank, the remaining rows of :math:`A` come from its current row space. If
        :math:`B` is zero, nothing changes. Afterward, reset the state that an optimizer keeps for
        the factors: it is no longer valid.

        Example::

            >>> layer = LoRALinear(torch.nn.Linear(6, 4), rank=2)
            >>> _ = torch.nn.init.normal_(layer.B)
            >>> before = layer.delta()
            >>> layer.refactorize()
            >>> torch.allclose(layer.delta(), before, atol=1e-6)
            True
            >>> torch.allclose(layer.A @ layer.A.T, torch.eye(2), atol=1e-6)
            True
        """
        if not bool(self.B.any()):
            return
        rows, right = torch.linalg.qr(_widened(self.A.T))
        columns, left = torch.linalg.qr(_widened(self.B))
        U, S, Vh = torch.linalg.svd(left @ right.T)  # of r x r, or less where outputs are fewer
        self.A.copy_(Vh @ rows.T)
        self.B.zero_()
        self.B[:, : len(S)] = (columns @ U * S).to(self.B)

    @torch.no_grad()
    def orthonormalize(self) -> None:
        r"""Give :math:`A` orthonormal rows with the same row space.

        If :math:`B` is zero, this decomposes :math:`A`; otherwise it calls :meth:`refactorize`.
        """
        if bool(self.B.any()):
            self.refactorize()
        else:
            self.A.copy_(torch.linalg.qr(_widened(self.A.T)).Q.T)

    def extra_repr(self) -> str:
        """Return the settings for the module's ``repr``."""
        dropout = f", dropout={self.dropout:g}" if self.dropout else ""
        return f"rank={self.rank}, alpha={self.alpha:g}{dropout}"


def lora_layers(module: nn.Module) -> dict[str, LoRALinear]:
    """Return the layers with an adapter by name; a layer that occurs twice has its first name.

    :param torch.nn.Module module: any module.

    Example::

        >>> network = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
        >>> lora_layers(add_lora(network, ["1"], rank=2))
        {'1': LoRALinear(
          rank=2, alpha=2
          (base): Linear(in_features=4, out_features=3, bias=True)
        )}
    """
    checks.instance("module", module, nn.Module, "a torch.nn.Module")
    return {name: one for name, one in module.named_modules() if isinstance(one, LoRALinear)}


def add_lora(
    module: nn.Module,
    layers: Sequence[str] | None = None,
    rank: int = 8,
    alpha: float | None = None,
    *,
    train_A: bool = True,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Copy a network, add adapters to its linear layers, and freeze everything else.

    A layer that occurs in several places shares one adapter. Convolutions and other layers get no
    adapters. Batch norm statistics are not parameters: they change in training mode, and
    :func:`save_lora` does not write them, so keep such layers in evaluation mode.

    :param torch.nn.Module module: the network; it is not changed.
    :param Sequence layers: names of layers, or shell-style patterns such as ``"*.query"``. Default:
        all linear layers.
    :param int rank: as in :class:`LoRALinear`.
    :param float alpha: as in :class:`LoRALinear`.
    :param bool train_A: as in :class:`LoRALinear`.
    :param float dropout: as in :class:`LoRALinear`.
    :param torch.Generator generator: as in :class:`LoRALinear`.
    :returns: the copy.
    :raises ValueError: if a name matches no linear layer; the message lists those of the network.

    Example::

        >>> network = torch.nn.Sequential(
        ...     torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        >>> adapted = add_lora(network, ["0"], rank=2)
        >>> list(lora_layers(adapted)), adapted[2].weight.requires_grad
        (['0'], False)
    """
    checks.instance("module", module, nn.Module, "a torch.nn.Module")
    checks.integer("rank", rank, 1)
    found = _linear_layers(module, layers)
    adapted = {}
    for name, layer in found.items():
        if rank > layer.in_features:
            raise ValueError(
                f"rank must be at most the {layer.in_features} inputs of layer {name!r}, got {rank}"
            )
        adapted[name] = LoRALinear(
            layer, rank, alpha, train_A=train_A, dropout=dropout, generator=generator
        )
    return replace_layers(copy.deepcopy(module).requires_grad_(False), adapted)


def replace_layers(module: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """Replace layers in place, each wherever it occurs; a layer may be the network itself."""
    if "" in layers:
        return layers[""]
    new = {id(module.get_submodule(name)): layer for name, layer in layers.items()}
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if id(layer) in new:
            module.set_submodule(name, new[id(layer)])
    return module


def _widened(tensor: Tensor) -> Tensor:
    """In single precision at least, below which there are no decompositions."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _linear_layers(module: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Linear]:
    """The linear layers that patterns name."""
    adapters = set(lora_layers(module))
    if adapters:
        raise ValueError(
            f"module must have no adapters yet, got some at {', '.join(map(repr, adapters))}"
        )
    named = dict(module.named_modules())
    linear_layers = {name: one for name, one in named.items() if isinstance(one, nn.Linear)}
    if not linear_layers:
        raise ValueError(
            "module must have a torch.nn.Linear, the only layer that LoRA supports, got "
            f"{type(module).__name__} with {sorted({type(one).__name__ for one in named.values()})}"
        )
    if patterns is None:
        return linear_layers
    patterns = checks.sequence("layers", patterns, "a list of names or patterns", 1, str)
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in linear_layers):
            continue
        others = [
            f"{n!r} ({type(m).__name__})" for n, m in named.items() if fnmatchcase(n, pattern)
        ]
        what = f"names {', '.join(others[:3])}" if others else "names no layer"
        raise ValueError(
            f"layers must each name a torch.nn.Linear, the only layer that LoRA supports, got "
            f"{pattern!r}, which {what}; there are {', '.join(map(repr, [*linear_layers][:20]))}"
        )
    return {
        name: layer
        for name, layer in linear_layers.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
