"""Blocks of different lengths, lists of arrays, and sums with factors: blocking and asynchronous, on every element type, against NumPy."""

import time

import numpy

import windlass

comm = windlass.init()
RANK, SIZE = comm.rank, comm.size
NUMPY = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
checked = 0


def array(*key, shape, dtype):
    """An operand that whoever knows its key can make."""
    seed = sum((k + 1) * 31**i for i, k in enumerate(key))
    return ((numpy.arange(numpy.prod(shape, dtype=int)) * 7 + seed) % 5).astype(dtype).reshape(shape)


def equal(what, result, expected):
    global checked
    checked += 1
    result = numpy.asarray(result)
    assert result.shape == expected.shape and result.dtype == expected.dtype, (what, result.shape, expected.shape)
    assert numpy.array_equal(result, expected), (what, result, expected)


def doors(name):
    yield getattr(comm, name)
    yield lambda *arguments, **keywords: getattr(comm, name + "_async")(*arguments, **keywords).wait(60)


def length(*key):
    """Of a block: some are empty."""
    return sum((k + 1) * f for k, f in zip(key, (3, 5))) % 4 * scale


def vectors(dtype, rest):
    counts = [length(r) for r in range(SIZE)]
    first = sum(counts[:RANK])
    mine = slice(first, first + counts[RANK])
    blocks = [array(r, shape=(counts[r], *rest), dtype=dtype) for r in range(SIZE)]
    wholes = [array(r, 9, shape=(sum(counts), *rest), dtype=dtype) for r in range(SIZE)]
    joined, root = numpy.concatenate(blocks), SIZE - 1
    outs = lambda: [numpy.zeros_like(block) for block in blocks]
    split = lambda whole: [whole[sum(counts[:r]) : sum(counts[: r + 1])].copy() for r in range(SIZE)]
    total = numpy.add.reduce(wholes, dtype=dtype)[mine]
    for call in doors("all_gather_v"):
        equal("all_gather_v", call(blocks[RANK], counts), joined)
        out = numpy.zeros_like(joined)
        assert call(blocks[RANK], numpy.array(counts), out=out) is out
        equal("all_gather_v, out", out, joined)
        given = outs()
        assert call(blocks[RANK], out=given) is given
        for got, block in zip(given, blocks):
            equal("all_gather_v, list", got, block)
    for call in doors("reduce_scatter_v"):
        equal("reduce_scatter_v", call(wholes[RANK], counts), total)
        out = numpy.zeros_like(total)
        assert call(split(wholes[RANK]), op="sum", out=out) is out
        equal("reduce_scatter_v, list", out, total)
        equal("reduce_scatter_v, list without out", call(split(wholes[RANK]), tuple(counts)), total)
    for call in doors("gather_v"):
        result = call(blocks[RANK], counts if RANK == root else None, root=root)
        equal("gather_v", result, joined) if RANK == root else CHECK(result is None)
        given = outs() if RANK == root else None
        call(blocks[RANK], root=root, out=given)
        for got, block in zip(given or [], blocks):
            equal("gather_v, list", got, block)
    for call in doors("scatter_v"):
        out, whole = numpy.zeros_like(total), wholes[root]
        if RANK == root:
            equal("scatter_v, root", call(whole, counts, root), whole[mine])
            call(split(whole), root=root, out=out)
        else:
            assert call(counts=counts, root=root, out=out) is out
            equal("scatter_v", out, whole[mine])
            out[...] = 0
            call(None, root=root, out=out)
        equal("scatter_v, list", out, whole[mine])
    pairs = lambda r, q: array(r, q, shape=(length(r, q), *rest), dtype=dtype)
    sent, received = [pairs(RANK, q) for q in range(SIZE)], [pairs(r, RANK) for r in range(SIZE)]
    for call in doors("all_to_all_v"):
        result = call(numpy.concatenate(sent), [len(s) for s in sent], (len(r) for r in received))
        equal("all_to_all_v", result, numpy.concatenate(received))
        given = [numpy.zeros_like(r) for r in received]
        assert call(sent, out=given) is given
        for got, expected in zip(given, received):
            equal("all_to_all_v, lists", got, expected)


