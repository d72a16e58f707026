//! What a toolstack reads and hides of the CPU, and what the guest then sees.

use ring_abi::domctl::*;
use ring_abi::errno as e;
use ring_abi::guest_context::{XenCpuidLeaf, XenMsrEntry};
use ring_abi::hypercall::{__HYPERVISOR_DOMCTL, __HYPERVISOR_SYSCTL};
use ring_abi::sysctl::*;

use super::*;
use crate::emul::shown;
use crate::time::state::Runstate;

/// Where leaves are.
const LEAVES: u64 = ARGS + 1024;
/// How many have room there.
const ROOM: u32 = 100;
const AVX: u32 = 1 << 28;

fn policy(world: &World, id: DomId, cmd: u32, wanted: &XenDomctlCpuPolicy) -> (i64, XenDomctlCpuPolicy) {
    world.put(ARGS, &XenDomctl::with(cmd, id, wanted));
    let result = world.call(&world.dom0, __HYPERVISOR_DOMCTL, &[ARGS]);
    (result, world.get::<XenDomctl>(ARGS).payload())
}

fn at(nr_leaves: u32) -> XenDomctlCpuPolicy {
    XenDomctlCpuPolicy { nr_leaves, leaves: LEAVES, ..XenDomctlCpuPolicy::default() }
}

fn get(world: &World, id: DomId) -> Vec<XenCpuidLeaf> {
    let (result, told) = policy(world, id, XEN_DOMCTL_GET_CPU_POLICY, &at(ROOM));
    assert_eq!((result, told.nr_msrs), (0, 0));
    (0..told.nr_leaves).map(|index| world.get(LEAVES + u64::from(index) * 24)).collect()
}

fn set(world: &World, id: DomId, leaves: &[XenCpuidLeaf]) -> (i64, XenDomctlCpuPolicy) {
    for (index, leaf) in leaves.iter().enumerate() {
        world.put(LEAVES + index as u64 * 24, leaf);
    }
    policy(world, id, XEN_DOMCTL_SET_CPU_POLICY, &at(leaves.len() as u32))
}

fn leaf(of: &mut [XenCpuidLeaf], number: u32) -> &mut XenCpuidLeaf {
    of.iter_mut().find(|leaf| leaf.leaf == number).expect("there is such a leaf")
}

#[test]
fn what_a_policy_hides_its_guest_does_not_see() {
    let world = World::new(64);
    let (guest, other) = (world.guest(1), world.guest(1));
    let mut leaves = get(&world, guest.id);
    assert_eq!((leaf(&mut leaves, 1).c & AVX, leaf(&mut leaves, 0xd).a), (AVX, 7));
    leaf(&mut leaves, 1).c &= !AVX;
    leaf(&mut leaves, 0).a = 0xd;
    assert_eq!(set(&world, guest.id, &leaves).0, 0);
    let ecx = |domain| shown(&world.hv, domain, 0, 1, 0)[1].ecx;
    assert_eq!((ecx(&guest) & AVX, ecx(&other) & AVX), (0, AVX));
    assert_eq!(shown(&world.hv, &guest, 0, 7, 0)[1].ebx & 1 << 5, 0, "AVX2 builds on that");
    assert_eq!((set(&world, guest.id, &[]).0, ecx(&guest) & AVX), (0, 0), "what is not given stays");
    let mut stored = get(&world, guest.id);
    assert_eq!((leaf(&mut stored, 0xd).a, leaf(&mut stored, 1).c & AVX), (3, 0));
    assert_eq!(set(&world, other.id, &stored).0, 0, "what is stored can be given to another");
    assert_eq!(get(&world, other.id), stored);
}

#[test]
fn a_policy_that_cannot_be_is_refused_by_name() {
    let refusal = |errno: i32| -i64::from(errno);
    let world = World::new(64);
    let guest = world.guest(1);
    let mut leaves = get(&world, guest.id);
    leaf(&mut leaves, 1).c |= 1 << 5; // VMX
    let (result, told) = set(&world, guest.id, &leaves);
    assert_eq!((result, told.err_leaf, told.err_subleaf), (refusal(e::EINVAL), 1, u32::MAX));
    leaf(&mut leaves, 1).c &= !(1 << 5);
    let (result, told) = policy(&world, guest.id, XEN_DOMCTL_GET_CPU_POLICY, &at(leaves.len() as u32 - 1));
    assert_eq!((result, told.err_leaf), (refusal(e::ENOBUFS), 0));
    let none = XenDomctlCpuPolicy { leaves: 0, ..at(0) };
    assert!(policy(&world, guest.id, XEN_DOMCTL_GET_CPU_POLICY, &none).1.nr_leaves >= leaves.len() as u32);
    assert_eq!(policy(&world, guest.id, XEN_DOMCTL_SET_CPU_POLICY, &at(257)).0, refusal(e::E2BIG));
    world.put(LEAVES, &XenMsrEntry { idx: 0xce, ..XenMsrEntry::default() });
    let msr = XenDomctlCpuPolicy { nr_msrs: 1, msrs: LEAVES, ..at(0) };
    let (result, told) = policy(&world, guest.id, XEN_DOMCTL_SET_CPU_POLICY, &msr);
    assert_eq!((result, told.err_leaf, told.err_msr), (refusal(e::EINVAL), u32::MAX, 0xce));
    assert_eq!(set(&world, world.dom0.id, &[]).0, refusal(e::EINVAL), "not the caller's own");
    assert_eq!(get(&world, guest.id), leaves, "nothing was hidden");
    guest.vcpus[0].time.lock().enter(Runstate::Running, 1);
    assert_eq!(set(&world, guest.id, &leaves).0, refusal(e::EEXIST), "a domain that has run");
}

#[test]
fn the_machine_tells_its_policies() {
    let world = World::new(64);
    let ask = |index| {
        let wanted =
            XenSysctlCpuPolicy { index, nr_leaves: ROOM, leaves: LEAVES, ..XenSysctlCpuPolicy::default() };
        world.put(ARGS, &XenSysctl::with(XEN_SYSCTL_GET_CPU_POLICY, &wanted));
        let result = world.call(&world.dom0, __HYPERVISOR_SYSCTL, &[ARGS]);
        let told: XenSysctlCpuPolicy = world.get::<XenSysctl>(ARGS).payload();
        (result, told.nr_leaves, world.get::<XenCpuidLeaf>(LEAVES + 24).c >> 5 & 1)
    };
    let guest = world.guest(1);
    let leaves = get(&world, guest.id);
    assert_eq!(ask(XEN_SYSCTL_CPU_POLICY_PV_DEFAULT), (0, leaves.len() as u32, 0));
    assert_eq!(ask(XEN_SYSCTL_CPU_POLICY_HOST).2, 1, "VMX, which guests do not see");
    assert_eq!(ask(XEN_SYSCTL_CPU_POLICY_HVM_MAX).0, -i64::from(e::EOPNOTSUPP));
    assert_eq!(ask(6).0, -i64::from(e::EINVAL));
}
