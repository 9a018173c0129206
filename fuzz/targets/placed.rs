//! A link whose messages may be written where they belong.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| windlass_fuzz::placed::run(bytes));
