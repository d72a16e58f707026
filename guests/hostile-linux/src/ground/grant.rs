//! Grants that the kernel does not know of, in a frame by which this process makes the grant table larger.

use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ring_abi::errno::Errno;
use ring_abi::grant::*;
use ring_abi::hypercall::__HYPERVISOR_GRANT_TABLE_OP;
use ring_abi::types::{DOMID_SELF, DomId, GrantRef, Mfn, PAGE_SIZE};

use super::probe;
use super::space::{RW, Scratch, map, one};

/// Entries of version 1 in a frame.
const ENTRIES: u32 = (PAGE_SIZE / size_of::<GrantEntryV1>()) as u32;

/// The last frame of the table, mapped here.
struct Table {
    window: Scratch,
    /// The reference of its first entry.
    first: u32,
}

static TABLE: Mutex<Option<Table>> = Mutex::new(None);
/// Entries in use, from the last one down.
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// Makes the table one frame larger, and maps the new frame.
///
/// # Errors
/// A hypercall was refused.
pub(super) fn install() -> Result<(), String> {
    let mut size = GnttabQuerySize { dom: DOMID_SELF, ..Default::default() };
    let got = one(__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_QUERY_SIZE, &mut size);
    if got != 0 || size.status != 0 {
        return Err(format!("the grant table's size: {got}, {}", size.status));
    }
    let mut frames = vec![0u64; size.nr_frames as usize + 1];
    let mut setup = GnttabSetupTable {
        dom: DOMID_SELF,
        nr_frames: size.nr_frames + 1,
        frame_list: frames.as_mut_ptr() as u64,
        ..Default::default()
    };
    let got = one(__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_SETUP_TABLE, &mut setup);
    if got != 0 || setup.status != 0 {
        return Err(format!("a larger grant table: {got}, {}", setup.status));
    }
    let window = Scratch::new(1);
    let got = map(window.at(0), frames[size.nr_frames as usize] << 12 | RW);
    if got != 0 {
        return Err(format!("mapping the grant table: {got}"));
    }
    *table() = Some(Table { window, first: size.nr_frames * ENTRIES });
    Ok(())
}

/// Unmaps the window, since the kernel would take the frame for a page of its own when the process ends.
pub(super) fn finish() {
    *table() = None;
}

fn table() -> MutexGuard<'static, Option<Table>> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A grant, which ends on drop.
pub(crate) struct Grant {
    at: u64,
    number: GrantRef,
}

/// Grants `domain` access to a frame, this guest's or not.
///
/// # Errors
/// `ENOSPC`: every entry was used once.
pub(crate) fn grant_access(domain: DomId, frame: Mfn, readonly: bool) -> Result<Grant, Errno> {
    let table = table();
    let table = table.as_ref().ok_or(Errno::ENODEV)?;
    let taken = TAKEN.fetch_add(1, Ordering::Relaxed);
    let entry = ENTRIES.checked_sub(1 + taken).ok_or(Errno::ENOSPC)?;
    let at = table.window.at(0) + u64::from(entry) * size_of::<GrantEntryV1>() as u64;
    let access = GTF_PERMIT_ACCESS | if readonly { GTF_READONLY } else { 0 };
    // flags, domid, frame.
    let word = u64::from(access) | u64::from(domain.raw()) << 16 | frame.raw() << 32;
    match probe::write(at, word) {
        None => Ok(Grant { at, number: GrantRef::new(table.first + entry) }),
        Some(_) => Err(Errno::EFAULT),
    }
}

impl Grant {
    /// The grant's reference.
    pub(crate) fn number(&self) -> GrantRef {
        self.number
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        const IN_USE: u64 = (GTF_READING | GTF_WRITING) as u64;
        if probe::read(self.at).is_ok_and(|word| word & IN_USE == 0) {
            let _ = probe::write(self.at, 0);
        }
    }
}
