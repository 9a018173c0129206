//! Programs that use windlass. Each is an `[[example]]` of this crate: `cargo build --release -p windlass-examples --examples`.
