"""Time of a step against BlackJAX and posteriors: SGLD and SGHMC at 1, 16 and 64 chains.

Logistic regression (breast cancer, 455 rows, 31 parameters) and a network (digits, 64-50-10, 3,760
parameters), standard normal priors, minibatches of 32, every chain with its own. BlackJAX runs as a
jitted scan, posteriors as a Python loop over vectorized updates. Beside the speed stand the draws
of 16 chains of each side: their predictive loss, and on the logistic regression their moments next
to those of a long run of NUTS. Prints one line of JSON.
"""

from _comparison import compare
from _libraries import BlackJAXChains, PosteriorsChains


def main() -> None:
    """Measure in turn and print."""
    compare(
        "library_step_time",
        __doc__,
        peers={"blackjax": BlackJAXChains, "posteriors": PosteriorsChains},
        num_steps={"blackjax": 4096, "posteriors": 128},
        packages=("jax", "blackjax", "posteriors", "tensordict"),
    )


if __name__ == "__main__":
    main()
