//! The frame header: 64 bytes, little-endian, the same for every kind. `docs/wire.md` is its specification.

use crate::message::{Message, MessageId};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 64;
/// The version that this code speaks.
pub const VERSION: u8 = 2;
/// Where a header has its acknowledgement.
pub(super) const ACK_AT: usize = 4;
const MAGIC: [u8; 2] = *b"WL";

/// What a frame is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Kind {
    /// A whole message, sent within credits. Payload: the message.
    Eager = 1,
    /// The sender has this message and waits to be cleared.
    Announce = 2,
    /// The receiver has posted this receive; the message may come.
    Clear = 3,
    /// A piece of a cleared message; `detail` says how many bytes. Payload: the piece.
    Data = 4,
    /// Nothing but the credits that any frame can carry.
    Credit = 5,
    /// The sender takes its announcement back.
    Retract = 6,
    /// The receiver takes its clearance back.
    Rescind = 7,
    /// The answer to a [`Kind::Rescind`]: whatever belonged to the clearance has been sent before.
    Rescinded = 8,
    /// The receiver threw a message away whose sender believes it sent; the header describes the receive.
    RefuseMessage = 9,
    /// The receive does not fit the announcement; the header describes the receive.
    RefuseAnnounce = 10,
    /// The message does not fit the clearance; the header describes the message.
    RefuseClear = 11,
    /// The sender has more messages than it may announce: clear every receive of this class unasked.
    Stalled = 12,
    /// It has no longer.
    Resumed = 13,
    /// The rest of a message of which pieces have left does not come: its send was withdrawn.
    Abandon = 14,
    /// Nothing but the acknowledgement that any frame carries. It is not itself acknowledged, nor sent again.
    Ack = 15,
    /// The receiver would take this message, whatever it is: a stalled sender shall announce it, too.
    Seek = 16,
    /// The sender has this message, which was sought; it waits to be cleared and is none of the announcements that are counted.
    Found = 17,
    /// What was sought has come by itself.
    Forget = 18,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Eager,
            2 => Self::Announce,
            3 => Self::Clear,
            4 => Self::Data,
            5 => Self::Credit,
            6 => Self::Retract,
            7 => Self::Rescind,
            8 => Self::Rescinded,
            9 => Self::RefuseMessage,
            10 => Self::RefuseAnnounce,
            11 => Self::RefuseClear,
            12 => Self::Stalled,
            13 => Self::Resumed,
            14 => Self::Abandon,
            15 => Self::Ack,
            16 => Self::Seek,
            17 => Self::Found,
            18 => Self::Forget,
            _ => return None,
        })
    }
}

/// Why 64 bytes are no header.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Malformed {
    /// They do not begin as a header does.
    #[error("bytes that are no frame header")]
    Magic,
    /// They are of another version.
    #[error("a frame of another protocol version")]
    Version,
    /// There is no such kind.
    #[error("a frame of an unknown kind")]
    Kind,
    /// More bytes than this machine can address.
    #[error("a message too large for this machine")]
    Size,
    /// A piece that is larger than its message.
    #[error("a piece larger than its message")]
    Piece,
}

impl Malformed {
    /// The same words as `Display`, for a cause that holds a static string.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Magic => "bytes that are no frame header",
            Self::Version => "a frame of another protocol version",
            Self::Kind => "a frame of an unknown kind",
            Self::Size => "a message too large for this machine",
            Self::Piece => "a piece larger than its message",
        }
    }
}

/// The last eight bytes of a header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Detail {
    /// Of [`Kind::Data`]: the bytes of this piece. Pieces of one message come in order.
    Piece(usize),
    /// Of all others: credits of the message's class (its communicator; collective or not) that return to the reader.
    Credits {
        /// Payload bytes.
        bytes: u32,
        /// Messages.
        messages: u32,
    },
}