def even_lists(dtype, rest):
    """The forms of torch.distributed."""
    mine = [array(RANK, q, shape=(scale, *rest), dtype=dtype) for q in range(SIZE)]
    of = lambda r, q: array(r, q, shape=(scale, *rest), dtype=dtype)
    outs = lambda: tuple(numpy.zeros((scale, *rest), dtype) for _ in range(SIZE))
    for call in doors("all_gather"):
        given = outs()
        assert call(mine[0], out=given) is given
        [equal("all_gather, list", given[r], of(r, 0)) for r in range(SIZE)]
    for call in doors("all_to_all"):
        given = outs()
        call(mine, out=given)
        [equal("all_to_all, lists", given[r], of(r, RANK)) for r in range(SIZE)]
        equal("all_to_all, a list", call(mine), numpy.concatenate([of(r, RANK) for r in range(SIZE)]))
    for call in doors("reduce_scatter"):
        equal("reduce_scatter, list", call(mine), numpy.add.reduce([of(r, RANK) for r in range(SIZE)], dtype=dtype))
    for call in doors("gather"):
        given = outs()
        call(mine[1 % SIZE], out=given)
        [equal("gather, list", given[r], of(r, 1 % SIZE) * (RANK == 0)) for r in range(SIZE)]
    for call in doors("scatter"):
        out = numpy.zeros((scale, *rest), dtype)
        call(mine if RANK == 0 else None, out=out)
        equal("scatter, list", out, of(0, RANK))


def several(dtype):
    """Many arrays, one operation."""
    lengths = [3 * scale, 0, 1, scale]
    mine = lambda r: [array(r, i, shape=(n,), dtype=dtype) for i, n in enumerate(lengths)]
    sums = [numpy.add.reduce(column, dtype=dtype) for column in zip(*(mine(r) for r in range(SIZE)))]
    for call in doors("all_reduce"):
        given, kept = mine(RANK), mine(RANK)
        assert call(given) is given
        [equal("all_reduce, list", *both) for both in zip(given, sums)]
        out = [numpy.zeros_like(s) for s in sums]
        call(kept, out=out)
        [equal("all_reduce, lists", *both) for both in zip(out, sums)]
        [equal("all_reduce, input", *both) for both in zip(kept, mine(RANK))]
    for call in doors("broadcast"):
        given = mine(RANK)
        call(given, root=SIZE - 1)
        [equal("broadcast, list", *both) for both in zip(given, mine(SIZE - 1))]


def by_rank(dtype):
    """Many arrays, one operation, each for itself."""
    lengths = [3 * scale, 0, 1]
    part = lambda r, q, i: array(r, q, i, shape=(lengths[i],), dtype=dtype)
    every = range(len(lengths))
    shards = lambda r, q=0: [part(r, q, i) for i in every]
    wholes = lambda parts: [numpy.concatenate([parts(r)[i] for r in range(SIZE)]) for i in every]
    empty = lambda wide: [numpy.zeros(n * (SIZE if wide else 1), dtype) for n in lengths]
    same = lambda what, got, expected: [equal(what, *both) for both in zip(got, expected, strict=True)]
    mine, gathered = wholes(lambda q: shards(RANK, q)), wholes(lambda r: shards(r))
    for call in doors("all_gather"):
        out = empty(True)
        given = windlass.ByRank(*out)
        assert call(shards(RANK), out=given) is given
        same("all_gather, by rank", out, gathered)
        joined = numpy.concatenate([numpy.concatenate(shards(r)) for r in range(SIZE)])
        equal("all_gather of a list", call(shards(RANK)), joined)
    for call in doors("gather"):
        out = empty(True)
        call(shards(RANK), out=windlass.ByRank(*out))
        same("gather, by rank", out, gathered if RANK == 0 else empty(True))
    for call in doors("reduce_scatter"):
        out = empty(False)
        call(windlass.ByRank(*mine), out=out)
        expected = [numpy.add.reduce([part(r, RANK, i) for r in range(SIZE)], dtype=dtype) for i in every]
        same("reduce_scatter, by rank", out, expected)
    for call in doors("scatter"):
        out = empty(False)
        call(windlass.ByRank(*mine) if RANK == 0 else None, out=out)
        same("scatter, by rank", out, shards(0, RANK))
    for call in doors("all_to_all"):
        out = empty(True)
        call(windlass.ByRank(*mine), out=windlass.ByRank(*out))
        same("all_to_all, by rank", out, wholes(lambda r: shards(r, RANK)))


