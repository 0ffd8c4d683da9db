"""A checkpoint as a posterior."""

from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_ext.checkpoint.chains import ChainStatus, Chunk, complete_chains, gather_chains
from pyro_ext.checkpoint.files import CheckpointError, read_tensors
from pyro_ext.checkpoint.folder import read_chunks, state_file
from pyro_ext.checkpoint.run_folder import read_description

__all__ = ["Checkpoint"]


class Checkpoint:
    """The posterior in the folder of a run, finished or still running, without its model.

    It shows a run in another process as it is when its draws are first asked for, so that whatever
    is taken from it fits together; open it once more to see later draws.

    :param folder: what ``MCMC(..., checkpoint=folder)`` wrote.
    :param bool until_damage: whether to read draws up to the first file that was cut or changed,
        where otherwise that is an error.
    :raises CheckpointError: where the folder holds no run.

    Example::

        >>> import pyro, tempfile, torch, pyro.distributions as dist
        >>> from pyro_ext.inference import MCMC, SGLD
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> folder = tempfile.mkdtemp()
        >>> mcmc = MCMC(SGLD(model), 50, num_chains=2, checkpoint=folder, progress=False)
        >>> mcmc = mcmc.run(torch.randn(20))
        >>> Checkpoint(folder).get_samples(group_by_chain=True)["loc"].shape
        torch.Size([2, 50])
    """

    def __init__(self, folder: str | Path, until_damage: bool = False) -> None:
        self.folder = Path(folder)
        self.until_damage = until_damage
        self.description: dict[str, Any] = read_description(self.folder)
        if "groups" not in self.description:
            raise CheckpointError(
                f"{self.folder} holds independent draws, no chains; the sampler that wrote them "
                "reads them"
            )
        """Settings of the run: model, kernel, data, versions."""

    @property
    def dims(self) -> dict[str, list[str | None]]:
        """Names of the dimensions of each variable, after those of chains and draws."""
        dims: dict[str, list[str | None]] = self.description["dims"]
        return dims

    @property
    def num_samples(self) -> int:
        """Number of draws that the run wants of each chain."""
        return int(self.description["num_samples"])

    def chains(self) -> list[ChainStatus]:
        """How far each chain is."""
        return list(self._statuses)

    @cached_property
    def _statuses(self) -> list[ChainStatus]:
        statuses = []
        for members in self._groups():
            num_draws = [0] * len(members)
            running = [True] * len(members)
            for chunk in self._chunks(members):
                for column, valid in enumerate(chunk.valid):
                    num_draws[column] += valid * running[column]
                    running[column] &= valid == len(chunk)
            stopped = self._stopped_at(members)
            statuses += [
                ChainStatus(length, step) for length, step in zip(num_draws, stopped, strict=True)
            ]
        return statuses

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Draws of the latent and deterministic sites, in constrained space.

        Where chains differ in length, as those of a running one may, they are cut or left out so
        that most draws are kept; chains that stopped are left out.

        :param bool group_by_chain: keep chains apart.
        :returns: **Shape:** ``(num_chains, num_draws, *event)`` each, or with the chains
            concatenated, ``(num_chains * num_draws, *event)``.
        :raises CheckpointError: where there is no draw yet, or a file was cut or changed.
        """
        samples, _ = self._gather()
        if group_by_chain:
            return samples
        return {name: value.flatten(0, 1) for name, value in samples.items()}

    def sample_statistics(self) -> dict[str, Tensor]:
        """Statistics of the step before each draw.

        :returns: **Shape:** ``(num_chains, num_draws)`` each.
        :raises CheckpointError: where there is no draw yet, or a file was cut or changed.
        """
        fields = self.description["identity"]["recorded"]["fields"]
        return {name: value for name, value in self._gather()[1].items() if name not in fields}

    def _gather(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        numbers, length = complete_chains(self._statuses, self.num_samples)
        if not length:
            raise CheckpointError(f"{self.folder} holds no draws yet")
        groups = [(members, partial(self._chunks, members)) for members in self._groups()]
        return gather_chains(groups, numbers, length)

    def _groups(self) -> list[range]:
        return [range(*bounds) for bounds in self.description["groups"]]

    def _chunks(self, members: range) -> Iterator[Chunk]:
        try:
            yield from read_chunks(self.folder, members)
        except CheckpointError as error:
            if not self.until_damage:
                raise CheckpointError(
                    f"{error}; Checkpoint(folder, until_damage=True) reads the draws before it"
                ) from error

    def _stopped_at(self, members: range) -> list[int | None]:
        path = state_file(self.folder, members)
        if not path.exists():
            return [None] * len(members)
        try:
            stopped: list[int | None] = read_tensors(path)[1]["state"]["stopped_at"]
        except CheckpointError:
            if not self.until_damage:
                raise
            return [None] * len(members)
        return stopped
