"""Calls of public names in which one argument after the other is wrong, and their outcomes."""

import contextlib
import inspect
import io
import math
import re
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

REJECTED = ("clear", "unclear", "raw", "hanging")
SECONDS = 60.0  # after which a call counts as one that does not return
USUAL = {"seed": 0, "progress": False}  # where a call of what has these does not give them


@dataclass
class Call:
    """A valid call: of a function or constructor, or of a method of an instance.

    What it does not give has its default, and is walked, too, with that as the valid value.
    What is passed on through ``*args`` stands in ``star`` by the names it has there, so that a
    message can be asked for them.
    """

    arguments: dict[str, Any]
    star: dict[str, Any] = field(default_factory=dict)
    instance: Any = None

    def run(self, function: Callable[..., Any], wrong: Mapping[str, Any]) -> Any:
        """Call with wrong values in place of the valid ones."""
        parameters = inspect.signature(function).parameters
        given = {name: value for name, value in USUAL.items() if name in parameters}
        given |= self.arguments | {k: v for k, v in wrong.items() if k not in self.star}
        positional = []
        if self.star:
            for name, parameter in parameters.items():
                if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                    break
                if name in given:
                    positional.append(given.pop(name))
            positional += [wrong.get(name, value) for name, value in self.star.items()]
        return function(*positional, **given)


def call(star: dict[str, Any] | None = None, **arguments: Any) -> Call:
    """A call of a function, a constructor or a method of a class."""
    return Call(arguments, star or {})


def of(instance: Any, star: dict[str, Any] | None = None, **arguments: Any) -> Call:
    """A call of a method of an instance."""
    return Call(arguments, star or {}, instance)


class Outcome(NamedTuple):
    """What became of one wrong value."""

    name: str
    argument: str
    value: str
    kind: str  # clear, unclear, raw, hanging or accepted
    message: str


class _Hangs(BaseException):
    """A call did not return in time."""


class Opaque:
    """An object that is nothing anyone asked for."""

    def __repr__(self) -> str:
        return "<an object>"


class Wrong(NamedTuple):
    """A value, and whether it is another form of the valid one, as a list is of a tensor."""

    value: Any
    is_form: bool = False


OPAQUE = Opaque()


def wrong_values(valid: Any) -> dict[str, Wrong]:
    """Values that are wrong in the place of a valid one, by what they are called in reports."""
    values: dict[str, Any] = {"None": None, "'abc'": "abc", "[]": [], "nan": math.nan, "-1": -1}
    forms: dict[str, Any] = {}
    if isinstance(valid, bool):
        return {}  # whatever it is, Python has a truth value for it
    if isinstance(valid, int):
        values |= {"0": 0, "1.5": 1.5, "inf": math.inf, "[2]": [2], "a class": int}
        values["2**63"] = 2**63
    elif isinstance(valid, float):
        values |= {"0": 0.0, "inf": math.inf, "{}": {}, "a class": float}
    elif isinstance(valid, str):
        values |= {"''": "", "3": 3, "a class": str}
    elif isinstance(valid, (Tensor, np.ndarray)):
        tensor = torch.as_tensor(valid)
        values |= {
            "empty": tensor.new_zeros((0, *tensor.shape[1:])),
            "another dimension": tensor[None, None],
            "complex": tensor.to(torch.complex64),
            "text": np.array(["a", "b"]),
            "a class": Tensor,
        }
        if tensor.is_floating_point():
            values |= {"with nan": _first(tensor, math.nan), "with inf": _first(tensor, math.inf)}
        else:
            values |= {"fractions": tensor + 0.5, "with -7": _first(tensor, -7)}
        forms = {"NumPy": tensor.detach().numpy(), "list": tensor.tolist()}
        forms |= {"sparse": tensor.detach().to_sparse(), "meta": tensor.to("meta")}
        others = (torch.bool, torch.int8, torch.float16, torch.float32, torch.float64)
        forms |= {str(other): tensor.to(other) for other in others if other != tensor.dtype}
        if tensor.dim():
            forms["another size"] = torch.cat([tensor, tensor[..., :1]], -1)
    elif isinstance(valid, Mapping) and valid:
        first, *_ = valid
        values |= {"3": 3, "{}": {}, "unknown key": {**valid, "nonsense": valid[first]}}
        values |= {"text in it": {**valid, first: "abc"}, "None in it": {**valid, first: None}}
        if isinstance(valid[first], Tensor) and valid[first].is_floating_point():
            values["nan in it"] = {**valid, first: _first(valid[first], math.nan)}
            forms["NumPy in it"] = {name: value.detach().numpy() for name, value in valid.items()}
    elif isinstance(valid, (list, tuple)):
        values |= {"3": 3, "[None]": [None], "['abc']": ["abc"], "[nan]": [math.nan]}
        forms["list"] = list(valid)
    elif inspect.isclass(valid) or callable(valid) and not hasattr(valid, "__dict__"):
        values |= {"3": 3, "an object": OPAQUE}
    elif inspect.isfunction(valid):
        values |= {"3": 3, "an object": OPAQUE}
    else:
        values |= {"an object": OPAQUE, "a tensor": torch.tensor(0.3)}
        if valid is not None and valid is not inspect.Parameter.empty:
            values["a class"] = type(valid)
    found = {name: Wrong(value) for name, value in values.items()}
    return found | {name: Wrong(value, True) for name, value in forms.items()}


