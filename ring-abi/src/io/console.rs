//! The console page: two byte rings and their indices.

use core::mem::offset_of;

use crate::layout::wire;
use crate::ring::bytes::{ByteRing, Channel};
use crate::ring::{RingError, RingPage};

wire! { "io/console.h";
    /// Layout of the console page. The guest reads `in` and writes `out`.
    struct XenconsInterface = "struct xencons_interface", 0xc10 {
        0x000 r#in: [u8; 1024],
        0x400 out: [u8; 2048],
        0xc00 in_cons: u32,
        0xc04 in_prod: u32,
        0xc08 out_cons: u32,
        0xc0c out_prod: u32,
    }
}

/// Where the ring to the guest is in the console page.
pub const IN: Channel = Channel {
    data: offset_of!(XenconsInterface, r#in),
    size: 1024,
    cons: offset_of!(XenconsInterface, in_cons),
    prod: offset_of!(XenconsInterface, in_prod),
};

/// Where the ring from the guest is in the console page.
pub const OUT: Channel = Channel {
    data: offset_of!(XenconsInterface, out),
    size: 2048,
    cons: offset_of!(XenconsInterface, out_cons),
    prod: offset_of!(XenconsInterface, out_prod),
};

/// The guest's end: reads `in`, writes `out`.
///
/// # Errors
/// [`crate::ring::RingError::TooSmall`]: the page does not hold both rings.
pub fn frontend<M: RingPage>(page: M) -> Result<ByteRing<M>, RingError> {
    ByteRing::attach(page, IN, OUT)
}

/// The console daemon's end: reads `out`, writes `in`.
///
/// # Errors
/// [`crate::ring::RingError::TooSmall`]: the page does not hold both rings.
pub fn backend<M: RingPage>(page: M) -> Result<ByteRing<M>, RingError> {
    ByteRing::attach(page, OUT, IN)
}
