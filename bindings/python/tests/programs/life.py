"""Lives of operations and processes that do not go by the book. The first argument names one."""

import asyncio
import gc
import os
import signal
import sys
import threading
import time
import weakref

import numpy

import windlass

comm = windlass.init()
RANK, SIZE = comm.rank, comm.size


def freed_in_flight():
    """Nobody but the operation has the memory; it is released at the end, not before, and not never."""
    other = comm.duplicate()
    arrays = []
    for count in (3, 300_000):
        x = numpy.ones(count)
        arrays.append(weakref.ref(x))
        if RANK == 0:
            comm.all_reduce_async(x)  # dropped at once
            del x
            gc.collect()
            assert arrays[-1]() is not None, "the memory was freed in flight"
            other.barrier()
        else:
            other.barrier()
            assert (comm.all_reduce(x) == SIZE).all()
            del x
    comm.barrier()
    begin = time.monotonic()
    while any(array() is not None for array in arrays):
        assert time.monotonic() - begin < 5, "the memory of a dropped operation is kept for ever"
        time.sleep(0.001)
    pending = comm.all_reduce_async(bytearray(8))
    pending.wait()
    if RANK == 0:
        exported = bytearray(8)
        operation = comm.recv_async(exported, 1)
        try:
            exported.append(1)
            raise AssertionError("memory in flight was resized")
        except BufferError:
            pass
        comm.barrier()
        assert operation.wait() is exported
        exported.append(1)
    else:
        comm.barrier()
        if RANK == 1:
            comm.send(bytearray(8), 0)
    comm.finalize()


def asynchronous():
    """Many at once, out of order, by several loops; a cancelled task; a time limit."""

    async def gradients():
        operations = [comm.all_reduce_async(numpy.full(n % 9 * 1000, n, "float32")) for n in range(200)]
        for n in sorted(range(200), key=lambda n: -n):
            assert (await operations[n] == n * SIZE).all()
        await asyncio.gather(*(wait(n) for n in range(50)))
        x = numpy.zeros(4)
        if RANK == 0:
            receiving = comm.recv_async(x, 1)
            task = asyncio.ensure_future(wait_for(receiving))
            await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled() and not receiving.done()
            try:
                receiving.wait(0.05)
                raise AssertionError("ended without a message")
            except TimeoutError as error:
                assert not isinstance(error, windlass.Error)
            await comm.barrier_async()
            # Two that wait for one.
            await asyncio.gather(wait_for(receiving), wait_for(receiving))
            assert (x == 7).all() and receiving.done() and receiving.wait() is x
        else:
            await comm.barrier_async()
            if RANK == 1:
                await comm.send_async(numpy.full(4, 7.0), 0)

    async def wait(n):
        return await comm.barrier_async()

    async def wait_for(operation):
        return await operation

    threads = threading.active_count()
    for _ in range(2):
        asyncio.run(gradients())
    assert threading.active_count() == threads
    comm.finalize()


def threads():
    """One communicator for each thread; the interpreter is free while one waits."""
    comms = [comm.duplicate() for _ in range(3)]
    failures = []

    def work(one, number):
        try:
            for n in range(300):
                x = numpy.full(n + 1, number + 1.0)
                assert (one.all_reduce(x) == SIZE * (number + 1)).all()
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(c, i)) for i, c in enumerate(comms)]
    [w.start() for w in workers]
    if RANK == 0:
        # A thread that waits does not keep this one from running.
        waiting = threading.Thread(target=comm.barrier)
        waiting.start()
        count = sum(1 for _ in range(100_000))
        assert waiting.is_alive() and count
    [w.join(60) for w in workers]
    if RANK != 0:
        time.sleep(0.2)
        comm.barrier()
    else:
        waiting.join(60)
    # One communicator from several threads: refused by nobody, and every call is somebody's.
    both = [threading.Thread(target=lambda: [comm.barrier() for _ in range(200)]) for _ in range(2)]
    [t.start() for t in both]
    [t.join(60) for t in both]
    assert not failures, failures
    comm.finalize()


