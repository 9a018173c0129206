"""Averages a NumPy array over all ranks, in place.

python -m windlass run -n 4 numpy_all_reduce.py
"""

import numpy

import windlass

with windlass.init() as comm:
    gradient = numpy.asarray(comm.alloc(1 << 20, "float32"))  # registered: peers reach it directly
    gradient[:] = comm.rank
    comm.all_reduce(gradient, "avg")
    print(f"rank {comm.rank} of {comm.size}: every element is {gradient[0]}")
    assert (gradient == (comm.size - 1) / 2).all()
