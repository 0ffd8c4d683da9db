"""A checkpoint as a posterior."""

from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_ext.checkpoint.chains import ChainStatus, Chunk, complete_chains, gather_chains
from pyro_ext.checkpoint.files import CheckpointError
from pyro_ext.checkpoint.folder import (
    CheckpointWriter,
    check_groups,
    chunk_of,
    digest_of,
    files_of_group,
    read_description,
)


class Checkpoint:
    """The posterior in the folder of a run, finished or still running, without its model.

    If the run is still going on in another process, you see it as it was when you first accessed
    the draws, so that all results are consistent. Open the folder again to see later draws.

    :param folder: a folder written by ``MCMC(..., checkpoint=folder)``.
    :param bool until_damage: whether to read the draws of a group of chains up to the first file
        that is missing, truncated or changed. Otherwise such a file is an error.
    :raises CheckpointError: if the folder contains no run of chains, or one of another version.

    Example::

        >>> import tempfile
        >>> from pyro_ext.inference import MCMC, SGLD
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> folder = tempfile.mkdtemp()
        >>> kernel = SGLD(model, step_size=0.03)
        >>> mcmc = MCMC(kernel, 50, 50, num_chains=2, seed=0, checkpoint=folder, progress=False)
        >>> mcmc = mcmc.run(torch.randn(20))
        >>> Checkpoint(folder).get_samples(group_by_chain=True)["loc"].shape
        torch.Size([2, 50])
    """

    def __init__(self, folder: str | Path, until_damage: bool = False) -> None:
        self.folder = Path(folder)
        self.until_damage = until_damage
        self.description: dict[str, Any] = read_description(self.folder, CheckpointWriter.kind)
        """Settings of the run: model, kernel, data, versions."""
        run = digest_of(self.description["identity"])
        groups = [range(*bounds) for bounds in self.description["groups"]]
        if not until_damage:
            check_groups(self.folder, groups)
        self._files = {members: files_of_group(self.folder, members, run) for members in groups}

    @property
    def dims(self) -> dict[str, list[str | None]]:
        """Names of the dimensions of each variable, after those of chains and draws."""
        dims: dict[str, list[str | None]] = self.description["dims"]
        return dims

    @property
    def partitions(self) -> tuple[str, ...]:
        """Names of the variables that are label vectors of partitions."""
        return tuple(self.description.get("partitions", ()))

    @property
    def chain_numbers(self) -> tuple[int, ...]:
        """Indices of the chains in the samples, in order."""
        return tuple(self._chosen()[0])

    @property
    def num_samples(self) -> int:
        """Number of draws requested from each chain."""
        return int(self.description["num_samples"])

    def chains(self) -> list[ChainStatus]:
        """Return the status of each chain."""
        return list(self._statuses)

    @cached_property
    def _statuses(self) -> list[ChainStatus]:
        statuses = []
        for members in self._files:
            num_draws = [0] * len(members)
            running = [True] * len(members)
            stopped = self._stops[members]
            for chunk in self._chunks(members):
                for column, valid in enumerate(chunk.valid):
                    num_draws[column] += valid * running[column]
                    running[column] &= valid == len(chunk)
            statuses += [
                ChainStatus(length, step) for length, step in zip(num_draws, stopped, strict=True)
            ]
        return statuses

    @cached_property
    def _stops(self) -> dict[range, list[int | None]]:
        """Steps at which chains stopped. Files are read as they are at the first access."""
        return {members: self._open(members) for members in self._files}

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Return draws of the latent and deterministic sites, in constrained space.

        If chains differ in length, as they may during a run, they are cut or left out so as to keep
        as many draws as possible. Chains that stopped early are left out.

        :param bool group_by_chain: whether to keep chains separate.
        :returns: draws by site. **Shape:** ``(num_chains, num_draws, *event)`` each, or with the
            chains concatenated, ``(num_chains * num_draws, *event)``.
        :raises CheckpointError: if there are no draws yet, a file is missing, truncated or changed,
            or there is an extra file.
        """
        samples, _ = self._gather()
        if group_by_chain:
            return samples
        return {name: value.flatten(0, 1) for name, value in samples.items()}

    def sample_statistics(self) -> dict[str, Tensor]:
        """Return statistics of the step that led to each draw.

        :returns: statistics by name. **Shape:** ``(num_chains, num_draws)`` each.
        :raises CheckpointError: if there are no draws yet, a file is missing, truncated or changed,
            or there is an extra file.
        """
        fields = self.description["identity"]["recorded"]["fields"]
        return {name: value for name, value in self._gather()[1].items() if name not in fields}

    def _gather(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        numbers, length = self._chosen()
        if not length:
            is_streaming = self.description["identity"]["driver"] == "StreamingMCMC"
            what = "moments of a StreamingMCMC, no draws" if is_streaming else "no draws yet"
            raise CheckpointError(f"{self.folder} holds {what}")
        groups = [(members, partial(self._chunks, members)) for members in self._files]
        return gather_chains(groups, numbers, length)

    def _chosen(self) -> tuple[list[int], int]:
        return complete_chains(self._statuses, self.num_samples)

    def _open(self, members: range) -> list[int | None]:
        try:
            found = self._files[members].open()
        except CheckpointError as error:
            if not self.until_damage:
                raise self._advising(error) from error
            found = None
        stopped: list[int | None] = [None] * len(members)
        return stopped if found is None else found[1]["stopped_at"]

    def _chunks(self, members: range) -> Iterator[Chunk]:
        files = self._files[members]
        if self.until_damage:
            yield from map(chunk_of, files.intact())
            return
        try:
            for name in files.names:
                yield chunk_of(files.read(name))
        except CheckpointError as error:
            raise self._advising(error) from error

    def _advising(self, error: CheckpointError) -> CheckpointError:
        return CheckpointError(
            f"{error}; Checkpoint(folder, until_damage=True) reads the draws before the damage"
        )
