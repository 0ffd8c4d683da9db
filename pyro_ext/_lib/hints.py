"""Hints for arguments from other packages, and for ours in the wrong place."""

import inspect
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])

_OF_MCMC = dict.fromkeys(
    (
        "chain_method",
        "checkpoint",
        "initial_params",
        "num_chains",
        "num_samples",
        "progress",
        "quantities",
        "seed",
        "thinning",
        "warmup_steps",
    ),
    "it is an argument of MCMC",
)
_OF_THE_KERNEL = dict.fromkeys(
    (
        "adapt_step_size",
        "backend",
        "full_mass",
        "init_strategy",
        "max_tree_depth",
        "step_size",
        "target_accept_prob",
    ),
    "it is an argument of the kernel",
)

# Pyro's, NumPyro's, PyMC's, Stan's and PyTorch's, and in the end ours that belong elsewhere.
OF_KERNELS = {
    **dict.fromkeys(("jit_compile", "jit_options"), 'leave it out, or write backend="compile"'),
    "ignore_jit_warnings": "leave it out, nothing is compiled by torch.jit",
    "max_plate_nesting": "leave it out, plates are counted",
    "transforms": "leave it out, sites have the transforms of their supports; a potential_fn "
    "transforms its own arguments",
    "use_multinomial_sampling": "leave it out, points of a trajectory are always drawn so",
    **dict.fromkeys(("min_stepsize", "max_stepsize"), "leave it out, step_size starts the search"),
    "dense_mass": "write full_mass",
    "find_heuristic_step_size": "write adapt_step_size",
    "inverse_mass_matrix": "masses adapt in the warm-up; write full_mass or adapt_mass_matrix",
    "regularize_mass_matrix": "leave it out, masses are regularized where they have to be",
    "forward_mode_differentiation": "leave it out, gradients are taken in reverse",
    **dict.fromkeys(("adapt_delta", "target_accept"), "write target_accept_prob"),
    "max_treedepth": "write max_tree_depth",
    "num_leapfrog_steps": "write num_steps",
    "num_steps": "write steps_per_sample; leapfrog steps are HMC's",
    **dict.fromkeys(("lr", "learning_rate"), "write step_size"),
    **dict.fromkeys(("num_warmup", "tune"), "write warmup_steps=... as an argument of MCMC"),
    **dict.fromkeys(("rng_key", "random_seed"), "write seed=... as an argument of MCMC"),
    **_OF_MCMC,
}
OF_DRIVERS = {
    "mp_context": "give processes as chain_method=ProcessPoolExecutor(num_workers, mp_context)",
    "hook_fn": "quantities={name: function} records functions of each draw, and extra_fields of "
    "the sampler's state",
    "transforms": "the model's sites have theirs; a potential_fn transforms its own arguments",
    **dict.fromkeys(("num_warmup", "tune"), "write warmup_steps"),
    "draws": "write num_samples",
    **dict.fromkeys(("chains", "num_parallel_chains"), "write num_chains"),
    "cores": "give processes as chain_method=ProcessPoolExecutor(cores)",
    **dict.fromkeys(("init_params", "initvals"), "write initial_params"),
    **dict.fromkeys(("progress_bar", "progressbar"), "write progress"),
    "postprocess_fn": "quantities={name: function} records functions of each draw",
    **dict.fromkeys(("rng_key", "random_seed"), "write seed"),
    **dict.fromkeys(("jit_compile", "jit_model_args"), 'give the kernel backend="compile"'),
    "max_plate_nesting": "leave it out, plates are counted",
    **_OF_THE_KERNEL,
}

# Arguments that were in a release and moved, by the class or function that had them, with what to
# write: the changelog lists these under "Changed names".
_CONCEPT_ORDER = dict.fromkeys(
    ("order", "generate_with"), "concept_order=ConceptOrder(order, generate_with)"
)
_STRATEGY = 'strategy=dataclasses.replace(STRATEGIES["fedsvd"], {}=...)'
_IN_FIT = "fit(..., {}=...)"
MOVED: dict[str, dict[str, str]] = {
    "PosteriorBootstrap": {
        name: f"weights=BootstrapWeights({name}=...)"
        for name in (
            "concentration",
            "base_measure",
            "truncation",
            "num_blocks",
            "block_concentration",
        )
    },
    "SelfDistilledTwistedSMC": dict.fromkeys(
        ("base", "twist_factory", "log_potential", "num_particles", "length"),
        "SelfDistilledTwistedSMC(TwistedSMC(base, twist, ...))",
    ),
    "PriorDataFittedNetwork": {
        **{name: _IN_FIT.format(name) for name in ("learning_rate", "warm_up")},
        "num_features": "net=PriorFittedTransformer(num_bars, num_features)",
    },
    "SafeSelfDistillation": _CONCEPT_ORDER,
    "ESD": _CONCEPT_ORDER,
    "PriorAugmentedELBO": {
        name: f"generator=PseudoInputGenerator(..., {name}=...)" for name in ("box", "box_slope")
    },
    "train_generators": {
        name: f"loss=GeneratorLoss({name}=...)"
        for name in ("sigma", "flow_steps", "ortho", "lipschitz", "threshold", "sobolev")
    },
    "FederatedServer": {name: _STRATEGY.format(name) for name in ("svd_period", "svd_warmup")},
    "laplace_posterior": {
        "potential": "laplace_posterior(model, *args), or with a Potential in place of the model",
        "starts": "init_strategy=init_to_value(values=...)",
    },
}


def refuses_moved(owner: T) -> T:
    """Let a class or function refuse its arguments in ``MOVED``, and say what to write instead."""
    moved = MOVED[owner.__name__]
    function: Callable[..., Any] = vars(owner)["__init__"] if inspect.isclass(owner) else owner

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name in moved.keys() & kwargs.keys():
            raise TypeError(
                f"{owner.__name__} no longer has the argument {name!r}: write {moved[name]}"
            )
        return function(*args, **kwargs)

    if not inspect.isclass(owner):
        return checked  # type: ignore[return-value]
    owner.__init__ = checked  # type: ignore[method-assign]
    return owner


def refuse(owner: type, unknown: Collection[str], words: Mapping[str, str]) -> None:
    """Raise for arguments that a class does not have, and say what to write instead."""
    for name in unknown:
        known = keywords(owner)
        close = get_close_matches(name, known, 1)
        otherwise = f"did you mean {close[0]}?" if close else f"it takes {known}"
        raise TypeError(f"{owner.__name__} has no argument {name!r}: {words.get(name, otherwise)}")


def keywords(owner: type) -> list[str]:
    """Names of the keyword arguments that a constructor takes, its own and those it passes on."""
    names: list[str] = []
    others = {"self", "model", "potential_fn", "unknown"}
    for base in owner.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())
        passed_on = {p.name for p in parameters if p.kind is p.VAR_KEYWORD}
        names += [p.name for p in parameters if p.name not in {*others, *passed_on, *names}]
        if not passed_on - others:
            break
    return names
