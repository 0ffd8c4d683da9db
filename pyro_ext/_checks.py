"""Checks of arguments, with errors that name the argument, what it got and what it wants."""

import math
import numbers

from torch import Tensor

__all__ = ["check_finite", "check_integer", "check_number"]

_NUM_ROWS_NAMED = 3


def check_integer(argument: str, value: object, least: int) -> int:
    """Check an integer.

    :param str argument: name of the argument.
    :param value: what the caller got.
    :param int least: the smallest allowed.
    :returns: the integer.
    :raises ValueError: where it is none, or smaller.

    Example::

        >>> check_integer("num_chains", 0, 1)
        Traceback (most recent call last):
        ValueError: num_chains must be an integer >= 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{argument} must be an integer >= {least}, got {value!r:.80}")
    return int(value)


def check_number(
    argument: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """Check a finite real number.

    :param str argument: name of the argument.
    :param value: what the caller got.
    :param float above: what it has to exceed.
    :param float least: the smallest allowed.
    :param float below: what it has to stay below.
    :param float most: the largest allowed.
    :returns: the number.
    :raises ValueError: where it is none, or out of range.

    Example::

        >>> check_number("decay", 1.0, least=0, below=1)
        Traceback (most recent call last):
        ValueError: decay must be a finite number >= 0 and < 1, got 1.0
    """
    is_real = not isinstance(value, bool) and isinstance(value, numbers.Real)
    number = float(value) if is_real else math.nan  # type: ignore[arg-type]
    in_range = math.isfinite(number) and (
        (above is None or number > above)
        and (least is None or number >= least)
        and (below is None or number < below)
        and (most is None or number <= most)
    )
    if not in_range:
        bounds = [(">", above), (">=", least), ("<", below), ("<=", most)]
        wanted = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
        raise ValueError(
            f"{argument} must be a finite number{' ' if wanted else ''}{wanted}, got {value!r:.80}"
        )
    return number


def check_finite(argument: str, tensor: Tensor) -> None:
    """Check that no number is NaN or infinite; an error says in which rows they are.

    :param str argument: name of the argument.
    :param Tensor tensor: **Shape:** ``(n, *event)``.
    :raises ValueError: where there is one.

    Example::

        >>> check_finite("x", torch.tensor([[0.0, 1.0], [math.inf, 2.0], [3.0, math.nan]]))
        Traceback (most recent call last):
        ValueError: x must be finite, got inf in row 1, nan in row 2
    """
    if not tensor.is_floating_point():
        return
    is_wrong = ~tensor.detach().isfinite()
    if not bool(is_wrong.any()):
        return
    if not tensor.dim():
        raise ValueError(f"{argument} must be finite, got {tensor.item():g}")
    rows = is_wrong.reshape(len(tensor), -1).any(1).nonzero().flatten().tolist()
    parts = [
        f"{tensor[row][is_wrong[row]].flatten()[0].item():g} in row {row}"
        for row in rows[:_NUM_ROWS_NAMED]
    ]
    if len(rows) > _NUM_ROWS_NAMED:
        parts.append(f"and in {len(rows) - _NUM_ROWS_NAMED} more of {len(tensor)} rows")
    raise ValueError(f"{argument} must be finite, got {', '.join(parts)}")
