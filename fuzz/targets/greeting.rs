//! The first bytes of a TCP connection.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| windlass_fuzz::greeting::run(bytes));
