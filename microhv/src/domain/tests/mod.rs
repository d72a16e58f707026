//! Domains, as the toolstack sees them.

mod ending;
mod making;
mod timers;
mod vcpus;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ring_abi::domctl::*;
use ring_abi::guest_context::{VGCF_IN_KERNEL, VGCF_ONLINE, VcpuGuestContext};
use ring_abi::hypercall::*;
use ring_abi::sysctl::*;
use ring_abi::types::{DomId, Mfn, VcpuId};

use super::*;
use crate::hypercall::HypercallError;
use crate::testing::{ARGS, World};

impl Domain {
    /// Makes a domain as [`Domain::with_vcpus`] does, with new vCPUs.
    pub(crate) fn new(
        id: DomId,
        config: DomainConfig,
        shared_info_mfn: Mfn,
        shared_info: SharedBytes<'static>,
    ) -> Arc<Self> {
        let vcpus = (0..config.max_vcpus.clamp(1, MAX_VCPUS))
            .map(|n| Vcpu::new(id, VcpuId::new(n), &shared_info))
            .collect();
        Self::with_vcpus(id, config, shared_info_mfn, shared_info, vcpus)
    }
}

/// Where tests put the data that a structure points to.
const MORE: u64 = ARGS + 0x1000;

fn domctl(world: &World, op: &mut XenDomctl) -> i64 {
    world.put(ARGS, op);
    let result = world.call(&world.dom0, __HYPERVISOR_DOMCTL, &[ARGS]);
    *op = world.get(ARGS);
    result
}

fn simple(world: &World, command: u32, domain: &Domain) -> i64 {
    domctl(world, &mut XenDomctl::new(command, domain.id))
}

fn create(world: &World, vcpus: u32) -> Arc<Domain> {
    let wanted = XenDomctlCreatedomain {
        max_vcpus: vcpus,
        max_grant_frames: -1,
        max_maptrack_frames: -1,
        handle: [7; 16],
        ..XenDomctlCreatedomain::default()
    };
    let mut op = XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, DomId::new(0), &wanted);
    assert_eq!(domctl(world, &mut op), 0);
    world.hv.domains.get(DomId::new(op.domain)).expect("it is in the list")
}

fn info(world: &World, domain: &Domain) -> XenDomctlGetdomaininfo {
    let mut op = XenDomctl::new(XEN_DOMCTL_GETDOMAININFO, domain.id);
    assert_eq!(domctl(world, &mut op), 0);
    op.payload()
}

/// An empty but valid L4 of the domain.
fn base(world: &World, domain: &Domain) -> Mfn {
    world.hv.populate(domain, 0, 0).expect("a page")
}

fn set_context(world: &World, domain: &Domain, vcpu: u32, context: &VcpuGuestContext) -> i64 {
    world.put(MORE, context);
    let place = XenDomctlVcpucontext { vcpu, ctxt: MORE, ..XenDomctlVcpucontext::default() };
    domctl(world, &mut XenDomctl::with(XEN_DOMCTL_SETVCPUCONTEXT, domain.id, &place))
}

fn good_context(l4: Mfn) -> VcpuGuestContext {
    let mut context = VcpuGuestContext { flags: VGCF_IN_KERNEL | VGCF_ONLINE, ..VcpuGuestContext::default() };
    context.user_regs.rip = 0x1234;
    context.user_regs.rsi = 0x5678;
    context.ctrlreg[3] = l4.raw() << 12;
    context
}

#[test]
fn only_the_privileged_control_and_only_this_version() {
    let world = World::new(256);
    let guest = world.guest(1);
    for number in [__HYPERVISOR_DOMCTL, __HYPERVISOR_SYSCTL, __HYPERVISOR_PLATFORM_OP] {
        assert_eq!(world.call(&guest, number, &[ARGS]), HypercallError::NotPermitted.errno());
        world.put(ARGS, &XenDomctl { interface_version: 0x14, ..XenDomctl::new(5, DomId::new(0)) });
        assert_eq!(world.call(&world.dom0, number, &[ARGS]), HypercallError::Access.errno());
    }
    assert_eq!(simple(&world, 9999, &guest), HypercallError::NoSys.errno());
    assert_eq!(simple(&world, XEN_DOMCTL_GETHVMCONTEXT, &guest), HypercallError::Invalid.errno());
    let mut nobody = XenDomctl::new(XEN_DOMCTL_GETDOMAININFO, DomId::new(77));
    assert_eq!(domctl(&world, &mut nobody), HypercallError::NoSuchDomain.errno());
    assert_eq!(world.call(&world.dom0, __HYPERVISOR_DOMCTL, &[u64::MAX]), HypercallError::Fault.errno());
}

#[test]
fn pause_counts_are_kept_apart() {
    let world = World::new(256);
    let guest = create(&world, 1);
    assert_eq!(simple(&world, XEN_DOMCTL_UNPAUSEDOMAIN, &guest), 0);
    assert_eq!(simple(&world, XEN_DOMCTL_UNPAUSEDOMAIN, &guest), HypercallError::Invalid.errno());
    assert_eq!(simple(&world, XEN_DOMCTL_PAUSEDOMAIN, &guest), 0);
    assert_eq!(simple(&world, XEN_DOMCTL_PAUSEDOMAIN, &guest), 0);
    assert_eq!(guest.pause_count.load(Ordering::Relaxed), 2);
    let own = simple(&world, XEN_DOMCTL_PAUSEDOMAIN, &world.dom0);
    assert_eq!(own, HypercallError::Invalid.errno());
}

