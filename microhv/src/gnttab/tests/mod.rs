//! The grant table operations on the test machine: one domain grants pages, another uses them.

mod alike;
mod batches;
mod copying;
mod ending;
mod mapping;
mod parts;
mod versions;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use proptest::prelude::*;
use ring_abi::grant::*;
use ring_abi::guest_context::CpuUserRegs;
use ring_abi::types::{DOMID_SELF, DomId, GrantRef, Maddr, Mfn};

use super::*;
use crate::domain::Current;
use crate::domain::DomainConfig;
use crate::frames::{FrameTable, PageType};
use crate::gnttab::state::Part;
use crate::hypercall::grant::grant_table_op;
use crate::hypercall::{HypercallError, HypercallResult, Outcome};
use crate::platform::*;
use crate::testing::TestMachine;

const FRAMES: usize = 256;
/// Where arguments lie. Without page tables a guest's addresses are machine addresses; no domain owns this frame.
const ARGS: u64 = 0x1000;

struct World {
    hv: Hypervisor<TestMachine>,
    granter: Arc<Domain>,
    mapper: Arc<Domain>,
}

fn world() -> World {
    world_of(2)
}

/// A world whose granter's table is of each version.
fn worlds() -> [World; 2] {
    [Version::One, Version::Two].map(|version| {
        let w = world();
        w.hv.set_grant_version(&w.granter, version).unwrap();
        w
    })
}

fn world_of(max_grant_frames: u32) -> World {
    let hv = Hypervisor::new(TestMachine::new(FRAMES), FrameTable::for_tests(FRAMES, 4));
    let domain = |id| {
        let config = DomainConfig { privileged: id == 0, max_grant_frames, ..DomainConfig::default() };
        let domain = hv.create_domain(Some(DomId::new(id)), config).unwrap();
        domain.mm.set_max_pages(64);
        domain
    };
    let (mapper, granter) = (domain(0), domain(1));
    World { hv, granter, mapper }
}

impl World {
    fn call(&self, caller: &Arc<Domain>, cmd: u32, count: u64) -> HypercallResult {
        let mut regs = CpuUserRegs::default();
        let mut cur = Current { hv: &self.hv, domain: caller, vcpu: &caller.vcpus[0], regs: &mut regs };
        grant_table_op(&mut cur, &[u64::from(cmd), ARGS, count, 0, 0, 0])
    }

    fn put<T: zerocopy::IntoBytes + zerocopy::Immutable>(&self, n: usize, op: &T) {
        self.hv.platform.write_bytes(Maddr::new(ARGS + (n * size_of::<T>()) as u64), op.as_bytes());
    }

    fn get<T: zerocopy::FromBytes + zerocopy::IntoBytes>(&self, n: usize) -> T {
        let mut value = T::new_zeroed();
        self.hv.platform.read_bytes(Maddr::new(ARGS + (n * size_of::<T>()) as u64), value.as_mut_bytes());
        value
    }

    /// Writes an entry of the granter's table.
    fn grant(&self, gref: u32, flags: u16, domid: u16, frame: Mfn) {
        self.write(&self.granter, gref, [u64::from(flags) | u64::from(domid) << 16, frame.raw()]);
    }

    /// Writes an entry: the first word of version 2, and its frame.
    fn write(&self, granter: &Domain, gref: u32, [first, frame]: [u64; 2]) {
        let at = self.entry_at(granter, gref);
        if granter.grants.version() == Version::One {
            return self.hv.platform.store(at, first | frame << 32);
        }
        self.hv.platform.store(at.add(8), frame);
        self.hv.platform.store(at, first);
    }

    fn entry_at(&self, granter: &Domain, gref: u32) -> Maddr {
        let size = if granter.grants.version() == Version::One { 8 } else { 16 };
        let (frame, at) = (gref * size / 4096, gref * size % 4096);
        let mfn = granter.grants.entries.lock().frame(Part::Entries, frame).unwrap();
        mfn.maddr().add(at.into())
    }

    /// The flags of an entry, and its marks, of either version.
    fn flags(&self, gref: u32) -> u16 {
        self.flags_of(&self.granter, gref)
    }

