"""Progress: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm


class Progress:
    """Progress bar over `total` on a terminal; elsewhere a line every 10 seconds. Both go to stderr."""

    SECONDS_BETWEEN_LINES = 10

    def __init__(self, what: str, total: int | None, done: int = 0) -> None:
        self.what, self.total, self.done, self._first = what, total, done, done
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(total=total, initial=done, desc=what, dynamic_ncols=True) if sys.stderr.isatty() else None

    def update(self, n: int = 1, **shown: str) -> None:
        self.done += n
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(n)
            return
        now = time.monotonic()
        if now - self._last_line >= self.SECONDS_BETWEEN_LINES or self.done == self.total:
            self._last_line = now
            left = ""
            if self.total is not None:
                seconds = (now - self._start) / (self.done - self._first) * (self.total - self.done)
                left = f"/{self.total}, {seconds:.0f} s left"
            print(f"{self.what} {self.done}{left}", *(f"{k} {v}" for k, v in shown.items()), sep="  ", file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
