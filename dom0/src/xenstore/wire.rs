//! The message header and its types.
//!
//! ABI: `struct xsd_sockmsg` and `enum xsd_sockmsg_type`, `xen/include/public/io/xs_wire.h`.

/// Bytes of a header.
pub const HEADER_BYTES: usize = 16;
/// Most bytes after a header, in both directions. ABI: `XENSTORE_PAYLOAD_MAX`.
pub const PAYLOAD_MAX: usize = 4096;

/// `XS_CONTROL`
pub const CONTROL: u32 = 0;
/// `XS_DIRECTORY`
pub const DIRECTORY: u32 = 1;
/// `XS_READ`
pub const READ: u32 = 2;
/// `XS_GET_PERMS`
pub const GET_PERMS: u32 = 3;
/// `XS_WATCH`
pub const WATCH: u32 = 4;
/// `XS_UNWATCH`
pub const UNWATCH: u32 = 5;
/// `XS_TRANSACTION_START`
pub const TRANSACTION_START: u32 = 6;
/// `XS_TRANSACTION_END`
pub const TRANSACTION_END: u32 = 7;
/// `XS_INTRODUCE`
pub const INTRODUCE: u32 = 8;
/// `XS_RELEASE`
pub const RELEASE: u32 = 9;
/// `XS_GET_DOMAIN_PATH`
pub const GET_DOMAIN_PATH: u32 = 10;
/// `XS_WRITE`
pub const WRITE: u32 = 11;
/// `XS_MKDIR`
pub const MKDIR: u32 = 12;
/// `XS_RM`
pub const RM: u32 = 13;
/// `XS_SET_PERMS`
pub const SET_PERMS: u32 = 14;
/// `XS_WATCH_EVENT`
pub const WATCH_EVENT: u32 = 15;
/// `XS_ERROR`
pub const ERROR: u32 = 16;
/// `XS_IS_DOMAIN_INTRODUCED`
pub const IS_DOMAIN_INTRODUCED: u32 = 17;
/// `XS_RESUME`
pub const RESUME: u32 = 18;
/// `XS_SET_TARGET`
pub const SET_TARGET: u32 = 19;
/// `XS_RESET_WATCHES`
pub const RESET_WATCHES: u32 = 21;
/// `XS_DIRECTORY_PART`
pub const DIRECTORY_PART: u32 = 22;

/// A message's header: 16 bytes, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `type`: one of this module's numbers, or anything a client likes.
    pub kind: u32,
    /// The client's tag of the request, echoed.
    pub req_id: u32,
    /// The transaction, 0 for none; echoed.
    pub tx_id: u32,
    /// Bytes that follow.
    pub len: u32,
}

impl Header {
    /// Reads a header: any bytes are one.
    pub fn decode(raw: &[u8; HEADER_BYTES]) -> Header {
        let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        Header { kind: word(0), req_id: word(4), tx_id: word(8), len: word(12) }
    }

    /// Writes a header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut raw = [0; HEADER_BYTES];
        for (at, word) in [self.kind, self.req_id, self.tx_id, self.len].into_iter().enumerate() {
            raw[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        raw
    }
}
