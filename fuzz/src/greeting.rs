//! 64 bytes.

use windlass_transports::tcp::greeting::{GREETING_BYTES, Greeting};

/// What is read is what was written.
pub fn run(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk::<GREETING_BYTES>() else { return };
    if let Some(greeting) = Greeting::decode(bytes) {
        assert_eq!(greeting.encode(), *bytes);
    }
}
