//! Finds device memory that was taken away without a word: neither its exporter nor the NIC says so, and while nothing is sent nobody runs into it.
//!
//! The NIC, [connected to itself](crate::loopback), reads eight bytes of each registered dma-buf by the key that peers have. A key that no longer
//! holds ends the read with an error, and the loopback with it: it is made anew for the next look. Nothing is ever written, and nobody is waited for: reads are
//! posted, and their completions come with all the others.

use std::collections::VecDeque;

use windlass_transports::reach::SegmentKey;

use crate::loopback::Loopback;
use crate::verbs::{Attachment, Completion, CompletionQueue, Device, Place, Status};

/// Reads of one look: more segments are looked at in turns.
const READS: u32 = 64;
/// Completions that can wait in the NIC's queue: those of a loopback that is gone, and of its successor.
pub(super) const COMPLETIONS: u32 = 2 * READS;
const BYTES: u32 = 8;
/// Names of its work requests: no end's, as no rank has so high a number. The lower bits say of which loopback.
const NAME: u64 = (u32::MAX as u64) << 10;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Watch {
    loopback: Option<Loopback>,
    /// Of the loopback.
    serial: u64,
    /// Reads under way, in their order: of which segment, unless it has been given back.
    asked: VecDeque<Option<SegmentKey>>,
    /// The segment that was looked at last.
    last: Option<SegmentKey>,
    /// Found, and not told yet.
    gone: Vec<SegmentKey>,
}

impl Watch {
    /// Whether a completion is of its reads.
    const fn is_its(id: u64) -> bool {
        id & NAME == NAME
    }

    /// Begins a look at these segments, whose places come in the order of their keys. None while the last has not ended: a NIC that does not answer is
    /// noticed by those who wait for it.
    pub(super) fn look(
        &mut self,
        device: &Device,
        attachment: Attachment,
        queue: &CompletionQueue,
        places: &[(SegmentKey, Place)],
    ) {
        if places.is_empty() || !self.asked.is_empty() {
            return;
        }
        if self.loopback.is_none() {
            self.serial += 1;
            // Where there is no room for it, the loss is found by whoever uses the memory.
            self.loopback = Loopback::connect(device, attachment, queue, READS, BYTES as usize).ok();
        }
        let Some(loopback) = &self.loopback else { return };
        let begin = places.partition_point(|(key, _)| Some(*key) <= self.last);
        let all = places[begin..].iter().chain(&places[..begin]);
        for &(key, place) in all.take(READS as usize) {
            if loopback.read(self.id(), place, BYTES).is_err() {
                break;
            }
            self.asked.push_back(Some(key));
            self.last = Some(key);
        }
    }

    fn id(&self) -> u64 {
        self.serial << 42 | NAME
    }

    /// Whether it was a read of the watch's that has ended. The first that fails names the culprit, and those behind it are thrown away.
    pub(super) fn completed(&mut self, completion: &Completion) -> bool {
        if completion.id == self.id()
            && let Some(key) = self.asked.pop_front()
        {
            self.ended(key, completion);
        }
        Self::is_its(completion.id)
    }

    fn ended(&mut self, key: Option<SegmentKey>, completion: &Completion) {
        if let Err(failure) = completion.outcome {
            if matches!(failure.status, Status::RemoteAccess | Status::RemoteOperation) {
                self.gone.extend(key);
            }
            self.loopback = None;
            self.asked.clear();
        }
    }

    /// A segment is the NIC's no more: what its reads bring says nothing.
    pub(super) fn forget(&mut self, segment: u64) {
        self.gone.retain(|key| key.segment != segment);
        for asked in &mut self.asked {
            *asked = asked.filter(|key| key.segment != segment);
        }
    }

    pub(super) fn take_gone(&mut self) -> Vec<SegmentKey> {
        std::mem::take(&mut self.gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::{Failure, Kind};

    const fn key(segment: u64) -> SegmentKey {
        SegmentKey { segment, generation: 3 }
    }

    fn asked(segments: &[u64]) -> Watch {
        let asked = segments.iter().map(|&segment| Some(key(segment))).collect();
        Watch { serial: 5, asked, ..Watch::default() }
    }

    fn ended(watch: &mut Watch, outcome: Result<Kind, Status>) {
        let outcome = outcome.map_err(|status| Failure { status, vendor: 0 });
        watch.completed(&Completion { id: 5 << 42 | NAME, queue_pair: 1, outcome });
    }

    #[test]
    fn the_first_read_that_fails_names_the_culprit() {
        let mut watch = asked(&[1, 2, 3]);
        for outcome in [Ok(Kind::Read), Err(Status::RemoteAccess), Err(Status::Flushed)] {
            ended(&mut watch, outcome);
        }
        assert_eq!(watch.take_gone(), [key(2)]);
        assert!(watch.take_gone().is_empty() && watch.asked.is_empty());
    }

    #[test]
    fn a_nic_that_does_not_answer_accuses_nobody() {
        for status in [Status::RetryExceeded, Status::Flushed, Status::Fatal] {
            let mut watch = asked(&[1, 2]);
            ended(&mut watch, Err(status));
            assert!(watch.take_gone().is_empty() && watch.asked.is_empty());
        }
    }

    #[test]
    fn memory_that_was_given_back_is_not_missed() {
        let mut watch = asked(&[1, 2]);
        watch.forget(1);
        ended(&mut watch, Err(Status::RemoteAccess));
        assert!(watch.take_gone().is_empty());
        let mut watch = asked(&[1]);
        ended(&mut watch, Err(Status::RemoteAccess));
        watch.forget(1);
        assert!(watch.take_gone().is_empty());
    }

    #[test]
    fn reads_of_a_loopback_that_is_gone_say_nothing() {
        let mut watch = asked(&[1]);
        let outcome = Err(Failure { status: Status::RemoteAccess, vendor: 0 });
        watch.completed(&Completion { id: 4 << 42 | NAME, queue_pair: 1, outcome });
        assert!(watch.take_gone().is_empty() && watch.asked.len() == 1);
        assert!(Watch::is_its(watch.id()) && !Watch::is_its(5 << 42 | 7 << 10 | 1));
    }
}
