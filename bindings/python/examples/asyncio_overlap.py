"""Reduces each layer's gradient while the next one is computed.

python -m windlass run -n 4 asyncio_overlap.py
"""

import asyncio

import numpy

import windlass


async def step(comm, layers):
    reductions = []
    for layer in range(layers):
        gradient = numpy.full(100_000, comm.rank + layer, "float32")  # the backward pass
        reductions.append(comm.all_reduce_async(gradient))
        await asyncio.sleep(0)
    return [await reduction for reduction in reductions]


with windlass.init() as comm:
    gradients = asyncio.run(step(comm, layers=8))
    ranks = sum(range(comm.size))
    assert all((g == ranks + layer * comm.size).all() for layer, g in enumerate(gradients))
    print(f"rank {comm.rank}: {len(gradients)} gradients are reduced")