    fn flags_of(&self, granter: &Domain, gref: u32) -> u16 {
        let flags = self.hv.platform.load(self.entry_at(granter, gref)) as u16;
        if granter.grants.version() == Version::One {
            return flags;
        }
        assert_eq!(flags & (GTF_READING | GTF_WRITING), 0, "marks in the header");
        flags | self.status_of(granter, gref)
    }

    fn status_of(&self, granter: &Domain, gref: u32) -> u16 {
        let mfn = granter.grants.entries.lock().frame(Part::Status, gref / 2048).unwrap();
        let word = self.hv.platform.load(mfn.maddr().add(u64::from(gref % 2048 / 4) * 8));
        (word >> (gref % 4 * 16)) as u16
    }

    fn page(&self, domain: &Domain) -> Mfn {
        self.hv.populate(domain, 0, 0).unwrap()
    }

    fn map(&self, flags: u32, gref: u32, host_addr: u64) -> GnttabMapGrantRef {
        let dom = self.granter.id.raw();
        let op =
            GnttabMapGrantRef { host_addr, flags, r#ref: gref, dom, status: 99, handle: 0, dev_bus_addr: 0 };
        self.put(0, &op);
        assert_eq!(self.call(&self.mapper, GNTTABOP_MAP_GRANT_REF, 1), Ok(Outcome::OK));
        self.get(0)
    }

    fn unmap(&self, handle: u32, host_addr: u64, dev_bus_addr: u64) -> i16 {
        self.put(0, &GnttabUnmapGrantRef { host_addr, dev_bus_addr, handle, status: 99, _pad0: 0 });
        assert_eq!(self.call(&self.mapper, GNTTABOP_UNMAP_GRANT_REF, 1), Ok(Outcome::OK));
        self.get::<GnttabUnmapGrantRef>(0).status
    }

    /// References and type references of a frame, without the one reference of its owner.
    fn uses(&self, mfn: Mfn) -> (u32, u32) {
        let info = self.hv.frames.info(mfn).unwrap();
        (info.load_use().count() - 1, info.page_type().1)
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.granter.grants.figures().pinned, 0);
        assert_eq!(self.mapper.grants.figures().handles, 0);
    }
}

const ACCESS: u16 = GTF_PERMIT_ACCESS;

#[test]
fn entries_change_places_unless_they_are_in_use() {
    for w in worlds() {
        let (first, second) = (w.page(&w.granter), w.page(&w.granter));
        w.grant(8, ACCESS, 0, first);
        w.grant(9, ACCESS | GTF_READONLY, 0, second);
        let swap = |ref_a, ref_b| {
            w.put(0, &GnttabSwapGrantRef { ref_a, ref_b, status: 99, ..Default::default() });
            assert_eq!(w.call(&w.granter, GNTTABOP_SWAP_GRANT_REF, 1), Ok(Outcome::OK));
            w.get::<GnttabSwapGrantRef>(0).status
        };
        assert_eq!(swap(8, 9), GNTST_OKAY);
        assert_eq!((w.flags(8), w.flags(9)), (ACCESS | GTF_READONLY, ACCESS));
        assert_eq!(swap(8, u32::MAX), GNTST_BAD_GNTREF);
        let mapped = w.map(GNTMAP_DEVICE_MAP, 9, 0);
        assert_eq!(mapped.dev_bus_addr, first.maddr().raw());
        assert_eq!((swap(8, 9), swap(9, 8)), (GNTST_EAGAIN, GNTST_EAGAIN));
        assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
        assert_eq!(swap(9, 8), GNTST_OKAY);
        w.nothing_is_left();
    }
}

fn copy(source: (u64, u16, u16), dest: (u64, u16, u16), len: u16, flags: u16) -> GnttabCopy {
    let side = |(u, domid, offset)| GnttabCopyPtr { u, domid, offset, _pad0: 0 };
    GnttabCopy { source: side(source), dest: side(dest), len, flags, status: 99, _pad0: 0 }
}

