"""Rank 1 comes too late."""

import time

import windlass

comm = windlass.init()
if comm.rank == 1:
    time.sleep(3)
try:
    comm.barrier()
except windlass.TimedOutError as error:
    assert isinstance(error, TimeoutError) and error.after >= 1 and error.code == 4
    print(f"waits on {error.waiting_on}")
except windlass.AbortedError:
    pass
