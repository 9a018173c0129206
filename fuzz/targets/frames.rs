//! Well-formed frames in any order, between posts and withdrawals.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| windlass_fuzz::frames::run(bytes));
