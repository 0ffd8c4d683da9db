"""Where tests and pages keep what is slow to make: in the clone, apart from the user's caches."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".test_cache"
ENVIRONMENT = {  # read by Numba, PyTorch's compiler and the library as they are imported
    "NUMBA_CACHE_DIR": str(FOLDER / "numba"),
    "TORCHINDUCTOR_CACHE_DIR": str(FOLDER / "torch"),
    "XDG_CACHE_HOME": str(FOLDER),
}
