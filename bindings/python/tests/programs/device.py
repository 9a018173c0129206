"""Device memory: what its owner may do with it, and what must not be done. What is refused starts nothing."""

import asyncio
import gc
import os
import tempfile
import time
import weakref

import numpy

import windlass

comm = windlass.init()
RANK, SIZE = comm.rank, comm.size


def refused(text, call, *arguments, kind=windlass.InvalidArgumentError, **keywords):
    try:
        call(*arguments, **keywords)
    except kind as error:
        assert text in str(error), error
        return
    raise AssertionError((text, "was accepted"))


def written(x):
    buffer = device.alloc(x.shape, x.dtype)
    buffer.write(x)
    return buffer


def same(buffer, expected):
    result = numpy.asarray(buffer.read())
    assert result.shape == expected.shape and result.dtype == expected.dtype and (result == expected).all(), result


refused("give its name", comm.attach)
refused('no accelerator is called "gpu"', comm.attach, "gpu")
refused('no option "speed"', comm.attach, "simulated", speed=3)
refused('movement is "fast"', comm.attach, "simulated", movement="fast")
refused("must be 0 to 1", comm.attach, "simulated", lost_share=2)
if not os.path.exists("/dev/udmabuf"):
    refused("No such file", comm.attach, "udmabuf")
early = comm.duplicate()
device = comm.attach("simulated", moves_per_second=50, revokes_per_second=20, announce_ahead=True, replacement_time=0)
refused("is not the one this rank uses", comm.attach, "simulated")
early.attach()
x = numpy.arange(60.0).reshape(6, 10) + RANK
both = 2 * numpy.arange(60.0).reshape(6, 10) + 1
buffer = written(x)
assert (buffer.shape, buffer.dtype, buffer.nbytes, len(buffer)) == ((6, 10), "f64", 480, 6)
assert repr(buffer) == "windlass.DeviceBuffer(shape=(6, 10), dtype='f64')"
for one in (comm, early):
    buffer.write(x)
    assert one.all_reduce(buffer) is buffer
    same(buffer, both)
# Into arrays, from arrays, and of both in one list.
out = numpy.zeros((6, 10))
assert comm.all_reduce(written(x), out=out) is out and (out == both).all()
assert comm.all_reduce(x.copy(), out=buffer) is buffer
same(buffer, both)
listed = [written(x[:2]), x[2:].copy()]
comm.all_reduce(listed)
same(listed[0], both[:2])
assert (listed[1] == both[2:]).all()
assert isinstance(comm.all_gather(buffer), windlass.DeviceBuffer)
assert comm.all_gather(buffer).shape == (12, 10)
assert buffer.read(out) is out and (out == both).all()
# Slices are the same memory.
wide = device.alloc((SIZE * 3, 10), "float64")
wide[RANK * 3 : RANK * 3 + 3].write(x[:3])
assert comm.all_gather(wide[RANK * 3 : RANK * 3 + 3], out=wide) is wide
same(wide, numpy.concatenate([x[:3] - RANK + r for r in range(SIZE)]))
same(wide[3:][1:2], (x[1:2] - RANK + 1))
assert wide[4:2].shape == (0, 10) and numpy.asarray(wide[-100:0].read()).shape == (0, 10)
refused("has no steps", lambda: wide[::2], kind=ValueError)
refused("slice it", lambda: wide[1], kind=TypeError)
refused("slice it", lambda: device.alloc(())[:], kind=TypeError)
refused("buffer.read()", numpy.asarray, buffer, kind=TypeError)
refused("without dimensions", len, device.alloc(()), kind=TypeError)
part = wide[1:2]
del wide
gc.collect()
part.write(x[:1])
same(comm.broadcast(part, 0), x[:1] - RANK)
# Messages, and coroutines.
got = device.alloc(10)
comm.sendrecv(written(numpy.full(10, RANK, "float32")), 1 - RANK, got, 1 - RANK)
same(got, numpy.full(10, 1 - RANK, "float32"))
comm.exchange([(got, 1 - RANK), (got, RANK, 3)], [(other := device.alloc(10), 1 - RANK), (own := device.alloc(10), RANK, 3)])
same(other, numpy.full(10, RANK, "float32"))
same(own, numpy.full(10, 1 - RANK, "float32"))