#[test]
fn tables_grow_to_their_limit_and_not_beyond() {
    let w = world();
    let list = 0x2000;
    let mut op = GnttabSetupTable {
        dom: DOMID_SELF,
        _pad0: 0,
        nr_frames: 2,
        status: 9,
        _pad1: [0; 3],
        frame_list: list,
    };
    w.put(0, &op);
    assert_eq!(w.call(&w.granter, GNTTABOP_SETUP_TABLE, 1), Ok(Outcome::OK));
    assert_eq!(w.get::<GnttabSetupTable>(0).status, GNTST_OKAY);
    let frame = w.hv.platform.load(Maddr::new(list + 8));
    assert_eq!(w.hv.frames.info(Mfn::new(frame)).unwrap().page_type().0, PageType::Writable);
    op.nr_frames = 3;
    w.put(0, &op);
    assert_eq!(w.call(&w.granter, GNTTABOP_SETUP_TABLE, 1), Ok(Outcome::OK));
    assert_eq!(w.get::<GnttabSetupTable>(0).status, GNTST_GENERAL_ERROR);
    (op.nr_frames, op.dom) = (1, 0);
    w.put(0, &op);
    assert_eq!(w.call(&w.granter, GNTTABOP_SETUP_TABLE, 1), Ok(Outcome::OK));
    assert_eq!(w.get::<GnttabSetupTable>(0).status, GNTST_PERMISSION_DENIED, "another's table");
    op.dom = 999;
    w.put(0, &op);
    assert_eq!(w.call(&w.granter, GNTTABOP_SETUP_TABLE, 1), Ok(Outcome::OK));
    assert_eq!(w.get::<GnttabSetupTable>(0).status, GNTST_BAD_DOMAIN, "nobody's table");
    w.put(
        0,
        &GnttabQuerySize { dom: DOMID_SELF, _pad0: 0, nr_frames: 0, max_nr_frames: 0, status: 9, _pad1: 0 },
    );
    assert_eq!(w.call(&w.granter, GNTTABOP_QUERY_SIZE, 1), Ok(Outcome::OK));
    let size: GnttabQuerySize = w.get(0);
    assert_eq!((size.nr_frames, size.max_nr_frames, size.status), (2, 2, 0));
}

#[test]
fn a_table_grows_a_frame_at_a_time_while_something_waits() {
    let w = world();
    let op =
        GnttabSetupTable { dom: 1, _pad0: 0, nr_frames: 2, status: 9, _pad1: [0; 3], frame_list: 0x2000 };
    w.put(0, &op);
    w.hv.platform.pending.store(true, Ordering::Relaxed);
    assert_eq!(w.call(&w.mapper, GNTTABOP_SETUP_TABLE, 1), Ok(Outcome::Continue));
    assert_eq!(w.mapper.vcpus[0].continuation()[..3], [u64::from(GNTTABOP_SETUP_TABLE), ARGS, 1]);
    assert_eq!(w.get::<GnttabSetupTable>(0).status, 9, "not yet");
    assert_eq!(w.call(&w.mapper, GNTTABOP_SETUP_TABLE, 1), Ok(Outcome::OK));
    assert_eq!((w.get::<GnttabSetupTable>(0).status, w.granter.grants.figures().frames), (GNTST_OKAY, 2));
}

#[test]
fn unknown_versions_and_operations_do_not_exist() {
    for w in worlds() {
        let version = w.granter.grants.version() as u32;
        for unknown in [0, 3, u32::MAX] {
            w.put(0, &GnttabSetVersion { version: unknown });
            assert_eq!(w.call(&w.granter, GNTTABOP_SET_VERSION, 1), Err(HypercallError::Invalid));
            assert_eq!(w.get::<GnttabSetVersion>(0).version, version);
        }
        assert_eq!(w.call(&w.granter, 77, 1), Err(HypercallError::NoSys));
        assert_eq!(w.call(&w.granter, GNTTABOP_COPY, 1 << 31), Err(HypercallError::Invalid));
        assert_eq!(w.call(&w.granter, GNTTABOP_COPY, 0), Ok(Outcome::OK));
    }
}

#[test]
fn arrays_that_fault_give_back_what_they_took() {
    for w in worlds() {
        let page = w.page(&w.granter);
        w.grant(9, ACCESS, 0, page);
        let mapped = w.map(GNTMAP_DEVICE_MAP, 9, 0);
        // The second operation lies beyond the machine's memory.
        let end = FRAMES as u64 * 4096;
        let op = GnttabUnmapGrantRef {
            host_addr: 0,
            dev_bus_addr: mapped.dev_bus_addr,
            handle: mapped.handle,
            status: 9,
            _pad0: 0,
        };
        let at = end - size_of_val(&op) as u64;
        w.hv.platform.write_bytes(Maddr::new(at), zerocopy::IntoBytes::as_bytes(&op));
        let mut regs = CpuUserRegs::default();
        let mut cur = Current { hv: &w.hv, domain: &w.mapper, vcpu: &w.mapper.vcpus[0], regs: &mut regs };
        let result = grant_table_op(&mut cur, &[u64::from(GNTTABOP_UNMAP_GRANT_REF), at, 2, 0, 0, 0]);
        assert_eq!(result, Err(HypercallError::Fault));
        assert_eq!(w.uses(page), (0, 0));
        w.nothing_is_left();
    }
}