def fork():
    """In the child every call raises, nothing crashes; the parent notices nothing."""
    buffer, x = comm.alloc(4), numpy.ones(4, "float32")
    pending = comm.all_reduce_async(x) if RANK == 0 else None
    child = os.fork()
    if child == 0:
        wrong = 0
        calls = [
            windlass.init,
            comm.barrier,
            lambda: comm.barrier_async().wait(),
            lambda: comm.all_reduce(numpy.ones(3)),
            lambda: comm.all_reduce(buffer),
            lambda: comm.all_reduce([x, x.copy()]),
            lambda: comm.sendrecv(x, RANK, x.copy(), RANK),
            lambda: comm.exchange_async([(x, RANK)], [(x.copy(), RANK)]).wait(),
            lambda: memoryview(buffer),
            lambda: buffer.__dlpack__(),
            lambda: comm.alloc(3),
            lambda: comm.split(1),
            comm.duplicate,
            comm.abort,
            comm.finalize,
        ]
        if pending:
            calls.append(pending.wait)
        for call in calls:
            try:
                call()
                wrong += 1
            except windlass.ForkedError as error:
                wrong += error.rank != RANK

        async def awaits():
            await pending

        if pending:
            try:
                asyncio.run(awaits())
                wrong += 1
            except windlass.ForkedError:
                pass
        del calls, pending, buffer
        gc.collect()
        sys.exit(wrong)  # with the interpreter's whole end
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status:#x}"
    if pending:
        pending.wait()
    else:
        comm.all_reduce(x)
    assert (x == SIZE).all()
    comm.finalize()


def interrupt():
    """Ctrl-C ends a wait, blocking or not, and the communicator can be given up."""
    if RANK == 0:
        x = numpy.ones(4)
        for call in (lambda: comm.recv(x, 1), lambda: comm.recv_async(x, 1, tag=1).wait(), comm.barrier):
            timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            begin = time.monotonic()
            try:
                call()
                raise AssertionError("not interrupted")
            except KeyboardInterrupt:
                assert time.monotonic() - begin < 2
            timer.join()
        comm.abort()
        try:
            comm.barrier()
            raise AssertionError("usable")
        except windlass.AbortedError as error:
            assert error.by == 0
    else:
        try:
            comm.recv(bytearray(8), 0, tag=9)
            raise AssertionError("ended")
        except windlass.AbortedError as error:
            assert error.by == 0 and "abort" in error.reason


def errors():
    """A mismatch, then a death: typed, with who and what."""
    zeros = numpy.zeros(4)
    for name, arguments in [
        ("all_reduce", (numpy.ones(4 if RANK else 5),)),
        ("all_reduce", (numpy.ones(4, "float64" if RANK else "float32"),)),
        ("all_reduce", (numpy.ones(4), "max" if RANK else "sum")),
        ("all_reduce" if RANK else "broadcast", (numpy.ones(4),)),
        ("all_gather_v", (zeros[: 2 if RANK else 3], [3, 2] if not RANK else [1, 2])),
        ("all_reduce", ([numpy.ones(2), numpy.ones(2 + RANK)],)),
    ]:
        other = comm.duplicate()
        try:
            getattr(other, name)(*arguments)
            # A root may have all it needs; then the next call shows it.
            other.barrier()
            raise AssertionError("a mismatch passed")
        except windlass.MismatchError as error:
            assert name in error.ours or "barrier" in error.ours
            assert error.sequence >= 0 and error.rank in range(SIZE) and error.code == 2
    if RANK == 1:
        os._exit(0)
    try:
        comm.barrier()
        raise AssertionError("a death passed")
    except windlass.PeerFailedError as error:
        assert error.rank == 1 and error.operation == "barrier" and error.cause and error.code == 3


