//! The one kernel: k inputs, folded in input order in registers, stored to m outputs.
//!
//! Everything here is `inline(always)` and is compiled once per vector and operator inside the entry points of
//! `arch`, which switch the instruction set on. The loops count: what iterators and closures over arrays expand
//! to is not always inlined, and then runs without the instruction set, fifty times slower. Memory is read once
//! and written once whatever k and m are.
//!
//! Within one step (a block of registers, one register, or a part of one) all inputs are read before any output is
//! written, and a step touches only its own byte range. That is why an output may be exactly an input.

#![expect(clippy::needless_range_loop, reason = "iterators over arrays are not always inlined, see above")]

use crate::Store;
use crate::vector::{Operator, Register, Vector};

/// A kernel with its vector, operator and instruction set compiled in: inputs, outputs, count, parameter, store.
///
/// The safety contract is [`Combine::run`](crate::Combine::run)'s; besides, `inputs` is not empty and the CPU has
/// the kernel's level.
pub(crate) type Kernel = unsafe fn(&[*const u8], &[*mut u8], usize, u64, Store);

/// [`partial`], compiled for an instruction set: inputs, outputs, offset, bytes, parameter.
pub(crate) type Partial = unsafe fn(&[*const u8], &[*mut u8], usize, usize, u64);

/// Registers in a block. Four loads in flight per input hide the latency of the adds, and four registers of
/// widened 16-bit floats (eight accumulators) still fit AVX2's sixteen.
const UNROLL: usize = 4;

/// Folds all of an operation that is smaller than a register. The sizes of one and two numbers, and the usual two
/// inputs, are told apart here, once, so that what remains of [`partial`] is a few plain instructions per input and output.
///
/// # Safety
/// `Kernel`'s contract; `bytes` is the operation's size, less than `V::Register::BYTES`.
#[inline(always)]
pub(crate) unsafe fn tiny<V: Vector, O: Operator<V>>(
    inputs: &[*const u8],
    outputs: &[*mut u8],
    bytes: usize,
    parameter: u64,
    partial_any: Partial,
) {
    // SAFETY: the caller's promise; `bytes` is not 0 in the arms that ask.
    unsafe {
        match (bytes, inputs) {
            (8, &[a, b]) => partial::<V, O>(&[a, b], outputs, 0, 8, parameter),
            (4, &[a, b]) => partial::<V, O>(&[a, b], outputs, 0, 4, parameter),
            (8, _) => partial::<V, O>(inputs, outputs, 0, 8, parameter),
            (4, _) => partial::<V, O>(inputs, outputs, 0, 4, parameter),
            (16, _) => partial::<V, O>(inputs, outputs, 0, 16, parameter),
            (0, _) => {}
            _ => partial_any(inputs, outputs, 0, bytes, parameter),
        }
    }
}

/// Folds less than one register, at offset `at`: the whole of a tiny operation, or the end of a large one.
///
/// # Safety
/// `Kernel`'s contract for the bytes `at .. at + bytes`; `0 < bytes < V::Register::BYTES`.
#[inline(always)]
pub(crate) unsafe fn partial<V: Vector, O: Operator<V>>(
    inputs: &[*const u8],
    outputs: &[*mut u8],
    at: usize,
    bytes: usize,
    parameter: u64,
) {
    let [first, rest @ ..] = inputs else { return };
    // SAFETY: the range is within every input and output, and the CPU has V's level: the caller's promise.
    unsafe {
        let mut accumulator = V::decode(V::Register::load_partial(first.add(at), bytes));
        for input in rest {
            accumulator = O::fold(accumulator, V::decode(V::Register::load_partial(input.add(at), bytes)));
        }
        let result = O::finish(accumulator, parameter).encode();
        for output in outputs {
            result.store_partial(output.add(at), bytes);
        }
    }
}

/// Folds any number of elements, a register at a time: for what is seldom asked for, or calculates so long that neither
/// the loads' latency nor the way past the caches matters. It compiles to a tenth of [`bulk`].
///
/// # Safety
/// `Kernel`'s contract; `bytes` is the operation's size.
#[inline(always)]
pub(crate) unsafe fn plain<V: Vector, O: Operator<V>>(
    inputs: &[*const u8],
    outputs: &[*mut u8],
    bytes: usize,
    parameter: u64,
) {
    let mut at = 0;
    // SAFETY: every step's range lies within the operation's bytes, as the caller promises them.
    unsafe {
        while bytes - at >= V::Register::BYTES {
            step::<V, O, 1, false>(inputs, outputs, at, parameter);
            at += V::Register::BYTES;
        }
        if at < bytes {
            partial::<V, O>(inputs, outputs, at, bytes - at, parameter);
        }
    }
}

