//! The configuration's file and the model's.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| windlass_fuzz::config::run(bytes));
