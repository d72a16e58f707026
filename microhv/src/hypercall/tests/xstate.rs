//! A vCPU's floating-point and vector state, as a toolstack reads and sets it: a state that the processor would not load is refused.

use ring_abi::domctl::*;
use ring_abi::errno as e;
use ring_abi::hypercall::__HYPERVISOR_DOMCTL;

use super::*;
use crate::domain::FpuArea;

/// Where states are.
const STATE: u64 = ARGS + 1024;
/// An address at which nothing is mapped.
const NOWHERE: u64 = 0x7000_0000_0000;
/// Bytes of a state of the tests' machine, whose area has all that the hypervisor has room for.
const BYTES: usize = 16 + FpuArea::BYTES;
/// The header of the area.
const HEADER: usize = 16 + 512;

fn call(world: &World, id: DomId, cmd: u32, size: usize, buffer: u64) -> (i64, XenDomctlVcpuextstate) {
    let wanted = XenDomctlVcpuextstate { size: size as u64, buffer, ..Default::default() };
    world.put(ARGS, &XenDomctl::with(cmd, id, &wanted));
    let result = world.call(&world.dom0, __HYPERVISOR_DOMCTL, &[ARGS]);
    (result, world.get::<XenDomctl>(ARGS).payload())
}

fn get(world: &World, id: DomId) -> [u8; BYTES] {
    let (result, told) = call(world, id, XEN_DOMCTL_GETVCPUEXTSTATE, BYTES, STATE);
    assert_eq!((result, told.size), (0, BYTES as u64));
    world.get(STATE)
}

fn set(world: &World, id: DomId, state: &[u8; BYTES]) -> i64 {
    world.put(STATE, state);
    call(world, id, XEN_DOMCTL_SETVCPUEXTSTATE, BYTES, STATE).0
}

#[test]
fn a_state_is_set_as_it_was_read() {
    let world = World::new(64);
    let (from, to) = (world.guest(1), world.guest(1));
    let (result, told) = call(&world, from.id, XEN_DOMCTL_GETVCPUEXTSTATE, 0, 0);
    assert_eq!((result, told.size, told.xfeature_mask), (0, BYTES as u64, 7));
    let mut state = get(&world, from.id);
    assert_eq!((state[0], state[8]), (3, 3), "a vCPU that never ran has x87 and SSE");
    (state[0], state[8], state[HEADER]) = (7, 7, 7);
    state[16 + 160..16 + 176].fill(0x5a); // XMM0
    state[16 + 576..16 + 592].fill(0xa5); // the upper half of YMM0
    state[16 + 464] = 9; // software's, which no toolstack sets
    state[16 + 27] = 0x80; // a bit of MXCSR that no CPU has
    assert_eq!(set(&world, to.id, &state), 0);
    (state[16 + 464], state[16 + 27]) = (0, 0);
    assert_eq!(get(&world, to.id), state);
    assert_eq!(to.vcpus[0].fpu.xcr0(), 7);
}

#[test]
fn a_state_that_the_processor_would_not_load_is_refused() {
    let world = World::new(64);
    let guest = world.guest(1);
    let good = get(&world, guest.id);
    type Spoil = fn(&mut [u8; BYTES]);
    let bad: [(&str, Spoil); 10] = [
        ("no x87", |s| s[0] = 2),
        ("AVX without SSE", |s| (s[0], s[8]) = (5, 7)),
        ("a component that the CPU does not have", |s| (s[0], s[8]) = (0x0b, 0x0b)),
        ("one that was ever on", |s| s[8] = 0x80),
        ("a component in the area that was never on", |s| s[HEADER] = 7),
        ("another", |s| s[HEADER + 7] = 0x80),
        ("a compact area", |s| s[HEADER + 15] = 0x80),
        ("a reserved bit of the header", |s| s[HEADER + 16] = 1),
        ("the last of them", |s| s[HEADER + 63] = 1),
        ("no component at all", |s| s[..16].fill(0)),
    ];
    for (what, change) in bad {
        let mut state = good;
        change(&mut state);
        assert_eq!(set(&world, guest.id, &state), -i64::from(e::EINVAL), "{what}");
    }
    for size in [0, 15, 16 + 575, BYTES + 1, usize::MAX] {
        let (result, _) = call(&world, guest.id, XEN_DOMCTL_SETVCPUEXTSTATE, size, STATE);
        assert_eq!(result, -i64::from(e::EINVAL), "{size} bytes");
    }
    let (result, _) = call(&world, guest.id, XEN_DOMCTL_GETVCPUEXTSTATE, BYTES - 1, STATE);
    assert_eq!(result, -i64::from(e::EINVAL), "no room");
    for cmd in [XEN_DOMCTL_SETVCPUEXTSTATE, XEN_DOMCTL_GETVCPUEXTSTATE] {
        assert_eq!(
            call(&world, world.dom0.id, cmd, BYTES, STATE).0,
            -i64::from(e::EINVAL),
            "the caller's own"
        );
        assert_eq!(call(&world, guest.id, cmd, BYTES, NOWHERE).0, -i64::from(e::EFAULT));
    }
    assert_eq!(get(&world, guest.id), good, "nothing was set");
}

#[test]
fn guests_have_no_msrs_of_their_own() {
    let world = World::new(64);
    let guest = world.guest(1);
    let ask = |cmd, msr_count| {
        let wanted = XenDomctlVcpuMsrs { msr_count, msrs: STATE, ..Default::default() };
        world.put(ARGS, &XenDomctl::with(cmd, guest.id, &wanted));
        let result = world.call(&world.dom0, __HYPERVISOR_DOMCTL, &[ARGS]);
        (result, world.get::<XenDomctl>(ARGS).payload::<XenDomctlVcpuMsrs>().msr_count)
    };
    assert_eq!(ask(XEN_DOMCTL_GET_VCPU_MSRS, 9), (0, 0));
    assert_eq!(ask(XEN_DOMCTL_SET_VCPU_MSRS, 0).0, 0);
    assert_eq!(ask(XEN_DOMCTL_SET_VCPU_MSRS, 1).0, -i64::from(e::EINVAL));
}
