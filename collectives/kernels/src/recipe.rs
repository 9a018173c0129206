//! The one table of types and operators: what is defined, and which kernel calculates it.
//!
//! Kernels are compiled for forms, of which there are fewer than types: a sum does not know a sign, bits do not know a
//! width, and a complex sum is twice as many real ones.

use crate::{DataType, ReduceOp};

/// What a kernel takes the bytes for.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Form {
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
    F16,
    BF16,
    F32,
    F64,
    E4M3,
    E5M2,
    /// Integers of this many bits of which only counts whether they are 0.
    Truth8,
    Truth16,
    Truth32,
    Truth64,
    Complex64,
    Complex128,
    F32I32,
    F64I32,
    I32I32,
    F64I64,
    I64I64,
}

/// What a kernel does with its inputs.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Fold {
    Sum,
    Prod,
    Min,
    Max,
    Avg,
    /// Multiplies a single input.
    Scale,
    And,
    Or,
    Xor,
}

/// How a combine is calculated.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Recipe {
    pub(crate) form: Form,
    pub(crate) fold: Fold,
    /// The kernel's elements per element of the caller.
    pub(crate) scale: usize,
}

/// A copy is a reduction of a single input, which is never folded; on bytes nothing is converted either.
pub(crate) const fn copy(data_type: DataType) -> Recipe {
    Recipe { form: Form::U8, fold: Fold::Sum, scale: data_type.size_bytes() }
}

/// The multiplication of an input by its rank's number; defined where the scaled sum is.
pub(crate) const fn scale(data_type: DataType) -> Option<Recipe> {
    match recipe(data_type, ReduceOp::ScaledSum) {
        Some(Recipe { form, scale, .. }) => Some(Recipe { form, fold: Fold::Scale, scale }),
        None => None,
    }
}

/// `None` where the operator is not defined on the type.
pub(crate) const fn recipe(data_type: DataType, op: ReduceOp) -> Option<Recipe> {
    let (form, scale) = form(data_type);
    match form {
        Form::Truth8 => of_truth(op),
        Form::F32I32 | Form::F64I32 | Form::I32I32 | Form::F64I64 | Form::I64I64 => of_pairs(form, op),
        Form::Complex64 | Form::Complex128 => of_complex(form, op),
        Form::F16 | Form::BF16 | Form::F32 | Form::F64 => of_floats(form, op),
        Form::E4M3 | Form::E5M2 => match op {
            ReduceOp::ScaledSum => None,
            _ => of_floats(form, op),
        },
        _ => of_integers(form, scale, op),
    }
}

/// The form of a type by itself, and its size in bytes.
const fn form(data_type: DataType) -> (Form, usize) {
    let form = match data_type {
        DataType::U8 => Form::U8,
        DataType::U16 => Form::U16,
        DataType::U32 => Form::U32,
        DataType::U64 => Form::U64,
        DataType::I8 => Form::I8,
        DataType::I16 => Form::I16,
        DataType::I32 => Form::I32,
        DataType::I64 => Form::I64,
        DataType::F16 => Form::F16,
        DataType::BF16 => Form::BF16,
        DataType::F32 => Form::F32,
        DataType::F64 => Form::F64,
        DataType::E4M3 => Form::E4M3,
        DataType::E5M2 => Form::E5M2,
        DataType::Bool => Form::Truth8,
        DataType::Complex64 => Form::Complex64,
        DataType::Complex128 => Form::Complex128,
        DataType::F32I32 => Form::F32I32,
        DataType::F64I32 => Form::F64I32,
        DataType::I32I32 => Form::I32I32,
        DataType::F64I64 => Form::F64I64,
        DataType::I64I64 => Form::I64I64,
    };
    (form, data_type.size_bytes())
}

const fn one(form: Form, fold: Fold) -> Option<Recipe> {
    Some(Recipe { form, fold, scale: 1 })
}

const fn of_integers(form: Form, bytes: usize, op: ReduceOp) -> Option<Recipe> {
    let (unsigned, truth) = match bytes {
        1 => (Form::U8, Form::Truth8),
        2 => (Form::U16, Form::Truth16),
        4 => (Form::U32, Form::Truth32),
        _ => (Form::U64, Form::Truth64),
    };
    match op {
        ReduceOp::Sum => one(unsigned, Fold::Sum),
        ReduceOp::Prod => one(unsigned, Fold::Prod),
        ReduceOp::Min => one(form, Fold::Min),
        ReduceOp::Max => one(form, Fold::Max),
        ReduceOp::Avg => one(form, Fold::Avg),
        ReduceOp::BitAnd => Some(Recipe { form: Form::U8, fold: Fold::And, scale: bytes }),
        ReduceOp::BitOr => Some(Recipe { form: Form::U8, fold: Fold::Or, scale: bytes }),
        ReduceOp::BitXor => Some(Recipe { form: Form::U8, fold: Fold::Xor, scale: bytes }),
        ReduceOp::LogicalAnd => one(truth, Fold::And),
        ReduceOp::LogicalOr => one(truth, Fold::Or),
        ReduceOp::LogicalXor => one(truth, Fold::Xor),
        ReduceOp::ScaledSum | ReduceOp::MinLoc | ReduceOp::MaxLoc | ReduceOp::User(_) => None,
    }
}

const fn of_floats(form: Form, op: ReduceOp) -> Option<Recipe> {
    match op {
        // What is scaled was scaled before.
        ReduceOp::Sum | ReduceOp::ScaledSum => one(form, Fold::Sum),
        ReduceOp::Prod => one(form, Fold::Prod),
        ReduceOp::Min => one(form, Fold::Min),
        ReduceOp::Max => one(form, Fold::Max),
        ReduceOp::Avg => one(form, Fold::Avg),
        _ => None,
    }
}

const fn of_complex(form: Form, op: ReduceOp) -> Option<Recipe> {
    let part = if matches!(form, Form::Complex64) { Form::F32 } else { Form::F64 };
    match op {
        ReduceOp::Sum | ReduceOp::ScaledSum => Some(Recipe { form: part, fold: Fold::Sum, scale: 2 }),
        ReduceOp::Avg => Some(Recipe { form: part, fold: Fold::Avg, scale: 2 }),
        ReduceOp::Prod => one(form, Fold::Prod),
        _ => None,
    }
}

/// Truth values: the largest of them is their disjunction, the smallest and the product their conjunction, and a sum is
/// true as soon as one is, as in PyTorch.
const fn of_truth(op: ReduceOp) -> Option<Recipe> {
    match op {
        ReduceOp::Sum | ReduceOp::Max | ReduceOp::BitOr | ReduceOp::LogicalOr => one(Form::Truth8, Fold::Or),
        ReduceOp::Prod | ReduceOp::Min | ReduceOp::BitAnd | ReduceOp::LogicalAnd => {
            one(Form::Truth8, Fold::And)
        }
        ReduceOp::BitXor | ReduceOp::LogicalXor => one(Form::Truth8, Fold::Xor),
        ReduceOp::Avg | ReduceOp::ScaledSum | ReduceOp::MinLoc | ReduceOp::MaxLoc | ReduceOp::User(_) => None,
    }
}

const fn of_pairs(form: Form, op: ReduceOp) -> Option<Recipe> {
    match op {
        ReduceOp::MinLoc => one(form, Fold::Min),
        ReduceOp::MaxLoc => one(form, Fold::Max),
        _ => None,
    }
}
