"""Wrong arguments: the right exception, nothing started, and the communicator goes on."""

import mmap

import numpy

import windlass

comm = windlass.init()
RANK, SIZE = comm.rank, comm.size
ones = numpy.ones(6, "float32")


class OnlyDlpack:
    """An array of which DLPack alone can be had, as from torch."""

    def __init__(self, array, versioned=True, device=(1, 0)):
        self.array, self.versioned, self.device = array, versioned, device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **keywords):
        if keywords and not self.versioned:
            raise TypeError("older than versions")
        return self.array.__dlpack__(**keywords)


def refused(text, call, *arguments, **keywords):
    for twin in (call, call + "_async"):
        try:
            getattr(comm, twin)(*arguments, **keywords)
        except windlass.InvalidArgumentError as error:
            assert isinstance(error, ValueError) and error.code == 1
            assert error.operation == call and error.argument and error.problem in str(error)
            assert text in str(error), (text, str(error))
        else:
            # What the runtime refuses of an asynchronous call, its end tells.
            raise AssertionError(f"{twin}{arguments} was accepted")


frozen = ones.copy()
frozen.flags.writeable = False
refused("read-only", "all_reduce", frozen)
refused("read-only", "recv", b"abcd", (RANK + 1) % SIZE)
refused("read-only", "all_reduce", ones, out=frozen)
refused("not contiguous", "all_reduce", numpy.ones((4, 4), "float32").T)
refused("not contiguous", "all_reduce", ones[::2])
refused("not contiguous", "all_reduce", OnlyDlpack(ones[::2]))
refused("read-only", "all_reduce", OnlyDlpack(frozen))
refused("a device", "all_reduce", OnlyDlpack(ones, device=(2, 0)))
refused("of class float", "all_reduce", [1.0, 2.0])
refused("of class str", "all_reduce", "text")
refused("is missing", "all_reduce", None)
refused("none of: u8", "all_reduce", numpy.ones(3, "complex256"))
refused("none of: u8", "all_reduce", numpy.ones(3, ">f4"))
refused("none of: sum", "all_reduce", ones, "mean")
refused("ReduceOp", "all_reduce", ones, 3)
refused("must be below", "broadcast", ones, root=SIZE)
refused("no number from 0", "broadcast", ones, root=-1)
refused("no number from 0", "broadcast", ones, root="first")
refused("must be below", "send", ones, 99)
refused("type f64, but the input of type f32", "all_reduce", ones, out=numpy.ones(6))
refused("has 5 elements but the call needs 6", "all_reduce", ones, out=numpy.ones(5, "float32"))
refused("has 6 elements but the call needs", "all_gather", ones, out=ones.copy())
refused("cannot share evenly", "reduce_scatter", numpy.ones(SIZE + 1, "float32"))
if RANK:
    refused("is missing", "scatter", None, root=0)
    refused("is missing", "scatter_v", None, root=0)
