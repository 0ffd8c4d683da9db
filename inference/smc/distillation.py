"""Self-distilled twisted sequential Monte Carlo."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext._lib.hints import refuses_moved
from pyro_ext.inference.smc.autoregressive import sequence_log_prob
from pyro_ext.inference.smc.losses import CTLLoss, TwistLoss, weighted_cross_entropy
from pyro_ext.inference.smc.twisted import TwistedSMC, twist_trainer
from pyro_ext.inference.training import Trainer
from pyro_ext.inference.training.trainer import Optimizer
from pyro_ext.posterior.identity import data_identity
from pyro_ext.random import fresh_seed, spawn_seed

_ADAM = partial(torch.optim.Adam, lr=1e-3)


@refuses_moved
class SelfDistilledTwistedSMC:
    r"""Twisted SMC that learns its base model along with its twists [1].

    If the target :math:`\sigma \propto p_0 \phi` concentrates where the base model has little mass,
    twists get no signal to learn from. Generation :math:`m` therefore learns twists for a new base
    :math:`p^{(m)}`, with the potential :math:`\phi^{(m)} = \phi\, p_0 / p^{(m)}`, and its weighted
    sequences train the next base model by maximum likelihood. The target stays the same.

    Each generation starts from the base model and the twists of the previous one. A base model that
    adds what it learns to a fixed model, such as
    :class:`~pyro_ext.models.language.ResidualLanguageModel`, keeps its support.

    :param TwistedSMC sampler: has the base model :math:`p_0`, the twist and the potential. Base and
        twist must be modules; copies of them are trained. Of the base, only parameters that require
        a gradient are trained.
    :param TwistLoss loss: loss of the twists, by default :class:`~pyro_ext.inference.smc.CTLLoss`.
    :param int num_twist_steps: number of gradient steps of the twist in each generation.
    :param int num_distillation_steps: number of gradient steps of the base model between two
        generations.
    :param int num_distillation_particles: number of weighted sequences for each of these steps.
    :param twist_optimizer: a function that makes an optimizer from a list of parameters; by default
        the one of :meth:`TwistedSMC.fit <pyro_ext.inference.TwistedSMC.fit>`. Each generation makes
        a new one.
    :param base_optimizer: likewise for the base; by default Adam with learning rate 0.001.
    :param Tensor prompt: tokens that precede the sequences. **Shape:** ``(num_tokens,)``.
    :param int seed: seed of all draws; ``None`` takes one from PyTorch's generator.

    [1] S. Kim, G. Nam, B. Park, J. Lee (2025), Improving constrained generation in language models
    via self-distilled twisted sequential Monte Carlo.

    Example::

        >>> from pyro_ext.inference.smc import TabularTwist, TwistedSMC
        >>> class Coins(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.logits = torch.nn.Parameter(torch.zeros(2))
        ...     def forward(self, prefix):
        ...         return self.logits.log_softmax(-1).expand(len(prefix), 2)
        >>> smc = TwistedSMC(Coins(), TabularTwist(3, 2), lambda s: s.sum(-1).float(), length=3)
        >>> distilled = SelfDistilledTwistedSMC(
        ...     smc, num_twist_steps=5, num_distillation_steps=5, seed=0)
        >>> distilled.run(2, progress=False).generation
        1
        >>> distilled.sampler.run(seed=0).sequences.shape
        torch.Size([16, 3])
    """

    def __init__(
        self,
        sampler: TwistedSMC,
        *,
        loss: TwistLoss | None = None,
        num_twist_steps: int = 200,
        num_distillation_steps: int = 250,
        num_distillation_particles: int = 64,
        twist_optimizer: Optimizer | None = None,
        base_optimizer: Optimizer = _ADAM,
        prompt: Tensor | None = None,
        seed: int | None = None,
    ) -> None:
        checks.instance("sampler", sampler, TwistedSMC, "a TwistedSMC")
        base, twist = sampler.base, sampler.twist
        if not (isinstance(base, nn.Module) and isinstance(twist, nn.Module)):
            raise TypeError(
                "sampler must have modules as base and twist, to be trained, got "
                f"{checks.shown(base)} and {checks.shown(twist)}"
            )
        if loss is not None:
            checks.instance("loss", loss, TwistLoss, "a TwistLoss or None")
        self.loss = CTLLoss() if loss is None else loss
        self.num_twist_steps = checks.integer("num_twist_steps", num_twist_steps, 1)
        self.num_distillation_steps = checks.integer(
            "num_distillation_steps", num_distillation_steps, 1
        )
        self.num_distillation_particles = checks.integer(
            "num_distillation_particles", num_distillation_particles, 1
        )
        wanted = "a function that makes an optimizer"
        checks.optional(checks.function, "twist_optimizer", twist_optimizer, wanted)
        checks.function("base_optimizer", base_optimizer, wanted)
        self.prompt = prompt
        self.twist_optimizer, self.base_optimizer = twist_optimizer, base_optimizer
        self.log_potential = sampler.log_potential
        self._trained = {name for name, p in base.named_parameters() if p.requires_grad}
        if not self._trained:
            raise ValueError("base must have parameters that require a gradient, got none")
        self.original = _frozen(base)
        self.seed = fresh_seed(seed)
        self.sampler = _changed(sampler, base=self.original, twist=copy.deepcopy(twist))
        """The present sampler: base model, twist and potential of the last generation."""
        self.sampler._prompt(prompt, 1)
        # What phases depend on besides their own settings, for checkpoints.
        self._identity = {
            "loss": type(self.loss).__name__,
            "length": sampler.length,
            "num_particles": sampler.num_particles,
            "num_twist_steps": num_twist_steps,
            "num_distillation_steps": num_distillation_steps,
            "num_distillation_particles": num_distillation_particles,
            **data_identity(dict(self.original.state_dict()), "base"),
        }
        self.losses: list[list[float]] = []
        """Losses of each phase of training: the twist's, the base model's, the twist's, ..."""
        self._trainer: Trainer | None = None
        self._student: nn.Module = self.original
        self._num_phases = 0  # finished ones

    @property
    def generation(self) -> int:
        """Number of the last generation with learned twists, from 0; -1 before the first."""
        return (self._num_phases + 1) // 2 - 1

    def step(self, *, checkpoint: str | Path | None = None, progress: bool = True) -> bool:
        """Run the next generation: distill the base model, except in the first, and learn twists.

        :param checkpoint: as for :meth:`run`.
        :param bool progress: whether to show progress bars.
        :returns: whether the generation is complete. Ctrl-C keeps whole steps, and the next call
            continues from there.
        :raises TrainingDiverged: if a loss or gradient is not finite.
        """
        _check_folder(checkpoint)
        wanted = self.generation + 1
        while self.generation < wanted:
            if not self._phase(checkpoint, progress):
                return False
        return True

    def run(
        self, num_generations: int, *, checkpoint: str | Path | None = None, progress: bool = True
    ) -> "SelfDistilledTwistedSMC":
        """Run generations up to a total number, including those of earlier calls.

        :param int num_generations: total number of generations.
        :param checkpoint: a folder in which each phase of training is saved. A run with the same
            arguments resumes from it bit for bit. Loading it executes no code.
        :param bool progress: whether to show progress bars.
        :returns: the object itself.
        :raises TrainingDiverged: if a loss or gradient is not finite.
        """
        checks.integer("num_generations", num_generations, 1)
        _check_folder(checkpoint)
        while self.generation + 1 < num_generations:
            if not self.step(checkpoint=checkpoint, progress=progress):
                break
        return self

    def _phase(self, checkpoint: str | Path | None, progress: bool) -> bool:
        """Learn twists, or a base model; whether all steps have been taken."""
        number, is_twist = self._num_phases // 2, self._num_phases % 2 == 0
        phase = f"{'twist' if is_twist else 'base'}-{number}"
        if self._trainer is None:
            if not is_twist:
                self._student = copy.deepcopy(self.sampler.base)  # type: ignore[assignment]
                for name, parameter in self._student.named_parameters():
                    parameter.requires_grad_(name in self._trained)
            options: dict[str, Any] = {
                "max_norm": 1.0,
                "identity": self._identity,
                "seed": spawn_seed(self.seed, self._num_phases),
            }
            if is_twist:
                assert isinstance(self.sampler.twist, nn.Module)
                self._trainer = twist_trainer(
                    self.sampler.twist, self.twist_optimizer, self.num_twist_steps, **options
                )
            else:
                self._trainer = Trainer(self._student, self.base_optimizer, **options)
        if checkpoint is not None:
            Path(checkpoint).mkdir(parents=True, exist_ok=True)
            checkpoint = Path(checkpoint) / f"{phase}.safetensors"
        num_steps = self.num_twist_steps if is_twist else self.num_distillation_steps
        self._trainer.run(
            self._twist_loss if is_twist else self._distillation_loss,
            num_steps,
            checkpoint=checkpoint,
            progress=progress,
            description=phase,
        )
        if self._trainer.num_steps < num_steps:
            return False
        self.losses.append(self._trainer.losses)
        self._trainer = None
        self._num_phases += 1
        if not is_twist:
            base = _frozen(self._student)
            before = self.log_potential, self.original
            potential = partial(_effective_potential, *before, base, self.sampler.length)
            self.sampler = _changed(self.sampler, base=base, log_potential=potential)
        return True

    def _twist_loss(self) -> Tensor:
        return self.loss.differentiable_loss(self.sampler, self.prompt)

    def _distillation_loss(self) -> Tensor:
        """Cross-entropy of the student under weighted sequences of the present sampler."""
        sampler = _changed(self.sampler, num_particles=self.num_distillation_particles)
        found = sampler.run(self.prompt)
        weights = found.log_weights.softmax(-1)
        return weighted_cross_entropy(self._student, found.sequences, weights, self.prompt)


@torch.no_grad()
def _effective_potential(
    log_potential: Callable[[Tensor], Tensor],
    original: nn.Module,
    current: nn.Module,
    length: int,
    tokens: Tensor,
) -> Tensor:
    r"""The potential with which another base model has the same target.

    :math:`\log \phi'(s) = \log \phi(s) + \log p_0(s) - \log p'(s)`, so that
    :math:`p'(s)\, \phi'(s) = p_0(s)\, \phi(s)` for all sequences, which may follow a prompt.
    """
    num_prompt = tokens.shape[1] - length
    before = log_potential(tokens) + sequence_log_prob(original, tokens, num_prompt)
    return before - sequence_log_prob(current, tokens, num_prompt)


def _check_folder(checkpoint: Any) -> None:
    if checkpoint is not None:
        checks.instance("checkpoint", checkpoint, (str, Path), "a path or None")
        if Path(checkpoint).is_file():
            raise ValueError(f"checkpoint must be a folder, got the file {checkpoint}")


def _frozen(module: nn.Module) -> nn.Module:
    """A copy that is not trained."""
    frozen = copy.deepcopy(module)
    return frozen.requires_grad_(False)


def _changed(sampler: TwistedSMC, **parts: Any) -> TwistedSMC:
    """A sampler with some other parts."""
    changed = copy.copy(sampler)
    vars(changed).update(parts)
    return changed
