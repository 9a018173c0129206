"""Awaiting operations in asyncio: one descriptor for each event loop, and no thread."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import Generator
from typing import Any

from ._native import Bell, Operation


class _Listener:
    """Hears of an event loop's operations that have ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._bell = Bell()
        self._futures: dict[int, asyncio.Future[None]] = {}
        self._tokens = itertools.count()
        loop.add_reader(self._bell.fileno(), self._rung)

    def _rung(self) -> None:
        for token in self._bell.take():
            future = self._futures.get(token)
            if future is not None and not future.done():
                future.set_result(None)

    def end_of(self, loop: asyncio.AbstractEventLoop, operation: Operation) -> Generator[Any, None, None]:
        """Waits until the operation has ended, or at times a little less."""
        token = next(self._tokens)
        future = self._futures[token] = loop.create_future()
        try:
            if operation._expect(self._bell, token):
                yield from future
        finally:
            del self._futures[token]


_listeners: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Listener] = weakref.WeakKeyDictionary()


def awaiting(operation: Operation) -> Generator[Any, None, Any]:
    """What ``await operation`` iterates over."""
    loop = asyncio.get_running_loop()
    listener = _listeners.get(loop)
    if listener is None:
        listener = _listeners[loop] = _Listener(loop)
    while not operation.done():
        yield from listener.end_of(loop, operation)
    return operation.wait()
