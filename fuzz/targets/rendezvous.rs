//! The messages between ranks and the rendezvous.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| windlass_fuzz::rendezvous::run(bytes));
