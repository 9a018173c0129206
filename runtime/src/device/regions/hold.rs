//! Memory that somebody touches.

use windlass_memory::accelerator::{Operand, Place};

use crate::scheduler::{Lease, RegionName};

/// The right to touch some memory, until it is given back.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(super) name: RegionName,
    pub(super) lease: Lease,
    /// Where to find it meanwhile.
    pub(super) place: Option<Place>,
}

impl Hold {
    pub(crate) const fn name(&self) -> RegionName {
        self.name
    }

    /// The engine's operand at an offset; `None` when the memory was gone before it could be imported.
    pub(crate) fn operand(&self, offset: u64) -> Option<Operand> {
        self.place.map(|place| Operand { place, offset })
    }
}
