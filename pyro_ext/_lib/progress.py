"""Progress bars: as tqdm draws them on a terminal or in a notebook, a line a tenth elsewhere."""

import sys
from typing import Any

from tqdm import tqdm
from tqdm.auto import tqdm as tqdm_of_the_screen


class _Lines(tqdm):
    """Writes a whole line each time another tenth is done, for files and pipes."""

    _written = 0, 0  # steps, and tenths of all

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line, if another tenth is done."""
        if self._tenths() > self._written[1]:
            self._write()

    def close(self) -> None:
        """Say where it ended."""
        if self.disable:
            return
        if (int(self.n), self._tenths()) != self._written:
            self._write()
        self.disable: bool = True
        self._decr_instances(self)

    def _tenths(self) -> int:
        return int(10 * self.n / self.total) if self.total else 0

    def _write(self) -> None:
        self._written = int(self.n), self._tenths()
        self.fp.write(f"{self}\n")
        self.fp.flush()


def progress_bar(iterable: Any = None, **options: Any) -> "tqdm[Any]":
    """Make a progress bar."""
    is_drawn = sys.stderr.isatty() or tqdm_of_the_screen.__module__ == "tqdm.notebook"
    if is_drawn:
        return tqdm_of_the_screen(iterable, **options)
    # A line shows the average speed, not the recent speed: the last steps may take no time.
    return _Lines(iterable, smoothing=0, **options)
