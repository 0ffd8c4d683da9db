"""The normal law in arithmetic without branches, for compiled loops that work on vectors.

Numba calls the functions of the C library one number at a time. These here are polynomials and
shifts of bits, which the compiler inlines and runs on as many numbers as the processor takes at
once. Functions that call them in a loop need ``FAST`` and NumPy's model of errors to profit.
"""

import math

import numpy as np

from pyro_ext._compiled import compiled

__all__ = ["FAST", "LARGEST", "SMALLEST", "clipped", "exponential", "logarithm", "normal_cdf"]
__all__ += ["normal_quantile"]

FAST = {"contract", "nsz", "nnan", "ninf"}
SMALLEST, LARGEST = 1e-6, 1.0 - 1e-6  # between which the normal scores of probabilities are taken

_ROUND = 6755399441055744.0  # 1.5 * 2**52: what is added to it is rounded to an integer
_ROUND_BITS = 0x4338000000000000
_HALF_ROOT = 0x3FE6A09E667F3BCD  # bits of sqrt(1/2)
_ONE = 0x3FF0000000000000
_NEAR, _FAR = 1.1774100225154747, 5.276527470528719  # sqrt(-2 log p) at p = 1/2 and p < 1e-6


@compiled(fastmath=FAST, error_model="numpy")
def exponential(x: float) -> float:
    """Exponential function between its values at -700 and 700, to 1e-15 of its value."""
    x = min(max(x, -700.0), 700.0)
    shifted = x * 1.4426950408889634 + _ROUND
    power = shifted - _ROUND
    r = x - power * 0.693147180369123816490
    r = r - power * 1.90821492927058770002e-10
    p = 1 / 479001600.0
    p = p * r + 1 / 39916800.0
    p = p * r + 1 / 3628800.0
    p = p * r + 1 / 362880.0
    p = p * r + 1 / 40320.0
    p = p * r + 1 / 5040.0
    p = p * r + 1 / 720.0
    p = p * r + 1 / 120.0
    p = p * r + 1 / 24.0
    p = p * r + 1 / 6.0
    p = ((p * r + 0.5) * r + 1.0) * r + 1.0
    bits = (np.float64(shifted).view(np.int64) + 1023) << 52
    scale: float = np.int64(bits).view(np.float64)
    return p * scale


@compiled(fastmath=FAST, error_model="numpy")
def logarithm(x: float) -> float:
    """Logarithm of a positive number, to 1e-15."""
    bits = np.float64(x).view(np.int64)
    power = ((bits + (_ONE - _HALF_ROOT)) >> 52) - 1023
    mantissa = np.int64(bits - (power << 52)).view(np.float64)
    exponent = np.int64(power + _ROUND_BITS).view(np.float64) - _ROUND
    s = (mantissa - 1.0) / (mantissa + 1.0)
    z = s * s
    p = 1 / 21.0
    p = p * z + 1 / 19.0
    p = p * z + 1 / 17.0
    p = p * z + 1 / 15.0
    p = p * z + 1 / 13.0
    p = p * z + 1 / 11.0
    p = p * z + 1 / 9.0
    p = p * z + 1 / 7.0
    p = p * z + 1 / 5.0
    p = p * z + 1 / 3.0
    p = p * z + 1.0
    result: float = 2.0 * s * p + exponent * 0.6931471805599453
    return result


@compiled(fastmath=FAST, error_model="numpy")
def clipped(u: float) -> float:
    """A probability, moved into the range where its normal score is taken."""
    return min(max(u, SMALLEST), LARGEST)


@compiled(fastmath=FAST, error_model="numpy")
def normal_quantile(u: float) -> float:
    """Normal score of a probability between 1e-6 and 1 - 1e-6, to 3e-12.

    A quotient of polynomials in ``sqrt(-2 log(p))``, fitted to exact values.
    """
    t = math.sqrt(-2.0 * logarithm(min(u, 1.0 - u)))
    x = (t - _NEAR) * (2.0 / (_FAR - _NEAR)) - 1.0
    a = 0.46436439989813216 + x * 0.03772886065511654
    a = 4.394853143695433 + x * (2.094054060603271 + x * a)
    a = 1.5972359108470542 + x * (4.324670533182173 + x * a)
    b = 0.018394812629665736 + x * 5.141849413400099e-07
    b = 0.7305035778801487 + x * (0.19790891528491092 + x * b)
    b = 0.627850156323801 + x * (1.1298012504065098 + x * b)
    z = a / b
    return z if u > 0.5 else -z


@compiled(fastmath=FAST, error_model="numpy")
def normal_cdf(w: float, bell: float) -> float:
    """Normal distribution function, to 3e-16, by Hart's quotient of polynomials [1].

    :param float w: a number.
    :param float bell: ``exp(-w**2 / 2)``.

    [1] G. West (2005), Better approximations to cumulative normal functions.
    """
    z = abs(w)
    a = 3.52624965998911e-02 * z + 0.700383064443688
    a = ((a * z + 6.37396220353165) * z + 33.912866078383) * z + 112.079291497871
    a = (a * z + 221.213596169931) * z + 220.206867912376
    b = 8.83883476483184e-02 * z + 1.75566716318264
    b = ((b * z + 16.064177579207) * z + 86.7807322029461) * z + 296.564248779674
    b = ((b * z + 637.333633378831) * z + 793.826512519948) * z + 440.413735824752
    tail = bell * a / b
    return 1.0 - tail if w > 0 else tail
