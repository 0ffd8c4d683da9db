"""Samplers of tilted stable laws and of partitions as the literature has them, written plainly."""

import math

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["double_rejection", "fast_rejection", "plain_urn"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_ROOT_HALF_PI = math.sqrt(math.pi / 2.0)


def fast_rejection(
    stability: float, tilt: float, number: int, random: np.random.Generator
) -> Floats:
    """NumPy: sums of pieces, each by Kanter's formula and rejection until all are accepted [1].

    The number of pieces is about the logarithm of the trials that a single piece would take.

    [1] M. Hofert (2011), Sampling exponentially tilted stable distributions.
    """
    num_pieces = max(1, round(tilt**stability))
    scale = num_pieces ** (-1.0 / stability)
    pieces = np.empty(number * num_pieces)
    waiting = np.arange(pieces.size)
    while waiting.size:
        angle = math.pi * random.random(waiting.size)
        log_zolotarev = (
            stability * np.log(np.sin(stability * angle))
            + (1.0 - stability) * np.log(np.sin((1.0 - stability) * angle))
            - np.log(np.sin(angle))
        ) / (1.0 - stability)
        ratio = np.exp(log_zolotarev) / random.exponential(size=waiting.size)
        draw = scale * ratio ** ((1.0 - stability) / stability)
        accepted = random.random(waiting.size) <= np.exp(-tilt * draw)
        pieces[waiting[accepted]] = draw[accepted]
        waiting = waiting[~accepted]
    return pieces.reshape(number, num_pieces).sum(1)


def double_rejection(
    stability: float, tilt: float, number: int, random: np.random.Generator
) -> Floats:
    """Numba: the double rejection of [1], draw by draw.

    [1] L. Devroye (2009), Random variate generation for exponentially and polynomially tilted
    stable distributions.
    """
    draws = np.empty(number)
    _double_rejection(stability, tilt**stability, draws, random.integers(2**31))
    return draws


@numba.njit(cache=True)
def _sinc(x: float) -> float:
    return math.sin(x) / x if x > 1e-8 else 1.0


@numba.njit(cache=True)
def _double_rejection(stability: float, power: float, draws: Floats, seed: int) -> None:
    np.random.seed(seed)
    spread = power * stability * (1.0 - stability)
    root = math.sqrt(spread)
    exponent = (1.0 - stability) / stability
    bell = (1.0 + math.sqrt(2.0) * root * (2.0 + _ROOT_HALF_PI)) / math.pi
    edge = math.exp(-spread * math.pi**2 / 8.0) * (2.0 + _ROOT_HALF_PI) * root / math.sqrt(math.pi)
    wide = spread < 1.0
    bell_mass = bell * math.pi if wide else bell * _ROOT_HALF_PI / root
    edge_mass = 2.0 * edge * math.sqrt(math.pi)
    for place in range(draws.size):
        while True:
            if np.random.random() < bell_mass / (bell_mass + edge_mass):
                angle = (
                    math.pi * np.random.random()
                    if wide
                    else abs(np.random.standard_normal()) / root
                )
            else:
                angle = math.pi * (1.0 - np.random.random() ** 2)
            if angle >= math.pi:
                continue
            ratio = _sinc(angle) / (
                _sinc(stability * angle) ** stability
                * _sinc((1.0 - stability) * angle) ** (1.0 - stability)
            )
            zeta = math.sqrt(ratio)
            over = 1.0 / (1.0 - (1.0 + stability * zeta / root) ** (-1.0 / stability))
            envelope = bell if wide else bell * math.exp(-0.5 * spread * angle * angle)
            envelope += edge / math.sqrt(math.pi - angle)
            height = math.pi * math.exp(-power * (1.0 - 1.0 / ratio)) * envelope
            height /= (1.0 + _ROOT_HALF_PI) * root / zeta + over
            height *= np.random.random()
            if height > 1.0:
                continue
            zolotarev = (
                math.sin(stability * angle) ** stability
                * math.sin((1.0 - stability) * angle) ** (1.0 - stability)
                / math.sin(angle)
            ) ** (1.0 / (1.0 - stability))
            mode = (exponent / zolotarev) ** stability * power
            deviation = math.sqrt(mode * stability / zolotarev)
            left, right = deviation * _ROOT_HALF_PI, over / zolotarev
            choice = np.random.random() * (left + deviation + right)
            normal, exponential = 0.0, 0.0
            if choice < left:
                normal = np.random.standard_normal()
                value = mode - deviation * abs(normal)
            elif choice < left + deviation:
                value = mode + deviation * np.random.random()
            else:
                exponential = np.random.exponential()
                value = mode + deviation + right * exponential
            if value <= 0.0:
                continue
            cost = zolotarev * (value - mode) - 0.5 * normal * normal - exponential
            cost += math.exp(math.log(power) / stability - exponent * math.log(mode)) * (
                (mode / value) ** exponent - 1.0
            )
            if cost <= -math.log(height):
                draws[place] = value**-exponent
                break


@numba.njit(cache=True)
def plain_urn(discount: float, concentration: float, labels: Integers, seed: int) -> int:
    """Numba: the urn of a Pitman-Yor process, adding up the weights of all clusters each time."""
    np.random.seed(seed)
    counts = np.zeros(labels.size, np.int64)
    number = 0
    for sample in range(labels.size):
        place = np.random.random() * (concentration + sample)
        label = 0
        while label < number and place >= counts[label] - discount:
            place -= counts[label] - discount
            label += 1
        number += label == number
        counts[label] += 1
        labels[sample] = label
    return number
