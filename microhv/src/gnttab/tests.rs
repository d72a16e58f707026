use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use proptest::prelude::*;
use ring_abi::grant::*;
use ring_abi::guest_context::CpuUserRegs;
use ring_abi::types::{DOMID_SELF, DomId, Maddr, Mfn};

use super::*;
use crate::domain::Current;
use crate::domain::DomainConfig;
use crate::hypercall::grant::grant_table_op;
use crate::hypercall::{HypercallResult, Outcome};
use crate::mem::{FrameTable, PageType};
use crate::platform::MachineMemory;
use crate::testing::TestMachine;

const FRAMES: usize = 256;
/// Where arguments lie: guest addresses are machine addresses without page tables, and this frame nobody owns.
const ARGS: u64 = 0x1000;

struct World {
    hv: Hypervisor<TestMachine>,
    granter: Arc<Domain>,
    mapper: Arc<Domain>,
}

fn world() -> World {
    let hv = Hypervisor::new(TestMachine::new(FRAMES), FrameTable::for_tests(FRAMES, 4));
    let domain = |id| {
        let config = DomainConfig { privileged: id == 0, max_grant_frames: 2, ..DomainConfig::default() };
        let domain = hv.create_domain(Some(DomId::new(id)), config).unwrap();
        domain.mm.set_max_pages(64);
        domain
    };
    let (mapper, granter) = (domain(0), domain(1));
    hv.grow_grant_table(&granter, 1).unwrap();
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
        let at = self.hv.grant_table_frame(&self.granter, 0).unwrap().maddr().raw() + u64::from(gref) * 8;
        let entry = u64::from(flags) | u64::from(domid) << 16 | frame.raw() << 32;
        self.hv.platform.store(Maddr::new(at), entry);
    }

    fn flags(&self, gref: u32) -> u16 {
        let at = self.hv.grant_table_frame(&self.granter, 0).unwrap().maddr().raw() + u64::from(gref) * 8;
        self.hv.platform.load(Maddr::new(at)) as u16
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

    /// References and type references of a frame beyond the one that its owner has.
    fn uses(&self, mfn: Mfn) -> (u32, u32) {
        let info = self.hv.frames.info(mfn).unwrap();
        (info.count() - 1, info.page_type().1)
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.granter.grants.figures().pinned, 0);
        assert_eq!(self.mapper.grants.figures().handles, 0);
    }
}

const ACCESS: u16 = GTF_PERMIT_ACCESS;

#[test]
fn device_mapping_needs_its_machine_address_to_end() {
    let w = world();
    let page = w.page(&w.granter);
    w.grant(9, ACCESS, 0, page);
    let mapped = w.map(GNTMAP_DEVICE_MAP, 9, 0);
    assert_eq!((mapped.status, mapped.dev_bus_addr), (GNTST_OKAY, page.maddr().raw()));
    assert_eq!(w.flags(9), ACCESS | GTF_READING | GTF_WRITING);
    assert_eq!(w.uses(page), (1, 1));
    assert_eq!(w.unmap(mapped.handle, 0, 0), GNTST_OKAY, "accepted, and releases nothing");
    assert_eq!(w.uses(page), (1, 1));
    assert_eq!(w.unmap(mapped.handle, 0, 0xdead_0000), GNTST_GENERAL_ERROR);
    assert_eq!(w.unmap(mapped.handle, 0, page.maddr().raw()), GNTST_OKAY);
    assert_eq!(w.uses(page), (0, 0));
    assert_eq!(w.flags(9), ACCESS);
    assert_eq!(w.unmap(mapped.handle, 0, page.maddr().raw()), GNTST_BAD_HANDLE, "once");
    w.nothing_is_left();
}

