//! Time areas, which lie where the guest's tables say.

use core::sync::atomic::Ordering;

use ring_abi::shared_info::{TIME_OFFSET, VcpuTimeInfo};
use ring_abi::vcpu::VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA;

use super::calls::{ARGS, Guest};
use super::{World, entry};
use crate::hypercall::vcpu;
use crate::mem::pte::{P, RW};
use crate::mem::{FrameOwner, Update};

/// In the page of arguments: the area's address for the call, and the area.
const ADDRESS: usize = 0x800;
const AREA: usize = 0xa00;

fn register(world: &World, guest: &Guest, va: u64) {
    world.write(guest, ADDRESS, &va.to_le_bytes());
    let args = [VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA.into(), 0, ARGS + ADDRESS as u64, 0];
    assert_eq!(world.call(guest, vcpu::vcpu_op, args), 0);
}

/// The version word of the area in the page of arguments.
fn version(world: &World, guest: &Guest, at: usize) -> u32 {
    (world.word(guest, at & !7) >> (at % 8 * 8)) as u32
}

fn calibrate(world: &World) {
    world.hv.platform.calibrations.fetch_add(2, Ordering::Relaxed);
    world.hv.clock_changed();
}

#[test]
fn all_vcpus_see_a_new_calibration_at_once() {
    let world = World::new(512);
    let (guest, other) = (world.guest(1, false), world.guest(2, false));
    register(&world, &guest, ARGS + AREA as u64);
    assert_eq!(version(&world, &guest, AREA), 2);
    assert_eq!(world.word(&guest, AREA + 0x18) >> 40 & 1, 1, "PVCLOCK_TSC_STABLE_BIT");
    let info = guest.dom.vcpus[0].info.get().expect("in shared_info");
    let shown = info.load_u32(TIME_OFFSET);
    // Another guest's tables are loaded, and nobody runs.
    world.run(&other.dom, |_| calibrate(&world));
    assert_eq!(version(&world, &guest, AREA), 4);
    assert!(info.load_u32(TIME_OFFSET) > shown);
    assert_eq!(info.load_u8(TIME_OFFSET + 0x1d), 1);
    assert_eq!(size_of::<VcpuTimeInfo>(), 32);
    // What shows it is not written again.
    world.hv.clock_changed();
    assert_eq!(version(&world, &guest, AREA), 4);
    world.check();
}

#[test]
fn a_time_area_is_written_only_where_its_guest_may_write() {
    let world = World::new(512);
    let guest = world.guest(1, false);
    let slot = (ARGS >> 12) as usize;
    let own = FrameOwner::Domain(&guest.dom);
    let map = |e| world.hv.lock_tables(&guest.dom).update_leaf(guest.tables[3], slot, e, own, Update::Plain);
    let page = pte_frame(&world, &guest);
    register(&world, &guest, ARGS + AREA as u64);
    let seen = version(&world, &guest, AREA);
    for mapping in [entry(page, P), 0] {
        map(mapping).expect("its own page");
        calibrate(&world);
        assert_eq!(version(&world, &guest, AREA), seen, "not through {mapping:#x}");
    }
    // A page that became a table meanwhile, and one of a dying domain, are nobody's to write.
    map(entry(guest.tables[2], P)).expect("read-only");
    calibrate(&world);
    map(entry(page, P | RW)).expect("its own page");
    calibrate(&world);
    assert_eq!(version(&world, &guest, AREA), seen + 2);
    for va in [ARGS + 4096 - 16, ARGS + AREA as u64 + 4, u64::MAX - 7, 0xffff_8000_0000_0000, 1 << 46] {
        register(&world, &guest, va);
        calibrate(&world);
    }
    world.check();
}

fn pte_frame(world: &World, guest: &Guest) -> ring_abi::types::Mfn {
    crate::mem::pte::frame(world.peek(guest.tables[3], (ARGS >> 12) as usize))
}
