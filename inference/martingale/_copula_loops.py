"""Compiled loops of the copula recursion, and the normal distribution without branches.

Points are the last dimension of all arrays, and the innermost loops run over them without a branch,
so that the compiler works on several at once. Their bodies are short, since a processor begins with
the next points while it waits for a division only where those are near in the code. What a point
gets does not depend on other points.

Numba calls the functions of the C library one number at a time. The normal ones here are
polynomials and shifts of bits, which the compiler inlines and runs on as many numbers as the
processor takes at once. Functions that call them in a loop need ``FAST`` and NumPy's model of
errors to profit.
"""

import math

import numpy as np
import numpy.typing as npt

from pyro_ext._lib.compiled import compiled

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


_AT_ONCE = 8  # numbers that a processor takes at once
_BLOCK = 512  # points that stay in the cache nearest to the processor
LEAST_RATE, MOST_RATE = 1e-5, 1.0 - 1e-5
_ROOT = math.sqrt(2.0 * math.pi)

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@compiled(nogil=True, fastmath=FAST, error_model="numpy")
def advance_points(
    cdfs: Floats,
    log_density: Floats,
    uniforms: Floats,
    rates: Floats,
    bandwidth: Floats,
    rows: Integers,
    kernel: Floats,
    group: int,
) -> None:
    """Take observations into distributions, and follow points through them, in place.

    Each ``group`` of points that lie side by side shares its covariates; zero without covariates.

    Shapes: cdfs (num_distributions, dimension, num_points); log_density as cdfs; uniforms
    (num_distributions, num_steps, dimension); rates (num_steps,); bandwidth (dimension,); rows
    (num_distributions, num_steps); kernel (num_rows, num_points // group).
    """
    num_distributions, dimension, num_points = cdfs.shape
    rate, fraction = np.empty(_BLOCK), np.empty(_BLOCK)
    scores, bell, log_copula = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    width = min(_BLOCK, group) if group > 1 else _BLOCK
    for distribution in range(num_distributions):
        start = 0
        while start < num_points:
            end = min(start + width, num_points)
            if group > 1:
                end = min(end, (start // group + 1) * group)
            size = end - start
            for step in range(rates.size):
                a = rates[step]
                if group == 1:
                    weights = kernel[rows[distribution, step], start:end]
                    for k in range(size):
                        top = a * weights[k]
                        rate[k] = min(max(top / (1.0 - a + top), LEAST_RATE), MOST_RATE)
                        fraction[k] = rate[k]
                        log_copula[k] = 0.0
                else:
                    if group > 1:
                        top = a * kernel[rows[distribution, step], start // group]
                        a = min(max(top / (1.0 - a + top), LEAST_RATE), MOST_RATE)
                    rate[:size] = a
                    fraction[:size] = a
                    log_copula[:size] = 0.0
                for j in range(dimension):
                    rho = bandwidth[j]
                    inverse = 1.0 / math.sqrt(1.0 - rho * rho)
                    offset = math.log(inverse)
                    shift = rho * normal_quantile(clipped(uniforms[distribution, step, j]))
                    block = cdfs[distribution, j, start:end]
                    for k in range(size):
                        scores[k] = normal_quantile(clipped(block[k]))
                    for k in range(size):
                        w = (scores[k] - shift) * inverse
                        bell[k] = exponential(-0.5 * w * w)
                    for k in range(size):
                        u = block[k]
                        h = normal_cdf((scores[k] - shift) * inverse, bell[k])
                        h = h * min(u * (1.0 / SMALLEST), 1.0)
                        h = 1.0 - (1.0 - h) * min((1.0 - u) * (1.0 / SMALLEST), 1.0)
                        block[k] = u + fraction[k] * (h - u)
                    for k in range(size):
                        z, w = scores[k], (scores[k] - shift) * inverse
                        log_copula[k] += offset + 0.5 * (z * z - w * w)
                    for k in range(size):
                        fraction[k] = rate[k] * exponential(log_copula[k])
                    log_block = log_density[distribution, j, start:end]
                    for k in range(size):
                        log_block[k] += logarithm(1.0 - rate[k] + fraction[k])
                    if j + 1 < dimension:
                        for k in range(size):
                            fraction[k] /= 1.0 - rate[k] + fraction[k]
            start = end


@compiled(fastmath=FAST, error_model="numpy")
def covariate_rates(
    x: Floats,
    observed: Floats,
    a: float,
    bandwidth: Floats,
    directions: Floats,
    rate: Floats,
    derivative: Floats,
    work: Floats,
) -> None:
    """Rates of the update by an observation for points, by their covariates.

    Shapes: x (num_covariates, num_points); observed (num_covariates,); bandwidth (num_covariates,);
    directions (num_directions, num_covariates); rate at least (num_points,); derivative at least
    (num_directions, num_points); work at least (num_points,).
    """
    number = x.shape[1]
    rate[:number] = 0.0
    for j in range(bandwidth.size):
        rho = bandwidth[j]
        inverse = 1.0 / math.sqrt(1.0 - rho * rho)
        offset, here = math.log(inverse), observed[j]
        change = rho * inverse * inverse
        for k in range(number):
            w = (x[j, k] - rho * here) * inverse
            rate[k] += offset + 0.5 * (x[j, k] * x[j, k] - w * w)
            work[k] = change - w * (w * change - here * inverse)
        for t in range(directions.shape[0]):
            direction = directions[t, j]
            for k in range(number):
                derivative[t, k] += direction * work[k]
    for k in range(number):
        top = a * exponential(rate[k])
        raw = top / (1.0 - a + top)
        rate[k] = min(max(raw, LEAST_RATE), MOST_RATE)
        work[k] = 1.0 if rate[k] == raw else 0.0
    for t in range(directions.shape[0]):
        for k in range(number):
            derivative[t, k] *= work[k]


@compiled(nogil=True, fastmath=FAST, error_model="numpy")
def prequential(
    order: Integers,
    start_cdfs: Floats,
    start_log: Floats,
    covariates: Floats,
    rates: Floats,
    bandwidth: Floats,
    covariate_bandwidth: Floats,
    directions: Floats,
    covariate_directions: Floats,
    log_density: Floats,
    gradient: Floats,
    uniforms: Floats,
) -> None:
    """Predict each observation from those before it, with derivatives in the bandwidths.

    Shapes: order (num_orders, n); start_cdfs (dimension, n); start_log (n,); covariates
    (num_covariates, n); rates (n,); bandwidth (dimension,); covariate_bandwidth (num_covariates,);
    directions (num_directions, dimension); covariate_directions (num_directions, num_covariates);
    log_density (num_orders, n); gradient (num_orders, num_directions); uniforms (num_orders, n,
    dimension).
    """
    num_orders, n = order.shape
    dimension, num_covariates = start_cdfs.shape[0], covariates.shape[0]
    number = directions.shape[0]
    # Loops begin at zero, which the compiler must know to vectorize them, and cover multiples of
    # the vector width. They run over observations that have already been processed, and over
    # padding whose results are not used.
    padded = -(-n // _AT_ONCE) * _AT_ONCE
    u, du = np.full((dimension, padded), 0.5), np.empty((number, dimension, padded))
    x, log_seen = np.zeros((num_covariates, padded)), np.zeros(padded)
    dlog = np.empty((number, padded))
    dlog_kernel = np.empty((number, padded))
    log_copula, dlog_copula = np.empty(padded), np.empty((number, padded))
    rate, scores = np.empty(padded), np.empty(padded)
    arguments, values = np.empty(padded), np.empty(padded)
    slope, bell, fraction = np.empty(padded), np.empty(padded), np.empty(padded)
    inner, outer, dfraction = np.empty(padded), np.empty(padded), np.empty(padded)
    dscores, darguments = np.empty(padded), np.empty(padded)
    dscore = np.empty(number)
    for distribution in range(num_orders):
        for k in range(n):
            log_seen[k] = start_log[order[distribution, k]]
            for j in range(dimension):
                u[j, k] = start_cdfs[j, order[distribution, k]]
            for j in range(num_covariates):
                x[j, k] = covariates[j, order[distribution, k]]
        du[:] = 0.0
        dlog[:] = 0.0
        gradient[distribution] = 0.0
        for i in range(n):
            first = (i + 1) // _AT_ONCE * _AT_ONCE
            log_density[distribution, i] = log_seen[i]
            for t in range(number):
                gradient[distribution, t] += dlog[t, i]
            for j in range(dimension):
                uniforms[distribution, i, j] = u[j, i]
            now, dnow = u[:, first:], du[:, :, first:]
            log_now, dlog_now = log_seen[first:], dlog[:, first:]
            a, size = rates[i], padded - first
            log_copula[:size] = 0.0
            dlog_copula[:, :size] = 0.0
            dlog_kernel[:, :size] = 0.0
            rate[:size] = a
            if num_covariates:
                covariate_rates(
                    x[:, first:],
                    x[:, i],
                    a,
                    covariate_bandwidth,
                    covariate_directions,
                    rate,
                    dlog_kernel,
                    slope,
                )
            for j in range(dimension):
                rho = bandwidth[j]
                inverse = 1.0 / math.sqrt(1.0 - rho * rho)
                offset = math.log(inverse)
                v = clipped(u[j, i])
                score = normal_quantile(v)
                inside = 1.0 if v == u[j, i] else 0.0
                for t in range(number):
                    dscore[t] = du[t, j, i] * inside * _ROOT * exponential(0.5 * score * score)
                # Loops over few arrays each: the compiler checks in pairs that they don't overlap.
                for k in range(size):
                    v = clipped(now[j, k])
                    scores[k] = normal_quantile(v)
                    slope[k] = 1.0 if v == now[j, k] else 0.0
                for k in range(size):
                    w = (scores[k] - rho * score) * inverse
                    arguments[k] = w
                    bell[k] = exponential(-0.5 * w * w)
                for k in range(size):
                    values[k] = normal_cdf(arguments[k], bell[k])
                for k in range(size):
                    low = min(now[j, k] * (1.0 / SMALLEST), 1.0)
                    high = min((1.0 - now[j, k]) * (1.0 / SMALLEST), 1.0)
                    inner[k] = low * high
                    outer[k] = values[k] if now[j, k] < SMALLEST else 0.0
                    outer[k] = 1.0 - values[k] if now[j, k] > LARGEST else outer[k]
                    values[k] = 1.0 - (1.0 - values[k] * low) * high - now[j, k]
                for k in range(size):
                    odds = rate[k] * exponential(log_copula[k])
                    fraction[k] = odds / (1.0 - rate[k] + odds)
                if number:
                    for k in range(size):
                        slope[k] *= _ROOT * exponential(0.5 * scores[k] * scores[k])
                        bell[k] *= inner[k] * (1.0 / _ROOT)
                        outer[k] *= 1.0 / SMALLEST
                for t in range(number):
                    direction = directions[t, j]
                    change = direction * rho * inverse * inverse
                    moved = rho * dscore[t] + direction * score
                    for k in range(size):
                        dscores[k] = dnow[t, j, k] * slope[k]
                        darguments[k] = (dscores[k] - moved) * inverse + arguments[k] * change
                    for k in range(size):
                        dfraction[k] = dlog_copula[t, k] + dlog_kernel[t, k]
                        dfraction[k] *= fraction[k] * (1.0 - fraction[k])
                    for k in range(size):
                        dcdf = bell[k] * darguments[k] + dnow[t, j, k] * outer[k]
                        dnow[t, j, k] += fraction[k] * (dcdf - dnow[t, j, k])
                    for k in range(size):
                        dnow[t, j, k] += dfraction[k] * values[k]
                    for k in range(size):
                        dlog_copula[t, k] += change - arguments[k] * darguments[k]
                        dlog_copula[t, k] += scores[k] * dscores[k]
                for k in range(size):
                    now[j, k] += fraction[k] * values[k]
                for k in range(size):
                    z, w = scores[k], arguments[k]
                    log_copula[k] += offset + 0.5 * (z * z - w * w)
            for k in range(size):
                odds = rate[k] * exponential(log_copula[k])
                total = 1.0 - rate[k] + odds
                fraction[k] = odds / total
                slope[k] = total
            for k in range(size):
                log_now[k] += logarithm(slope[k])
                slope[k] = fraction[k] - rate[k]
            for t in range(number):
                for k in range(size):
                    dlog_now[t, k] += fraction[k] * dlog_copula[t, k] + slope[k] * dlog_kernel[t, k]
