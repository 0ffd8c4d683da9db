"""Folders of runs: of chains, of independent draws, and of simulations.

The folder of a run of chains contains:

- ``run.json``, which describes the run: model, kernel, data, versions, and which chains run
  together;
- ``chains-00000/``, the folder of a group of chains, named after the first of them;
- ``chains-00000/draws-00000000.safetensors`` and so on, its draws, each file with the digest of the
  previous one;
- ``chains-00000/state.safetensors``, the state after the last of these draws, with the names and
  digests of all files of draws. It is written after them and replaced atomically.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_ext._lib.files import UNFINISHED
from pyro_ext._version import __version__
from pyro_ext.checkpoint.chains import Chunk
from pyro_ext.checkpoint.draw_files import DrawFiles, Found
from pyro_ext.checkpoint.files import CheckpointError, names_in, read_json, take_lock, write_json

_FORMAT = 2
_FILE = "run.json"
_SAMPLES = "samples/"
_STATISTICS = "statistics/"


class RunFolder:
    """A folder that a run writes to; a subclass sets the ``kind`` of its draws."""

    kind: ClassVar[str]

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.run = ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint={str(folder)!r} cannot be created: {error}"
            ) from error
        names_in(self.folder)
        self._lock = take_lock(self.folder / "lock", folder)

    def description(self) -> dict[str, Any] | None:
        """Return the description of the run in the folder, or ``None`` if the folder is empty."""
        names = names_in(self.folder)
        if _FILE not in names:
            # A run that was killed at once leaves the second of these.
            known = {"lock", f"{_FILE}{UNFINISHED}"}
            if others := [name for name in names if name not in known]:
                raise CheckpointError(
                    f"checkpoint={str(self.folder)!r} contains {others[:3]}, but no run; "
                    "wanted a new or an empty folder, or that of an earlier run"
                )
            return None
        return read_description(self.folder, self.kind)

    def describe(self, description: Mapping[str, Any]) -> None:
        """Write the description of the run."""
        whole = {"format": _FORMAT, "kind": self.kind, **description}
        self.run = digest_of(description["identity"])
        write_json(self.folder / _FILE, whole | {"digest": digest_of(whole)})

    def close(self) -> None:
        """Let other processes write."""
        self._lock.lock.release()


def read_description(folder: Path, kind: str) -> dict[str, Any]:
    """Description of the run in a folder."""
    path = folder / _FILE
    if _FILE not in names_in(folder):
        reason = f"it has no {_FILE}" if folder.is_dir() else "it is not there"
        raise CheckpointError(f"{folder} cannot be read as the folder of a run: {reason}")
    description = read_json(path)
    if description.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} has the format {description.get('format')!r}, written by pyro_ext "
            f"{_version_in(description)}; this is {__version__}, which reads format {_FORMAT}. Use "
            "that version to read or continue the run, or name another folder"
        )
    digest = description.pop("digest", None)
    if digest != digest_of(description):
        raise CheckpointError(
            f"{path} was changed after it was written: its digest does not fit. Restore what the "
            "run wrote, or name another folder"
        )
    if description["kind"] != kind:
        writer = description["identity"]["driver"]
        raise CheckpointError(
            f"{folder} contains {description['kind']} of a {writer}, wanted {kind}; {writer} with "
            "checkpoint=... reads them, or name another folder"
        )
    return description


def digest_of(content: Mapping[str, Any]) -> str:
    """Digest of plain values, the same after they went through JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _version_in(description: Any) -> str:
    """Version that wrote a description of another format, as far as it says."""
    for key in ("identity", "versions", "pyro_ext"):
        description = description.get(key) if isinstance(description, Mapping) else None
    return str(description or "of another version")


class CheckpointWriter(RunFolder):
    """Writes a checkpoint of chains; one process at a time."""

    kind = "chains"

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._files: dict[range, DrawFiles] = {}

    def describe(self, description: Mapping[str, Any]) -> None:
        """Write the description of the run, which names its groups of chains."""
        check_groups(self.folder, [range(*bounds) for bounds in description["groups"]])
        super().describe(description)

    def state(self, members: range) -> Found | None:
        """Return the state of a group of chains, or ``None`` if it has not started."""
        files = self._files[members] = files_of_group(self.folder, members, self.run)
        state = files.open()
        for name in files.names:
            files.read(name)
        return state

    def append(
        self,
        members: range,
        chunk: Chunk | None,
        tensors: Mapping[str, Tensor],
        content: Mapping[str, Any],
    ) -> None:
        """Write draws of a group of chains, then the state after them."""
        files = self._files[members]
        draws = None
        if chunk is not None and len(chunk):
            named = {_SAMPLES + name: value for name, value in chunk.samples.items()}
            named |= {_STATISTICS + name: value for name, value in chunk.statistics.items()}
            name = f"draws-{len(files.names):08d}.safetensors"
            draws = (name, named, {"valid": chunk.valid})
        files.append(draws, tensors, content)

    def chunks(self, members: range) -> Iterator[Chunk]:
        """Draws of a group of chains, file by file."""
        if not self.folder.is_dir():
            raise CheckpointError(
                f"checkpoint={str(self.folder)!r} no longer exists. If it was moved, "
                "Checkpoint(folder) opens it in its new place"
            )
        files = self._files[members]
        written = files.names
        files.open()
        if lost := [name for name in written if name not in files.names]:
            raise CheckpointError(
                f"{files.folder / lost[0]} was written by this run, but the state no longer lists "
                "it"
            )
        for name in files.names:
            yield chunk_of(files.read(name))