def beyond_range(message: str, argument: str) -> dict[str, float]:
    """Numbers just outside of the range that an error names, by what they are called in reports."""
    kinds = "an integer|a number|a finite number"
    named = re.match(
        rf"{re.escape(argument)} must be ({kinds})((?: (?:and )?[<>]=? \S+)+),", message
    )
    found: dict[str, float] = {}
    for sign, bound in re.findall(r"([<>]=?) (\S+)", named[2] if named else ""):
        is_whole, number = named[1] == "an integer" if named else False, float(bound)
        least = 1 if is_whole else 1e-6 * max(1.0, abs(number))
        step = {">": 0.0, "<": 0.0, ">=": -least, "<=": least}[sign]
        found[f"not {sign} {bound}"] = int(number + step) if is_whole else number + step
    return found


def _first(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.detach().clone()
    changed.view(-1)[:1] = value
    return changed


def walk(name: str, function: Callable[..., Any], valid: Call) -> Iterator[Outcome]:
    """Replace each argument by wrong values, and say what became of the calls."""
    parameters = inspect.signature(function).parameters
    for argument, value in arguments_of(function, valid).items():
        values = wrong_values(value)
        if argument in parameters and parameters[argument].default is None:
            values.pop("None", None)  # it is the default
        waiting = [*values.items()]
        for label, wrong in waiting:
            kind, message = attempt(partial(valid.run, function, {argument: wrong.value}))
            if kind == "refused":
                kind = "clear" if is_clear(message, argument, wrong.value) else "unclear"
                beyond = beyond_range(message, argument)
                waiting += [(k, Wrong(v)) for k, v in beyond.items() if k not in dict(waiting)]
            if wrong.is_form:
                # To take it is right, and to refuse it is no error of the caller's.
                if kind == "accepted":
                    continue
                kind = kind if kind in ("raw", "hanging") else "form refused"
            yield Outcome(name, argument, label, kind, message)


def arguments_of(function: Callable[..., Any], valid: Call) -> dict[str, Any]:
    """Names of all arguments with a valid value, or their default, of each."""
    found = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name not in ("self", "cls", "validate_args", "device"):
            found[parameter.name] = USUAL.get(parameter.name, parameter.default)
    return {**found, **valid.arguments, **valid.star}


def attempt(function: Callable[[], Any]) -> tuple[str, str]:
    """Call, and say whether it was accepted, refused, failed otherwise or did not return."""

    def stop(*_: Any) -> None:
        raise _Hangs

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            function()
    except _Hangs:
        return "hanging", f"no answer in {SECONDS:g} seconds"
    except (ValueError, TypeError) as error:
        if isinstance(error, UnicodeError):
            return "raw", repr(error)
        return "refused", str(error)
    except Exception as error:
        return "raw", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
    return "accepted", ""


_ALLOWED = re.compile(
    r"\b(must|has to|have to|needs?|takes?|one of|expected|wants?|wanted|only|either|cannot|can't"
    r"|should|no such|not finite|is not a|the model has|lacks|has no|but the|one for each"
    r"|excludes?|exclude each other|may not|at least|at most)\b",
    re.IGNORECASE,
)


def is_clear(message: str, argument: str, value: Any) -> bool:
    """Whether a message names the argument, shows what it was, and says what is allowed."""
    named = re.search(rf"(?<!\w){re.escape(argument)}(?!\w)", message)
    shown = [repr(value)[:12], type(value).__name__, "got ", "found invalid values"]
    if isinstance(value, Tensor):
        shown += [str(tuple(value.shape)), str(value.dtype), "row", "NaN", "nan", "inf"]
    return bool(named and _ALLOWED.search(message) and any(text in message for text in shown))


def summary(outcomes: list[Outcome]) -> str:
    """One line: how many were rejected, clear, raw and accepted."""
    counts = Counter(outcome.kind for outcome in outcomes)
    rejected = sum(counts[kind] for kind in REJECTED)
    return (
        f"{rejected} rejected, {counts['clear']} clear, {counts['unclear']} unclear, "
        f"{counts['raw']} raw, {counts['hanging']} hanging, {counts['accepted']} accepted, "
        f"{counts['form refused']} lists or arrays refused"
    )
