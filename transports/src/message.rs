//! A message's identity on the wire.

/// The tag of messages that belong to collectives; users' tags are below it.
pub const COLLECTIVE_TAG: u32 = u32::MAX;

/// Names a message between two ranks: the receive with the same identity takes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    /// The communicator.
    pub communicator: u32,
    /// The user's tag, or [`COLLECTIVE_TAG`].
    pub tag: u32,
    /// The communicator's sequence for collectives; the message's number in its (communicator, peer, tag,
    /// direction) for the others.
    pub sequence: u64,
    /// The schedule's label of the message.
    pub label: u32,
    /// The chunk.
    pub chunk: u32,
}

/// What a frame's header says of a message. Sender and receiver must agree on all of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub struct Message {
    /// Which.
    pub id: MessageId,
    /// The call's shared arguments in two words; the transport only compares them.
    pub fingerprint: [u64; 2],
    /// Payload.
    pub bytes: usize,
}
