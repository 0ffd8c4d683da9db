"""Twisted sequential Monte Carlo for autoregressive models."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, Self, Unpack

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext._lib import checks
from pyro_ext.inference.smc.autoregressive import (
    AutoregressiveModel,
    Step,
    Walk,
    check_model,
    device_of,
    sequence_log_prob,
)
from pyro_ext.inference.smc.particles import (
    check_weights,
    draw_index,
    effective_sample_size,
    initial_particles,
    resample,
    reweight,
)
from pyro_ext.inference.training import Trainer
from pyro_ext.inference.training.options import TrainingOptions
from pyro_ext.inference.training.trainer import Optimizer
from pyro_ext.random import chain_keys, fresh_seed, seeded, uniform

_ADAM = partial(torch.optim.Adam, lr=0.02)


class SMCResult(NamedTuple):
    """Weighted sequences; several runs have a leading dimension.

    :ivar Tensor sequences: tokens. **Shape:** ``(*runs, num_particles, length)``.
    :ivar Tensor log_weights: weights whose mean in each run is the estimate of the normalizing
        constant. **Shape:** ``(*runs, num_particles)``.
    :ivar Tensor log_Z: logarithm of that estimate. **Shape:** ``(*runs)``.
    """

    sequences: Tensor
    log_weights: Tensor
    log_Z: Tensor

    @property
    def effective_sample_size(self) -> Tensor:
        """Effective sample size of the weights. **Shape:** ``(*runs)``."""
        return effective_sample_size(self.log_weights)

    def sample(self, num_samples: int = 1, seed: int | None = None) -> Tensor:
        """Draw sequences of each run in proportion to their weights.

        :param int num_samples: number of sequences.
        :param int seed: seed of the draws.
        :returns: **Shape:** ``(*runs, num_samples, length)``.
        :raises ValueError: if all weights of a run are zero.
        """
        checks.integer("num_samples", num_samples, 1)
        check_weights(self.log_weights)
        size = (*self.log_Z.shape, num_samples)
        with seeded(seed):
            uniforms = torch.rand(size, dtype=torch.float64).to(self.log_Z.device)
        index = draw_index(self.log_weights, uniforms)
        return self.sequences.gather(-2, index[..., None].expand(*size, self.sequences.shape[-1]))


class ProposalDraws(NamedTuple):
    """Independent sequences from the proposal or the base model, with their log probabilities.

    :ivar Tensor sequences: tokens. **Shape:** ``(num_samples, length)``, as for the others.
    :ivar Tensor log_base: log probability of each token under the base model.
    :ivar Tensor log_twist: log twist at each token, with a gradient.
    :ivar Tensor log_normalizer: log sum of base times twist over the vocabulary, with a gradient.
    :ivar Tensor log_potential: log potential of each sequence. **Shape:** ``(num_samples,)``.
    """

    sequences: Tensor
    log_base: Tensor
    log_twist: Tensor
    log_normalizer: Tensor
    log_potential: Tensor

    @property
    def log_proposal(self) -> Tensor:
        """Log probability of each token under the proposal."""
        return self.log_base + self.log_twist - self.log_normalizer


class BidirectionalBounds(NamedTuple):
    r"""Estimates of lower and upper bounds [1].

    :ivar Tensor log_Z_lower: estimates of a lower bound of the log normalizing constant. **Shape:**
        ``(num_runs,)``.
    :ivar Tensor log_Z_upper: likewise for an upper bound.
    :ivar Tensor proposal_to_target: lower and upper bound of the divergence
        :math:`\mathrm{KL}(q \,\|\, \sigma)`. **Shape:** ``(2,)``.
    :ivar Tensor target_to_proposal: likewise for :math:`\mathrm{KL}(\sigma \,\|\, q)`. **Shape:**
        ``(2,)``.
    """

    log_Z_lower: Tensor
    log_Z_upper: Tensor
    proposal_to_target: Tensor
    target_to_proposal: Tensor


class _TwistLoss(Protocol):
    """Loss that twists are trained with: a TwistLoss, or any object with this method."""

    def differentiable_loss(self, smc: "TwistedSMC", prompt: Tensor | None = None) -> Tensor:
        """An estimate with a gradient in the parameters of the twist."""


class TwistedSMC:
    r"""Draws sequences from an autoregressive model tilted by a potential [1].

    The target is :math:`\sigma(s) \propto p_0(s)\, \phi(s)` over sequences
    :math:`s = s_{1:T}` of tokens. A twist :math:`\psi_t(s_{1:t})` predicts, from a prefix, the
    potential of the whole sequence; the optimum is
    :math:`\psi^*_t = \mathbb{E}_{p_0}[\phi \mid s_{1:t}]`. Particles
    are drawn from :math:`q_t(v \mid s_{<t}) = p_0(v \mid s_{<t})\, \psi_t(s_{<t}, v) / N_t(s_{<t})`
    and weighted by

    .. math::
        w_t = \frac{N_t(s_{<t})}{\psi_{t-1}(s_{<t})} \quad (t < T), \qquad
        w_T = \frac{N_T(s_{<T})}{\psi_{T-1}(s_{<T})} \, \frac{\phi(s)}{\psi_T(s)},

    so that the intermediate targets are :math:`\pi_t \propto p_0(s_{1:t})\, \psi_t(s_{1:t})`, and
    the potential is evaluated on whole sequences only. The estimate of the normalizing constant is
    unbiased for any twist; with the optimal twist, all weights are equal.

    Base model, twist and potential read tokens as integers. Base and twist are functions of a
    prefix, such as modules, or keep a state between steps, as an
    :class:`~pyro_ext.inference.smc.IncrementalModel` does. With a prompt, all three receive the
    prompt followed by the tokens drawn so far. Tokens are on the device of the modules' parameters,
    or else on that of the prompt, which may be empty.

    :param Callable base: maps prefixes ``(num_rows, t)``, with ``t`` from 0, to log probabilities
        of the next token ``(num_rows, vocabulary_size)``.
    :param Callable twist: likewise maps prefixes to :math:`\log \psi_{t+1}` for each next token,
        which are real numbers; ``None`` sets all twists to one.
    :param Callable log_potential: maps sequences ``(num_rows, length)`` to log potentials
        ``(num_rows,)``, which may be minus infinity.
    :param int num_particles: number of particles of a run.
    :param int length: number of tokens :math:`T` of a sequence; required.
    :param float ess_threshold: particles are resampled when their effective sample size falls below
        this fraction of their number. With 1, the default, they are resampled after each step with
        uneven weights, with 0 never. They are not resampled after the last step.
    :raises TypeError: for a base, twist or potential that cannot be called.
    :raises ValueError: for numbers out of range.

    [1] S. Zhao, R. Brekelmans, A. Makhzani, R. Grosse (2024),
    Probabilistic inference in language models via twisted sequential Monte Carlo.

    Example::

        >>> def coins(prefix):  # heads and tails are equally likely
        ...     return torch.full((len(prefix), 2), 0.5).log()
        >>> def all_heads(sequences):
        ...     return torch.where(sequences.bool().all(-1), 0.0, -torch.inf)
        >>> def heads(prefix):  # each head to come halves the probability
        ...     return torch.tensor([-torch.inf, 0.0]).expand(len(prefix), 2)
        >>> smc = TwistedSMC(coins, heads, all_heads, num_particles=4, length=10)
        >>> result = smc.run(seed=0)
        >>> result.sequences.shape, bool(result.sequences.all())
        (torch.Size([4, 10]), True)
        >>> round(float(result.log_Z.exp() * 2**10), 4)
        1.0
    """

    def __init__(
        self,
        base: AutoregressiveModel,
        twist: AutoregressiveModel | None,
        log_potential: Callable[[Tensor], Tensor],
        num_particles: int = 16,
        length: int | None = None,
        *,
        ess_threshold: float = 1.0,
    ) -> None:
        check_model("base", base)
        if twist is not None:
            check_model("twist", twist)
        checks.function("log_potential", log_potential, "a function of sequences", or_class=False)
        self.base, self.twist, self.log_potential = base, twist, log_potential
        self.num_particles = checks.integer("num_particles", num_particles, 1)
        self.length = checks.integer("length", length, 1)
        self.ess_threshold = checks.number("ess_threshold", ess_threshold, least=0, most=1)
        self.losses: list[float] = []

    def run(
        self,
        prompt: Tensor | None = None,
        clamp: Tensor | None = None,
        *,
        num_runs: int | None = None,
        seed: int | None = None,
    ) -> SMCResult:
        r"""Draw weighted sequences.

        With a sequence from the target as ``clamp``, this is conditional sequential Monte Carlo:
        the first particle is that sequence throughout, and
        :math:`\mathbb{E} \log \hat Z \ge \log Z`; without it,
        :math:`\mathbb{E} \log \hat Z \le \log Z`.

        :param Tensor prompt: tokens that precede the sequences, shared by all runs or one row for
            each. **Shape:** ``(num_tokens,)`` or ``(num_runs, num_tokens)``.
        :param Tensor clamp: a sequence for the first particle, likewise. **Shape:** ``(length,)``
            or ``(num_runs, length)``.
        :param int num_runs: number of independent runs, which are computed side by side and have a
            leading dimension in the result; ``None`` does one run without that dimension. A run
            uses the same random numbers whether it is alone or among others.
        :param int seed: seed of all draws; ``None`` takes one from PyTorch's generator.
        :returns: sequences without the prompt, weights, and the estimate.
        :raises ValueError: for arguments of a wrong shape, or if base, twist or potential return
            NaN or a wrong shape.
        """
        size = 1 if num_runs is None else checks.integer("num_runs", num_runs, 1)
        rows = self._prompt(prompt, size).repeat_interleave(self.num_particles, 0)
        forced = None
        if clamp is not None:
            first = self._rows("clamp", clamp, size, rows.device)
            forced = rows.new_full((size, self.num_particles, self.length), -1)
            forced[:, 0] = first
            forced = forced.reshape(-1, self.length)
        found = self._run(rows, forced, size, fresh_seed(seed))
        return found if num_runs is not None else SMCResult(*(value[0] for value in found))

    @torch.no_grad()
    def _run(self, prompt: Tensor, forced: Tensor | None, size: int, seed: int) -> SMCResult:
        """Take all steps. **Shapes:** prompt ``(size * num_particles, num_tokens)``."""
        keys = chain_keys(seed, range(size), prompt.device)
        numbers = torch.arange(self.length, device=prompt.device)
        draws, ancestors = (
            uniform(keys, numbers, self.num_particles, stream=stream, dtype=torch.float64)
            for stream in (0, 1)
        )
        shape = (size, self.num_particles)
        first_rows = torch.arange(size, device=prompt.device)[:, None] * self.num_particles
        walk = Walk(self.base, self.twist, prompt)
        particles, previous = None, torch.zeros((), device=prompt.device)
        for number in range(self.length):
            wanted = None if forced is None else forced[:, number]
            step = walk.step(draws[number].reshape(-1), wanted)
            if forced is not None:
                self._check_clamp(step, number)
            gain = step.log_normalizer - previous
            if number == self.length - 1:
                gain = gain + self._potential(walk.tokens) - step.log_twist
            # A particle that the twist has excluded stays excluded.
            gain = torch.where(previous == -math.inf, -math.inf, gain)
            gain = torch.where(step.log_normalizer == -math.inf, -math.inf, gain).reshape(shape)
            if particles is None:
                particles = initial_particles(*shape, like=gain)
            particles = reweight(particles, gain)
            previous = step.log_twist
            if number < self.length - 1:
                index, particles = resample(
                    particles, ancestors[number], self.ess_threshold, keep_first=forced is not None
                )
                flat = (index + first_rows).reshape(-1)
                if not torch.equal(flat, torch.arange(len(flat), device=flat.device)):
                    walk.select(flat)
                    previous = previous[flat]
        assert particles is not None
        sequences = walk.tokens[:, prompt.shape[1] :].reshape(*shape, self.length)
        return SMCResult(sequences, particles.proper_log_weights, particles.log_Z)

    def propose(
        self,
        num_samples: int,
        prompt: Tensor | None = None,
        *,
        seed: int | None = None,
        from_base: bool = False,
    ) -> ProposalDraws:
        """Draw independent sequences from the proposal, without weighting or resampling.

        Gradients in the parameters of the twist flow through its values, not through the draws.

        :param int num_samples: number of sequences.
        :param Tensor prompt: tokens that precede the sequences. **Shape:** ``(num_tokens,)``.
        :param int seed: seed of the draws; ``None`` takes one from PyTorch's generator.
        :param bool from_base: whether to draw from the base model instead.
        """
        checks.integer("num_samples", num_samples, 1)
        checks.instance("from_base", from_base, bool, "True or False")
        rows = self._prompt(prompt, 1).expand(num_samples, -1)
        keys = chain_keys(fresh_seed(seed), range(1), rows.device)
        numbers = torch.arange(self.length, device=rows.device)
        draws = uniform(keys, numbers, num_samples, dtype=torch.float64)[:, 0]
        return self._walked(rows, draws, None, from_base)

    def proposal_log_prob(self, sequences: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Log probability of sequences under the proposal, without resampling.

        :param Tensor sequences: tokens. **Shape:** ``(num_samples, length)``.
        :param Tensor prompt: tokens that precede the sequences. **Shape:** ``(num_tokens,)``.
        :returns: **Shape:** ``(num_samples,)``.
        """
        return self._given(sequences, prompt).log_proposal.sum(-1)

    def target_log_prob(self, sequences: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Log density of sequences under the target, without its normalizing constant.

        :param Tensor sequences: tokens. **Shape:** ``(num_samples, length)``.
        :param Tensor prompt: tokens that precede the sequences. **Shape:** ``(num_tokens,)``.
        :returns: **Shape:** ``(num_samples,)``.
        """
        rows, own = self._with_prompt(sequences, prompt)
        tokens = torch.cat([rows, own], -1)
        with torch.no_grad():
            return sequence_log_prob(self.base, tokens, rows.shape[1]) + self._potential(tokens)

    @torch.no_grad()
    def bidirectional_bounds(
        self, sequences: Tensor, prompt: Tensor | None = None, *, seed: int | None = None
    ) -> BidirectionalBounds:
        r"""Bound the log normalizing constant and both divergences between proposal and target.

        Each sequence from the target gives one conditional run for the upper bound. As many other
        runs give the lower bound, and as many draws from the proposal give the divergences.

        :param Tensor sequences: exact draws from the target. **Shape:** ``(num_runs, length)``.
        :param Tensor prompt: tokens that precede the sequences. **Shape:** ``(num_tokens,)``.
        :param int seed: seed of all draws; ``None`` takes one from PyTorch's generator.
        """
        _, own = self._with_prompt(sequences, prompt)
        seed = fresh_seed(seed)
        num_runs = len(own)
        lower = self.run(prompt, num_runs=num_runs, seed=seed).log_Z
        upper = self.run(prompt, own, num_runs=num_runs, seed=seed).log_Z
        proposed = self.propose(num_runs, prompt, seed=seed)
        ratios = proposed.log_normalizer - proposed.log_twist  # base over proposal
        forward = -(ratios.sum(-1) + proposed.log_potential).mean()
        given = self._given(own, prompt)
        ratios = given.log_normalizer - given.log_twist
        backward = (ratios.sum(-1) + given.log_potential).mean()
        ends = torch.stack([lower.mean(), upper.mean()])
        return BidirectionalBounds(lower, upper, forward + ends, backward - ends.flip(0))

    def fit(
        self,
        loss: "_TwistLoss",
        num_steps: int = 1000,
        prompt: Tensor | None = None,
        *,
        optimizer: Optimizer | None = None,
        max_norm: float | None = 1.0,
        seed: int | None = None,
        **training: Unpack[TrainingOptions],
    ) -> Self:
        """Train the twist, which must be a module; ``losses`` holds the loss before each step.

        Training uses :class:`~pyro_ext.inference.Trainer`: Ctrl-C keeps whole steps, and a value
        that is not finite raises an error that says where it occurred.

        :param TwistLoss loss: for example :class:`~pyro_ext.inference.smc.CTLLoss`.
        :param int num_steps: number of steps.
        :param Tensor prompt: tokens that precede the sequences. **Shape:** ``(num_tokens,)``.
        :param optimizer: a function that makes an optimizer from a list of parameters. The default
            is Adam with a learning rate that falls from 0.02 to zero along a cosine. This suits
            tables and small networks, but is too large for fine-tuning a whole language model.
        :param float max_norm: norm to which the gradient is clipped; ``None`` does not clip.
        :param int seed: seed of all draws; ``None`` takes them from PyTorch's generator.
        :param training: options of :class:`~pyro_ext.inference.training.TrainingOptions`.
        :returns: the sampler itself.
        :raises TrainingDiverged: if loss or gradient are not finite.
        """
        if not callable(getattr(loss, "differentiable_loss", None)) or isinstance(loss, type):
            raise TypeError(f"loss must be a TwistLoss, got {loss!r:.80}")
        if not isinstance(self.twist, nn.Module):
            raise TypeError(f"twist must be a module to be trained, got {self.twist!r:.80}")
        self._prompt(prompt, 1)
        identity = {
            "loss": type(loss).__name__,
            "num_particles": self.num_particles,
            "length": self.length,
        }
        num_steps = checks.integer("num_steps", num_steps, 1)
        trainer = twist_trainer(
            self.twist, optimizer, num_steps, max_norm=max_norm, identity=identity, seed=seed
        )
        try:
            trainer.run(
                lambda: loss.differentiable_loss(self, prompt),
                num_steps,
                description=type(loss).__name__,
                **training,
            )
        finally:
            self.losses = trainer.losses
        return self

    # Rows ----------------------------------------------------------------------------------------

    def _walked(
        self, rows: Tensor, draws: Tensor | None, forced: Tensor | None, by_base: bool = False
    ) -> ProposalDraws:
        """Take all steps without resampling."""
        walk = Walk(self.base, self.twist, rows)
        steps: list[Step] = []
        for number in range(self.length):
            wanted = None if forced is None else forced[:, number]
            uniforms = None if draws is None else draws[number]
            steps.append(walk.step(uniforms, wanted, by_base=by_base))
        with torch.no_grad():
            log_potential = self._potential(walk.tokens)
        sequences, *parts = (torch.stack(values, -1) for values in zip(*steps, strict=True))
        log_base, log_twist, log_normalizer = parts
        return ProposalDraws(sequences, log_base, log_twist, log_normalizer, log_potential)

    def _given(self, sequences: Tensor, prompt: Tensor | None) -> ProposalDraws:
        rows, own = self._with_prompt(sequences, prompt)
        return self._walked(rows, None, own)

    def _with_prompt(self, sequences: Any, prompt: Any) -> tuple[Tensor, Tensor]:
        rows = self._prompt(prompt, 1)
        own = checks.as_tensor("sequences", sequences, "(num_samples, length)", kind="integers")
        own = self._rows("sequences", own, len(own), rows.device)
        return rows.expand(len(own), -1), own

    def _prompt(self, prompt: Any, size: int) -> Tensor:
        """Rows of a prompt, of which there may be none. **Shape:** ``(size, num_tokens)``."""
        device = device_of(self.base, self.twist)
        if prompt is None:
            return torch.zeros((size, 0), dtype=torch.int64, device=device)
        prompt = checks.as_tensor("prompt", prompt, kind="integers", allow_empty=True)
        return _as_rows("prompt", prompt, size, device, "(num_tokens,)")

    def _rows(self, name: str, value: Any, size: int, device: torch.device) -> Tensor:
        """Rows of whole sequences. **Shape:** ``(size, length)``."""
        value = checks.as_tensor(name, value, kind="integers")
        if value.shape[-1:] != (self.length,):
            raise ValueError(
                f"{name} must have {self.length} tokens, got the shape {tuple(value.shape)}"
            )
        return _as_rows(name, value, size, device, f"({self.length},)")

    def _potential(self, tokens: Tensor) -> Tensor:
        """Log potentials of whole sequences."""
        values = self.log_potential(tokens)
        if not isinstance(values, Tensor) or values.shape != (len(tokens),):
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"log_potential must return a tensor of the shape ({len(tokens)},), got {found}"
            )
        is_wrong = values.isnan() | (values == math.inf)
        if bool(is_wrong.any()):
            row = int(is_wrong.nonzero()[0])
            raise ValueError(
                "log_potential must return numbers below infinity, got "
                f"{float(values[row]):g} for the sequence {tokens[row].tolist()!r:.80}"
            )
        return values

    def _check_clamp(self, step: Step, number: int) -> None:
        first = step.log_proposal.reshape(-1, self.num_particles)[:, 0]
        if not bool(first.isfinite().all()):
            raise ValueError(
                "clamp must have a positive probability under the proposal, got one of zero at "
                f"token {number + 1}"
            )


def twist_trainer(
    twist: nn.Module, optimizer: Optimizer | None, num_steps: int, **options: Any
) -> Trainer:
    """Build the trainer of a twist, by default with a learning rate that decays to zero."""
    if optimizer is not None:
        return Trainer(twist, optimizer, **options)
    # A large rate leads to twists far from one, and a small one then averages over draws.
    cosine = partial(CosineAnnealingLR, T_max=num_steps)
    return Trainer(twist, _ADAM, scheduler=cosine, **options)


def _as_rows(
    name: str, value: Tensor, size: int, device: torch.device | None, single: str
) -> Tensor:
    """One row for each run."""
    value = value.to(device=device, dtype=torch.int64)
    if value.dim() == 1:
        value = value.expand(size, -1)
    if value.dim() != 2 or len(value) != size:
        several = single.replace("(", f"({size}, ").replace(",)", ")")
        raise ValueError(
            f"{name} must have the shape {single} or {several}, got {tuple(value.shape)}"
        )
    if bool((value < 0).any()):
        raise ValueError(f"{name} must hold tokens >= 0, got {int(value.min())}")
    return value
