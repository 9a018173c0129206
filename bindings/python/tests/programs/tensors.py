"""Tensors of torch: every element type, lists of them, and what cannot be lent."""

import torch

import windlass

comm = windlass.init()
RANK, SIZE = comm.rank, comm.size
TYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool,
         torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2]  # fmt: skip

for dtype in TYPES:
    for shape in ((), (5,), (3, 0), (2, 3)):
        x = torch.full(shape, RANK).to(dtype)
        assert comm.broadcast(x, root=SIZE - 1) is x
        assert (x.to(torch.complex128) == torch.full(shape, SIZE - 1).to(dtype).to(torch.complex128)).all(), dtype
    assert torch.from_dlpack(comm.alloc((2, 3), dtype)).dtype == dtype

x = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
outs = [torch.empty(2, 3, dtype=torch.bfloat16) for _ in range(SIZE)]
assert comm.all_gather(x + RANK, out=outs) is outs
assert all(torch.equal(out, x + r) for r, out in enumerate(outs))
sent = [torch.full((r + RANK,), RANK) for r in range(SIZE)]
got = [torch.empty(r + RANK, dtype=torch.int64) for r in range(SIZE)]
comm.all_to_all_v_async(sent, out=got).wait()
assert all((g == r).all() for r, g in enumerate(got))
gradients = [torch.full((n, 2), RANK + 1.0) for n in (3, 0, 100)]
comm.all_reduce(gradients, "avg")
assert all((g == (SIZE + 1) / 2).all() for g in gradients)
rows = comm.reduce_scatter_v(torch.ones(SIZE, 4), [1] * SIZE)
assert rows.shape == (1, 4) and (torch.from_dlpack(rows) == SIZE).all()

for text, wrong in [
    ("not contiguous", torch.ones(4, 4).T),
    ("not contiguous", torch.ones(6)[::2]),
    ("gradient", torch.ones(3, requires_grad=True)),
    ("of class torch.device", torch.device("cpu")),
    ("none of: u8", torch.ones(3, dtype=torch.complex32)),
]:
    try:
        comm.all_reduce(wrong)
        raise AssertionError(text)
    except windlass.InvalidArgumentError as error:
        assert text in str(error), error
learned = torch.ones(3, requires_grad=True)
comm.all_reduce(learned.detach())
assert (learned == SIZE).all()
print(f"rank {RANK}: tensors are right")
comm.finalize()
