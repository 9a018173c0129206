//! 36 bytes.

use windlass_memory::accelerator::Exported;

/// What is read is what was written, and its whole pages hold it.
pub fn run(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk::<{ Exported::WIRE_BYTES }>() else { return };
    let Some(exported) = Exported::from_wire(bytes) else { return };
    assert_eq!(exported.to_wire(), *bytes);
    let (first, length) = exported.pages();
    assert!(first <= exported.offset && exported.offset + exported.bytes <= first + length);
}
