//! How a connection ends that its frontend has ruined.

use core::fmt;

use ring_abi::ring::RingError;

/// Why a connection must end: after this, nothing on the connection's rings can be trusted.
///
/// These are the faults for which Linux's xen-netback disables an interface. A fault of one packet, which leaves no doubt
/// about where the next packet begins, is answered and no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disconnect {
    /// The frontend broke the ring's rules.
    Ring(RingError),
    /// The ring ends within a packet: a frontend publishes a packet as a whole.
    Unfinished,
    /// A packet goes on over more slots than any frontend has a reason for.
    TooManySlots,
    /// A piece of a packet does not lie within its page.
    CrossesPage {
        /// First byte within the page.
        offset: u16,
        /// Bytes.
        size: u16,
    },
    /// Extra information of a type that does not exist, or that does not belong on a transmit ring.
    BadExtra(u8),
    /// A packet is to be cut into segments of no bytes.
    GsoWithoutSize,
    /// A packet of a protocol that does not exist is to be cut into segments.
    BadGso(u8),
}

impl From<RingError> for Disconnect {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

impl fmt::Display for Disconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => write!(f, "{error}"),
            Self::Unfinished => write!(f, "the ring ends within a packet"),
            Self::TooManySlots => write!(f, "a packet without end"),
            Self::CrossesPage { offset, size } => {
                write!(f, "{size} bytes at offset {offset} are more than the page has")
            }
            Self::BadExtra(kind) => write!(f, "extra information of type {kind}"),
            Self::GsoWithoutSize => write!(f, "segments of no bytes"),
            Self::BadGso(kind) => write!(f, "segments of protocol {kind}"),
        }
    }
}
