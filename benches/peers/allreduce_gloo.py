"""torch.distributed's all_reduce on Gloo, in place, under the loop of bench.h.

Arguments: control file, rendezvous file, rank, ranks, and bench.c compiled to a shared object.
"""

import ctypes
import sys

import torch
import torch.distributed as dist

control, rendezvous, rank, ranks, library = sys.argv[1:]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + rendezvous, rank=int(rank), world_size=int(ranks))

tensors = {}


def all_reduce(_collective, _root, _operand, address, count):
    """The bench asks for no other collective.

    Reduces the memory that the loop owns, which torch sees through a tensor kept per buffer.
    """
    tensor = tensors.get((address, count))
    if tensor is None:
        memory = (ctypes.c_float * count).from_address(address)
        tensor = tensors[(address, count)] = torch.frombuffer(memory, dtype=torch.float32)
    dist.all_reduce(tensor)


callback = ctypes.CFUNCTYPE(
    None, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
)(all_reduce)
bench = ctypes.CDLL(library)
version = ("Gloo of torch " + torch.__version__).encode()
status = bench.bench_serve(control.encode(), int(rank), int(ranks), version, callback)
dist.destroy_process_group()
sys.exit(status)