def exchanges(dtype):
    right, left = (RANK + 1) % SIZE, (RANK - 1) % SIZE
    of = lambda r, q: array(r, q, shape=(3 * q + scale,), dtype=dtype)
    for call in doors("sendrecv"):
        out = numpy.zeros(3 * RANK + scale, dtype)
        assert call(of(RANK, right), right, out, left, tag=3) is out
        equal("sendrecv", out, of(left, RANK))
    for call in doors("exchange"):
        outs = [numpy.zeros(3 * RANK + scale, dtype) for _ in range(SIZE)]
        receives = [(outs[r], r) if r % 2 else (outs[r], r, 9) for r in reversed(range(SIZE))]
        sends = [(of(RANK, q), q) if RANK % 2 else (of(RANK, q), q, 9) for q in range(SIZE)]
        got = call(sends, receives)
        assert all(a is b for a, b in zip(got, reversed(outs)))
        [equal("exchange", outs[r], of(r, RANK)) for r in range(SIZE)]
        assert call([], []) == []


def from_anybody(dtype):
    if SIZE == 1:
        return
    for call in doors("recv_any"):
        sent = [comm.send_async(numpy.full(2, RANK, dtype), r, tag=4) for r in range(SIZE) if r != RANK]
        sources = []
        for _ in sent:
            x = numpy.zeros(2, dtype)
            got, source = call(x, tag=4)
            assert got is x and (x == source).all()
            sources.append(source)
        [s.wait(60) for s in sent]
        assert sorted(sources) == [r for r in range(SIZE) if r != RANK]
        comm.barrier()


def operators(dtype):
    """Operands are folded in rank order: this one tells the order, and has to see both kinds of operands."""
    if dtype.itemsize < 4:
        return
    # A memory view has no name for half precision.
    fold = lambda a, b: numpy.asarray(a) * 10 + numpy.asarray(b)
    op = comm.register_op(f"digits of {dtype} and {scale}", fold, dtype)
    digits = [numpy.full(scale + 3, r + 1, dtype) for r in range(SIZE)]
    for call in doors("all_reduce"):
        equal("operator", call(digits[RANK].copy(), op), numpy.full(scale + 3, int("123456789"[:SIZE]), dtype))
    for call in doors("scan"):
        equal("operator, scan", call(digits[RANK].copy(), op), numpy.full(scale + 3, int("123456789"[: RANK + 1]), dtype))


def factors(dtype):
    x, factor = array(7, shape=(scale, 2), dtype=dtype), RANK - 0.5
    expected = x * dtype.type(sum(r - 0.5 for r in range(SIZE)))
    for call in doors("all_reduce"):
        result = call(x.copy(), scalar=factor)
        equal("all_reduce, scalar", result, expected)
        out = numpy.zeros_like(x)
        call(x, "scaled_sum", out=out, scalar=numpy.float64(factor))
        equal("all_reduce, scalar, out", out, expected)


def CHECK(condition):
    assert condition


for scale in (1, 7, 2000):
    for name in NUMPY if scale < 100 else ["float32"]:
        dtype = numpy.dtype(name)
        for rest in ((), (2, 3)):
            vectors(dtype, rest)
            even_lists(dtype, rest)
        several(dtype)
        by_rank(dtype)
        exchanges(dtype)
        operators(dtype)
        from_anybody(dtype)
        if dtype.kind == "f":
            factors(dtype)

# A list is looked at during the call only: its arrays are kept.
given = [numpy.full(n, RANK + 1.0) for n in (3, 5000)]
kept = list(given)
operation = comm.all_reduce_async(given)
given.clear()
assert operation.wait(60) is given
assert all((k == SIZE * (SIZE + 1) / 2).all() for k in kept)
# A list that nobody waits for is filled at the operation's end all the same.
given = [numpy.full(10, RANK + 1), numpy.full(3, RANK + 1)]
comm.all_reduce_async(given)
comm.finalize()
begin = time.monotonic()
while not all((g == SIZE * (SIZE + 1) // 2).all() for g in given):
    assert time.monotonic() - begin < 5, given
    time.sleep(0.001)
print(f"rank {RANK} checked {checked}")
