"""Files of low-rank adapters, in the format of the package ``peft``."""

import copy
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.checkpoint.files import (
    CheckpointError,
    check_folder_of,
    read_json,
    read_safetensors,
    write_bytes,
    write_json,
)
from pyro_ext.nn.lora import LoRALinear, lora_layers, replace_layers

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"(?:(?P<layer>.+)\.)?lora_(?P<factor>[AB])\.weight")
_PREFIX = "base_model.model."
# Settings of peft with which a layer computes something else; files of most hold other tensors too.
_OTHER = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)


def save_lora(module: nn.Module, folder: str | Path) -> None:
    """Write the adapters of a network in the format of ``peft``; :func:`load_lora` reads it too.

    It writes ``adapter_config.json`` and ``adapter_model.safetensors``, but not the network itself.

    :param torch.nn.Module module: a network with :class:`LoRALinear` layers.
    :param folder: where to write. It is created if it is missing; its parent must exist.
    :raises ValueError: if the network has no adapters.
    :raises CheckpointError: if a file cannot be written.

    Example::

        >>> import tempfile
        >>> from pyro_ext.nn import add_lora
        >>> folder = tempfile.mkdtemp()
        >>> save_lora(add_lora(torch.nn.Sequential(torch.nn.Linear(6, 4)), rank=2), folder)
        >>> import pathlib
        >>> sorted(path.name for path in pathlib.Path(folder).iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    layers = lora_layers(module)
    if not layers:
        raise ValueError(f"module must have LoRALinear layers, got {type(module).__name__}")
    if "" in layers:
        raise ValueError("module must contain LoRALinear layers, got such a layer itself")
    checks.instance("folder", folder, (str, Path), "a path")
    folder = Path(folder)
    check_folder_of(folder)
    folder.mkdir(exist_ok=True)
    dropout = max(layer.dropout for layer in layers.values())
    config = {"peft_type": "LORA", "inference_mode": True, "lora_dropout": dropout}
    config |= settings_of({name: (layer.rank, layer.alpha) for name, layer in layers.items()})
    tensors = {
        f"{_PREFIX}{name}.lora_{factor}.weight": getattr(layer, factor).detach().cpu().contiguous()
        for name, layer in layers.items()
        for factor in "AB"
    }
    write_bytes(folder / _WEIGHTS, save(tensors, {"format": "pt"}))
    write_json(folder / _CONFIG, config)


def settings_of(sizes: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """Settings of peft with full layer names, since a short name matches all that end with it."""
    rank, alpha = next(iter(sizes.values()))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": "|".join(map(re.escape, sizes)),
        "rank_pattern": {"^" + re.escape(name): r for name, (r, _) in sizes.items() if r != rank},
        "alpha_pattern": {"^" + re.escape(name): a for name, (_, a) in sizes.items() if a != alpha},
    }


def load_lora(module: nn.Module, folder: str | Path) -> nn.Module:
    """Copy a network and add adapters written by ``peft`` or :func:`save_lora`.

    Loading does not execute anything in the files.

    :param torch.nn.Module module: the network without adapters; it is not changed.
    :param folder: the folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
    :returns: the copy, with everything frozen except the adapters.
    :raises CheckpointError: if the files are missing or damaged, or contain adapters of another
        kind or for a network with other layers.

    Example::

        >>> import tempfile
        >>> from pyro_ext.nn import add_lora
        >>> network, folder = torch.nn.Sequential(torch.nn.Linear(6, 4)), tempfile.mkdtemp()
        >>> save_lora(add_lora(network, rank=2), folder)
        >>> load_lora(network, folder)[0].A.shape
        torch.Size([2, 6])
    """
    checks.instance("module", module, nn.Module, "a torch.nn.Module")
    checks.instance("folder", folder, (str, Path), "a path")
    folder = Path(folder)
    config = read_json(folder / _CONFIG)
    check_kind(folder / _CONFIG, config)
    factors = _read_factors(folder / _WEIGHTS)
    adapted: dict[str, nn.Module] = {}
    for name, (A, B) in factors.items():
        layer = dict(module.named_modules()).get(name)
        if not isinstance(layer, nn.Linear):
            raise CheckpointError(
                f"{folder} has an adapter for a linear layer {name!r}, which in the network is "
                f"{'missing' if layer is None else 'a ' + type(layer).__name__}"
            )
        rank, wanted = len(A), (layer.in_features, layer.out_features, len(A))
        if A.dim() != 2 or (A.shape[1], *B.shape) != wanted or rank > layer.in_features:
            raise CheckpointError(
                f"{folder} has factors of the shapes {tuple(B.shape)} and {tuple(A.shape)}, "
                f"which do not match layer {name!r}: {layer!r}"
            )
        alpha = alpha_of_layer(config, name, rank, 8)
        adapter = LoRALinear(layer, rank, alpha, dropout=config.get("lora_dropout", 0.0))
        with torch.no_grad():
            adapter.A.copy_(A)
            adapter.B.copy_(B)
        adapted[name] = adapter
    return replace_layers(copy.deepcopy(module).requires_grad_(False), adapted)


def alpha_of_layer(config: Mapping[str, Any], name: str, rank: int, default: float) -> float:
    """The alpha of a layer, by the first pattern that fits the end of its name."""
    found = config.get("lora_alpha", default)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            found = value
            break
    return float(found) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def check_kind(path: Path, config: Mapping[str, Any]) -> None:
    """Check that adapters compute what ours do."""
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path} holds no LoRA, but {config.get('peft_type')!r}")
    patterns = config.get("alpha_pattern") or {}
    try:
        numbers = [config.get("lora_alpha", 1.0), *patterns.values()]
        fit = all(0 < number < math.inf for number in numbers)
        fit = fit and 0 <= config.get("lora_dropout", 0.0) < 1
        fit = fit and all(map(re.compile, patterns))
    except (AttributeError, TypeError, re.error):
        fit = False
    if not fit:
        shape = {name: config.get(name) for name in ("lora_alpha", "alpha_pattern", "lora_dropout")}
        raise CheckpointError(f"{path} holds LoRA with settings that cannot be: {shape!r:.200}")
    settings = {name: config[name] for name in _OTHER if config.get(name)}
    if config.get("bias", "none") != "none":
        settings["bias"] = config["bias"]
    if not isinstance(config.get("init_lora_weights"), bool | None) and (
        config["init_lora_weights"] != "gaussian"
    ):  # such a start has changed the network, too
        settings["init_lora_weights"] = config["init_lora_weights"]
    if settings:
        raise CheckpointError(f"{path} holds LoRA of a kind that is not supported: {settings}")


def _read_factors(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Both factors of each layer."""
    try:
        tensors, _ = read_safetensors(path)
    except CheckpointError as error:
        if path.with_name("adapter_model.bin").exists():
            hint = "adapter_model.bin is not read, since loading it may execute what it holds"
            raise CheckpointError(f"{error}; {hint}") from error
        raise
    if not tensors:
        raise CheckpointError(f"{path} holds no adapter")
    for key in tensors:
        if not key.startswith(_PREFIX):
            raise CheckpointError(f"{path} holds {key!r}, which is no factor of a linear layer")
    return paired_factors(path, {key.removeprefix(_PREFIX): one for key, one in tensors.items()})


def paired_factors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Both factors of each layer, from tensors whose names begin with those of layers."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise CheckpointError(f"{path} holds {key!r}, which is no factor of a layer")
        found.setdefault(match["layer"] or "", {})[match["factor"]] = tensor
    for name, factors in found.items():
        if len(factors) != 2:
            raise CheckpointError(f"{path} holds one factor of layer {name!r} without the other")
    return {name: (factors["A"], factors["B"]) for name, factors in found.items()}
