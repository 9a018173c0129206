"""Collective communication for training jobs: windlass's Python package.

    import numpy, windlass

    with windlass.init() as comm:          # started by: python -m windlass run -n 4 script.py
        x = numpy.full(1 << 20, comm.rank, "float32")
        comm.all_reduce(x, op="avg")       # in place, without a copy

Every call has a twin that returns at once: ``operation = comm.all_reduce_async(x)``, to be awaited or waited for.
"""

import atexit as _atexit
import enum as _enum

from . import _native
from ._errors import (
    AbortedError,
    Error,
    ForkedError,
    InvalidArgumentError,
    JoinError,
    MismatchError,
    PeerFailedError,
    RegionRevokedError,
    SystemError,
    TimedOutError,
)
from ._native import (
    Buffer,
    ByRank,
    Communicator,
    Device,
    DeviceBuffer,
    Operation,
    Operator,
    Registration,
    __version__,
    init,
)

#: How elements of several ranks become one. A member is its name: ``ReduceOp.SUM == "sum"``.
ReduceOp = _enum.StrEnum("ReduceOp", {name.upper(): name for name in _native.OPERATORS}, module=__name__)

#: The names of the element types.
DTYPES = _native.DTYPES

__all__ = [
    "DTYPES",
    "AbortedError",
    "Buffer",
    "ByRank",
    "Communicator",
    "Device",
    "DeviceBuffer",
    "Error",
    "ForkedError",
    "InvalidArgumentError",
    "JoinError",
    "MismatchError",
    "Operation",
    "Operator",
    "PeerFailedError",
    "ReduceOp",
    "RegionRevokedError",
    "Registration",
    "SystemError",
    "TimedOutError",
    "__version__",
    "init",
]

_atexit.register(_native.at_exit)
