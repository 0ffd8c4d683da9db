r"""Adapters that are trained separately and added when they are used [1].

A network from which a concept was erased relearns it even from harmless images, because further
training partly undoes the erasure. Adapters that are each trained on the original weights alone,
not on top of each other, avoid this: :math:`W_0 + \Delta_\text{safe} +
\Delta_\text{task}`, where :math:`\Delta_\text{task}` has never seen :math:`\Delta_\text{safe}`.

[1] S. Kim, M. Choi, J. Shin, J. Lee (2024), Safety alignment backfires: preventing the re-emergence
of suppressed concepts in fine-tuned text-to-image diffusion models, arXiv 2412.00357.
"""

import copy
import json
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module
from pyro_ext.checkpoint.files import (
    CheckpointError,
    check_folder_of,
    json_in,
    read_safetensors,
    write_bytes,
)
from pyro_ext.nn.lora import replace_layers
from pyro_ext.nn.lora_files import alpha_of_layer, check_kind, paired_factors, settings_of
from pyro_ext.random import seeded

_ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# They read the weights of their layers instead of calling these, and would pass over an adapter.
_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
_FILE = "pytorch_lora_weights.safetensors"  # the name that pipelines look for
_METADATA = "lora_adapter_metadata"


class ModularLoRA:
    r"""Named low-rank adapters on a copy of a network, each switched on and off separately.

    A layer of the network computes :math:`W_0 + \sum_i w_i \frac{\alpha_i}{r_i} B_i A_i`, over the
    adapters with a nonzero weight :math:`w_i`. Weights :math:`W_0` never change, and an adapter
    only changes inside of :meth:`only`. Since :math:`B` starts at zero, a new adapter changes no
    output. Adapters are added in the order of their names, so that the order of their creation does
    not matter.

    The layers are those of the package ``peft``: ``module`` replaces the network in a pipeline of
    ``diffusers`` or in your own code. For a single adapter of linear layers,
    :func:`pyro_ext.nn.add_lora` needs no other package; it supports singular value decompositions,
    and federated training uses it. Its files have the format of ``peft`` models, whereas the files
    here have that of pipelines.

    :param torch.nn.Module module: the network, such as ``pipe.unet`` or ``pipe.transformer``. It is
        copied, and the copy is frozen; it must not have adapters yet.
    :ivar torch.nn.Module module: the copy, with all added adapters.
    :ivar dict layers: names of each adapter's layers, by name of the adapter.
    :raises TypeError: if ``module`` is not a module.
    :raises ValueError: for a module that has adapters, or that has no layers that can take them.

    [1] S. Kim et al. (2024), Safety alignment backfires, arXiv 2412.00357.

    Example::

        >>> network = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
        >>> lora = ModularLoRA(network)
        >>> lora.add("safety", rank=2, targets=["0"])
        >>> lora.add("task", rank=4)
        >>> with lora.only("task") as factors:
        ...     sum(factor.numel() for factor in factors)
        68
        >>> lora.weights = {"safety": 1.0, "task": 1.0}
        >>> lora.module(torch.ones(6)).shape, lora.layers
        (torch.Size([3]), {'safety': ('0',), 'task': ('0', '1')})
    """

    def __init__(self, module: nn.Module) -> None:
        checks.instance("module", module, nn.Module, "a torch.nn.Module")
        kind = _peft().tuners.tuners_utils.BaseTunerLayer
        if any(isinstance(layer, kind) for layer in module.modules()):
            raise ValueError(
                f"module must have no adapters yet, got {type(module).__name__} with some: unload "
                "them, as by pipe.unload_lora_weights()"
            )
        self.module = copy.deepcopy(module).requires_grad_(False)
        self._adaptable = _adaptable_layers(self.module)
        if not self._adaptable:
            raise ValueError(
                "module must hold a linear layer or a convolution that it calls, got "
                f"{type(module).__name__}"
            )
        self.layers: dict[str, tuple[str, ...]] = {}
        self._weights: dict[str, float] = {}
        self._trained: str | None = None

    def __repr__(self) -> str:
        return f"ModularLoRA({type(self.module).__name__}, {self.weights})"

    # Adapters ------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        rank: int = 4,
        alpha: float | None = None,
        targets: Sequence[str] | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        r"""Add an adapter with weight zero.

        :param str name: name of the adapter, without a dot.
        :param int rank: :math:`r`.
        :param float alpha: :math:`\alpha`, by default :math:`r`.
        :param Sequence targets: names of linear layers and convolutions, or ends of such names,
            such as ``"attn2.to_q"``, or shell-style patterns, such as ``"*.attn?.to_q"``; by
            default all linear layers. Layers inside :class:`torch.nn.MultiheadAttention` or
            :class:`torch.nn.TransformerEncoderLayer` cannot have adapters, because these modules
            read weights without calling the layer.
        :param int seed: seed of :math:`A`; by default drawn from PyTorch's generator.
        :raises ValueError: for a name that is taken, numbers out of range, or targets that match no
            layer; the message lists the layers.

        Example::

            >>> lora = ModularLoRA(torch.nn.Sequential(torch.nn.Linear(6, 4)))
            >>> lora.add("task", rank=2, alpha=4.0, targets=["0"], seed=0)
            >>> lora.weights
            {'task': 0.0}
        """
        self._check_new(name)
        checks.integer("rank", rank, 1)
        checks.optional(checks.number, "alpha", alpha, above=0.0)
        checks.optional(checks.integer, "seed", seed, 0)
        found = self._targeted(targets)
        self._inject(
            name, {layer: (rank, float(rank if alpha is None else alpha)) for layer in found}, seed
        )

    def copy_from(self, name: str, module: nn.Module) -> None:
        """Take over the factors of an adapter from a copy of ``module``.

        This makes it possible to train an adapter with a method that trains and returns a copy,
        such as :class:`~pyro_ext.models.diffusion.SafeSelfDistillation`.

        :param str name: name of the adapter.
        :param torch.nn.Module module: the copy.
        :raises ValueError: for a module without this adapter.
        """
        own = self._factors(name)
        checks.instance("module", module, nn.Module, "a torch.nn.Module")
        its = dict(module.named_parameters())
        if missing := own.keys() - its.keys():
            raise ValueError(
                f"module must be a copy of the one with the adapter {name!r}, got "
                f"{type(module).__name__} without {min(missing)}"
            )
        with torch.no_grad():
            for key, factor in own.items():
                factor.copy_(its[key])

    # Switching -----------------------------------------------------------------------------------

    @property
    def weights(self) -> dict[str, float]:
        """Weights of all adapters by name. Setting it sets those left out to zero."""
        return dict(self._weights)

    @weights.setter
    def weights(self, weights: Mapping[str, float]) -> None:
        self._switch(self._checked_weights("weights", weights), self._trained)

    @contextmanager
    def only(
        self, name: str, *, beside: Mapping[str, float] | None = None
    ) -> Iterator[list[nn.Parameter]]:
        """Switch on a single adapter, which can be trained until the context ends.

        Afterwards, weights are restored, and the adapter is frozen. All other adapters are off, so
        that what this one learns does not depend on them.

        :param str name: name of the adapter.
        :param Mapping beside: weights of other adapters that are also on, but frozen. Training on
            top of another adapter is what modular training avoids; it is available for comparisons.
        :returns: the factors, to pass to an optimizer.

        Example::

            >>> lora = ModularLoRA(torch.nn.Sequential(torch.nn.Linear(6, 4)))
            >>> lora.add("task", rank=2)
            >>> with lora.only("task") as factors:
            ...     lora.module(torch.ones(6)).sum().backward()
            >>> [tuple(factor.grad.shape) for factor in factors]
            [(2, 6), (4, 2)]
        """
        factors = list(self._factors(name).values())
        others = {} if beside is None else self._checked_weights("beside", beside)
        before = self._weights, self._trained
        self._switch({**others, name: 1.0}, name)
        try:
            yield factors
        finally:
            self._switch(*before)

    @torch.no_grad()
    def merge(self, weights: Mapping[str, float] | None = None) -> nn.Module:
        """Copy the network with adapters added to its weights, and with ordinary layers.

        A negative weight subtracts what an adapter has learned.

        :param Mapping weights: weights of adapters by name, zero for those left out; by default
            :attr:`weights`.
        :returns: the copy, whose parameters require gradients.

        Example::

            >>> lora = ModularLoRA(torch.nn.Sequential(torch.nn.Linear(6, 4)))
            >>> lora.add("task")
            >>> lora.merge({"task": -1.0})
            Sequential(
              (0): Linear(in_features=6, out_features=4, bias=True)
            )
        """
        used = self._weights if weights is None else self._checked_weights("weights", weights)
        layer_names = list(self._all_adapted())
        module = copy.deepcopy(self.module)
        plain: dict[str, nn.Module] = {}
        for layer_name in layer_names:
            layer: Any = module.get_submodule(layer_name)
            plain[layer_name] = base = layer.get_base_layer()
            weight = base.weight
            for name in sorted(used):
                if used[name] and name in layer.lora_A:
                    weight = weight + used[name] * _delta(layer, name)
            base.weight = nn.Parameter(weight.detach().clone())
        _forget_adapters(module)
        return replace_layers(module, plain).requires_grad_()

    # Updates -------------------------------------------------------------------------------------

    @torch.no_grad()
    def deltas(self, name: str) -> dict[str, Tensor]:
        r"""Return an adapter's weight updates, :math:`\frac{\alpha}{r} B A`, by layer name.

        :param str name: name of the adapter.
        """
        return {layer: _delta(one, name) for layer, one in self._adapted(name).items()}

    def norm(self, name: str) -> float:
        """Compute the Frobenius norm of an adapter's weight updates, over all its layers.

        :param str name: name of the adapter.
        """
        return math.sqrt(self._inner(name, name, self.layers.get(name, ())))

    def cosine(self, first: str, second: str) -> float:
        """Compute the cosine between the weight updates of two adapters, over the layers of both.

        It is negative if one adapter partly undoes the other [1], and zero if one of them adds
        nothing.

        :param str first: name of an adapter.
        :param str second: name of another adapter.
        :raises ValueError: if they have no layer in common.
        """
        for argument, name in (("first", first), ("second", second)):
            self._check_name(argument, name)
        common = [layer for layer in self.layers[first] if layer in self.layers[second]]
        if not common:
            raise ValueError(
                f"first and second must have a layer in common, got {first!r} on "
                f"{', '.join(self.layers[first])} and {second!r} on "
                f"{', '.join(self.layers[second])}"
            )
        norms = [math.sqrt(self._inner(name, name, common)) for name in (first, second)]
        return self._inner(first, second, common) / math.prod(norms) if all(norms) else 0.0

    # Files ---------------------------------------------------------------------------------------

    def save(self, name: str, folder: str | Path, component: str = "unet") -> None:
        """Save an adapter to a folder, for ``pipe.load_lora_weights`` or :meth:`load`.

        The file is ``pytorch_lora_weights.safetensors``, with rank and alpha in its metadata.

        :param str name: name of the adapter.
        :param folder: the folder, created if missing; its parent must exist.
        :param str component: name of the network in the pipeline.
        :raises CheckpointError: if the file cannot be written.
        """
        adapted = self._adapted(name)
        _check_component(component)
        checks.instance("folder", folder, (str, Path), "a path")
        folder = Path(folder)
        check_folder_of(folder)
        folder.mkdir(exist_ok=True)
        sizes = {layer: (one.r[name], one.lora_alpha[name]) for layer, one in adapted.items()}
        settings = {f"{component}.{key}": value for key, value in settings_of(sizes).items()}
        tensors = {
            f"{component}.{layer}.lora_{factor}.weight": getattr(one, f"lora_{factor}")[name]
            .weight.detach()
            .cpu()
            .contiguous()
            for layer, one in adapted.items()
            for factor in "AB"
        }
        data = save(tensors, {"format": "pt", _METADATA: json.dumps(settings, sort_keys=True)})
        write_bytes(folder / _FILE, data)

    def load(self, name: str, folder: str | Path, component: str = "unet") -> None:
        """Add an adapter that :meth:`save` or ``save_lora_weights`` of a pipeline has written.

        Loading executes no code. Without metadata, alpha is the rank, as in pipelines.

        :param str name: name for the adapter.
        :param folder: the folder, with ``pytorch_lora_weights.safetensors``.
        :param str component: name of the network in the pipeline.
        :raises CheckpointError: if the file is missing or damaged, or does not fit the network.

        Example::

            >>> import tempfile
            >>> lora = ModularLoRA(torch.nn.Sequential(torch.nn.Linear(6, 4)))
            >>> folder = tempfile.mkdtemp()
            >>> lora.add("task")
            >>> lora.save("task", folder)
            >>> lora.load("again", folder)
            >>> lora.weights
            {'task': 0.0, 'again': 0.0}
        """
        self._check_new(name)
        _check_component(component)
        checks.instance("folder", folder, (str, Path), "a path")
        path = Path(folder) / _FILE
        factors, settings = _read(path, component)
        sizes = {}
        for layer in sorted(factors, key=[*self._adaptable, *factors].index):
            A, B = factors[layer]
            self._check_fits(path, layer, A, B)
            sizes[layer] = (len(A), alpha_of_layer(settings, layer, len(A), len(A)))
        self._inject(name, sizes, 0)
        with torch.no_grad():
            for layer, one in self._adapted(name).items():
                for factor, read in zip("AB", factors[layer], strict=True):
                    getattr(one, f"lora_{factor}")[name].weight.copy_(read)

    # Within --------------------------------------------------------------------------------------

    def _inject(self, name: str, sizes: Mapping[str, tuple[int, float]], seed: int | None) -> None:
        peft = _peft()
        config = peft.LoraConfig(**settings_of(sizes))
        with seeded(seed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of the first one
            peft.inject_adapter_in_model(config, self.module, name)
        if hasattr(self.module, "_hf_peft_config_loaded"):  # what diffusers looks at
            self.module._hf_peft_config_loaded = True  # type: ignore[assignment]
        self.layers[name] = tuple(sizes)
        self._weights[name] = 0.0
        self._switch(self._weights, self._trained)

    def _switch(self, weights: Mapping[str, float], trained: str | None) -> None:
        layers = self._all_adapted().values()
        self._weights = {name: float(weights.get(name, 0.0)) for name in self.layers}
        self._trained = trained
        active = sorted(name for name, weight in self._weights.items() if weight)
        for layer in layers:
            layer.enable_adapters(True)
            layer.set_adapter(active, inference_mode=True)
            for name in active:
                layer.set_scale(name, self._weights[name])
        if trained is not None:
            for factor in self._factors(trained).values():
                factor.requires_grad_()

    def _adapted(self, name: str) -> dict[str, Any]:
        """The layers of an adapter."""
        self._check_name("name", name)
        found: dict[str, Any] = {n: self.module.get_submodule(n) for n in self.layers[name]}
        if any(layer.merged for layer in found.values()):
            raise ValueError(
                f"name must be an adapter that is not fused, got {name!r}: call pipe.unfuse_lora()"
            )
        return found

    def _all_adapted(self) -> dict[str, Any]:
        return {n: one for name in self.layers for n, one in self._adapted(name).items()}

    def _factors(self, name: str) -> dict[str, nn.Parameter]:
        """Both factors of each layer, by their names as parameters of the module."""
        return {
            f"{layer}.lora_{factor}.{name}.weight": getattr(one, f"lora_{factor}")[name].weight
            for layer, one in self._adapted(name).items()
            for factor in "AB"
        }

    def _inner(self, first: str, second: str, layers: Sequence[str]) -> float:
        """Inner product of two updates."""
        one, other = self._adapted(first), self._adapted(second)
        with torch.no_grad():
            return sum(
                float((_delta(one[n], first) * _delta(other[n], second)).double().sum())
                for n in layers
            )

    def _targeted(self, targets: Sequence[str] | None) -> list[str]:
        """Names of layers that suffixes or patterns fit."""
        if targets is None:
            linear = [n for n, layer in self._adaptable.items() if isinstance(layer, nn.Linear)]
            if not linear:
                raise ValueError("targets must be given if no layer is linear, got None")
            return linear
        targets = checks.sequence("targets", targets, "a list of names or patterns", 1, str)
        found: set[str] = set()
        for target in targets:
            fitting = {n for n in self._adaptable if fnmatchcase("." + n, "*." + target)}
            if not fitting:
                raise ValueError(
                    "targets must each name a linear layer or a convolution that the module calls, "
                    f"got {target!r}; there are {', '.join(map(repr, [*self._adaptable][:20]))}"
                )
            found |= fitting
        return [name for name in self._adaptable if name in found]

    def _check_new(self, name: str) -> None:
        checks.instance("name", name, str, "a string")
        if not name.strip() or "." in name or "lora_" in name or hasattr(nn.ModuleDict, name):
            raise ValueError(
                "name must be a name without a dot or 'lora_', and no method of torch.nn.ModuleDict"
                f", got {name!r}"
            )
        if name in self.layers:
            raise ValueError(f"name must be new, got {name!r}, which there is already")
        self._all_adapted()

    def _check_name(self, argument: str, name: str) -> None:
        checks.instance(argument, name, str, "the name of an adapter")
        checks.choice(argument, name, self.layers)

    def _checked_weights(self, argument: str, weights: Mapping[str, float]) -> dict[str, float]:
        checks.mapping(argument, weights, "a dict of numbers by names of adapters")
        for name, weight in weights.items():
            self._check_name(argument, name)
            checks.number(f"{argument}[{name!r}]", weight)
        return dict(weights)

    def _check_fits(self, path: Path, name: str, A: Tensor, B: Tensor) -> None:
        layer = self._adaptable.get(name)
        if layer is None:
            raise CheckpointError(f"{path} holds an adapter of {name!r}, which the network lacks")
        outputs, inputs, *kernel = layer.weight.shape  # type: ignore[misc]
        wanted = (len(A), inputs, *kernel), (outputs, len(A), *(1 for _ in kernel))
        if (A.shape, B.shape) != wanted:
            raise CheckpointError(
                f"{path} holds factors of the shapes {tuple(A.shape)} and {tuple(B.shape)}, which "
                f"do not fit layer {name!r}: {layer!r}"
            )
        if not (A.isfinite().all() and B.isfinite().all()):
            raise CheckpointError(f"{path} holds factors of {name!r} that are not finite")


def _check_component(component: str) -> None:
    checks.instance("component", component, str, "a string")
    if not component:
        raise ValueError(f"component must be a name, such as 'unet', got {component!r}")


def _peft() -> Any:
    return optional_module("peft", "ModularLoRA", "peft", "diffusion")


def _adaptable_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Layers that take adapters: called, under one name, without groups of channels."""
    every = dict(module.named_modules(remove_duplicate=False))
    names = Counter(map(id, every.values()))
    read = {
        id(layer) for one in every.values() if isinstance(one, _READERS) for layer in one.modules()
    }
    return {
        name: layer
        for name, layer in every.items()
        if name
        and isinstance(layer, _ADAPTABLE)
        and getattr(layer, "groups", 1) == 1
        and id(layer) not in read
        and names[id(layer)] == 1
    }


def _delta(layer: Any, name: str) -> Tensor:
    """Compute the update that an adapter of weight one adds to a layer."""
    scale, unit = layer.scaling[name], layer.lora_alpha[name] / layer.r[name]
    layer.scaling[name] = unit
    try:
        return layer.get_delta_weight(name)  # type: ignore[no-any-return]
    finally:
        layer.scaling[name] = scale


def _forget_adapters(module: nn.Module) -> None:
    """Take away what peft and diffusers note of adapters at the network."""
    if hasattr(module, "peft_config"):
        del module.peft_config
    if hasattr(module, "_hf_peft_config_loaded"):
        module._hf_peft_config_loaded = False  # type: ignore[assignment]


def _read(path: Path, component: str) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Any]]:
    """Factors and settings of one network in a file of a pipeline."""
    tensors, metadata = read_safetensors(path)
    settings = json_in(path, metadata.get(_METADATA, "{}"))
    start = component + "."
    found = {key.removeprefix(start): one for key, one in tensors.items() if key.startswith(start)}
    if not found:
        raise CheckpointError(f"{path} holds no adapter of {component!r}, but {list(tensors)[:3]}")
    its = {key.removeprefix(start): one for key, one in settings.items() if key.startswith(start)}
    check_kind(path, {"peft_type": "LORA", **its})
    return paired_factors(path, found), its
