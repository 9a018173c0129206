//! The public face of the kernels: resolve once, run often.

use std::fmt;

use crate::kernel::Kernel;
use crate::recipe::{self, Recipe};
use crate::{DataType, Level, ReduceOp, Unsupported, arch, level};

/// How results reach memory.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Store {
    /// Ordinary stores: the result is soon read here.
    Cached,
    /// Non-temporal stores, fenced before the call returns: for results larger than the caches. It is a wish:
    /// outputs that cannot be aligned together, and levels without such stores, get ordinary ones.
    Streaming,
}

/// What a combine does.
#[derive(Copy, Clone, Eq, PartialEq)]
enum Action {
    Copy,
    Scale,
    Reduce(ReduceOp),
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
    action: Action,
    level: Level,
}

impl Combine {
    /// A copy: exactly one input, any number of outputs; bytes are kept as they are.
    pub fn copy(dtype: DataType) -> Self {
        Self::resolve(dtype, Action::Copy, recipe::copy(dtype), level())
    }

    /// What each rank does to its own input before a [`ReduceOp::ScaledSum`]: exactly one input, any number of outputs, and
    /// the bits of an f64 as the parameter, by which every element is multiplied.
    pub fn scale(dtype: DataType) -> Result<Self, Unsupported> {
        let recipe = recipe::scale(dtype).ok_or(Unsupported { data_type: dtype, op: ReduceOp::ScaledSum })?;
        Ok(Self::resolve(dtype, Action::Scale, recipe, level()))
    }

    /// A reduction: at least one input, any number of outputs.
    ///
    /// # Panics
    /// When the operator is not defined on the type: [`ReduceOp::on`] tells before.
    pub fn reduce(dtype: DataType, op: ReduceOp) -> Self {
        match recipe::recipe(dtype, op) {
            Some(recipe) => Self::resolve(dtype, Action::Reduce(op), recipe, level()),
            None => panic!("{}", Unsupported { data_type: dtype, op }),
        }
    }

    /// The same combine on another level, for tests and benchmarks; `None` when this CPU lacks it.
    pub fn with_level(self, level: Level) -> Option<Self> {
        let recipe = match self.action {
            Action::Copy => recipe::copy(self.data_type),
            Action::Scale => recipe::scale(self.data_type)?,
            Action::Reduce(op) => recipe::recipe(self.data_type, op)?,
        };
        level.is_available().then(|| Self::resolve(self.data_type, self.action, recipe, level))
    }

    /// The type of the elements.
    pub const fn data_type(&self) -> DataType {
        self.data_type
    }

    /// The operator; `None` for what has one input only, a copy or a scaling.
    pub const fn op(&self) -> Option<ReduceOp> {
        match self.action {
            Action::Reduce(op) => Some(op),
            Action::Copy | Action::Scale => None,
        }
    }

    /// The instruction set that the kernel uses.
    pub const fn level(&self) -> Level {
        self.level
    }

    /// The level must be available.
    fn resolve(data_type: DataType, action: Action, recipe: Recipe, level: Level) -> Self {
        let kernel = arch::kernel(level, recipe.form, recipe.fold);
        Self { kernel, scale: recipe.scale, data_type, action, level }
    }

    /// Sets `outputs[j][e]` to the fold, in input order, of `inputs[i][e]`, for `count` elements `e`.
    ///
    /// An average divides the sum by `parameter` if that is more than 1 (partial sums pass 1); a scaling multiplies by the
    /// f64 whose bits `parameter` is; the others ignore it. The crate's documentation has the exact arithmetic.
    ///
    /// # Panics
    /// When `inputs` is empty, or a copy or a scaling has more than one.
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
        parameter: u64,
        store: Store,
    ) {
        match self.action {
            Action::Copy => assert!(inputs.len() == 1, "a copy has one input, not {}", inputs.len()),
            Action::Scale => assert!(inputs.len() == 1, "a scaling has one input, not {}", inputs.len()),
            Action::Reduce(_) => assert!(!inputs.is_empty(), "a reduction has at least one input"),
        }
        // SAFETY: the caller's promises are the kernel's; `inputs` was just checked; `resolve` was given an
        // available level, so the CPU has the kernel's. The product is the size in bytes of memory that exists.
        unsafe { (self.kernel)(inputs, outputs, count * self.scale, parameter, store) }
    }
}

impl fmt::Debug for Combine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = match self.action {
            Action::Copy => "copy",
            Action::Scale => "scale",
            Action::Reduce(op) => op.name(),
        };
        write!(f, "Combine({} {op}, {})", self.data_type, self.level)
    }
}
