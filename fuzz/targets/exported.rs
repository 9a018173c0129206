//! What travels beside a descriptor of device memory.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| windlass_fuzz::exported::run(bytes));
