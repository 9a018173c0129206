"""Every collective on every element type that NumPy has, blocking and asynchronous, against NumPy.

With "device" as the second argument, on the memory of an accelerator that moves it and takes it away meanwhile.
"""

import sys

import numpy

import windlass

comm = windlass.init()
RANK, SIZE, COUNT = comm.rank, comm.size, int(sys.argv[1])
NUMPY = {"u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64", "i8": "int8", "i16": "int16", "i32": "int32",
         "i64": "int64", "f16": "float16", "f32": "float32", "f64": "float64"}  # fmt: skip
FOLDS = {"sum": numpy.add, "prod": numpy.multiply, "min": numpy.minimum, "max": numpy.maximum}
checked = 0
DEVICE = None
if sys.argv[2:] == ["device"]:
    DEVICE = comm.attach("simulated", moves_per_second=100, revokes_per_second=50, seed=RANK)


def operand(rank, length, dtype):
    # Small numbers: exact in every type, also their product.
    return ((numpy.arange(length) * 7 + rank * 3) % 3 + (1 if length else 0)).astype(dtype)


def lend(x):
    """A copy that a call may have: the array, or device memory with its contents."""
    if not isinstance(x, numpy.ndarray) or DEVICE is None:
        return x.copy() if isinstance(x, numpy.ndarray) else x
    buffer = DEVICE.alloc(x.shape, x.dtype)
    buffer.write(x)
    return buffer


def check(what, result, expected):
    global checked
    checked += 1
    if isinstance(result, windlass.DeviceBuffer):
        result = result.read()
    result = numpy.asarray(result)
    assert result.dtype == expected.dtype and numpy.array_equal(result.ravel(), expected), (what, result, expected)


def both(name, *arguments, **keywords):
    """The result of the blocking call, then of the asynchronous one."""
    for later in ("", "_async"):
        result = getattr(comm, name + later)(*[lend(a) for a in arguments], **keywords)
        result = result.wait(60) if later else result
        # Where there is an operand, the result is where that is.
        assert DEVICE is None or result is None or isinstance(result, windlass.DeviceBuffer), (name, result)
        yield result


def reductions(dtype):
    whole = [operand(r, COUNT, dtype) for r in range(SIZE)]
    blocks = [operand(r, COUNT * SIZE, dtype) for r in range(SIZE)]
    mine = slice(RANK * COUNT, (RANK + 1) * COUNT)
    for op, fold in FOLDS.items():
        prefix = [fold.reduce(whole[: r + 1], dtype=dtype) for r in range(SIZE)]
        for result in both("all_reduce", whole[RANK], op):
            check("all_reduce", result, prefix[-1])
        for result in both("reduce", whole[RANK], op=op, root=1):
            check("reduce", result, prefix[-1] if RANK == 1 else whole[RANK])
        for result in both("reduce_scatter", blocks[RANK], op):
            check("reduce_scatter", result, fold.reduce(blocks, dtype=dtype)[mine])
        for result in both("scan", whole[RANK], op):
            check("scan", result, prefix[RANK])
        for result in both("exscan", whole[RANK], op):
            check("exscan", result, prefix[RANK - 1] if RANK else whole[0])
        out, source = lend(numpy.zeros(COUNT, dtype)), whole[RANK].copy()
        source.flags.writeable = False
        source = source if DEVICE is None else lend(source)
        assert comm.all_reduce(source, op, out=out) is out
        check("all_reduce, out", out, prefix[-1])


def movements(dtype):
    whole = [operand(r, COUNT, dtype) for r in range(SIZE)]
    blocks = [operand(r, COUNT * SIZE, dtype) for r in range(SIZE)]
    mine = slice(RANK * COUNT, (RANK + 1) * COUNT)
    for result in both("broadcast", whole[RANK], root=SIZE - 1):
        check("broadcast", result, whole[-1])
    for result in both("all_gather", whole[RANK]):
        check("all_gather", result, numpy.concatenate(whole))
    for result in both("gather", whole[RANK], root=1):
        if RANK == 1:
            check("gather", result, numpy.concatenate(whole))
        else:
            assert result is None
    out = lend(numpy.zeros(COUNT, dtype))
    for result in both("scatter", blocks[0] if RANK == 0 else None, out=out):
        # The asynchronous one got a copy of `out` no more than the blocking one: keywords are passed as they are.
        assert result is out
        check("scatter", result, blocks[0][mine])
    for result in both("all_to_all", blocks[RANK]):
        check("all_to_all", result, numpy.concatenate([b[mine] for b in blocks]))
    for later in ("", "_async"):
        right, left, got = (RANK + 1) % SIZE, (RANK - 1) % SIZE, lend(numpy.zeros(COUNT, dtype))
        receiving = comm.recv_async(got, left, tag=5)
        sent = getattr(comm, "send" + later)(lend(whole[RANK]), right, tag=5)
        if later:
            sent.wait(60)
        assert receiving.wait(60) is got
        check("send and recv", got, whole[left])
    comm.barrier()
    comm.barrier_async().wait(60)


for name in windlass.DTYPES if DEVICE is None else ["f32", "i64", "f16", "u8"]:
    if name in NUMPY:
        reductions(NUMPY[name])
        movements(NUMPY[name])

# Registered memory, its shapes, and its views.
buffer = comm.alloc((SIZE, COUNT), numpy.float64)
view = numpy.asarray(buffer)
assert view.shape == (SIZE, COUNT) and not view.any()
view[:] = RANK
assert comm.all_reduce(buffer) is buffer
check("registered", view, numpy.full(SIZE * COUNT, sum(range(SIZE)), "float64"))
assert comm.reduce_scatter(buffer).shape == (1, COUNT)
assert comm.all_gather(numpy.zeros((2, 3))).shape == (2 * SIZE, 3)
assert comm.all_gather(numpy.float32(RANK)[()].reshape(())).shape == (SIZE,)
if DEVICE is not None:
    moved = DEVICE.movements()
    assert moved["moves"] > 0 and moved["revokes"] > 0, moved
print(f"rank {RANK} checked {checked}")
comm.finalize()