def files_of_group(folder: Path, members: range, run: str) -> DrawFiles:
    """Files of the draws of a group of chains."""
    owner = f"{run} chains {members.start} to {members.stop - 1}"
    return DrawFiles(folder / _group_name(members), owner)


def chunk_of(found: Found) -> Chunk:
    """Turn the contents of a file of draws into a chunk."""
    tensors, content = found
    groups: dict[str, dict[str, Tensor]] = {_SAMPLES: {}, _STATISTICS: {}}
    for name, value in tensors.items():
        prefix, _, rest = name.partition("/")
        groups[prefix + "/"][rest] = value
    return Chunk(groups[_SAMPLES], groups[_STATISTICS], content["valid"])


def check_groups(folder: Path, groups: Iterable[range]) -> None:
    """Raise an error if the folder of a run contains draws of other chains."""
    known = {_group_name(members) for members in groups}
    for name in names_in(folder):
        if name.startswith(("chains-", "draws-")) and name not in known:
            raise CheckpointError(f"{folder / name} does not belong to the run; remove it")


def _group_name(members: range) -> str:
    return f"chains-{members.start:05d}"


class DrawFolder(RunFolder):
    """Holds batches of draws, each in a file that is written whole or not at all."""

    kind = "independent draws"

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._files = DrawFiles(self.folder, "")

    def open(self) -> None:
        """Find the existing batches; call it after the run has been described."""
        self._files = DrawFiles(self.folder, self.run)
        self._files.open()
        self._files.discard_unnamed()

    def load(self, members: range) -> dict[str, Tensor] | None:
        """Return the draws with these indices, or ``None`` if they do not exist yet."""
        name = _batch_name(members)
        return self._files.read(name)[0] if name in self._files.names else None

    def save(self, members: range, tensors: Mapping[str, Tensor]) -> None:
        """Keep draws."""
        self._files.append((_batch_name(members), tensors, {}), {}, {})


class StageFolder(RunFolder):
    """Holds the state after the last stage of a run."""

    kind = "stages"

    def open(self) -> Found | None:
        """Return the state, if there is one; call it after the run has been described."""
        self._files = DrawFiles(self.folder, self.run)
        return self._files.open()

    def save(self, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """Replace the state by a later one."""
        self._files.append(None, tensors, content)


class SimulationFolder(RunFolder):
    """Holds outcomes of simulations, in files of those that ended within some seconds."""

    kind = "simulations"

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._files = DrawFiles(self.folder, "")

    def open(self) -> dict[int, dict[str, Tensor] | str]:
        """Return outcomes by index of the simulation; call it after the run has been described.

        A string describes why a simulation failed.
        """
        self._files = DrawFiles(self.folder, self.run)
        self._files.open()
        self._files.discard_unnamed()
        outcomes: dict[int, dict[str, Tensor] | str] = {}
        for name in self._files.names:
            tensors, content = self._files.read(name)
            outcomes |= {int(number): text for number, text in content["failures"].items()}
            for row, number in enumerate(content["numbers"]):
                outcomes[number] = {key: value[row] for key, value in tensors.items()}
        return outcomes

    def append(self, outcomes: Mapping[int, Mapping[str, Tensor] | str]) -> None:
        """Keep outcomes."""
        found = {number: one for number, one in outcomes.items() if not isinstance(one, str)}
        names = next(iter(found.values()), ())
        tensors = {name: torch.stack([one[name] for one in found.values()]) for name in names}
        failures = {number: text for number, text in outcomes.items() if isinstance(text, str)}
        content = {"numbers": list(found), "failures": failures}
        name = f"draws-{len(self._files.names):08d}.safetensors"
        self._files.append((name, tensors, content), {}, {})


def _batch_name(members: range) -> str:
    return f"draws-{members.start:08d}-{members.stop:08d}.safetensors"
