//! Grant tables of version 2: forged entries, sub-page and transitive grants and status words, and changes of version
//! at bad moments.
//!
//! The cases run only where the table is the guest's own: the entries of another kernel would not survive a change of
//! version.

use alloc::format;

use pvrt::grant::usage;
use pvrt::hypercall::event;
use ring_abi::errno::Errno::{EBUSY, EINVAL, ENOSYS, ERANGE};
use ring_abi::grant::*;
use ring_abi::hypercall::__HYPERVISOR_GRANT_TABLE_OP;
use ring_abi::types::DOMID_SELF;

use crate::ground::{probe, space::*};
use crate::report::Report;

/// The entry that most cases write.
const GREF: u32 = 40;
/// A reserved entry that no code uses.
const RESERVED: u32 = 7;

fn grant<T>(command: u32, arg: &mut T) -> i64 {
    one(__HYPERVISOR_GRANT_TABLE_OP, command, arg)
}

fn set_version(version: u32) -> i64 {
    grant(GNTTABOP_SET_VERSION, &mut GnttabSetVersion { version })
}

fn status_frames(dom: u16, count: u32, list: u64) -> i64 {
    let mut arg = GnttabGetStatusFrames { nr_frames: count, dom, status: 0, frame_list: list };
    match grant(GNTTABOP_GET_STATUS_FRAMES, &mut arg) {
        0 => arg.status.into(),
        other => other,
    }
}

/// The first frames of entries and of status words, mapped, and two pages.
struct Table {
    me: u16,
    window: Scratch,
    pages: Scratch,
    status: u64,
}

impl Table {
    fn new(me: u16) -> Option<Self> {
        let (mut frame, mut status) = (0u64, 0u64);
        let mut setup = GnttabSetupTable {
            dom: DOMID_SELF,
            nr_frames: 1,
            frame_list: (&raw mut frame) as u64,
            ..Default::default()
        };
        let got = grant(GNTTABOP_SETUP_TABLE, &mut setup);
        let told = status_frames(DOMID_SELF, 1, (&raw mut status) as u64);
        let (window, pages) = (Scratch::new(2), Scratch::new(2));
        let mapped =
            [frame, status].into_iter().enumerate().all(|(n, mfn)| map(window.at(n), mfn << 12 | RW) == 0);
        (got == 0 && told == 0 && mapped).then_some(Self { me, window, pages, status })
    }

    fn write(&self, gref: u32, [first, second]: [u64; 2]) {
        let at = self.window.at(0) + u64::from(gref) * 16;
        for (at, word) in [(at, 0), (at + 8, second), (at, first)] {
            let _ = probe::write(at, word);
        }
    }

    /// The first word of an entry: flags, this domain as grantee, and `beside` in the other bits.
    fn first(&self, flags: u16, beside: u64) -> u64 {
        u64::from(flags) | u64::from(self.me) << 16 | beside << 32
    }

    fn fill_status(&self, word: u64) {
        for n in 0..512 {
            let _ = probe::write(self.window.at(1) + n * 8, word);
        }
    }

    /// Maps entry `gref`, and returns the status and the handle.
    fn map(&self, gref: u32, flags: u32) -> (i64, u32) {
        let host_addr = if flags & GNTMAP_HOST_MAP != 0 { self.pages.at(0) } else { 0 };
        let mut arg = GnttabMapGrantRef { host_addr, flags, r#ref: gref, dom: self.me, ..Default::default() };
        match grant(GNTTABOP_MAP_GRANT_REF, &mut arg) {
            0 => (arg.status.into(), arg.handle),
            other => (other, 0),
        }
    }

    fn unmap(&self, handle: u32, host_addr: u64, dev_bus_addr: u64) -> i64 {
        let mut arg = GnttabUnmapGrantRef { host_addr, dev_bus_addr, handle, ..Default::default() };
        match grant(GNTTABOP_UNMAP_GRANT_REF, &mut arg) {
            0 => arg.status.into(),
            other => other,
        }
    }

    /// Copies between entry `gref` and the second page, and returns the status.
    fn copy(&self, gref: u32, to: bool, offset: u16, len: u16) -> i64 {
        let granted = GnttabCopyPtr { u: gref.into(), domid: self.me, offset, ..Default::default() };
        let own = GnttabCopyPtr {
            u: self.pages.mfn(1),
            domid: DOMID_SELF,
            offset: offset & 0xfff,
            ..Default::default()
        };
        let (source, dest) = if to { (own, granted) } else { (granted, own) };
        let flags = if to { GNTCOPY_DEST_GREF } else { GNTCOPY_SOURCE_GREF };
        let mut arg = GnttabCopy { source, dest, len, flags, ..Default::default() };
        match grant(GNTTABOP_COPY, &mut arg) {
            0 => arg.status.into(),
            other => other,
        }
    }

    /// Tries all uses of an entry that must permit none, and returns the first use that succeeded.
    fn gives(&self, gref: u32) -> Option<&'static str> {
        for flags in [GNTMAP_HOST_MAP, GNTMAP_HOST_MAP | GNTMAP_READONLY, GNTMAP_DEVICE_MAP] {
            if self.map(gref, flags).0 >= 0 {
                return Some("a mapping");
            }
        }
        let copied = [false, true].into_iter().any(|to| self.copy(gref, to, 0, 64) >= 0);
        copied.then_some("a copy")
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        for n in 0..2 {
            map(self.window.at(n), 0);
        }
        set_version(1);
    }
}

