"""What a call costs from Python: medians of many blocks, in µs. The Rust beside it: cargo run --release -p windlass-c --example overhead

python overhead.py                            alone: a call without waiting, so all of it is overhead
python -m windlass run -n 2 overhead.py       with a peer
"""

import statistics
import sys
import time

import numpy

import windlass

BLOCKS, CALLS = int(sys.argv[1]) if len(sys.argv) > 1 else 200, 500

with windlass.init() as comm:
    array = numpy.zeros(2, "float32")
    registered = comm.alloc(2)
    several = [numpy.zeros(2, "float32") for _ in range(4)]
    view, gathered = numpy.asarray(registered), numpy.zeros(2 * comm.size, "float32")
    cases = {
        "an array": lambda: comm.all_reduce(array, "max"),
        "a registered array": lambda: comm.all_reduce(view, "max"),
        "a windlass.Buffer": lambda: comm.all_reduce(registered, "max"),
        "started, then waited for": lambda: comm.all_reduce_async(registered, "max").wait(),
        "all_gather_v into an array": lambda: comm.all_gather_v(array, [2] * comm.size, out=gathered),
        "a list of 4 arrays": lambda: comm.all_reduce(several, "max"),
    }
    times = {case: [] for case in cases}
    for _ in range(BLOCKS):
        for case, call in cases.items():
            begin = time.perf_counter()
            for _ in range(CALLS):
                call()
            times[case].append((time.perf_counter() - begin) * 1e6 / CALLS)
    if comm.rank == 0:
        print(f"{comm.size} rank(s), all_reduce of 8 B, µs:")
        for case, blocks in times.items():
            print(f"{statistics.median(blocks):8.2f}  {case}")
