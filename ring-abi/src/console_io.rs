//! `console_io`.

use crate::layout::constants;

constants! { "xen.h";
    CONSOLEIO_WRITE: u32 = 0 => "CONSOLEIO_write";
    CONSOLEIO_READ: u32 = 1 => "CONSOLEIO_read";
}

/// microhv's own word, which Xen does not have: a write of no bytes at this address gives `EAGAIN` while so much waits
/// for the serial line that a write may block. Xen gives 0 for every write of no bytes, and so does microhv at other
/// addresses.
pub const ASKS_WHETHER_BUSY: u64 = u64::MAX;