/// Folds at least one register's worth of elements.
///
/// # Safety
/// `Kernel`'s contract; `bytes` is the operation's size, at least `V::Register::BYTES`.
#[inline(always)]
pub(crate) unsafe fn bulk<V: Vector, O: Operator<V>>(
    inputs: &[*const u8],
    outputs: &[*mut u8],
    bytes: usize,
    parameter: u64,
    store: Store,
    partial: Partial,
) {
    let mut at = 0;
    if matches!(store, Store::Streaming)
        && let Some(head) = streaming_head::<V>(outputs)
        && head + V::Register::BYTES * UNROLL <= bytes
    {
        // SAFETY: head is less than one register and within the operation; after it every output is aligned, and
        // the fence orders the streamed stores before the caller can tell anyone. The rest is the caller's promise.
        unsafe {
            if head > 0 {
                partial(inputs, outputs, 0, head, parameter);
            }
            at = blocks::<V, O, true>(inputs, outputs, head, bytes, parameter);
            V::Register::fence();
        }
    }
    // SAFETY: every step's range lies within the operation's bytes, as the caller promises them.
    unsafe {
        // Two inputs are the step of most algorithms. With the pointers in registers a block in L1 takes two thirds
        // of the time (measured, f32, 4 KiB); other shapes do not pay for their share of the program's size.
        at = match (inputs, outputs) {
            (&[a, b], &[c]) => blocks::<V, O, false>(&[a, b], &[c], at, bytes, parameter),
            (&[a, b], &[c, d]) => blocks::<V, O, false>(&[a, b], &[c, d], at, bytes, parameter),
            _ => blocks::<V, O, false>(inputs, outputs, at, bytes, parameter),
        };
        while bytes - at >= V::Register::BYTES {
            step::<V, O, 1, false>(inputs, outputs, at, parameter);
            at += V::Register::BYTES;
        }
        if at < bytes {
            partial(inputs, outputs, at, bytes - at, parameter);
        }
    }
}

/// How many bytes to fold before every output is aligned to the register; `None` when they never are together.
#[inline(always)]
fn streaming_head<V: Vector>(outputs: &[*mut u8]) -> Option<usize> {
    let mask = V::Register::BYTES - 1;
    let head = outputs.first()?.addr().wrapping_neg() & mask;
    let together = outputs.iter().all(|output| output.addr().wrapping_add(head) & mask == 0);
    (together && head.is_multiple_of(V::ELEMENT_BYTES)).then_some(head)
}

/// Folds whole blocks from `at`, as many as end by `bytes`; returns where they ended.
///
/// # Safety
/// `Kernel`'s contract; `at <= bytes`; when streaming, every output plus `at` is aligned to the register.
#[inline(always)]
unsafe fn blocks<V: Vector, O: Operator<V>, const STREAM: bool>(
    inputs: &[*const u8],
    outputs: &[*mut u8],
    mut at: usize,
    bytes: usize,
    parameter: u64,
) -> usize {
    let block = V::Register::BYTES * UNROLL;
    while bytes - at >= block {
        // SAFETY: the block ends within the operation; blocks are multiples of the register, so alignment stays.
        unsafe { step::<V, O, UNROLL, STREAM>(inputs, outputs, at, parameter) };
        at += block;
    }
    at
}

/// Folds `N` registers at offset `at`.
///
/// # Safety
/// As `blocks`, for the bytes `at .. at + N * V::Register::BYTES`.
#[inline(always)]
unsafe fn step<V: Vector, O: Operator<V>, const N: usize, const STREAM: bool>(
    inputs: &[*const u8],
    outputs: &[*mut u8],
    at: usize,
    parameter: u64,
) {
    let [first, rest @ ..] = inputs else { return };
    // SAFETY: register n of every pointer lies within the range that the caller promises, aligned if streaming;
    // the CPU has V's level.
    unsafe {
        let mut accumulators = read::<V, N>(first.add(at));
        for input in rest {
            let values = read::<V, N>(input.add(at));
            for n in 0..N {
                accumulators[n] = O::fold(accumulators[n], values[n]);
            }
        }
        let mut results = [O::finish(accumulators[0], parameter).encode(); N];
        for n in 1..N {
            results[n] = O::finish(accumulators[n], parameter).encode();
        }
        for output in outputs {
            let to = output.add(at);
            for n in 0..N {
                let to = to.add(n * V::Register::BYTES);
                if STREAM { results[n].stream(to) } else { results[n].store(to) }
            }
        }
    }
}

/// `N` consecutive registers.
///
/// # Safety
/// `from` is readable for `N` registers, and the CPU has V's level.
#[inline(always)]
unsafe fn read<V: Vector, const N: usize>(from: *const u8) -> [V; N] {
    // SAFETY: n < N, and the caller promises N registers from `from`.
    unsafe {
        let mut vectors = [V::decode(V::Register::load(from)); N];
        for n in 1..N {
            vectors[n] = V::decode(V::Register::load(from.add(n * V::Register::BYTES)));
        }
        vectors
    }
}
