//! Data types, reduction operators and the vectorised [`Combine`]: the arithmetic of windlass.
//!
//! A combine reads k inputs, folds them element by element in input order, and stores the result to m outputs, in one
//! pass over memory. Copy is 1→m; a reduction is k→m. [`Combine::reduce`] resolves a kernel for this CPU, and
//! [`Combine::run`] is an indirect call.
//!
//! # What is calculated
//!
//! The result depends on the inputs and their order alone: not on the [`Level`], the count, the alignment, the place
//! or the [`Store`]. It is the same to the bit everywhere, save that where it is NaN, which NaN is open.
//!
//! | | integers | f32, f64 | f16, bf16, e4m3, e5m2 |
//! |---|---|---|---|
//! | sum, prod | wrap | input order, rounded after each input, never fused | as f32 over all inputs of the call, rounded once at the end |
//! | avg | wrapping sum, then divided, truncating toward zero | sum, then divided | sum in f32, divided in f32, then rounded once |
//! | min, max | exact | NaN if any input is NaN; −0.0 is less than +0.0 | the same |
//! | scaled_sum | – | the product with a factor rounded to the type, then sum | f16, bf16: the product in f32, rounded once; then sum |
//! | band, bor, bxor | bit by bit | – | – |
//! | land, lor, lxor | of what is not 0; 0 or 1 | – | – |
//! | copy | the bytes | the bytes, NaN payloads too | the same |
//!
//! | | bool | complex64, complex128 | pairs |
//! |---|---|---|---|
//! | sum | as lor | each part by itself | – |
//! | prod | as land | (ac − bd, ad + bc), each operation rounded, none fused | – |
//! | avg, scaled_sum | – | each part by itself; the factor is real | – |
//! | min, max | as land, lor | – | – |
//! | band, bor, bxor, land, lor, lxor | of what is not 0; 0 or 1 | – | – |
//! | minloc, maxloc | – | – | the smallest or largest value, −0.0 less than +0.0, any NaN before all; of equal ones the lowest place |
//!
//! [`ReduceOp::supports`] is this table; where it has a dash, [`ReduceOp::on`] says so.
//!
//! - Rounding is to nearest, ties to even; subnormals are kept. The thread's floating-point environment is Rust's
//!   default.
//! - What rounds beyond the largest number becomes infinite, and in e4m3, which has no infinity, NaN: it does not saturate.
//! - Only avg divides, and only if the parameter is more than 1: whoever calculates a partial sum passes 1. The divisor is
//!   first rounded to the type of the division, which matters beyond 2^24 ranks.
//! - Neither min nor max, minloc nor maxloc depends on the order of the inputs. The bytes that fill up an f64i32 become 0.
//! - A sum of one 16-bit input goes through f32 and back: the same number, but a signalling NaN becomes quiet.
//! - A scaled sum is two combines: [`Combine::scale`] by whoever knows the factor, and the sum.
//!
//! # How it is laid out
//!
//! `recipe` is the table of types and operators, and says which kernel serves each pair. `kernel` is the one algorithm,
//! generic over a `vector::Vector` and an operator; `arch` has the vectors of each instruction set, and compiles the
//! algorithm for them; `combine` picks. `partial` is for what is smaller than a register: an all-reduce of one number is
//! nothing else. `element` has the Rust types.
//!
//! # Example
//!
//! ```
//! use windlass_kernels::{Combine, DataType, ReduceOp, Store};
//!
//! let (mut mine, theirs) = ([1.0_f32, 2.0], [10.0_f32, 20.0]);
//! let sum = Combine::reduce(DataType::F32, ReduceOp::Sum);
//! let place = mine.as_mut_ptr().cast::<u8>();
//! // SAFETY: both arrays have two elements, and the output is exactly an input.
//! unsafe { sum.run(&[place, theirs.as_ptr().cast()], &[place], 2, 1, Store::Cached) };
//! assert_eq!(mine, [11.0, 22.0]);
//! ```
#![deny(missing_docs)]

mod arch;
mod combine;
mod data_type;
mod divisor;
mod element;
mod fp8;
mod half_bits;
mod kernel;
mod level;
mod name;
mod partial;
mod recipe;
mod reduce_op;
mod user_op;
mod vector;

pub use half::{bf16, f16};
pub use num_complex::Complex;

pub use crate::combine::{Combine, Store};
pub use crate::data_type::DataType;
pub use crate::element::{Bool, Element, F8E4M3, F8E5M2, F32I32, F64I32, F64I64, I32I32, I64I64};
pub use crate::level::{Level, level};
pub use crate::name::UnknownName;
pub use crate::reduce_op::{ReduceOp, Unsupported};
pub use crate::user_op::UserOp;
