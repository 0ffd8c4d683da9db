"""Time of a step against loops written by hand in PyTorch: SGLD and SGHMC at 1, 16 and 64 chains.

The problems of ``library_step_time.py``. The hand-written step keeps all chains in one matrix; it
runs eagerly, and compiled as a whole from the draw of the minibatch to the update, one call of the
compiled function a step. Beside the speed stand the draws of 16 chains of each side: their
predictive loss, and on the logistic regression their moments next to those of a long run of NUTS.
Prints one line of JSON.
"""

from functools import partial

from _comparison import compare
from _torch_loops import TorchLoop


def main() -> None:
    """Measure in turn and print."""
    compare(
        "torch_loop_step_time",
        __doc__,
        peers={
            "torch_compiled": partial(TorchLoop, True),
            "torch_eager": partial(TorchLoop, False),
        },
        num_steps={"torch_compiled": 2048, "torch_eager": 1024},
    )


if __name__ == "__main__":
    main()