/// Runs all cases.
pub(crate) fn run(report: &mut Report) {
    let Ok(me) = event::own_domid() else { return report.case("own number", false, ()) };
    if usage().used != 0 {
        return report.case("a table of its own", false, usage());
    }
    let got = set_version(2);
    if got == ENOSYS.negated() {
        return report.case("no version 2 here", true, got);
    }
    let Some(table) = Table::new(me.raw()) else { return report.case("a table", false, got) };
    frames(report, &table);
    parts(report, &table);
    passed_on(report, &table);
    status_words(report, &table);
    lists(report);
    versions(report, &table);
    let status = table.status;
    drop(table);
    after(report, status);
}

fn frames(report: &mut Report, table: &Table) {
    let privileged = report.privileged;
    let device = |mfn: &u64| privileged && (*mfn < 0x100 || *mfn >= end_of_memory() && *mfn < 1 << 32);
    for shape in [GTF_PERMIT_ACCESS, GTF_PERMIT_ACCESS | GTF_SUB_PAGE] {
        let own = table.pages.mfn(0);
        let high =
            [own | 1 << 32, own | 1 << 40, own | 1 << 52, own | 1 << 63, u64::MAX, end_of_memory() + 1];
        let mut taken = None;
        for mfn in foreign_frames().into_iter().take(48).chain(high).filter(|mfn| !device(mfn)) {
            table.write(GREF, [table.first(shape, 0xffff_0000), mfn]);
            taken = taken.or(table.gives(GREF).map(|how| (how, mfn)));
        }
        report.case(&format!("foreign frames, flags {shape:#x}"), taken.is_none(), taken);
    }
    for (level, mfn) in [4, 3, 2, 1].into_iter().zip(tables(table.pages.at(0))) {
        table.write(GREF, [table.first(GTF_PERMIT_ACCESS, 0), mfn]);
        let (host, device) = (table.map(GREF, GNTMAP_HOST_MAP).0, table.map(GREF, GNTMAP_DEVICE_MAP).0);
        let copied = table.copy(GREF, true, 0, 64);
        report.case(&format!("an L{level}"), host < 0 && device < 0 && copied < 0, (host, device, copied));
    }
    let wrong = (0..=u16::MAX >> 7).map(|bits| bits << 7 | GTF_ACCEPT_TRANSFER).find(|flags| {
        table.write(GREF, [table.first(*flags, 0), table.pages.mfn(0)]);
        table.gives(GREF).is_some()
    });
    report.case("flags that grant nothing", wrong.is_none(), wrong);
    for gref in [256, 257, 511, 512, 1 << 20, u32::MAX] {
        let got = table.gives(gref);
        report.case(&format!("gref {gref:#x}"), got.is_none(), got);
    }
}

fn parts(report: &mut Report, table: &Table) {
    let mut taken = None;
    for (start, len) in
        [(0u16, 0u16), (64, 64), (4095, 1), (4096, 64), (4000, u16::MAX), (u16::MAX, u16::MAX)]
    {
        let part = u64::from(start) | u64::from(len) << 16;
        table.write(GREF, [table.first(GTF_PERMIT_ACCESS | GTF_SUB_PAGE, part), table.pages.mfn(0)]);
        let end = u32::from(start) + u32::from(len);
        for offset in [0, 63, 64, 100, 128, 3999, 4000, 4095, 4096, 0x7fff, u16::MAX] {
            for size in [1, 64, 97, 4096, u16::MAX] {
                let last = u32::from(offset) + u32::from(size);
                let is_lent = offset >= start && last <= end.min(4096);
                for to in [false, true] {
                    if !is_lent && table.copy(GREF, to, offset, size) >= 0 {
                        taken = Some((start, len, offset, size));
                    }
                }
            }
        }
        let mapped =
            [GNTMAP_HOST_MAP, GNTMAP_DEVICE_MAP].into_iter().any(|flags| table.map(GREF, flags).0 >= 0);
        report.case(&format!("a part of {len} at {start} is not mapped"), !mapped, ());
    }
    report.case("bytes beside parts", taken.is_none(), taken);
}

