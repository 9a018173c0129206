//! Arbitrary bytes, cut anywhere, to a link with posted operations.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| windlass_fuzz::stream::run(bytes));
