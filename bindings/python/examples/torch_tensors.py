"""Tensors of torch, without a copy: by DLPack, and registered memory as a tensor.

python -m windlass run -n 4 torch_tensors.py
"""

import torch

import windlass

with windlass.init() as comm:
    weights = torch.full((1000,), float(comm.rank), dtype=torch.bfloat16)
    comm.broadcast(weights, root=0)
    assert (weights == 0).all()
    gradient = torch.from_dlpack(comm.alloc((10, 100), torch.float32))
    gradient += comm.rank
    comm.all_reduce(gradient)
    assert (gradient == sum(range(comm.size))).all()
    print(f"rank {comm.rank}: {tuple(gradient.shape)} reduced")
