"""The runtime's errors as exceptions: one class for each variant, its fields as attributes.

Every one but InvalidArgumentError leaves the communicator unusable on all its ranks.
"""

from __future__ import annotations


class Error(Exception):
    """Why a call failed. The message says what happened, where, and what to do."""

    #: The error's number, the same in C.
    code: int

    def __init__(self, message: str = "", **fields: object) -> None:
        super().__init__(message)
        self.__dict__.update(fields)


class InvalidArgumentError(Error, ValueError):
    """The call is wrong in itself; nothing was started, and the communicator stays usable."""

    operation: str
    argument: str
    problem: str


class MismatchError(Error):
    """Ranks made different calls at the same place in the communicator's order."""

    communicator: int
    sequence: int
    ours: str
    theirs: str
    rank: int


class PeerFailedError(Error):
    """A peer died or left."""

    rank: int
    cause: str
    operation: str
    sequence: int
    communicator: int


class TimedOutError(Error, TimeoutError):
    """The operation did not end within the job's time limit."""

    operation: str
    sequence: int
    communicator: int
    waiting_on: list[int]
    after: float


class AbortedError(Error):
    """Somebody aborted the communicator."""

    communicator: int
    by: int
    reason: str


class ForkedError(Error):
    """This process was forked from the one that joined the job, and has no part in it."""

    rank: int


class SystemError(Error):
    """The operating system refused something."""

    call: str
    errno: int
    hint: str


class RegionRevokedError(Error):
    """Device memory was taken away, and its contents are lost."""

    rank: int
    segment: int
    generation: int


class JoinError(Error):
    """The job could not be joined. Which attributes there are depends on why: those of windlass's ``JoinError``."""
