"""Checks of arguments, with errors that name the argument, what it got and what it wants."""

import math
import numbers

__all__ = ["check_integer", "check_number"]


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
