//! Programs that use windlass; see the `examples` targets.
