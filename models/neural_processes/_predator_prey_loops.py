"""The compiled loop of the Lotka-Volterra process, apart since Numba is slow to import."""

import numpy as np
import numpy.typing as npt

from pyro_ext._lib.compiled import compiled

Floats = npt.NDArray[np.float64]


@compiled
def simulate(
    predators: int, prey: int, rates: Floats, waits: Floats, uniforms: Floats
) -> tuple[Floats, Floats]:
    """Run the process event by event [1].

    [1] D. T. Gillespie (1977), Exact stochastic simulation of coupled chemical reactions.

    Shapes: rates (4,); waits and uniforms (num_events,); returns times (num_events,) and numbers
    (num_events, 2), cut where nothing happens any more.
    """
    num_events = len(waits)
    times = np.empty(num_events)
    populations = np.empty((num_events, 2))
    time = 0.0
    for event in range(num_events):
        met = float(predators) * float(prey)
        birth = rates[0] * met
        death = birth + rates[1] * predators
        prey_birth = death + rates[2] * prey
        total = prey_birth + rates[3] * met
        if total <= 0.0:
            return times[:event], populations[:event]
        time += waits[event] / total
        point = uniforms[event] * total
        if point < birth:
            predators += 1
        elif point < death:
            predators -= 1
        elif point < prey_birth:
            prey += 1
        else:
            prey -= 1
        times[event] = time
        populations[event, 0] = predators
        populations[event, 1] = prey
    return times, populations
