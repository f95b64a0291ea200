"""Stopping politely: SIGTERM and Ctrl-C let the step end and the checkpoint be written."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class StopRequest:
    """Remembers the first signal that asks this process to stop; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.signal: int = 0
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._earlier[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