#[test]
fn entries_change_places_unless_they_are_in_use() {
    let w = world();
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

#[test]
fn without_a_handle_nothing_is_held() {
    let w = world();
    let config = DomainConfig { privileged: true, max_maptrack_frames: 0, ..DomainConfig::default() };
    let mapper = w.hv.create_domain(Some(DomId::new(2)), config).unwrap();
    let page = w.page(&w.granter);
    w.grant(9, ACCESS, 2, page);
    let w = World { mapper, ..w };
    assert_eq!(w.map(GNTMAP_DEVICE_MAP, 9, 0).status, GNTST_NO_DEVICE_SPACE);
    assert_eq!((w.uses(page), w.flags(9)), ((0, 0), ACCESS));
    w.nothing_is_left();
}

#[test]
fn read_only_mapping_takes_no_type() {
    let w = world();
    let page = w.page(&w.granter);
    w.grant(8, ACCESS | GTF_READONLY, 0, page);
    assert_eq!(w.map(GNTMAP_DEVICE_MAP, 8, 0).status, GNTST_GENERAL_ERROR, "writing a read-only grant");
    let mapped = w.map(GNTMAP_DEVICE_MAP | GNTMAP_READONLY, 8, 0);
    assert_eq!(mapped.status, GNTST_OKAY);
    assert_eq!(w.flags(8), ACCESS | GTF_READONLY | GTF_READING);
    assert_eq!(w.uses(page), (1, 0));
    assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
    assert_eq!(w.flags(8), ACCESS | GTF_READONLY);
    w.nothing_is_left();
}

#[test]
fn host_mapping_lives_in_its_page_table_entry() {
    let w = world();
    let (page, l1) = (w.page(&w.granter), w.page(&w.mapper));
    w.hv.pin_table(&w.mapper, l1, 1).unwrap();
    w.grant(9, ACCESS, 0, page);
    let at = l1.maddr().raw() + 7 * 8;
    let mapped = w.map(GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE, 9, at);
    assert_eq!(mapped.status, GNTST_OKAY);
    assert_eq!(w.hv.platform.load(Maddr::new(at)) & 0x000f_ffff_ffff_f003, page.maddr().raw() | 3);
    assert_eq!(w.uses(page), (1, 1));
    assert_eq!(w.unmap(mapped.handle, at + 8, 0), GNTST_GENERAL_ERROR, "another entry");
    assert_eq!(w.unmap(mapped.handle, at, 0), GNTST_OKAY);
    assert_eq!(w.hv.platform.load(Maddr::new(at)), 0);
    assert_eq!(w.uses(page), (0, 0));
    assert!(w.hv.platform.flushes.load(Ordering::Relaxed) > 0);
    // Addresses that are no entry of the mapper's.
    for bad in [at + 1, page.maddr().raw(), 0, u64::MAX] {
        assert_eq!(
            w.map(GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE, 9, bad).status,
            GNTST_GENERAL_ERROR,
            "{bad:#x}"
        );
    }
    assert_eq!(w.uses(page), (0, 0));
    assert_eq!(w.flags(9), ACCESS);
    w.nothing_is_left();
}

#[test]
fn every_bogus_grant_gets_its_error() {
    let w = world();
    let (page, foreign) = (w.page(&w.granter), w.page(&w.mapper));
    w.grant(8, GTF_INVALID, 0, page);
    w.grant(9, ACCESS, 5, page);
    w.grant(10, GTF_ACCEPT_TRANSFER, 0, page);
    w.grant(11, ACCESS | GTF_SUB_PAGE, 0, page);
    w.grant(12, ACCESS, 0, foreign);
    w.grant(13, ACCESS, 0, Mfn::new(0xffff_ffff));
    w.grant(14, ACCESS, 0, Mfn::new(2));
    for (gref, status) in [
        (8, GNTST_GENERAL_ERROR),
        (9, GNTST_GENERAL_ERROR),
        (10, GNTST_GENERAL_ERROR),
        (11, GNTST_GENERAL_ERROR),
        (12, GNTST_BAD_PAGE),
        (13, GNTST_BAD_PAGE),
        (14, GNTST_BAD_PAGE),
        (512, GNTST_BAD_GNTREF),
        (u32::MAX, GNTST_BAD_GNTREF),
    ] {
        assert_eq!(w.map(GNTMAP_DEVICE_MAP, gref, 0).status, status, "reference {gref}");
    }
    assert_eq!(w.map(0, 12, 0).status, GNTST_BAD_GNTREF, "neither host nor device");
    for gref in [12, 13, 14] {
        assert_eq!(w.flags(gref), ACCESS, "a failed use leaves no mark");
    }
    for handle in [0, 1, u32::MAX] {
        assert_eq!(w.unmap(handle, 0, 1), GNTST_BAD_HANDLE);
    }
    let mut op: GnttabMapGrantRef = w.get(0);
    (op.dom, op.flags) = (77, GNTMAP_DEVICE_MAP);
    w.put(0, &op);
    assert_eq!(w.call(&w.mapper, GNTTABOP_MAP_GRANT_REF, 1), Ok(Outcome::OK));
    assert_eq!(w.get::<GnttabMapGrantRef>(0).status, GNTST_BAD_DOMAIN);
    w.nothing_is_left();
}

#[test]
fn a_page_table_is_never_granted_for_writing() {
    let w = world();
    let table = w.page(&w.granter);
    w.hv.pin_table(&w.granter, table, 1).unwrap();
    w.grant(9, ACCESS, 0, table);
    assert_eq!(w.map(GNTMAP_DEVICE_MAP, 9, 0).status, GNTST_BAD_PAGE);
    let mapped = w.map(GNTMAP_DEVICE_MAP | GNTMAP_READONLY, 9, 0);
    assert_eq!(mapped.status, GNTST_OKAY, "reading does no harm");
    assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
    // And a page that a device writes does not become one.
    let page = w.page(&w.granter);
    w.grant(10, ACCESS, 0, page);
    let mapped = w.map(GNTMAP_DEVICE_MAP, 10, 0);
    assert!(w.hv.pin_table(&w.granter, page, 1).is_err());
    assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
    w.hv.pin_table(&w.granter, page, 1).unwrap();
}

#[test]
fn changing_an_entry_in_use_does_not_move_the_mapping() {
    let w = world();
    let (first, second) = (w.page(&w.granter), w.page(&w.granter));
    w.grant(9, ACCESS, 0, first);
    let one = w.map(GNTMAP_DEVICE_MAP, 9, 0);
    w.grant(9, ACCESS, 0, second);
    let two = w.map(GNTMAP_DEVICE_MAP, 9, 0);
    assert_eq!(two.dev_bus_addr, first.maddr().raw(), "the frame is the one that was pinned");
    assert_eq!(w.uses(second), (0, 0));
    for mapped in [one, two] {
        assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
    }
    w.nothing_is_left();
    assert_eq!(w.uses(first), (0, 0));
}

fn copy(source: (u64, u16, u16), dest: (u64, u16, u16), len: u16, flags: u16) -> GnttabCopy {
    let side = |(u, domid, offset)| GnttabCopyPtr { u, domid, offset, _pad0: 0 };
    GnttabCopy { source: side(source), dest: side(dest), len, flags, status: 99, _pad0: 0 }
}

#[test]
fn copies_move_bytes_and_hold_nothing() {
    let w = world();
    let (page, mine) = (w.page(&w.granter), w.page(&w.mapper));
    w.grant(9, ACCESS, 0, page);
    w.hv.platform.write_bytes(Maddr::new(mine.maddr().raw() + 100), b"from the mapper");
    w.put(0, &copy((mine.raw(), DOMID_SELF, 100), (9, 1, 4081), 15, GNTCOPY_DEST_GREF));
    w.put(1, &copy((9, 1, 4081), (mine.raw(), DOMID_SELF, 0), 15, GNTCOPY_SOURCE_GREF));
    assert_eq!(w.call(&w.mapper, GNTTABOP_COPY, 2), Ok(Outcome::OK));
    assert_eq!((w.get::<GnttabCopy>(0).status, w.get::<GnttabCopy>(1).status), (0, 0));
    let mut back = [0; 15];
    w.hv.platform.read_bytes(mine.maddr(), &mut back);
    assert_eq!(&back, b"from the mapper");
    assert_eq!(w.uses(page), (0, 0));
    assert_eq!(w.flags(9), ACCESS);
    w.nothing_is_left();
}

#[test]
fn copies_stay_inside_pages_and_rights() {
    let w = world();
    let (page, mine) = (w.page(&w.granter), w.page(&w.mapper));
    w.grant(9, ACCESS | GTF_READONLY, 0, page);
    let me = (mine.raw(), DOMID_SELF, 0);
    for (op, status) in [
        (copy(me, (9, 1, 1), 4096, GNTCOPY_DEST_GREF), GNTST_BAD_COPY_ARG),
        (copy((mine.raw(), DOMID_SELF, 4090), (9, 1, 0), 7, GNTCOPY_DEST_GREF), GNTST_BAD_COPY_ARG),
        (copy((9, 1, u16::MAX), me, u16::MAX, GNTCOPY_SOURCE_GREF), GNTST_BAD_COPY_ARG),
        (copy(me, (9, 1, 0), 16, GNTCOPY_DEST_GREF), GNTST_GENERAL_ERROR),
        (copy((page.raw(), 1, 0), me, 16, 0), GNTST_PERMISSION_DENIED),
        (copy((page.raw(), DOMID_SELF, 0), me, 16, 0), GNTST_BAD_PAGE),
        (copy((9, 55, 0), me, 16, GNTCOPY_SOURCE_GREF), GNTST_BAD_DOMAIN),
        (copy((9, 1, 0), me, 4096, GNTCOPY_SOURCE_GREF), GNTST_OKAY),
        (copy((9, 1, 4096), (mine.raw(), DOMID_SELF, 4096), 0, GNTCOPY_SOURCE_GREF), GNTST_OKAY),
    ] {
        w.put(0, &op);
        assert_eq!(w.call(&w.mapper, GNTTABOP_COPY, 1), Ok(Outcome::OK));
        assert_eq!(w.get::<GnttabCopy>(0).status, status, "{op:?}");
    }
    w.nothing_is_left();
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
fn an_entry_named_by_its_address_is_not_replaced() {
    let w = world();
    let (page, l1) = (w.page(&w.granter), w.page(&w.mapper));
    w.hv.pin_table(&w.mapper, l1, 1).unwrap();
    w.grant(9, ACCESS, 0, page);
    let at = l1.maddr().raw();
    let handle = w.map(GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE, 9, at).handle;
    let replace = |new_addr| {
        let op = GnttabUnmapAndReplace { host_addr: at, new_addr, handle, ..Default::default() };
        w.put(0, &op);
        assert_eq!(w.call(&w.mapper, GNTTABOP_UNMAP_AND_REPLACE, 1), Ok(Outcome::OK));
        w.get::<GnttabUnmapAndReplace>(0).status
    };
    assert_eq!(replace(0x1000), GNTST_GENERAL_ERROR);
    assert_eq!(w.uses(page), (1, 1));
    assert_eq!(replace(0), GNTST_OKAY, "as an unmap");
    assert_eq!(replace(0), GNTST_BAD_HANDLE);
    w.nothing_is_left();
}

#[test]
fn version_2_is_refused_and_unknown_operations_do_not_exist() {
    let w = world();
    w.put(0, &GnttabSetVersion { version: 2 });
    assert_eq!(w.call(&w.granter, GNTTABOP_SET_VERSION, 1), Err(HypercallError::NoSys));
    assert_eq!(w.get::<GnttabSetVersion>(0).version, 1);
    assert_eq!(w.call(&w.granter, GNTTABOP_SET_VERSION, 1), Ok(Outcome::OK));
    w.put(0, &GnttabSetVersion { version: 3 });
    assert_eq!(w.call(&w.granter, GNTTABOP_SET_VERSION, 1), Err(HypercallError::Invalid));
    assert_eq!(w.call(&w.granter, 77, 1), Err(HypercallError::NoSys));
    assert_eq!(w.call(&w.granter, GNTTABOP_COPY, 1 << 31), Err(HypercallError::Invalid));
    assert_eq!(w.call(&w.granter, GNTTABOP_COPY, 0), Ok(Outcome::OK));
}

#[test]
fn arrays_that_fault_give_back_what_they_took() {
    let w = world();
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

#[test]
fn a_dying_mapper_gives_everything_back_and_a_dying_granter_waits() {
    let w = world();
    let page = w.page(&w.granter);
    w.grant(9, ACCESS, 0, page);
    let mapped = w.map(GNTMAP_DEVICE_MAP, 9, 0);
    assert!(w.hv.release_grant_table(&w.granter));
    assert_eq!(w.granter.grants.figures().pinned, 1, "pinned though its entry is gone");
    assert_eq!(w.map(GNTMAP_DEVICE_MAP, 9, 0).status, GNTST_BAD_GNTREF);
    assert_eq!(w.uses(page), (1, 1));
    assert_eq!(w.hv.release_grant_mappings(&w.mapper, 0), None);
    assert_eq!(w.uses(page), (0, 0));
    let _ = mapped;
    w.nothing_is_left();
}

proptest! {
    /// Whatever is granted, mapped, copied and unmapped: pins, handles and references agree at every step, and nothing is
    /// left when all handles are given back.
    #[test]
    fn uses_balance(steps in proptest::collection::vec((0..6u8, 0..6u32, any::<u16>(), 0..4usize), 1..120)) {
        let w = world();
        let pages: Vec<Mfn> = (0..4).map(|_| w.page(&w.granter)).collect();
        let mine = w.page(&w.mapper);
        let mut handles: Vec<(GnttabMapGrantRef, Mfn)> = Vec::new();
        for (what, gref, flags, n) in steps {
            match what {
                0 => {
                    let used = w.flags(gref) & (GTF_READING | GTF_WRITING);
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

#[test]
fn who_maps_a_dead_domains_page_keeps_nothing_else_of_it() {
    let w = world();
    let page = w.page(&w.granter);
    w.grant(8, ACCESS, 0, page);
    // The granter takes what it can of the hypervisor's memory: handles on its own page, ports, frames of its table.
    let own = w.page(&w.granter);
    w.grant(9, ACCESS, 1, own);
    let op = GnttabMapGrantRef {
        flags: GNTMAP_DEVICE_MAP | GNTMAP_READONLY,
        r#ref: 9,
        dom: DOMID_SELF,
        ..Default::default()
    };
    for _ in 0..2000 {
        w.put(0, &op);
        assert_eq!(w.call(&w.granter, GNTTABOP_MAP_GRANT_REF, 1), Ok(Outcome::OK));
        assert_eq!(w.get::<GnttabMapGrantRef>(0).status, GNTST_OKAY);
    }
    w.hv.grow_grant_table(&w.granter, 2).unwrap();
    let port = w.hv.alloc_unbound(&w.granter, DomId::new(0), |_| Ok(())).unwrap();
    let mapped = w.map(GNTMAP_DEVICE_MAP, 8, 0);
    assert_eq!(mapped.status, GNTST_OKAY);

    while w.hv.kill_domain(&w.granter).is_err() {}
    let World { hv, granter, mapper } = w;
    hv.reap_dead();
    assert_eq!(granter.vcpus.len(), 1, "somebody refers to them");
    let id = granter.id;
    drop(granter);
    hv.reap_dead();
    let husk = hv.domains.get(id).expect("its number is in use while its page is");
    assert_eq!((husk.mm.tot_pages(), husk.vcpus.len()), (1, 0));
    assert_eq!(husk.grants.maptrack.lock().room(), 0);
    assert_eq!(husk.grants.entries.lock().room(), 0);
    assert!(husk.events.cell(port).is_err(), "its bucket is gone");
    assert_eq!(hv.domains.next_id(), Some(DomId::new(2)));

    // The mapper lets go as of any other.
    drop(husk);
    let mut w = World { hv, granter: mapper.clone(), mapper };
    assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
    w.hv.reap_dead();
    assert!(!w.hv.domains.contains(id) && !w.hv.unfinished.has_dead());
    w.granter = w.hv.create_domain(Some(id), DomainConfig::default()).unwrap();
    assert_eq!(w.granter.vcpus.len(), 1);
}
