//! Grants of this domain to itself, and what every grant case does with them.

use alloc::format;

use pvrt::grant::{GrantRefOwned, grant_access};
use ring_abi::grant::*;
use ring_abi::types::{DomId, Mfn};

use crate::hypercall::kit::*;

/// Makes a grant table operation on a list.
pub(in crate::hypercall) fn ask<T>(command: u32, list: &mut [T]) -> i64 {
    let args = [command.into(), list.as_mut_ptr() as u64, list.len() as u64, 0, 0];
    call(__HYPERVISOR_GRANT_TABLE_OP, args)
}

/// Makes a grant table operation on one structure.
pub(in crate::hypercall) fn ask_one<T>(command: u32, arg: &mut T) -> i64 {
    ask(command, core::slice::from_mut(arg))
}

/// Pages, the first of them granted to this domain itself.
pub(in crate::hypercall) struct Granted {
    /// The pages.
    pub(in crate::hypercall) scratch: Scratch,
    /// The grant.
    pub(in crate::hypercall) grant: GrantRefOwned,
    /// This domain.
    pub(in crate::hypercall) me: u16,
}

impl Granted {
    /// Makes `pages` pages and grants the first.
    pub(in crate::hypercall) fn new(pages: usize, readonly: bool) -> Verdict<Self> {
        let me = own_domid()?;
        let scratch = Scratch::new(pages);
        Ok(Self { grant: grant(me, scratch.mfn(0), readonly)?, scratch, me })
    }

    /// The reference.
    pub(in crate::hypercall) fn number(&self) -> u32 {
        self.grant.number().raw()
    }

    /// Maps the grant. Returns the status, and the structure as the hypervisor left it.
    pub(in crate::hypercall) fn map(&self, flags: u32, host_addr: u64) -> (i16, GnttabMapGrantRef) {
        map_ref(self.me, self.number(), flags, host_addr)
    }

    /// The entry's flags.
    pub(in crate::hypercall) fn flags(&self) -> Verdict<u16> {
        entry_flags(self.number())
    }
}

/// A grant of any frame to any domain.
#[allow(unsafe_code)]
pub(in crate::hypercall) fn grant(dom: u16, mfn: u64, readonly: bool) -> Verdict<GrantRefOwned> {
    // SAFETY: the frame is a case's scratch page, which is memory of its own and shared bytes alone, or no memory of this
    // kernel; a case unmaps what it mapped before the page goes.
    unsafe { grant_access(DomId::new(dom), Mfn::new(mfn), readonly) }
        .map_err(|errno| Problem::Error(format!("no grant: {}", errno.name())))
}

/// The frames of the table.
pub(in crate::hypercall) fn frames() -> Verdict<Vec<u64>> {
    let mut size = GnttabQuerySize { dom: DOMID_SELF, ..Default::default() };
    done("query_size", ask_one(GNTTABOP_QUERY_SIZE, &mut size))?;
    ensure_eq!(size.status, GNTST_OKAY, "the status of query_size");
    let mut list = alloc::vec![u64::MAX; size.nr_frames as usize];
    let mut arg = GnttabSetupTable {
        dom: DOMID_SELF,
        nr_frames: size.nr_frames,
        frame_list: list.as_mut_ptr() as u64,
        ..Default::default()
    };
    done("setup_table", ask_one(GNTTABOP_SETUP_TABLE, &mut arg))?;
    ensure_eq!(arg.status, GNTST_OKAY, "the status of setup_table");
    Ok(list)
}

/// Reads an entry of version 1, through a temporary mapping of the table.
pub(in crate::hypercall) fn entry_word(gref: u32) -> Verdict<u64> {
    let frames = frames()?;
    let scratch = Scratch::new(1);
    let frame = frames[gref as usize / 512];
    done("mapping the table", map(scratch.at(0), frame << 12 | RO))?;
    load("the entry", scratch.at(0) + u64::from(gref % 512) * 8)
}

/// Reads the flags of an entry.
pub(in crate::hypercall) fn entry_flags(gref: u32) -> Verdict<u16> {
    entry_word(gref).map(|word| word as u16)
}

/// Sets the flags of an entry of version 1 that nobody uses.
pub(in crate::hypercall) fn set_entry_flags(gref: u32, flags: u16) -> Verdict {
    let word = entry_word(gref)? & !0xffff | u64::from(flags);
    let (frames, scratch) = (frames()?, Scratch::new(1));
    done("mapping the table", map(scratch.at(0), frames[gref as usize / 512] << 12 | RW))?;
    store("the entry", scratch.at(0) + u64::from(gref % 512) * 8, word)
}

/// Maps by reference. Returns the status, and the structure as the hypervisor left it.
pub(in crate::hypercall) fn map_ref(
    dom: u16,
    gref: u32,
    flags: u32,
    host_addr: u64,
) -> (i16, GnttabMapGrantRef) {
    let mut arg = GnttabMapGrantRef { host_addr, flags, r#ref: gref, dom, ..Default::default() };
    let got = ask_one(GNTTABOP_MAP_GRANT_REF, &mut arg);
    (if got == 0 { arg.status } else { i16::MIN }, arg)
}

/// Unmaps, and returns the status.
pub(in crate::hypercall) fn unmap_ref(handle: u32, host_addr: u64, dev_bus_addr: u64) -> i16 {
    let mut arg = GnttabUnmapGrantRef { host_addr, dev_bus_addr, handle, ..Default::default() };
    let got = ask_one(GNTTABOP_UNMAP_GRANT_REF, &mut arg);
    if got == 0 { arg.status } else { i16::MIN }
}

/// Checks that a status is `GNTST_okay`.
pub(in crate::hypercall) fn okay(what: &str, status: i16) -> Verdict {
    ensure_eq!(status, GNTST_OKAY, "{what}");
    Ok(())
}

/// Checks that a status is one of `wanted`.
pub(in crate::hypercall) fn not_mapped(what: &str, status: i16, wanted: &[i16]) -> Verdict {
    ensure!(wanted.contains(&status), "{what}: status {status}, not {wanted:?}");
    Ok(())
}
