//! Grants: giving other domains access to frames, and using what they gave. Version 1 entries, unless a kernel asks for
//! version 2 while it grants nothing.
//!
//! ABI: `xen/include/public/grant_table.h`.

mod copy;
mod device;
mod entry;
mod granted;
mod map;
mod page;
mod table;

pub use copy::{CopyBatch, CopyPages};
pub use device::{DeviceGrant, device_map, device_unmap};
pub use granted::{Granted, Lend, StillUsed};
pub use map::{GrantMap, map_grants};
pub use page::{GrantPage, map_pages, unmap_pages};
pub use table::{GrantRefOwned, GrantUsage, grant_access, set_version, usage};

use core::fmt;
use ring_abi::grant::*;

/// Entries in one grant hypercall at most: what fits a small stack buffer.
const BATCH: usize = 32;

/// Why the hypervisor refused one grant operation, `GNTST_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantStatus(pub i16);

impl fmt::Display for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            GNTST_OKAY => "okay",
            GNTST_BAD_DOMAIN => "bad domain",
            GNTST_BAD_GNTREF => "bad grant reference",
            GNTST_BAD_HANDLE => "bad handle",
            GNTST_BAD_VIRT_ADDR => "bad address",
            GNTST_BAD_DEV_ADDR => "bad device address",
            GNTST_NO_DEVICE_SPACE => "no device space",
            GNTST_PERMISSION_DENIED => "permission denied",
            GNTST_BAD_PAGE => "bad page",
            GNTST_BAD_COPY_ARG => "copy crosses a page",
            GNTST_ADDRESS_TOO_BIG => "address too big",
            GNTST_EAGAIN => "try again",
            GNTST_NO_SPACE => "out of space",
            _ => "general error",
        };
        write!(f, "{text} ({})", self.0)
    }
}

/// What a whole list failed with: the hypervisor could not read it, or this kernel ran out of something.
const FAILED: GrantStatus = GrantStatus(GNTST_GENERAL_ERROR);

/// The status of an entry as a result.
fn check(status: i16) -> Result<(), GrantStatus> {
    if status == GNTST_OKAY { Ok(()) } else { Err(GrantStatus(status)) }
}
