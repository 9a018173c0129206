//! What a rank without an accelerator hears of its peers' device memory.

use std::os::fd::OwnedFd;

use super::Job;
use crate::bootstrap::protocol::{RegionMessage, RegionNews};

/// From whom, what, and perhaps a descriptor.
pub(super) type News = (u32, RegionMessage, Option<OwnedFd>);

impl Job {
    /// News of device memory to a rank without an accelerator, which touches none: it answers at once, or nobody's memory could move.
    pub(super) fn hear_early(
        &self,
        early: &mut Vec<News>,
        from: u32,
        message: RegionMessage,
        descriptor: Option<OwnedFd>,
    ) {
        let (owner, segment) = (message.owner, message.segment);
        if let RegionNews::Withdraw { .. } | RegionNews::End { .. } = message.news {
            early.retain(|(_, known, _)| (known.owner, known.segment) != (owner, segment));
        }
        match message.news {
            RegionNews::Withdraw { generation } => {
                let news = RegionNews::Withdrawn { generation };
                self.tell_region(owner, RegionMessage { owner, segment, news, exported: Err(None) }, None);
            }
            RegionNews::End { .. } => {}
            _ => early.push((from, message, descriptor)),
        }
    }
}
