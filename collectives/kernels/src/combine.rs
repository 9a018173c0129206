//! The public face of the kernels: resolve once, run often.

use std::fmt;

use crate::kernel::Kernel;
use crate::{DataType, Level, ReduceOp, arch, level};

/// How results reach memory.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Store {
    /// Ordinary stores: the result is soon read here.
    Cached,
    /// Non-temporal stores, fenced before the call returns: for results larger than the caches. It is a wish:
    /// outputs that cannot be aligned together, and levels without such stores, get ordinary ones.
    Streaming,
}

/// A kernel resolved for this CPU: k inputs, folded in order, stored to m outputs.
///
/// Resolving is a table look-up; running is an indirect call. Two threads may run one `Combine` at once.
#[derive(Copy, Clone)]
pub struct Combine {
    kernel: Kernel,
    /// The kernel's elements per element of the caller: copies work in bytes.
    scale: usize,
    data_type: DataType,
    /// `None` is a copy.
    op: Option<ReduceOp>,
    level: Level,
}

impl Combine {
    /// A copy: exactly one input, any number of outputs; bytes are kept as they are.
    pub fn copy(dtype: DataType) -> Self {
        Self::resolve(dtype, None, level())
    }

    /// A reduction: at least one input, any number of outputs.
    pub fn reduce(dtype: DataType, op: ReduceOp) -> Self {
        Self::resolve(dtype, Some(op), level())
    }

    /// The same combine on another level, for tests and benchmarks; `None` when this CPU lacks it.
    pub fn with_level(self, level: Level) -> Option<Self> {
        level.is_available().then(|| Self::resolve(self.data_type, self.op, level))
    }

    /// The type of the elements.
    pub const fn data_type(&self) -> DataType {
        self.data_type
    }

    /// The operator; `None` for a copy.
    pub const fn op(&self) -> Option<ReduceOp> {
        self.op
    }

    /// The instruction set that the kernel uses.
    pub const fn level(&self) -> Level {
        self.level
    }

    /// The level must be available.
    fn resolve(data_type: DataType, op: Option<ReduceOp>, level: Level) -> Self {
        let (kernel_type, scale) =
            if op.is_some() { (data_type, 1) } else { (DataType::U8, data_type.size_bytes()) };
        // A copy is a reduction of a single input, which is never folded; on bytes nothing is converted either.
        let kernel = arch::kernel(level, kernel_type, op.unwrap_or(ReduceOp::Sum));
        Self { kernel, scale, data_type, op, level }
    }

    /// Sets `outputs[j][e]` to the fold, in input order, of `inputs[i][e]`, for `count` elements `e`.
    ///
    /// An average divides the sum by `divisor` if that is more than 1 (partial sums pass 1); other operators ignore
    /// the divisor. The crate's documentation has the exact arithmetic.
    ///
    /// # Panics
    /// When `inputs` is empty, or a copy has more than one.
    ///
    /// # Safety
    /// During the whole call, which may be concurrent with other threads and processes:
    /// - every input is readable, and every output writable, for `count` elements; no alignment is needed;
    /// - an output either equals an input exactly (in place) or overlaps no input; no two outputs overlap;
    /// - nobody else writes the inputs' bytes, or touches the outputs' bytes. Other bytes, even in the same cache
    ///   line, are everyone's: the call reads and writes not one byte beyond the ranges.
    #[inline]
    pub unsafe fn run(
        &self,
        inputs: &[*const u8],
        outputs: &[*mut u8],
        count: usize,
        divisor: u64,
        store: Store,
    ) {
        match self.op {
            None => assert!(inputs.len() == 1, "a copy has one input, not {}", inputs.len()),
            Some(_) => assert!(!inputs.is_empty(), "a reduction has at least one input"),
        }
        // SAFETY: the caller's promises are the kernel's; `inputs` was just checked; `resolve` was given an
        // available level, so the CPU has the kernel's. The product is the size in bytes of memory that exists.
        unsafe { (self.kernel)(inputs, outputs, count * self.scale, divisor, store) }
    }
}

impl fmt::Debug for Combine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = self.op.map_or("copy", ReduceOp::name);
        write!(f, "Combine({} {op}, {})", self.data_type, self.level)
    }
}
