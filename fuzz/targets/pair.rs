//! Two links joined by pipes: every message arrives right.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| windlass_fuzz::pair::run(bytes));