# Lists of counts, of rows; `right` are right.
right, two = [6] + [2] * (SIZE - 1), ones.reshape(3, 2)
mine = numpy.ones(right[RANK], "float32")
refused("the list of counts is missing", "all_gather_v", mine)
refused("the list of counts is missing", "gather_v", mine, root=RANK)
refused("the list of counts is missing", "all_to_all_v", ones, [6] * SIZE)
refused(f"has {SIZE + 1} elements but the call needs {SIZE}", "all_gather_v", mine, [*right, 0])
refused(f"has {SIZE - 1} elements but the call needs {SIZE}", "all_gather_v", mine, right[1:])
refused(f"has 0 elements but the call needs {SIZE}", "reduce_scatter_v", mine, [])
refused("one number from 0 for each rank", "all_gather_v", mine, [-1] * SIZE)
refused("one number from 0 for each rank", "all_gather_v", mine, [1.5] * SIZE)
refused("one number from 0 for each rank", "all_gather_v", mine, "abc")
refused("one number from 0 for each rank", "all_gather_v", mine, 6)
refused("one number from 0 for each rank", "all_gather_v", mine, [1 << 70] * SIZE)
refused(f"has {SIZE + 1} elements but", "all_gather_v", mine, range(1 << 60))
refused("the input has", "all_gather_v", numpy.ones(right[RANK] + 1, "float32"), right)
refused("the output has 5 elements", "all_gather_v", mine, right, out=numpy.ones(5, "float32"))
refused("the input has", "reduce_scatter_v", mine, [1 << 62] * SIZE)
refused("rows of 3 elements, but the input has rows of 2", "all_gather_v", two, [3] * SIZE, out=numpy.ones((SIZE * 2, 3), "float32"))
refused("type f64, but the input of type f32", "all_gather_v", mine, right, out=numpy.ones(sum(right)))
# Lists of arrays.
refused("the list of outputs has 1 elements", "all_gather", ones, out=[numpy.ones(6 * SIZE, "float32")])
refused("the output has", "all_gather", ones, out=[ones.copy() for _ in range(SIZE + 1)])
refused("an array of the list has", "all_gather", ones, out=[numpy.ones(12 if r == 0 else 0 if r == 1 else 6, "float32") for r in range(SIZE)])
refused("the list of inputs has 1 elements", "reduce_scatter", [numpy.ones(SIZE, "float32")])
refused("an array of the list has", "all_gather_v", mine, [*right[:-1], 3], out=[numpy.ones(n, "float32") for n in right])
refused("the list of outputs has 1", "all_gather_v", mine, out=[mine.copy()])
refused("empty list", "all_reduce", [])
refused("of type f32 and of type f64", "all_reduce", [ones, numpy.ones(6)])
refused("read-only", "all_reduce", [ones, frozen])
refused("not contiguous", "all_reduce", (ones, ones[::2]))
refused("of class NoneType", "all_to_all", [None] * SIZE)
refused("of class list", "all_reduce", [[ones]])
# Arrays that each have a block of every rank.
wide = lambda *lengths: windlass.ByRank(*(numpy.ones(n, "float32") for n in lengths))
refused("an array of the list has", "all_gather", ones, out=wide(SIZE + 1, 5 * SIZE - 1))
refused("the input has", "reduce_scatter", wide(SIZE, 5 * SIZE), out=numpy.ones(5, "float32"))
refused("the output has", "all_gather", ones, out=wide(SIZE, SIZE))
refused("empty list", "all_gather", ones, out=windlass.ByRank())
refused("of type f32 and of type f64", "all_to_all", windlass.ByRank(ones, numpy.ones(6)))
refused("read-only", "all_gather", frozen, out=windlass.ByRank(frozen))
refused("of class windlass.ByRank", "all_reduce", [wide(6)])
refused("the list of counts is missing", "all_gather_v", mine, out=wide(SIZE))
# Messages.
for wrong, text in [
    (7, "(array, rank)"),
    ([ones], "(array, rank)"),
    ([(ones,)], "(array, rank)"),
    ([(ones, 0, 0, 0)], "(array, rank)"),
    ([(ones, SIZE)], "must be below"),
    ([(ones, "next")], "no number from 0"),
    ([(ones, 0, -1)], "no number from 0"),
    ([(3.5, 0)], "of class float"),
]:
    for call in (comm.exchange, comm.exchange_async):
        for arguments in ((wrong, []), ([], wrong)):
            try:
                call(*arguments)
                raise AssertionError((arguments, "was accepted"))
            except windlass.InvalidArgumentError as error:
                assert text in str(error), error
for sends, receives, text in [
    ([(ones, RANK)], [], "this rank itself"),
    ([(ones, RANK)], [(numpy.ones(5, "float32"), RANK)], "the message to this rank itself"),
    ([(ones, (RANK + 1) % SIZE)], [(ones[2:], (RANK + 1) % SIZE)], "overlaps"),
]:
    try:
        comm.exchange(sends, receives)
        raise AssertionError(text)
    except windlass.InvalidArgumentError as error:
        assert text in str(error), error
# Operators, and times.
for arguments, text in [
    (("a", 3, "float32"), "cannot be called"),
    (("a", max, "float"), "the dtype"),
    (("", max, "float32"), "the operator's name"),
]:
    try:
        comm.register_op(*arguments)
        raise AssertionError(arguments)
    except windlass.InvalidArgumentError as error:
        assert text in str(error), error
first = comm.register_op("first", lambda a, b: a, "float32")
assert "first" in repr(first)
for call, text in [
    (lambda: comm.register_op("first", max, "float32"), "registered before"),
    (lambda: comm.all_reduce(numpy.ones(3), first), "is of f32"),
    (lambda: comm.with_timeout(0), "above 0"),
    (lambda: comm.with_timeout(-1.5), "above 0"),
    (lambda: comm.with_timeout(float("nan")), "above 0"),
    (lambda: comm.with_timeout(1e300), "above 0"),
    (lambda: comm.with_timeout("soon"), "above 0"),
]:
    try:
        call()
        raise AssertionError(text)
    except windlass.InvalidArgumentError as error:
        assert text in str(error), error