fn passed_on(report: &mut Report, table: &Table) {
    let mut pass_on = |name: &str, dom: u16, other: u32| {
        table.write(GREF, [table.first(GTF_TRANSITIVE, dom.into()), other.into()]);
        let got = table.gives(GREF);
        report.case(&format!("passed on: {name}"), got.is_none(), got);
    };
    pass_on("itself", table.me, GREF);
    pass_on("a reference of its own", table.me, GREF + 1);
    for dom in [12345, 0x7ff0, 0x7ff1, 0x7ff2, u16::MAX] {
        pass_on(&format!("of domain {dom:#x}"), dom, 8);
    }
    pass_on("a frame's number", table.me ^ 1, table.pages.mfn(0) as u32);
    if !report.privileged {
        let taken = (0..600).chain([1 << 20, u32::MAX]).find(|other| {
            table.write(GREF, [table.first(GTF_TRANSITIVE, 0), (*other).into()]);
            table.gives(GREF).is_some()
        });
        report.case("passed on: dom0's references", taken.is_none(), taken);
    }
}

fn status_words(report: &mut Report, table: &Table) {
    // Marks that the guest itself writes to status words must neither permit a use nor release anything.
    table.fill_status(u64::MAX);
    table.write(GREF, [0, table.pages.mfn(0)]);
    let got = table.gives(GREF);
    report.case("marks of its own", got.is_none(), got);
    table.write(GREF, [table.first(GTF_PERMIT_ACCESS, 0), table.pages.mfn(0)]);
    let (got, handle) = table.map(GREF, GNTMAP_HOST_MAP);
    report.case("mapped", got == 0, got);
    table.fill_status(0);
    table.write(GREF, [0, 0]);
    report.refused("version 1 while it is mapped, its marks cleared", set_version(1), &[EBUSY]);
    let there = probe::write(table.pages.at(0), 1);
    report.case("the mapping", there.is_none(), there);
    report.case("unmap", table.unmap(handle, table.pages.at(0), 0) == 0, handle);
    report.case("unmap again", table.unmap(handle, table.pages.at(0), 0) == -4, handle);
    let again = probe::write(table.pages.at(0), 1);
    report.case("nothing is mapped after", again.is_some(), ());
}

fn lists(report: &mut Report) {
    let mut list = [0u64; 4];
    let at = list.as_mut_ptr() as u64;
    for count in [2, 3, 512, 1 << 20, u32::MAX] {
        let got = status_frames(DOMID_SELF, count, at);
        report.case(&format!("{count} frames of status words"), got < 0, got);
    }
    for (name, list) in [("hypervisor space", M2P), ("a non-canonical address", 1 << 63)] {
        let got = status_frames(DOMID_SELF, 1, list);
        report.case(&format!("their list in {name}"), got < 0, got);
    }
    if !report.privileged {
        let got = status_frames(0, 1, at);
        report.case("dom0's status words", got < 0, got);
    }
}

fn versions(report: &mut Report, table: &Table) {
    report.refused("version 1 while status words are mapped", set_version(1), &[EBUSY]);
    for version in [0, 3, u32::MAX] {
        report.refused(&format!("version {version:#x}"), set_version(version), &[EINVAL]);
    }
    for entry in [[table.first(GTF_PERMIT_ACCESS, 0), 1 << 32], [table.first(GTF_TRANSITIVE, 0), 0]] {
        table.write(RESERVED, entry);
        map(table.window.at(1), 0);
        report.refused("a reserved entry that version 1 cannot say", set_version(1), &[ERANGE]);
        map(table.window.at(1), table.status << 12 | RW);
    }
    table.write(RESERVED, [0, 0]);
    // Changes the version and back, with an entry that would name a frame of another domain in the other
    // format.
    map(table.window.at(1), 0);
    let foreign = foreign_frames().into_iter().find(|mfn| *mfn >= 0x100).unwrap_or(0);
    let mut wrong = None;
    for n in 0..64 {
        let _ = probe::write(table.window.at(0) + 640, table.first(GTF_PERMIT_ACCESS, foreign));
        let got = set_version(1 + n % 2);
        wrong = wrong.or((got != 0).then_some((n, "refused")));
        wrong = wrong.or(table.gives(GREF).or(table.gives(GREF * 2)).map(|how| (n, how)));
    }
    report.case("there and back", wrong.is_none(), wrong);
    set_version(2);
}

/// Checks that the frame that held status words is no longer accessible here.
fn after(report: &mut Report, status: u64) {
    let scratch = Scratch::new(1);
    let got = map(scratch.at(0), status << 12 | RW);
    report.case("a frame of status words under version 1", got < 0, got);
    let mut list = 0u64;
    let got = status_frames(DOMID_SELF, 1, (&raw mut list) as u64);
    report.case("status words under version 1", got < 0, got);
}
