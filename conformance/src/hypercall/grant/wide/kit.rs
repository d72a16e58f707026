//! A grant table of version 2. This domain is granter and mapper at once.
//!
//! The cases write entries word by word, in the first frame of the table. The runtime's grants must have ended
//! before.

use alloc::format;

use pvrt::grant::usage;
use ring_abi::grant::*;

use crate::hypercall::grant::granted::*;
use crate::hypercall::kit::*;

/// An entry that is not reserved.
pub(super) const GREF: u32 = 20;
/// A reserved entry that nobody uses.
pub(super) const RESERVED: u32 = 7;
/// The flags by which the hypervisor marks an entry as in use.
pub(super) const MARKS: u16 = GTF_READING | GTF_WRITING;

/// Asks for a version. Returns the call's result, and the version that the hypervisor wrote back.
pub(super) fn set_version(version: u32) -> (i64, u32) {
    let mut arg = GnttabSetVersion { version };
    (ask_one(GNTTABOP_SET_VERSION, &mut arg), arg.version)
}

/// The version in force.
pub(super) fn version() -> Verdict<u32> {
    let mut arg = GnttabGetVersion { dom: DOMID_SELF, ..Default::default() };
    done("get_version", ask_one(GNTTABOP_GET_VERSION, &mut arg))?;
    Ok(arg.version)
}

/// Checks that the runtime grants nothing, so that the case may use the whole table.
pub(super) fn idle() -> Verdict {
    let used = usage().used;
    if used == 0 { Ok(()) } else { Err(Problem::Error(format!("the runtime grants {used} pages"))) }
}

/// Asks for the frames of status words. Returns the status, and the list of frames.
pub(super) fn status_frames(dom: u16, count: u32) -> Verdict<(i16, Vec<u64>)> {
    let mut list = alloc::vec![u64::MAX; count.min(1024) as usize + 1];
    let mut arg =
        GnttabGetStatusFrames { nr_frames: count, dom, status: 0x55, frame_list: list.as_mut_ptr() as u64 };
    done("get_status_frames", ask_one(GNTTABOP_GET_STATUS_FRAMES, &mut arg))?;
    Ok((arg.status, list))
}

/// A frame of this domain's grant table, mapped for the case.
pub(super) struct View(Scratch);

impl View {
    pub(super) fn of(mfn: u64) -> Verdict<Self> {
        let scratch = Scratch::new(1);
        given("mapping the table", map(scratch.at(0), mfn << 12 | RW))?;
        Ok(Self(scratch))
    }

    pub(super) fn load(&self, at: u64) -> Verdict<u64> {
        load("the table", self.0.at(0) + at)
    }

    pub(super) fn store(&self, at: u64, value: u64) -> Verdict {
        store("the table", self.0.at(0) + at, value)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        map(self.0.at(0), 0);
    }
}

/// This domain's table as version 2; drop goes back to version 1.
pub(super) struct Wide {
    /// Pages to grant, and addresses to map at.
    pub(super) scratch: Scratch,
    /// This domain.
    pub(super) me: u16,
    entries: Option<View>,
    status: Option<View>,
}

impl Wide {
    /// Switches to version 2, and makes `pages` pages.
    pub(super) fn new(pages: usize) -> Verdict<Self> {
        idle()?;
        let (me, scratch) = (own_domid()?, Scratch::new(pages));
        let (got, _) = set_version(2);
        require!(got != ENOSYS.negated(), "version 1 alone here");
        given("set_version", got)?;
        let mut wide = Self { scratch, me, entries: None, status: None };
        wide.entries = Some(View::of(frames()?[0])?);
        let (status, list) = status_frames(DOMID_SELF, 1)?;
        okay("get_status_frames", status)?;
        wide.status = Some(View::of(list[0])?);
        Ok(wide)
    }

    /// Unmaps the status words and goes back to version 1. Returns the call's result, and the version that
    /// the hypervisor wrote back.
    pub(super) fn back(&mut self) -> (i64, u32) {
        self.status = None;
        set_version(1)
    }

    fn entries(&self) -> Verdict<&View> {
        self.entries.as_ref().ok_or_else(|| Problem::Error("no table".into()))
    }

    /// The two words of an entry.
    pub(super) fn read(&self, gref: u32) -> Verdict<[u64; 2]> {
        let at = u64::from(gref) * 16;
        Ok([self.entries()?.load(at)?, self.entries()?.load(at + 8)?])
    }

    /// Writes an entry: flags and grantee last, as a granter must.
    pub(super) fn write(&self, gref: u32, [first, second]: [u64; 2]) -> Verdict {
        let at = u64::from(gref) * 16;
        self.entries()?.store(at, 0)?;
        self.entries()?.store(at + 8, second)?;
        self.entries()?.store(at, first)
    }

    /// Grants the frame of a page to this domain.
    pub(super) fn grant(&self, gref: u32, flags: u16, page: usize) -> Verdict {
        self.write(gref, [first(flags, self.me), self.scratch.mfn(page)])
    }

    /// Grants `len` bytes of a page from `start` on.
    pub(super) fn lend(&self, gref: u32, flags: u16, page: usize, (start, len): (u16, u16)) -> Verdict {
        let part = u64::from(start) << 32 | u64::from(len) << 48;
        let first = first(GTF_PERMIT_ACCESS | GTF_SUB_PAGE | flags, self.me);
        self.write(gref, [first | part, self.scratch.mfn(page)])
    }

    /// Makes a transitive entry: the grant `other` of `dom`, passed on.
    pub(super) fn pass_on(&self, gref: u32, flags: u16, dom: u16, other: u32) -> Verdict {
        let first = first(GTF_TRANSITIVE | flags, self.me) | u64::from(dom) << 32;
        self.write(gref, [first, other.into()])
    }

    /// The status word of an entry.
    pub(super) fn status(&self, gref: u32) -> Verdict<u16> {
        let view = self.status.as_ref().ok_or_else(|| Problem::Error("no status words".into()))?;
        Ok((view.load(u64::from(gref / 4) * 8)? >> (gref % 4 * 16)) as u16)
    }

    /// Checks that an entry's status word is `wanted`.
    pub(super) fn marked(&self, what: &str, gref: u32, wanted: u16) -> Verdict {
        ensure_eq!(self.status(gref)?, wanted, "the status word {what}");
        Ok(())
    }

    /// Maps an entry. Returns the status, and the structure as the hypervisor left it.
    pub(super) fn map(&self, gref: u32, flags: u32, page: usize) -> (i16, GnttabMapGrantRef) {
        let at = if flags & GNTMAP_HOST_MAP != 0 { self.scratch.at(page) } else { 0 };
        map_ref(self.me, gref, flags, at)
    }

    /// Unmaps what [`Wide::map`] mapped there for the host.
    pub(super) fn unmap(&self, mapped: &GnttabMapGrantRef) -> Verdict {
        okay("unmap", unmap_ref(mapped.handle, mapped.host_addr, 0))
    }
}

impl Drop for Wide {
    fn drop(&mut self) {
        self.back();
    }
}

/// Flags and grantee as the low half of an entry's first word.
pub(super) fn first(flags: u16, dom: u16) -> u64 {
    u64::from(flags) | u64::from(dom) << 16
}