#[test]
fn long_arrays_are_interrupted_and_go_on() {
    let w = world();
    for n in 0..40 {
        w.put(n, &GnttabSwapGrantRef { ref_a: 1000, ref_b: 0, status: 9, _pad0: 0 });
    }
    w.hv.platform.pending.store(true, Ordering::Relaxed);
    let outcome = w.call(&w.granter, GNTTABOP_SWAP_GRANT_REF, 40);
    let step = 8 * size_of::<GnttabSwapGrantRef>() as u64;
    assert_eq!(outcome, Ok(Outcome::Continue));
    let rest = w.granter.vcpus[0].continuation();
    assert_eq!(rest, [u64::from(GNTTABOP_SWAP_GRANT_REF), ARGS + step, 32, 0, 0, 0]);
    assert_eq!(w.get::<GnttabSwapGrantRef>(7).status, GNTST_BAD_GNTREF);
    assert_eq!(w.get::<GnttabSwapGrantRef>(8).status, 9, "not yet");
}

proptest! {
    /// Pins, handles and references agree after every step, whatever domains grant, map, copy and unmap. Nothing is left
    /// when all handles are given back.
    #[test]
    fn uses_balance(steps in proptest::collection::vec((0..6u8, 0..6u32, any::<u16>(), 0..4usize), 1..120), wide: bool) {
        let [one, two] = worlds();
        let w = if wide { two } else { one };
        let pages: Vec<Mfn> = (0..4).map(|_| w.page(&w.granter)).collect();
        let mine = w.page(&w.mapper);
        let mut handles: Vec<(GnttabMapGrantRef, Mfn)> = Vec::new();
        for (what, gref, flags, n) in steps {
            match what {
                0 => {
                    // Version 1 has the marks among the flags, where a guest may leave them.
                    let used = if wide { 0 } else { w.flags(gref) & (GTF_READING | GTF_WRITING) };
                    w.grant(gref, flags & (GTF_TYPE_MASK | GTF_READONLY | GTF_SUB_PAGE) | used, flags >> 14 & 1, pages[n]);
                }
                1 => {
                    let readonly = if flags & 1 == 0 { 0 } else { GNTMAP_READONLY };
                    let mapped = w.map(GNTMAP_DEVICE_MAP | readonly, gref, 0);
                    if mapped.status == GNTST_OKAY {
                        handles.push((mapped, Mfn::new(mapped.dev_bus_addr >> 12)));
                    }
                }
                2 if !handles.is_empty() => {
                    let (mapped, _) = handles.swap_remove(n % handles.len());
                    prop_assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
                }
                3 => {
                    w.put(0, &copy((u64::from(gref), 1, 0), (mine.raw(), DOMID_SELF, 0), 64, GNTCOPY_SOURCE_GREF));
                    w.call(&w.mapper, GNTTABOP_COPY, 1).unwrap();
                }
                4 => {
                    w.put(0, &copy((mine.raw(), DOMID_SELF, 0), (u64::from(gref), 1, 0), 64, GNTCOPY_DEST_GREF));
                    w.call(&w.mapper, GNTTABOP_COPY, 1).unwrap();
                }
                _ => prop_assert_eq!(w.unmap(1000 + gref, 0, 1), GNTST_BAD_HANDLE),
            }
            prop_assert_eq!(w.mapper.grants.figures().handles as usize, handles.len());
            for &page in &pages {
                let (uses, types) = w.uses(page);
                let held = handles.iter().filter(|(_, frame)| *frame == page);
                let writable = held.clone().filter(|(mapped, _)| mapped.flags & GNTMAP_READONLY == 0);
                prop_assert_eq!((uses as usize, types as usize), (held.count(), writable.count()));
            }
        }
        for (mapped, _) in handles {
            prop_assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
        }
        w.nothing_is_left();
    }
}