#[test]
fn permissions_are_given_only_by_who_has_them() {
    let world = World::new(256);
    let guest = create(&world, 1);
    let ask = |first_port, nr_ports, allow_access| {
        let p = XenDomctlIoportPermission { first_port, nr_ports, allow_access, ..Default::default() };
        domctl(&world, &mut XenDomctl::with(XEN_DOMCTL_IOPORT_PERMISSION, guest.id, &p))
    };
    assert_eq!(ask(0x3f8, 8, 1), HypercallError::NotPermitted.errno());
    world.dom0.permissions.lock().ports.add(0, 0xffff);
    assert_eq!(ask(0x3f8, 8, 1), 0);
    assert!(guest.permissions.lock().ports.contains_range(0x3f8, 0x3ff));
    assert_eq!(ask(0x3fc, 1, 0), 0);
    assert!(!guest.permissions.lock().ports.contains(0x3fc));
    for (first, count) in [(0, 0), (0x10000, 1), (0xffff, 2), (u32::MAX, u32::MAX)] {
        assert_eq!(ask(first, count, 1), HypercallError::Invalid.errno());
    }
}

#[test]
fn the_list_shows_who_is_there() {
    let world = World::new(256);
    let guests: Vec<_> = (0..3).map(|_| world.guest(1)).collect();
    let list = |first, max| {
        let wanted = XenSysctlGetdomaininfolist {
            first_domain: first,
            max_domains: max,
            buffer: MORE,
            ..XenSysctlGetdomaininfolist::default()
        };
        world.put(ARGS, &XenSysctl::with(XEN_SYSCTL_GETDOMAININFOLIST, &wanted));
        assert_eq!(world.call(&world.dom0, __HYPERVISOR_SYSCTL, &[ARGS]), 0);
        world.get::<XenSysctl>(ARGS).payload::<XenSysctlGetdomaininfolist>().num_domains
    };
    assert_eq!((list(0, 100), list(1, 100), list(0, 2), list(u16::MAX, 9)), (4, 3, 2, 0));
    list(guests[1].id.raw(), 1);
    assert_eq!(world.get::<XenDomctlGetdomaininfo>(MORE).domain, guests[1].id.raw());
}

#[test]
fn physinfo_counts_frames() {
    let world = World::new(256);
    world.put(ARGS, &XenSysctl::new(XEN_SYSCTL_PHYSINFO));
    assert_eq!(world.call(&world.dom0, __HYPERVISOR_SYSCTL, &[ARGS]), 0);
    let info: XenSysctlPhysinfo = world.get::<XenSysctl>(ARGS).payload();
    assert_eq!((info.nr_cpus, info.free_pages), (1, world.hv.frames.free_pages()));
    assert_eq!(info.max_mfn, 255);
}

#[test]
fn weights_and_caps_are_set() {
    let world = World::new(256);
    let guest = create(&world, 2);
    let ask = |cmd, word: u64| {
        let op = XenDomctlSchedulerOp { sched_id: XEN_SCHEDULER_CREDIT2, cmd, u: [word, 0] };
        let mut op = XenDomctl::with(XEN_DOMCTL_SCHEDULER_OP, guest.id, &op);
        (domctl(&world, &mut op), op.payload::<XenDomctlSchedulerOp>().u[0])
    };
    assert_eq!(ask(XEN_DOMCTL_SCHEDOP_GETINFO, 0), (0, 256));
    assert_eq!(ask(XEN_DOMCTL_SCHEDOP_PUTINFO, 512 | 0xffff << 16).0, 0);
    assert_eq!(ask(XEN_DOMCTL_SCHEDOP_GETINFO, 0), (0, 512));
    assert_eq!(ask(XEN_DOMCTL_SCHEDOP_PUTINFO, 0).0, 0, "0 leaves the weight");
    assert_eq!(ask(XEN_DOMCTL_SCHEDOP_GETINFO, 0), (0, 512));
    assert_eq!(ask(XEN_DOMCTL_SCHEDOP_PUTINFO, 50 << 16).0, 0);
    assert_eq!(ask(XEN_DOMCTL_SCHEDOP_GETINFO, 0), (0, 512 | 50 << 16));
    assert_eq!(ask(XEN_DOMCTL_SCHEDOP_PUTINFO, 300 | 0xffff << 16).0, 0);
    assert_eq!(ask(XEN_DOMCTL_SCHEDOP_GETINFO, 0), (0, 300 | 50 << 16), "65535 leaves the cap");
    assert_eq!(ask(XEN_DOMCTL_SCHEDOP_PUTINFO, 0).0, 0);
    assert_eq!(ask(XEN_DOMCTL_SCHEDOP_GETINFO, 0), (0, 300));
    assert_eq!(ask(9, 0).0, HypercallError::Invalid.errno());
}