def broken_operators():
    """An operator that fails, or makes something else, aborts the communicator on all ranks, and its exception is shown."""

    def fails(a, b):
        raise KeyError("broken on purpose")

    for name, fold in [
        ("fails", fails),
        ("short", lambda a, b: a[:1]),
        ("other", lambda a, b: numpy.zeros(len(a), "int32")),
        ("nothing", lambda a, b: None),
    ]:
        op = comm.register_op(name, fold, "float64")
        other = comm.duplicate()
        try:
            other.all_reduce(numpy.ones(100), op)
            raise AssertionError("a broken operator passed")
        except windlass.AbortedError as error:
            assert "operator" in error.reason, error
    # What it keeps of its arguments is its own.
    kept = []
    comm.all_reduce(numpy.ones(100), comm.register_op("keeps", lambda a, b: kept.append(a) or b, "float64"))
    assert all(view[0] == 1.0 for view in kept)
    comm.barrier()


def limited():
    """A time limit for a call; a second object of the same communicator."""
    short = comm.duplicate().with_timeout(0.2)
    comm.barrier()
    if RANK == 1:
        time.sleep(1)
    try:
        short.barrier()
        raise AssertionError("nothing ran out")
    except (windlass.TimedOutError, windlass.AbortedError) as error:
        assert RANK == 1 or error.waiting_on == [1]
    assert short.rank == RANK
    comm.with_timeout(60).barrier()
    comm.finalize()


def registered():
    """Memory of Python's own: exported while it is registered, and registered while an operation uses it."""
    x = bytearray(1 << 20)
    with comm.register(x) as registration:
        for call, text in [
            (lambda: comm.register(x), "cannot be registered"),
            (lambda: comm.register(memoryview(x)[64:128]), "cannot be registered"),
            (lambda: comm.register(comm.alloc(4)), "needs no more"),
            (lambda: comm.register(3), "of class int"),
            (lambda: comm.register(numpy.ones(8)[::2]), "not contiguous"),
        ]:
            try:
                call()
                raise AssertionError(text)
            except windlass.InvalidArgumentError as error:
                assert text in str(error), error
        try:
            x.append(1)
            raise AssertionError("registered memory was resized")
        except BufferError:
            pass
        y = numpy.frombuffer(x, "uint8")
        y[:] = 1
        if RANK == 1:
            time.sleep(0.1)
        operation = comm.all_reduce_async(y)
    # Released, but in use: registered until that ends.
    registration.release()
    assert (operation.wait() == SIZE).all()
    del operation, y, call
    begin = time.monotonic()
    while True:
        try:
            x.append(1)
            break
        except BufferError:
            assert time.monotonic() - begin < 5, "it is exported for ever"
            gc.collect()
    again = comm.register(x)
    assert again.region != registration.region
    del again
    comm.register(x)  # dropped at once
    comm.register(x).release()
    comm.finalize()


def exit_with_pending():
    """The interpreter ends while peers still need its memory: what can end does, the rest is aborted."""
    x = numpy.ones(1 << 20)
    if RANK == 0:
        globals()["operation"] = comm.all_reduce_async(x)
        comm.recv_async(numpy.ones(1 << 20), 1)  # dropped, and no message comes
        globals()["late"] = comm.recv_async(numpy.ones(3), 1, tag=2)
        return
    time.sleep(0.3)
    comm.all_reduce(x)
    assert (x == SIZE).all()
    try:
        comm.recv(x, 0, tag=9)
        raise AssertionError("rank 0 has gone")
    except windlass.AbortedError as error:
        assert error.by == 0


class Last:
    """Gives memory back while the interpreter ends, and still runs then."""

    def __init__(self):
        self.lent = numpy.from_dlpack(comm.alloc(10))

    def __del__(self):
        self.lent = None
        (lambda: None)()


def exit_at_once():
    """Without finalize, and with everything ended but not looked at."""
    globals()["operation"] = comm.all_reduce_async(numpy.ones(100))
    globals()["buffer"] = comm.alloc(10)
    globals()["view"] = numpy.asarray(globals()["buffer"])
    globals()["last"] = Last()


globals()[sys.argv[1]]()
print(f"rank {RANK} is through")
