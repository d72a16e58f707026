//! Time areas, which the hypervisor writes through the guest's own tables.

use core::sync::atomic::Ordering;

use ring_abi::shared_info::{TIME_OFFSET, VcpuTimeInfo};
use ring_abi::vcpu::VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA;

use super::guest::{ARGS, Guest};
use super::{World, entry};
use crate::domain::DomainConfig;
use crate::frames::pte::{P, Pte, RW};
use crate::hypercall::vcpu;
use crate::mem::{FrameOwner, Update};

/// Where the page of arguments holds the area's address, for the call, and the area.
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

/// Calibrates while no vCPU runs, then lets vCPU 0 of the guest run.
fn calibrate_and_run(world: &World, guest: &Guest) {
    calibrate(world);
    world.run(&guest.dom, |cur| world.hv.switched_in(cur.domain, cur.vcpu));
}

#[test]
fn all_vcpus_see_a_new_calibration_when_their_domain_runs() {
    let world = World::new(512);
    let config = DomainConfig { max_vcpus: 2, ..DomainConfig::default() };
    let (guest, other) = (world.guest_in(world.domain_of(1, config, 200)), world.guest(2, false));
    register(&world, &guest, ARGS + AREA as u64);
    assert_eq!(version(&world, &guest, AREA), 2);
    assert_eq!(world.word(&guest, AREA + 0x18) >> 40 & 1, 1, "PVCLOCK_TSC_STABLE_BIT");
    let infos = || [0, 1].map(|n| guest.dom.vcpus[n].info.get().expect("in shared_info"));
    world.run(&guest.dom, |cur| world.hv.switched_in(cur.domain, cur.vcpu));
    let shown = infos().map(|info| info.load_u32(TIME_OFFSET));
    // While another guest runs, a calibration writes nothing for the vCPUs that sleep.
    world.run(&other.dom, |_| calibrate(&world));
    assert_eq!(infos().map(|info| info.load_u32(TIME_OFFSET)), shown);
    // vCPU 1 runs; vCPU 0's time, which vCPU 1 may read, is written too.
    world.run(&guest.dom, |_| world.hv.switched_in(&guest.dom, &guest.dom.vcpus[1]));
    assert_eq!(version(&world, &guest, AREA), 4);
    assert_eq!(infos().map(|info| info.load_u32(TIME_OFFSET)), shown.map(|version| version + 2));
    assert_eq!(infos().map(|info| info.load_u8(TIME_OFFSET + 0x1d)), [1, 1]);
    assert_eq!(size_of::<VcpuTimeInfo>(), 32);
    // An area that shows the calibration already is not written again.
    world.run(&guest.dom, |cur| world.hv.switched_in(cur.domain, cur.vcpu));
    assert_eq!(version(&world, &guest, AREA), 4);
    world.check();
}

#[test]
fn a_time_area_is_written_only_where_its_guest_may_write() {
    let world = World::new(512);
    let guest = world.guest(1, false);
    let slot = (ARGS >> 12) as usize;
    let own = FrameOwner::Domain(&guest.dom);
    let map = |e| {
        world.hv.lock_tables(&guest.dom).update_leaf(guest.tables[3], slot, Pte::new(e), own, Update::Plain)
    };
    let page = pte_frame(&world, &guest);
    register(&world, &guest, ARGS + AREA as u64);
    let seen = version(&world, &guest, AREA);
    for mapping in [entry(page, P), 0] {
        map(mapping).expect("its own page");
        calibrate_and_run(&world, &guest);
        assert_eq!(version(&world, &guest, AREA), seen, "not through {mapping:#x}");
    }
    // The hypervisor does not write to a page that became a table meanwhile.
    map(entry(guest.tables[2], P)).expect("read-only");
    calibrate_and_run(&world, &guest);
    map(entry(page, P | RW)).expect("its own page");
    calibrate_and_run(&world, &guest);
    assert_eq!(version(&world, &guest, AREA), seen + 2);
    for va in [ARGS + 4096 - 16, ARGS + AREA as u64 + 4, u64::MAX - 7, 0xffff_8000_0000_0000, 1 << 46] {
        register(&world, &guest, va);
        calibrate_and_run(&world, &guest);
    }
    world.check();
}

fn pte_frame(world: &World, guest: &Guest) -> ring_abi::types::Mfn {
    Pte::new(world.peek(guest.tables[3], (ARGS >> 12) as usize)).frame()
}
