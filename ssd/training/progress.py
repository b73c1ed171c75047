"""The run as it is shown while it goes: a bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class Progress:
    """Shows a run's progress; on other processes than the main one it is silent.

    Args:
        total: iterations of the whole run.
        done: iterations done before.
        visible: show anything at all.
        line_every: in a log file, seconds between two lines.
    """

    def __init__(self, total: int, done: int, visible: bool, line_every: float = 10.0) -> None:
        self.visible = visible
        self.line_every = line_every
        self.last_line = 0.0
        self.on_terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, unit="it", dynamic_ncols=True, disable=not (visible and self.on_terminal))
        self.total = total

    def close(self) -> None:
        self.bar.close()

    def step(self) -> None:
        """One more iteration is done."""
        self.bar.update()

    def show(self, epoch: int, iteration: int, values: Mapping[str, Any]) -> None:
        """The latest train record; `images_per_s` and `seconds_left` among its values."""
        left = duration(values["seconds_left"])
        text = (
            f"loss {values['loss']:.3f} (l {values['loss_l']:.3f}, c {values['loss_c']:.3f})  lr {values['lr']:.2e}  "
            f"{values['images_per_s']:.1f} images/s  data wait {values['data_wait']:.0%}  left {left}"
        )
        if self.on_terminal:
            self.bar.set_description_str(f"epoch {epoch}")
            self.bar.set_postfix_str(text)
        elif self.visible and (time.monotonic() - self.last_line >= self.line_every or iteration == self.total):
            self.last_line = time.monotonic()
            print(f"epoch {epoch}  iteration {iteration}/{self.total}  {text}", flush=True)

    def say(self, text: str) -> None:
        """A line for the user, which does not break the bar."""
        if self.visible:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class Clock:
    """Seconds of training, and those among them spent waiting for data."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.waited = 0.0
        self.steps = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time of the block, once a step, is spent waiting for data."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the block does not count as training."""
        begin = time.perf_counter()
        yield
        self.start += time.perf_counter() - begin

    def lap(self) -> tuple[float, float, int]:
        """Seconds, seconds waited and steps since the last lap."""
        now = time.perf_counter()
        seconds, waited, steps = now - self.start, self.waited, self.steps
        self.start, self.waited, self.steps = now, 0.0, 0
        return seconds, waited, steps