assert (comm.with_timeout(1e9).all_reduce(numpy.full(3, RANK, "float32"), first) == 0).all()
# Factors.
refused("no number", "all_reduce", ones, scalar="half")
refused("scaled_sum, not with max", "all_reduce", ones, "max", scalar=2)
for wrong in ("float", 3.5, object()):
    try:
        comm.alloc(3, wrong)
        raise AssertionError(wrong)
    except windlass.InvalidArgumentError as error:
        assert error.argument == "the dtype"
for wrong in (-1, (2, -3), "many"):
    try:
        comm.alloc(wrong)
        raise AssertionError(wrong)
    except windlass.InvalidArgumentError as error:
        assert error.argument == "the shape"
for wrong in (1 << 62, (1 << 40, 1 << 40)):
    try:
        comm.alloc(wrong)
        raise AssertionError(wrong)
    except windlass.Error as error:
        assert error.code in (1, 7), error
# What only the runtime can tell: at the end of an asynchronous call.
for call in (
    lambda: comm.send(ones, RANK),
    lambda: comm.send_async(ones, RANK).wait(),
    lambda: comm.scan(ones, "avg"),
    lambda: comm.all_reduce(numpy.ones(3, "int32"), scalar=2),
    # A list's arrays are written apart, and messages take none.
    lambda: comm.all_reduce([ones, ones]),
    lambda: comm.all_reduce([ones, ones], out=[ones[:6], ones.copy()]),
    lambda: comm.send([ones, ones], (RANK + 1) % SIZE),
    lambda: comm.send(wide(6), (RANK + 1) % SIZE),
    lambda: comm.all_gather(ones, out=windlass.ByRank(*[numpy.ones(3 * SIZE, "float32")] * 2)),
    lambda: comm.recv_async([ones, ones.copy()], (RANK + 1) % SIZE).wait(),
    lambda: comm.reduce_scatter(numpy.ones(SIZE, "float32"), "scaled_sum"),
    # What a rank has for itself is as long on either side.
    lambda: comm.all_to_all_v(ones, [6 * (r == RANK) for r in range(SIZE)], [1] * SIZE),
):
    try:
        call()
        raise AssertionError("accepted")
    except windlass.InvalidArgumentError:
        pass
odd = numpy.frombuffer(memoryview(numpy.zeros(41, "uint8"))[1:], "float32")
try:
    comm.all_reduce(odd)
    assert odd.ctypes.data % 4 == 0
except windlass.InvalidArgumentError as error:
    assert "no multiple of 4" in str(error)

# Nothing was started by all that, and nothing written.
assert (ones == 1).all()
empty = numpy.ones(0, "float32")
assert comm.all_reduce(empty) is empty and comm.all_gather(empty).shape == (0,)
assert comm.all_reduce(bytearray(4)) == bytearray(4)
for versioned in (True, False):
    x = OnlyDlpack(numpy.full(3, RANK, "int64"), versioned)
    assert comm.all_reduce(x) is x and (x.array == sum(range(SIZE))).all()
half = comm.alloc(4, "bfloat16")
numpy.asarray(half).view("uint16")[:] = 0x3F80  # 1.0
for x in (half, OnlyDlpack(half), OnlyDlpack(half, versioned=False)):
    comm.all_reduce(x, "avg")
    assert (numpy.asarray(half).view("uint16") == 0x3F80).all()
try:
    import ml_dtypes
except ImportError:
    pass
else:
    y = numpy.full(5, RANK + 1, ml_dtypes.bfloat16)
    assert comm.all_reduce(y, "max") is y and (y == SIZE).all()
# A root's memory is read only, in fact: a store would end the process.
with open("/bin/sh", "rb") as program:
    page = mmap.mmap(-1, 1 << 16) if RANK else mmap.mmap(program.fileno(), 1 << 16, prot=mmap.PROT_READ)
for bytes_ in (8, 1 << 16):
    first = numpy.frombuffer(page, "uint8", bytes_)
    comm.broadcast(first, 0)
    assert bytes(first[:4]) == b"\x7fELF"
print(f"rank {RANK} went on")
comm.finalize()