async def gradients():
    operations = [comm.all_reduce_async(written(numpy.full(n % 5 * 1000, n, "float32"))) for n in range(40)]
    for n, operation in enumerate(operations):
        same(await operation, numpy.full(n % 5 * 1000, n * SIZE, "float32"))


asyncio.run(gradients())
# Dropped while it is in use: it lives as long as the operation.
dropped = written(numpy.ones(100_000))
gone = weakref.ref(dropped)
comm.all_reduce_async(dropped)
del dropped
comm.barrier()
begin = time.monotonic()
while gone() is not None:
    assert time.monotonic() - begin < 10, "the memory of a dropped operation is kept for ever"
    time.sleep(0.001)

# What is wrong.
refused("is of f32 but the call needs f64", buffer.write, x.astype("float32"))
refused("has 10 elements but the call needs 60", buffer.write, x[0])
refused("of class int", buffer.write, 3)
refused("is device memory", buffer.write, buffer)
refused("is device memory", buffer.read, buffer)
refused("needs f64", buffer.read, numpy.zeros(60, "int64"))
frozen = numpy.zeros((6, 10))
frozen.flags.writeable = False
refused("read-only", buffer.read, frozen)
refused("the dtype", device.alloc, 3, "float")
refused("the shape", device.alloc, (3, -1))
refused("free buffers", device.alloc, 1 << 62, kind=windlass.SystemError)
refused("of type f32, but the input of type f64", comm.all_reduce, buffer, out=device.alloc(60))
refused("of type f64 and of type f32", comm.all_reduce, [buffer, got])
refused("the output has 10", comm.all_reduce, device.alloc(9), out=got)
refused("overlaps", comm.all_reduce, buffer[1:3], out=buffer[2:4])
refused("scaled_sum", comm.all_reduce, buffer, scalar=0.5)
refused("is device memory", comm.register, buffer)
with tempfile.TemporaryFile() as file:
    file.truncate(4096)
    refused("it is no dma-buf: export", device.adopt, file, 0, 10)
    refused("it is no dma-buf", device.adopt, file.fileno(), 8, (2, 5), "float64")
    refused("no multiple of 8", device.adopt, file, 4, 10, "float64")
    refused("the dtype", device.adopt, file, 0, 10, "float")
    refused("larger than memory", device.adopt, file, 0, 1 << 62)
    assert os.fstat(file.fileno()).st_size == 4096, "it is still open"
refused("it is not open", device.adopt, -1, 0, 10)
refused("it is not open", device.adopt, 1 << 30, 0, 10)
refused("", device.adopt, "three", 0, 10, kind=TypeError)
refused("", device.adopt, 3, -1, 10, kind=OverflowError)
comm.all_reduce(buffer)
moved = device.movements()
begin = time.monotonic()
while not (moved["moves"] and moved["revokes"]):
    assert time.monotonic() - begin < 20, moved
    same(written(x), x)
    moved = device.movements()

child = os.fork()
if child == 0:
    kind = windlass.ForkedError
    refused("forked", comm.attach, "simulated", kind=kind)
    refused("forked", device.alloc, 3, kind=kind)
    refused("forked", device.adopt, 0, 0, 3, kind=kind)
    refused("forked", device.movements, kind=kind)
    refused("forked", buffer.write, x, kind=kind)
    refused("forked", buffer.read, kind=kind)
    refused("forked", comm.all_reduce, buffer, kind=kind)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
buffer.write(x)
early.finalize()
comm.finalize()
refused("finalized", comm.all_reduce, buffer)
same(buffer, x)
del comm, early, device
gc.collect()
same(buffer, x)
print(f"rank {RANK}: device memory was right")
