"""Data that are files of the package: small tensors, with where they come from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_ext.checkpoint.files import read_tensors, write_tensors

__all__ = ["ShippedFiles", "check_name"]


class ShippedFiles:
    """The files of one kind of data.

    :param str folder: where they lie, beside this module.

    Example::

        >>> ShippedFiles("graph_edges").names()
        ('new_testament_names', 'python_packages')
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(__file__).parent / folder

    def names(self) -> tuple[str, ...]:
        """Names of the data, sorted."""
        return tuple(sorted(path.stem for path in self.folder.glob("*.safetensors")))

    def read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts of a file.

        :param str name: one of ``names``.
        :raises ValueError: names the argument, what it got and what it allows.
        :raises CheckpointError: where the file is missing, cut or changed.
        """
        check_name(name, self.names())
        tensors, facts, _ = read_tensors(self.folder / f"{name}.safetensors")
        return tensors, dict(facts)

    def write(
        self,
        name: str,
        tensors: dict[str, Tensor],
        facts: Mapping[str, Any],
        folder: str | Path | None = None,
    ) -> Path:
        """Write a file as ``read`` reads it.

        :param str name: of the data.
        :param dict tensors: by name.
        :param Mapping facts: what JSON can hold.
        :param folder: where to, by default among those of the package.
        :returns: the file.
        :raises CheckpointError: where it cannot be written.
        """
        path = (self.folder if folder is None else Path(folder)) / f"{name}.safetensors"
        write_tensors(path, tensors, dict(facts))
        return path


def check_name(name: str, known: tuple[str, ...]) -> None:
    """Raise where a name is none of those that are known."""
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"name must be one of {', '.join(map(repr, known))}; got {name!r}")
