"""Files of draws, with a state that lists each of them with a digest of its contents.

Draws are written first, and then the state, each file atomically. A run that is killed at any
moment leaves a state, all files that it lists, and at most one file that it does not list yet,
which is written again.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_ext._lib.files import UNFINISHED
from pyro_ext.checkpoint.files import CheckpointError, names_in, read_tensors, write_tensors

Found = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors and plain values of a file."""

_STATE = "state.safetensors"
_PREFIX = "draws-"


class DrawFiles:
    """Files of draws in a folder, and the state after them."""

    def __init__(self, folder: Path, owner: str) -> None:
        self.folder = folder
        self._owner = owner
        self._digests: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        """Return the names of the files listed in the state, in the order of writing."""
        return list(self._digests)

    def open(self) -> Found | None:
        """Read the state, and check that exactly the files of draws that it lists are present."""
        # Before reading the state: a concurrent run adds files first and then lists them there.
        names = names_in(self.folder)
        present = [name for name in names if _is_draws(name)]
        path = self.folder / _STATE
        state, digests = None, {}
        if _STATE in names or os.path.exists(path):
            tensors, content, _ = read_tensors(path, "owner", "files", "state")
            if content["owner"] != self._owner:
                raise CheckpointError(f"{path} belongs to another run, or to other chains")
            state, digests = (tensors, content["state"]), dict(content["files"])
        elif len(present) > 1:
            raise CheckpointError(f"{path} is missing, but there are draws: {present}"[:500])
        self._digests = digests
        for name in digests:
            if not os.path.exists(self.folder / name):
                raise CheckpointError(
                    f"{self.folder / name} is missing, one of {len(digests)} files of draws"
                )
        unnamed = [name for name in present if name not in digests]
        for number, name in enumerate(unnamed):
            if number or not self._is_next(self.folder / name):
                raise CheckpointError(
                    f"{self.folder / name} is none of the {len(digests)} files of draws that the "
                    "run has written there; remove it"
                )
        return state

    def discard_unnamed(self) -> None:
        """Delete the draws that were written without the state after them."""
        for name in names_in(self.folder):
            if _is_draws(name) and name not in self._digests:
                (self.folder / name).unlink()

    def append(
        self,
        draws: tuple[str, Mapping[str, Tensor], Mapping[str, Any]] | None,
        tensors: Mapping[str, Tensor],
        content: Mapping[str, Any],
    ) -> None:
        """Write a file of draws, then the state after it."""
        if self.folder.is_symlink():
            raise CheckpointError(
                f"{self.folder} is a symbolic link, through which nothing is written"
            )
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder} cannot be created ({error.strerror or error}); if the folder of "
                "the run was moved, put it back, and the same program continues from there"
            ) from error
        digests = dict(self._digests)
        if draws is not None:
            name, values, plain = draws
            whole = {"owner": self._owner, "previous": self._last, "content": dict(plain)}
            digests[name] = write_tensors(self.folder / name, values, whole)
        files = [[name, digest] for name, digest in digests.items()]
        state = {"owner": self._owner, "files": files, "state": dict(content)}
        write_tensors(self.folder / _STATE, tensors, state)
        self._digests = digests

    def read(self, name: str) -> Found:
        """Read a file that the state lists."""
        tensors, content, digest = read_tensors(self.folder / name, "content")
        if digest != self._digests[name]:
            raise CheckpointError(
                f"{self.folder / name} was changed: it is not what the state beside it names"
            )
        return tensors, content["content"]

    def intact(self) -> Iterator[Found]:
        """Yield the files up to the first that is missing or damaged, regardless of the state."""
        previous = ""
        for name in filter(_is_draws, names_in(self.folder)):
            try:
                tensors, content, digest = read_tensors(self.folder / name)
            except CheckpointError:
                return
            if content.get("previous") != previous or content.get("owner") != self._owner:
                return
            previous = digest
            yield tensors, content["content"]

    @property
    def _last(self) -> str:
        return next(reversed(self._digests.values()), "")

    def _is_next(self, path: Path) -> bool:
        """Tell whether a file follows those in the state, which is written after the file."""
        try:
            _, content, _ = read_tensors(path)
        except CheckpointError:
            return not os.path.exists(path)  # the run has gone on meanwhile
        return bool(content.get("previous") == self._last and content.get("owner") == self._owner)


def _is_draws(name: str) -> bool:
    """Tell whether a file is a finished file of draws."""
    return name.startswith(_PREFIX) and not name.endswith(UNFINISHED)