/// A decoded header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// How many frames of the reader's the writer has, modulo 2³²; zero where the stream cannot break.
    pub ack: u32,
    /// The message it is about.
    pub message: Message,
    /// A piece's size, or credits.
    pub detail: Detail,
}

impl Header {
    /// A [`Kind::Ack`].
    pub const fn ack(ack: u32) -> Self {
        let id = MessageId { communicator: 0, tag: 0, sequence: 0, label: 0, chunk: 0 };
        let message = Message { id, fingerprint: [0; 2], bytes: 0 };
        Self { kind: Kind::Ack, ack, message, detail: Detail::Credits { bytes: 0, messages: 0 } }
    }

    /// One that says nothing of a message.
    pub const fn nothing(id: MessageId) -> Self {
        let message = Message { id, fingerprint: [0; 2], bytes: 0 };
        Self { kind: Kind::Credit, ack: 0, message, detail: Detail::Credits { bytes: 0, messages: 0 } }
    }

    /// Bytes of payload that follow.
    pub fn payload(&self) -> usize {
        match (self.kind, self.detail) {
            (Kind::Eager, _) => self.message.bytes,
            (_, Detail::Piece(bytes)) => bytes,
            _ => 0,
        }
    }

    /// As it goes on the wire.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let id = &self.message.id;
        out[0..2].copy_from_slice(&MAGIC);
        out[2] = VERSION;
        out[3] = self.kind as u8;
        out[ACK_AT..ACK_AT + 4].copy_from_slice(&self.ack.to_le_bytes());
        out[8..12].copy_from_slice(&id.communicator.to_le_bytes());
        out[12..16].copy_from_slice(&id.tag.to_le_bytes());
        out[16..24].copy_from_slice(&id.sequence.to_le_bytes());
        out[24..28].copy_from_slice(&id.label.to_le_bytes());
        out[28..32].copy_from_slice(&id.chunk.to_le_bytes());
        out[32..40].copy_from_slice(&self.message.fingerprint[0].to_le_bytes());
        out[40..48].copy_from_slice(&self.message.fingerprint[1].to_le_bytes());
        out[48..56].copy_from_slice(&(self.message.bytes as u64).to_le_bytes());
        match self.detail {
            Detail::Piece(bytes) => out[56..64].copy_from_slice(&(bytes as u64).to_le_bytes()),
            Detail::Credits { bytes, messages } => {
                out[56..60].copy_from_slice(&bytes.to_le_bytes());
                out[60..64].copy_from_slice(&messages.to_le_bytes());
            }
        }
        out
    }

    /// Reads a header. Any bytes give an answer; none panics.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Malformed> {
        if bytes[0..2] != MAGIC {
            return Err(Malformed::Magic);
        }
        if bytes[2] != VERSION {
            return Err(Malformed::Version);
        }
        let kind = Kind::of(bytes[3]).ok_or(Malformed::Kind)?;
        let size = |at| match usize::try_from(word64(bytes, at)) {
            Ok(size) if size <= isize::MAX as usize => Ok(size),
            _ => Err(Malformed::Size),
        };
        let message = Message {
            id: MessageId {
                communicator: word32(bytes, 8),
                tag: word32(bytes, 12),
                sequence: word64(bytes, 16),
                label: word32(bytes, 24),
                chunk: word32(bytes, 28),
            },
            fingerprint: [word64(bytes, 32), word64(bytes, 40)],
            bytes: size(48)?,
        };
        let detail = if kind == Kind::Data {
            Detail::Piece(size(56)?)
        } else {
            Detail::Credits { bytes: word32(bytes, 56), messages: word32(bytes, 60) }
        };
        if matches!(detail, Detail::Piece(piece) if piece > message.bytes || (piece == 0) != (message.bytes == 0))
        {
            return Err(Malformed::Piece);
        }
        Ok(Self { kind, ack: word32(bytes, ACK_AT), message, detail })
    }
}

fn word32(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn word64(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(word32(bytes, at)) | u64::from(word32(bytes, at + 4)) << 32
}
