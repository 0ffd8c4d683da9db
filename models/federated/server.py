r"""A server, and clients that train adapters on data that never leave them."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from pyro_ext._lib import checks
from pyro_ext._lib.hints import refuses_moved
from pyro_ext._lib.progress import progress_bar
from pyro_ext.checkpoint.files import CheckpointError, locked
from pyro_ext.inference.privacy import PoissonBatches, PrivateLoss, example_loss, pld_epsilon
from pyro_ext.inference.training import ShuffledBatches, Trainer, TrainingDiverged
from pyro_ext.inference.training.checkpoints import (
    comparable,
    read_training,
    write_training,
)
from pyro_ext.inference.training.fits import check_fits
from pyro_ext.inference.training.trainer import Optimizer
from pyro_ext.models.federated.strategies import STRATEGIES, Strategy
from pyro_ext.nn import LoRALinear, add_lora, lora_layers
from pyro_ext.posterior.identity import data_identity, differences
from pyro_ext.random import fresh_seed, seeded, spawn_seed

Clients = Sequence[tuple[Tensor, Tensor]]

_SETTINGS = (
    "fraction",
    "num_local_steps",
    "batch_size",
    "max_norm",
    "noise_multiplier",
    "seed",
)
_SGD = partial(torch.optim.SGD, lr=0.5)


class FederatedRound(NamedTuple):
    """Participants of a round, and their losses.

    :param list clients: numbers of the clients.
    :param list weights: weights of the clients in the average, which sum to one.
    :param list losses: mean loss of each client over its steps.
    """

    clients: list[int]
    weights: list[float]
    losses: list[float]


@refuses_moved
class FederatedServer:
    r"""Adapters of a frozen network, trained by clients that do not share their data [1].

    In each round, some of the clients take a few steps on their own data, starting from the
    server's adapters, and the server aggregates the results, with weights :math:`w_k \propto n_k`:

    ==============  =============  ================================================================
    strategy        clients train  the server
    ==============  =============  ================================================================
    ``"fedavg"``    A and B        averages each factor
    ``"ffa"``       B              averages B; A keeps its initial value [2]
    ``"flora"``     A and B        adds the average product to the weight, and restarts both [3]
    ``"fedex"``     A and B        averages each; adds what their product lacks to the weight [4]
    ``"fedsvd"``    B              averages B; sets A to right singular vectors of the product
    ``"ffa_orth"``  B              as ``"ffa"``, with orthonormal rows in A from the start
    ==============  =============  ================================================================

    FedSVD keeps the initial row space of :math:`A` and never leaves it, since the right singular
    vectors of :math:`B A` lie in it. The rotation within that space has no effect if steps do not
    depend on the coordinates, as with SGD, clipped norms and Gaussian noise: from a start with
    orthonormal rows, ``"fedsvd"`` and ``"ffa_orth"`` make the same products. This is our
    derivation, not in [1]. Optimizers with a step size for each coordinate, such as Adam, differ.

    With ``noise_multiplier``, clients take DP-SGD steps on Poisson samples, and :meth:`epsilon`
    bounds the privacy loss of a client's example; averaging on the server gives no further
    protection. The loss grows with the fraction of a client's rows in a minibatch: for small
    clients, use a small ``batch_size``. Without it, clients take ordinary minibatches and clip the
    norm of the gradient. Clients without rows are skipped.

    :param torch.nn.Module module: maps inputs ``(n, *event)`` to outputs. It is copied with its
        adapters; if it has none, :func:`pyro_ext.nn.add_lora` adds them.
    :param strategy: a name from the table, or a :class:`Strategy`, which also sets when
        decompositions are made.
    :param Callable loss: maps outputs and targets to a scalar.
    :param float fraction: fraction of the clients in a round, rounded up.
    :param int num_local_steps: number of steps of a client in a round.
    :param int batch_size: size of a client's minibatches, or with noise their expected size; a
        client with fewer rows uses all of them.
    :param Callable optimizer: makes a client's optimizer in each round.
    :param float max_norm: norm to which gradients are clipped, over all layers together: the
        gradient of a minibatch, or with noise that of each example.
    :param float noise_multiplier: standard deviation of the noise divided by ``max_norm``; ``None``
        trains without privacy.
    :param int chunk_size: as for :class:`~pyro_ext.inference.privacy.PrivateLoss`.
    :param int seed: seed of new adapters, the choice of clients, and their steps.
    :raises ValueError: for numbers out of range, a network without linear layers, or, with noise, a
        network with batch norm in training mode, which has no gradients of single examples.

    [1] S. Lee et al. (2025), FedSVD: adaptive orthogonalization for private federated learning with
    LoRA, algorithm 1.

    [2] Y. Sun et al. (2024), Improving LoRA in privacy-preserving federated learning.

    [3] Z. Wang et al. (2024), FLoRA: federated fine-tuning large language models with heterogeneous
    low-rank adaptations.

    [4] R. Singhal et al. (2025), FedEx-LoRA: exact aggregation for federated and efficient
    fine-tuning of large language models.

    Example::

        >>> from pyro_ext.models.federated import dirichlet_split
        >>> from pyro_ext.nn import MLP, add_lora
        >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
        >>> clients = [(x[rows], y[rows]) for rows in dirichlet_split(y, 3, seed=0)]
        >>> network = add_lora(MLP(4, [8], 3), rank=2)
        >>> server = FederatedServer(network, "fedsvd", num_local_steps=2, seed=0,
        ...                          noise_multiplier=20.0, batch_size=10)
        >>> rounds = server.run(clients, num_rounds=3, progress=False)
        >>> rounds[0].clients, sum(rounds[0].weights), server.module(x).shape
        ([1, 2], 1.0, torch.Size([90, 3]))
        >>> max(server.epsilon(delta=1e-3)) < 0.1
        True
    """

    def __init__(
        self,
        module: nn.Module,
        strategy: str | Strategy = "fedsvd",
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        fraction: float = 0.5,
        num_local_steps: int = 10,
        batch_size: int = 128,
        optimizer: Optimizer = _SGD,
        max_norm: float = 1.0,
        noise_multiplier: float | None = None,
        chunk_size: int | None = None,
        seed: int | None = None,
    ) -> None:
        checks.instance("module", module, nn.Module, "a torch.nn.Module")
        if not isinstance(strategy, Strategy):
            checks.choice("strategy", strategy, STRATEGIES)
            strategy = STRATEGIES[strategy]
        self.strategy = strategy
        checks.function("loss", loss, "a function of outputs and targets", or_class=False)
        self.loss = loss
        self.fraction = checks.number("fraction", fraction, above=0.0, most=1.0)
        self.num_local_steps = checks.integer("num_local_steps", num_local_steps, 1)
        self.batch_size = checks.integer("batch_size", batch_size, 1)
        checks.function("optimizer", optimizer, "a function that makes an optimizer of tensors")
        self.optimizer = optimizer
        self.max_norm = checks.number("max_norm", max_norm, above=0.0)
        self.noise_multiplier = checks.optional(
            checks.number, "noise_multiplier", noise_multiplier, least=0.0
        )
        self.chunk_size = checks.optional(checks.integer, "chunk_size", chunk_size, 1)
        self.seed = fresh_seed(seed)
        if lora_layers(module):
            self.module = copy.deepcopy(module).requires_grad_(False)
        else:
            with seeded(self.seed):
                self.module = add_lora(module)
        """The network with the present adapters."""
        for layer in self.adapters.values():
            if strategy.orthonormal_start:
                layer.orthonormalize()
            layer.A.requires_grad_(strategy.train_A)
            layer.B.requires_grad_(True)
        if noise_multiplier is not None:
            example_loss(self.module, loss)  # which has to exist
        self._start = data_identity(dict(self.module.state_dict()), "module")
        self.rounds: list[FederatedRound] = []
        """The rounds so far."""
        self.sizes: list[int] | None = None
        """Number of rows of each client, once there has been a round."""

    @property
    def adapters(self) -> dict[str, LoRALinear]:
        """Layers with an adapter, by name."""
        return lora_layers(self.module)

    # Rounds --------------------------------------------------------------------------------------

    def round(self, clients: Clients) -> FederatedRound:
        r"""Let some clients train, and aggregate their adapters.

        :param Sequence clients: inputs **(n, \*event)** and targets **(n, ...)** of each client;
            always pass the same clients. Those without rows are skipped.
        :returns: who took part, which is also the last of :attr:`rounds`.
        :raises TrainingDiverged: if a client's loss or gradient is not finite; the adapters stay as
            they were.
        """
        clients = self._check_clients(clients)
        number = len(self.rounds)
        with_rows = [k for k, (inputs, _) in enumerate(clients) if len(inputs)]
        generator = torch.Generator().manual_seed(spawn_seed(self.seed, 1, number))
        order = torch.randperm(len(with_rows), generator=generator, device="cpu")
        num_chosen = math.ceil(self.fraction * len(with_rows) - 1e-9)
        chosen = sorted(with_rows[one] for one in order[:num_chosen].tolist())
        trained = [self._train(clients[k], spawn_seed(self.seed, 2, number, k)) for k in chosen]
        counts = torch.tensor([len(clients[k][0]) for k in chosen], dtype=torch.float64)
        weights = counts / counts.sum()
        before = copy.deepcopy(self._state())
        try:
            self._aggregate([values for values, _ in trained], weights)
        except BaseException:
            self._put(before)
            raise
        self.sizes = [len(inputs) for inputs, _ in clients]
        self.rounds.append(FederatedRound(chosen, weights.tolist(), [mean for _, mean in trained]))
        return self.rounds[-1]

    def run(
        self,
        clients: Clients,
        num_rounds: int,
        *,
        checkpoint: str | Path | None = None,
        save_every: int = 10,
        progress: bool = True,
    ) -> list[FederatedRound]:
        """Run rounds until ``num_rounds`` have been run in total.

        :param Sequence clients: as for :meth:`round`.
        :param int num_rounds: total number of rounds, including those of earlier calls and of the
            checkpoint.
        :param checkpoint: a file in which the server is saved along the way and at the end. If it
            exists, the run resumes from it, with the same results.
        :param int save_every: number of rounds between saves.
        :param bool progress: whether to show a progress bar.
        :returns: all rounds.
        :raises CheckpointError: if the file is damaged, belongs to a server with other settings,
            such as another seed, or to other clients, or if another process is writing it.
        """
        clients = self._check_clients(clients)
        num_rounds = checks.integer("num_rounds", num_rounds, 0)
        save_every = checks.integer("save_every", save_every, 1)
        checks.boolean("progress", progress)
        if checkpoint is not None:
            checks.instance("checkpoint", checkpoint, (str, Path), "a path or None")
            checkpoint = Path(checkpoint)
        with locked(checkpoint):
            if checkpoint is not None and checkpoint.exists():
                self._read(checkpoint, clients)
            num_saved = len(self.rounds)
            bar = progress_bar(
                total=num_rounds,
                initial=num_saved,
                desc="Rounds",
                unit="round",
                disable=not progress,
            )
            with bar:
                while len(self.rounds) < num_rounds:
                    try:
                        done = self.round(clients)
                    except KeyboardInterrupt:
                        warnings.warn(
                            f"stopped after {len(self.rounds)} of {num_rounds} rounds, "
                            "which are kept",
                            stacklevel=2,
                        )
                        break
                    bar.set_postfix_str(
                        f"loss {sum(done.losses) / len(done.losses):.4g}", refresh=False
                    )
                    bar.update()
                    if checkpoint is not None and len(self.rounds) % save_every == 0:
                        self._write(checkpoint, clients)
                        num_saved = len(self.rounds)
            if checkpoint is not None and num_saved != len(self.rounds):
                self._write(checkpoint, clients)
        return self.rounds

    def epsilon(self, delta: float = 1e-5) -> list[float]:
        r"""Compute the privacy loss of an example of each client, over its steps so far.

        It is the :math:`\varepsilon` of :func:`~pyro_ext.inference.privacy.pld_epsilon`: infinite
        without noise, and zero for clients that never took part. Sizes of clients and their
        participation are public.

        :param float delta: :math:`\delta`.
        :raises ImportError: if ``dp-accounting`` is not installed; the message names the extra to
            install.
        """
        checks.number("delta", delta, above=0.0, below=1.0)
        spent = []
        for client, size in enumerate(self.sizes or []):
            num_steps = self.num_local_steps * sum(client in one.clients for one in self.rounds)
            noise = self.noise_multiplier or 0.0
            rate = self.sampling_rate(size) if size else 1.0
            spent.append(pld_epsilon(rate, noise, num_steps, delta) if num_steps else 0.0)
        return spent

    def sampling_rate(self, size: int) -> float:
        """Probability that a row is in a minibatch of a client with ``size`` rows.

        :param int size: number of rows.
        """
        return min(1.0, self.batch_size / checks.integer("size", size, 1))

    # Clients -------------------------------------------------------------------------------------

    def _check_clients(self, clients: Any) -> list[tuple[Tensor, Tensor]]:
        wanted = "pairs of tensors, inputs and targets of each client"
        clients = checks.sequence("clients", clients, wanted)
        for number, pair in enumerate(clients):
            are_tensors = isinstance(pair, list | tuple) and len(pair) == 2
            if not are_tensors or not all(isinstance(one, Tensor) and one.dim() for one in pair):
                raise TypeError(
                    f"clients must be {wanted}, got {checks.shown(pair)} for client {number}"
                )
            if len(pair[0]) != len(pair[1]):
                raise ValueError(
                    "clients must have as many inputs as targets, got the shapes "
                    f"{[tuple(one.shape) for one in pair]} for client {number}"
                )
        sizes = [len(inputs) for inputs, _ in clients]
        if not any(sizes):
            raise ValueError(f"clients must have rows, at least one of them, got {sizes} rows")
        if self.sizes is not None and self.sizes != sizes:
            raise ValueError(
                f"clients must be those of earlier rounds, which had {self.sizes} rows, got {sizes}"
            )
        for inputs, targets in clients:
            if len(inputs):
                check_fits("clients", self.module, self.loss, inputs, targets)
        return [(inputs, targets) for inputs, targets in clients]

    def _train(self, data: tuple[Tensor, Tensor], seed: int) -> tuple[dict[str, Tensor], float]:
        """Train one client; return its adapters and buffers, and its mean loss."""
        own = {
            name: p.detach().clone().requires_grad_()
            for name, p in self.module.named_parameters()
            if p.requires_grad
        }
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        size = len(data[0])
        if self.noise_multiplier is None:
            trainer = Trainer(own, self.optimizer, max_norm=self.max_norm, seed=seed)
            shuffled = ShuffledBatches(*data, batch_size=min(self.batch_size, size))

            def of_batch(inputs: Tensor, targets: Tensor) -> Tensor:
                return self.loss(
                    functional_call(self.module, {**own, **buffers}, (inputs,)), targets
                )

            for step in range(self.num_local_steps):
                trainer.step(of_batch, *shuffled.batch(step, seed))
        else:
            trainer = Trainer(own, self.optimizer, seed=seed)
            sampled = PoissonBatches(*data, sampling_rate=self.sampling_rate(size))
            private = PrivateLoss(
                example_loss(self.module, self.loss),
                own,
                max_norm=self.max_norm,
                noise_multiplier=self.noise_multiplier,
                expected_batch_size=sampled.expected_size,
                chunk_size=self.chunk_size,
            )
            for step in range(self.num_local_steps):
                trainer.step(private, sampled(spawn_seed(seed, 1, step)))
        trained = {name: value.detach() for name, value in own.items()}
        return {**trained, **buffers}, sum(trainer.losses) / len(trainer.losses)

    @torch.no_grad()
    def _aggregate(self, trained: list[dict[str, Tensor]], weights: Tensor) -> None:
        """Change adapters and buffers by those of clients."""
        number = len(self.rounds) + 1
        period, warmup = self.strategy.svd_period, self.strategy.svd_warmup
        refactorize = period is not None and number % period == 0 and number > warmup
        with seeded(spawn_seed(self.seed, 3, number)):
            for name, layer in self.adapters.items():
                prefix = f"{name}." if name else ""
                A, B = (
                    torch.stack([values.get(f"{prefix}{factor}", own) for values in trained])
                    for factor, own in (("A", layer.A), ("B", layer.B))
                )
                self.strategy.aggregate(layer, A, B, weights.to(layer.B))
                for one, tensor in layer.state_dict().items():
                    if not bool(tensor.isfinite().all()):
                        raise TrainingDiverged(
                            f"{one} of layer {name!r} is not finite after round {number}, which is "
                            "undone. Use a smaller learning rate, or clip gradients"
                        )
                if refactorize:
                    layer.refactorize()
        for name, buffer in self.module.named_buffers():
            each = torch.stack([values[name] for values in trained])
            if buffer.is_floating_point():  # statistics of batch norm
                buffer.copy_(torch.tensordot(weights.to(buffer), each, 1))
            else:
                buffer.copy_(each[0])

    # Checkpoints ---------------------------------------------------------------------------------

    def _identity(self, clients: Clients) -> dict[str, Any]:
        """Describe the settings and data that a checkpoint is compared by."""
        made = Trainer([torch.zeros(1, requires_grad=True)], self.optimizer).optimizer
        identity: dict[str, Any] = comparable(
            {
                **{name: getattr(self, name) for name in _SETTINGS},
                "strategy": vars(self.strategy),
                "loss": self.loss,
                "optimizer": made.state_dict()["param_groups"],
                "adapters": {name: repr(layer) for name, layer in self.adapters.items()},
                **self._start,
                **data_identity(list(clients), "clients"),
            }
        )
        return identity

    def _state(self) -> dict[str, Any]:
        """All tensors that rounds change."""
        return {
            "layers": {name: dict(layer.state_dict()) for name, layer in self.adapters.items()},
            "buffers": dict(self.module.named_buffers()),
        }

    @torch.no_grad()
    def _put(self, state: dict[str, Any]) -> None:
        for name, layer in self.adapters.items():
            layer.load_state_dict(state["layers"][name])
        for name, buffer in self.module.named_buffers():
            buffer.copy_(state["buffers"][name])

    def _write(self, path: Path, clients: Clients) -> None:
        state = {
            **self._state(),
            "rounds": [list(one) for one in self.rounds],
            "sizes": self.sizes,
        }
        write_training(path, self._identity(clients), state)

    def _read(self, path: Path, clients: Clients) -> None:
        """Go on where the server was that wrote a file, if that is further."""
        found, state = read_training(path)
        if unlike := differences(found, self._identity(clients)):
            raise CheckpointError(f"{path} is of another server: {'; '.join(unlike[:5])}")
        if len(state["rounds"]) > len(self.rounds):
            self._put(state)
            self.rounds = [FederatedRound(*one) for one in state["rounds"]]
            self.sizes = state["sizes"]
