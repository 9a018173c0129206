"""Averages gradients that lie on an accelerator, which moves them all the while.

python -m windlass run -n 4 device_memory.py
"""

import numpy

import windlass

with windlass.init() as comm:
    # Every machine has this one. CUDA's, ROCm's or Level Zero's memory: comm.attach("dma-heap").adopt(descriptor, offset, shape, dtype)
    device = comm.attach("simulated", moves_per_second=100, seed=comm.rank)
    weights, bias = device.alloc((1000, 100), "float32"), device.alloc(1000, "float32")
    for step in range(20):
        weights.write(numpy.full((1000, 100), comm.rank + step, "float32"))
        bias.write(numpy.full(1000, comm.rank, "float32"))
        averages = [comm.all_reduce_async(gradient, "avg") for gradient in (weights, bias)]
        assert averages[0].wait() is weights
        averages[1].wait()
        assert (numpy.asarray(weights.read()) == (comm.size - 1) / 2 + step).all()
    print(f"rank {comm.rank}: 20 steps are right, with {device.movements()['moves']} moves")
