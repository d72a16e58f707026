//! Flushes for a set of a guest's vCPUs, on several CPUs.

use core::sync::atomic::Ordering;

use ring_abi::mmu::*;
use ring_abi::types::DOMID_SELF;

use super::World;
use super::entry;
use super::guest::{ARGS, Guest};
use super::remembered::on_cpu;
use crate::domain::DomainConfig;
use crate::frames::pte::{P, US};
use crate::hypercall::mmu::update_va_mapping;
use crate::platform::CpuId;

/// Where the tests map a page, and where a set lies among the arguments.
const VA: u64 = 0x30_000;
const SET: u64 = ARGS + 0x800;
/// The vCPU that is just going from a CPU to another, and vCPUs that no CPU has.
const MOVES: u32 = 70;
const NOWHERE: [u32; 2] = [3, 69];

/// A guest of more vCPUs than a word of a set has bits. CPU 0 runs vCPU 0, which calls, and CPU 1 runs vCPU 1; CPU 2 is idle, and keeps
/// vCPU 2; CPU 4 is about to run vCPU 70, which CPU 3 still has. All of these CPUs have the guest's tables loaded.
fn guest(world: &World) -> Guest {
    let config = DomainConfig { max_vcpus: MOVES + 1, ..DomainConfig::default() };
    let guest = world.guest_in(world.domain_of(1, config, 200));
    let cpu = CpuId::new;
    for (vcpu, runs, holds) in
        [(0, cpu(0), cpu(0)), (1, cpu(1), cpu(1)), (2, None, cpu(2)), (MOVES, cpu(4), cpu(3))]
    {
        guest.dom.vcpus[vcpu as usize].set_running_on(runs);
        guest.dom.vcpus[vcpu as usize].set_holder(holds);
    }
    (0..5).rev().for_each(|cpu| on_cpu(world, cpu, &guest));
    guest
}

/// The guest maps a page and takes the entry out, then asks for a flush for `vcpus`. The CPUs that no longer know the page.
fn flushed(world: &World, guest: &Guest, vcpus: &[u32], ask: impl FnOnce(&World)) -> u64 {
    let [page] = world.pages(&guest.dom);
    for new in [entry(page, P | US), 0] {
        assert_eq!(world.call(guest, update_va_mapping, [VA, new, UVMF_NONE, 0]), 0);
    }
    let mut set = [0u8; 16];
    vcpus.iter().for_each(|vcpu| set[*vcpu as usize / 8] |= 1 << (vcpu % 8));
    world.write(guest, (SET - ARGS) as usize, &set);
    assert!((0..5).all(|cpu| world.hv.platform.stale(cpu, Some(VA)).is_some()), "all know the page");
    ask(world);
    let has_forgotten = |cpu: &usize| world.hv.platform.stale(*cpu, Some(VA)).is_none();
    (0..5).filter(has_forgotten).fold(0, |cpus, cpu| cpus | 1 << cpu)
}

/// Sets, and the CPUs that have one of their vCPUs.
const SETS: [(&[u32], u64); 7] = [
    (&[], 0),
    (&[0], 0b00001),
    (&[1], 0b00010),
    (&[2], 0b00100),
    (&[MOVES], 0b11000),
    (&NOWHERE, 0),
    (&[0, 2, 3, MOVES], 0b11101),
];

#[test]
fn the_cpus_that_have_a_vcpu_of_the_set_are_flushed_and_no_others() {
    let world = World::new(256);
    let guest = guest(&world);
    for (vcpus, cpus) in SETS {
        for command in [MMUEXT_TLB_FLUSH_MULTI, MMUEXT_INVLPG_MULTI] {
            let ask = |world: &World| {
                assert_eq!(world.ext(&guest, &[(command, VA, SET)], DOMID_SELF), 0);
            };
            assert_eq!(flushed(&world, &guest, vcpus, ask), cpus, "command {command} for {vcpus:?}");
        }
        for kind in [UVMF_TLB_FLUSH, UVMF_INVLPG] {
            let ask = |world: &World| {
                let args = [VA, 0, kind | SET, 0];
                assert_eq!(world.call(&guest, update_va_mapping, args), 0);
            };
            assert_eq!(flushed(&world, &guest, vcpus, ask), cpus, "kind {kind} for {vcpus:?}");
        }
    }
}

/// A change of an entry that asks for a flush of a set which is not there has been made, so all CPUs are flushed.
#[test]
fn a_set_that_is_not_there_counts_as_all_vcpus() {
    let world = World::new(256);
    let guest = guest(&world);
    let ask = |world: &World| {
        let args = [VA, 0, UVMF_INVLPG | 0x40_0000, 0];
        assert_eq!(world.call(&guest, update_va_mapping, args), 0);
    };
    assert_eq!(flushed(&world, &guest, &[], ask), 0b11111);
    let all = |world: &World| {
        assert_eq!(world.ext(&guest, &[(MMUEXT_TLB_FLUSH_ALL, 0, 0)], DOMID_SELF), 0);
    };
    assert_eq!(flushed(&world, &guest, &[], all), 0b11111);
    assert_eq!(guest.dom.dirty_cpus.load(Ordering::Relaxed), 0b11111);
}
