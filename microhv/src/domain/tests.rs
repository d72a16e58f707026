//! Domains from the toolstack's side: created, given a context, run, shut down, destroyed, and nothing left.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ring_abi::domctl::*;
use ring_abi::evtchn::EVTCHNOP_ALLOC_UNBOUND;
use ring_abi::guest_context::{VGCF_IN_KERNEL, VGCF_ONLINE, VcpuGuestContext};
use ring_abi::hypercall::*;
use ring_abi::sched::{SCHEDOP_SHUTDOWN, SchedShutdown};
use ring_abi::shared_info::TIME_OFFSET;
use ring_abi::sysctl::*;
use ring_abi::types::{DomId, Mfn};
use ring_abi::vcpu::*;

use super::*;
use crate::error::HypercallError;
use crate::hypercall::Outcome;
use crate::platform::{Clock, CpuId, MachineMemory, PowerAction};
use crate::testing::{ARGS, World};
use crate::time::TimerKind;
use ring_abi::evtchn::VIRQ_DOM_EXC;

/// Where tests put what a structure points at.
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
fn a_domain_begins_paused_and_empty() {
    let world = World::new(256);
    let domain = create(&world, 3);
    let seen = info(&world, &domain);
    assert_eq!(
        (seen.domain, seen.tot_pages, seen.max_vcpu_id, seen.handle),
        (domain.id.raw(), 0, 2, [7; 16])
    );
    assert_eq!(seen.nr_online_vcpus, 0);
    assert_ne!(seen.flags & XEN_DOMINF_PAUSED, 0);
    assert_eq!(seen.flags & (XEN_DOMINF_SHUTDOWN | XEN_DOMINF_DYING), 0);
    for vcpu in &domain.vcpus {
        assert_eq!(vcpu.info.get().expect("info").load_u8(1), 1, "upcalls begin masked");
    }
    assert_ne!(domain.shared_info.load_u32(0xc04), 0, "the wall clock is there");
    assert_ne!(domain.shared_info.load_u32(0x38), 0, "the clock's multiplier is there");
}

#[test]
fn impossible_domains_are_refused() {
    let world = World::new(64);
    for (vcpus, flags) in [(0, 0), (MAX_VCPUS + 1, 0), (u32::MAX, 0), (1, XEN_DOMCTL_CDF_HVM)] {
        let wanted = XenDomctlCreatedomain { max_vcpus: vcpus, flags, ..XenDomctlCreatedomain::default() };
        let mut op = XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, DomId::new(0), &wanted);
        assert_eq!(domctl(&world, &mut op), HypercallError::Invalid.errno());
    }
    let domain = create(&world, 1);
    let wanted = XenDomctlCreatedomain { max_vcpus: 1, ..XenDomctlCreatedomain::default() };
    let mut op = XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, domain.id, &wanted);
    assert_eq!(domctl(&world, &mut op), HypercallError::Exists.errno());
    // Until no memory is left, which fails as it should.
    let mut made = 0;
    loop {
        let mut op = XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, DomId::new(0), &wanted);
        match domctl(&world, &mut op) {
            0 => made += 1,
            error => break assert_eq!(error, HypercallError::NoMemory.errno()),
        }
        assert!(made < 64);
    }
}

#[test]
fn a_context_goes_in_and_comes_out() {
    let world = World::new(256);
    let domain = create(&world, 1);
    domain.mm.set_max_pages(16);
    let l4 = base(&world, &domain);
    let mut context = good_context(l4);
    context.trap_ctxt[14].address = 0xffff_8800_0000_1000;
    context.trap_ctxt[14].flags = 4 | 3;
    context.syscall_callback_eip = 0x77;
    context.fs_base = 0x99;
    domain.shared_info.fill(0, 4096, 0); // as builders do
    assert_eq!(set_context(&world, &domain, 0, &context), 0);
    assert_ne!(domain.shared_info.load_u32(0xc04), 0, "the wall clock is there");
    assert_ne!(domain.shared_info.load_u32(0x38), 0, "the clock's multiplier is there");
    assert!(domain.vcpus[0].is_up());
    assert_eq!(domain.vcpus[0].cr3_kernel(), Some(l4));
    let place = XenDomctlVcpucontext { vcpu: 0, ctxt: MORE, ..XenDomctlVcpucontext::default() };
    world.put(MORE, &VcpuGuestContext::default());
    assert_eq!(domctl(&world, &mut XenDomctl::with(XEN_DOMCTL_GETVCPUCONTEXT, domain.id, &place)), 0);
    let seen: VcpuGuestContext = world.get(MORE);
    assert_eq!((seen.user_regs.rip, seen.user_regs.rsi), (0x1234, 0x5678));
    assert_eq!(seen.ctrlreg[3], l4.raw() << 12);
    assert_eq!((seen.trap_ctxt[14].address, seen.trap_ctxt[14].flags), (0xffff_8800_0000_1000, 7));
    assert_eq!((seen.syscall_callback_eip, seen.fs_base), (0x77, 0x99));
    assert_ne!(seen.flags & VGCF_ONLINE, 0);
}

#[test]
fn bad_contexts_leave_the_vcpu_down() {
    let world = World::new(256);
    let domain = create(&world, 1);
    domain.mm.set_max_pages(16);
    let l4 = base(&world, &domain);
    let free = world.hv.frames.free_pages();
    let foreign = world.dom0.shared_info_mfn;
    for bad in [foreign, Mfn::new(0), Mfn::new(1 << 30), Mfn::new((1 << 40) - 1)] {
        let result = set_context(&world, &domain, 0, &good_context(bad));
        assert_eq!(result, HypercallError::Invalid.errno(), "{bad:?}");
    }
    let mut user = good_context(l4);
    user.ctrlreg[1] = foreign.raw() << 12;
    assert_eq!(set_context(&world, &domain, 0, &user), HypercallError::Invalid.errno());
    let mut gdt = good_context(l4);
    gdt.gdt_ents = 512;
    gdt.gdt_frames[0] = foreign.raw();
    assert_eq!(set_context(&world, &domain, 0, &gdt), HypercallError::Invalid.errno());
    assert_eq!(set_context(&world, &domain, 1, &good_context(l4)), HypercallError::Invalid.errno());
    assert!(!domain.vcpus[0].is_up() && domain.vcpus[0].cr3_kernel().is_none());
    assert_eq!(simple(&world, XEN_DOMCTL_DESTROYDOMAIN, &domain), 0);
    assert_eq!(world.hv.frames.free_pages(), free + 1);
}

#[test]
fn shutdown_tells_dom0_and_keeps_the_reason() {
    let world = World::new(256);
    let port = world.hv.bind_virq(&world.dom0, VIRQ_DOM_EXC, 0, |_| Ok(())).expect("bound");
    let guest = world.guest(2);
    let mut op = SchedShutdown { reason: 1 };
    assert_eq!(world.op(&guest, __HYPERVISOR_SCHED_OP, SCHEDOP_SHUTDOWN, &mut op), 0);
    assert!(crate::evtchn::is_pending(&world.dom0, port));
    let seen = info(&world, &guest);
    assert_ne!(seen.flags & XEN_DOMINF_SHUTDOWN, 0);
    assert_eq!(seen.shutdown_code(), 1);
    world.hv.crash_domain(&guest, format_args!("later"));
    assert_eq!(info(&world, &guest).shutdown_code(), 1, "the first reason stays");
    assert!(world.settle().is_none_or(|vcpu| vcpu.domain().id != guest.id));
    assert_eq!(simple(&world, XEN_DOMCTL_RESUMEDOMAIN, &guest), 0);
    assert_eq!(info(&world, &guest).flags & XEN_DOMINF_SHUTDOWN, 0);
    assert_eq!(guest.pause_count.load(Ordering::Relaxed), 0);
    assert_eq!(simple(&world, XEN_DOMCTL_RESUMEDOMAIN, &guest), 0, "nothing to resume");
    assert_eq!(guest.pause_count.load(Ordering::Relaxed), 0);
}

#[test]
fn dom0_takes_the_machine_with_it() {
    for (reason, action) in [(0, PowerAction::Off), (1, PowerAction::Reboot), (3, PowerAction::Crash)] {
        let world = World::new(64);
        let mut op = SchedShutdown { reason };
        world.op(&world.dom0, __HYPERVISOR_SCHED_OP, SCHEDOP_SHUTDOWN, &mut op);
        assert_eq!(world.hv.platform.events.lock().power, [action]);
    }
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
fn the_last_vcpu_down_powers_off() {
    let world = World::new(256);
    let guest = world.guest(2);
    assert_eq!(world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_DOWN.into(), 1]), 0);
    assert_eq!(world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_IS_UP.into(), 1]), 0);
    assert_eq!(world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_IS_UP.into(), 0]), 1);
    for none in [2, 8191, u64::MAX] {
        let result = world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_IS_UP.into(), none]);
        assert_eq!(result, HypercallError::NoEntry.errno());
    }
    assert_eq!(world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_UP.into(), 1]), 0);
    assert_eq!(world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_DOWN.into(), 1]), 0);
    assert_eq!(world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_DOWN.into(), 0]), 0);
    assert_eq!(guest.shutdown.lock().code, Some(0));
}

#[test]
fn vcpu_info_moves_once() {
    let world = World::new(256);
    let guest = world.guest(1);
    guest.mm.set_max_pages(4);
    let page = base(&world, &guest);
    let vcpu = &guest.vcpus[0];
    vcpu.info.get().expect("info").store_u8(1, 0);
    let register = |mfn: u64, offset| {
        world.put(ARGS, &VcpuRegisterVcpuInfo { mfn, offset, rsvd: 0 });
        world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_REGISTER_VCPU_INFO.into(), 0, ARGS])
    };
    assert_eq!(register(page.raw(), 4033), HypercallError::NoSuchAddress.errno());
    assert_eq!(register(page.raw(), 4), HypercallError::NoSuchAddress.errno());
    assert_eq!(register(world.dom0.shared_info_mfn.raw(), 0), HypercallError::Invalid.errno());
    assert_eq!(register(u64::MAX, 0), HypercallError::Invalid.errno());
    assert_eq!(register(page.raw(), 4032), 0);
    let moved = world.hv.platform.shared(page).slice(4032, 64).expect("in the page");
    assert_eq!((moved.load_u8(0), moved.load_u8(1), moved.load_u64(8)), (1, 0, u64::MAX));
    assert_ne!(moved.load_u32(0x38), 0, "its clock is there");
    assert_eq!(register(page.raw(), 0), HypercallError::Invalid.errno(), "once");
    assert_eq!(simple(&world, XEN_DOMCTL_DESTROYDOMAIN, &guest), 0);
}

#[test]
fn runstate_areas_are_written_and_faults_are_the_guests_loss() {
    let world = World::new(256);
    let guest = world.guest(1);
    let register = |addr| {
        world.put(ARGS, &VcpuRegisterRunstateMemoryArea { addr });
        world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA.into(), 0, ARGS])
    };
    assert_eq!(register(u64::MAX - 3), 0);
    assert_eq!(register(MORE), 0);
    world.hv.hold(&world.dom0.vcpus[0], PauseFlags::BLOCKED);
    world.settle();
    let seen: VcpuRunstateInfo = world.get(MORE);
    assert_eq!(seen.state, RUNSTATE_RUNNING);
    guest.vcpus[0].user_mode.store(true, Ordering::Relaxed);
    world.hv.update_areas(&guest, &guest.vcpus[0]);
    assert!(guest.vcpus[0].areas_stale.load(Ordering::Relaxed), "user tables are loaded: later");
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

/// Frees what is left of dead domains, in as many pieces as it takes.
fn reap_all(world: &World) {
    let reaped = (0..1000).any(|_| {
        world.hv.reap_dead();
        !world.hv.unfinished.has_dead()
    });
    assert!(reaped, "somebody still has a dead domain");
}

#[test]
fn destroying_gives_all_back_even_in_pieces() {
    let world = World::new(512);
    let heap_of_ports = world.dom0.events.open_ports();
    let free = world.hv.frames.free_pages();
    for round in 0..20 {
        world.hv.platform.pending.store(round % 2 == 1, Ordering::Relaxed);
        let domain = create(&world, 2);
        domain.mm.set_max_pages(64);
        let l4 = base(&world, &domain);
        for _ in 0..30 {
            base(&world, &domain);
        }
        assert_eq!(set_context(&world, &domain, 0, &good_context(l4)), 0);
        assert_eq!(simple(&world, XEN_DOMCTL_UNPAUSEDOMAIN, &domain), 0);
        world.settle();
        let mut op = ring_abi::evtchn::EvtchnAllocUnbound { dom: domain.id.raw(), remote_dom: 0, port: 0 };
        assert_eq!(world.op(&world.dom0, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_ALLOC_UNBOUND, &mut op), 0);
        let port = world.hv.bind_interdomain(&world.dom0, &domain, op.port, 0, |_| Ok(())).expect("bound");
        let id = domain.id;
        assert_eq!(simple(&world, XEN_DOMCTL_DESTROYDOMAIN, &domain), 0);
        assert_eq!(domain.dying(), DyingState::Dead);
        assert_eq!(world.hv.evtchn_close(&world.dom0, port), Ok(()));
        assert_eq!(simple(&world, XEN_DOMCTL_DESTROYDOMAIN, &domain), 0, "again does no harm");
        drop(domain);
        world.settle();
        reap_all(&world);
        assert!(!world.hv.domains.contains(id));
        assert_eq!(world.hv.frames.free_pages(), free, "round {round}");
    }
    assert_eq!(world.dom0.events.open_ports(), heap_of_ports);
    assert_eq!(simple(&world, XEN_DOMCTL_DESTROYDOMAIN, &world.dom0), HypercallError::Invalid.errno());
}

#[test]
fn whoever_asks_is_told_that_there_is_more_to_destroy() {
    let world = World::new(512);
    let free = world.hv.frames.free_pages();
    let domain = create(&world, 2);
    domain.mm.set_max_pages(64);
    for _ in 0..30 {
        base(&world, &domain);
    }
    let mut op = XenDomctl::new(XEN_DOMCTL_DESTROYDOMAIN, domain.id);
    op.want_return();
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    assert_eq!(domctl(&world, &mut op), HypercallError::Again.errno());
    assert_eq!(domain.dying(), DyingState::Dying, "it has begun");
    let calls = (1..100).find(|_| domctl(&world, &mut op) == 0).expect("it comes to an end");
    assert!(calls < 99);
    drop(domain);
    reap_all(&world);
    assert_eq!(world.hv.frames.free_pages(), free);
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
fn no_domain_makes_the_hypervisor_use_its_last_memory() {
    let world = World::new(128);
    let guest = world.guest(1);
    let open = || world.hv.alloc_unbound(&guest, DomId::new(0), |_| Ok(()));
    assert_eq!(open(), Ok(1));
    while world.hv.alloc_zeroed().is_some() {}
    assert_eq!(world.hv.create_domain(None, DomainConfig::default()).err(), Some(HypercallError::NoMemory));
    assert_eq!(world.hv.grow_grant_table(&guest, 1), Err(HypercallError::NoMemory));
    for port in 2..64 {
        assert_eq!(open(), Ok(port), "the bucket is there");
    }
    assert_eq!(open(), Err(HypercallError::NoMemory));
}

#[test]
fn a_vcpu_that_would_have_no_room_to_wait_is_not_made() {
    let world = World::new(512);
    let create = |vcpus| {
        let config = DomainConfig { max_vcpus: vcpus, ..DomainConfig::default() };
        world.hv.create_domain(None, config).map(|_| ())
    };
    // With dom0's, five timers each: the queue of timers has room for 512.
    assert_eq!(create(100), Ok(()));
    while world.hv.frames.free_pages() > 20 {
        world.hv.alloc_zeroed().expect("it is free");
    }
    assert_eq!(create(1), Ok(()));
    assert_eq!(create(1), Err(HypercallError::NoMemory), "room for 1,024 takes more than may be spent");
}

#[test]
fn weights_are_set_and_caps_refused() {
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
    assert_eq!(ask(XEN_DOMCTL_SCHEDOP_PUTINFO, 512 | 50 << 16).0, HypercallError::NotSupported.errno());
    assert_eq!(ask(9, 0).0, HypercallError::Invalid.errno());
}

/// A call of dom0's that is interrupted wherever it looks: its result, and in how many pieces it was done.
fn in_pieces(world: &World, op: &mut XenDomctl) -> (i64, usize) {
    world.put(ARGS, op);
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    let mut args = alloc::vec![ARGS];
    let mut pieces = 1;
    let result = loop {
        match world.raw(&world.dom0, 0, __HYPERVISOR_DOMCTL, &args) {
            Ok(Outcome::Continue) => args = world.dom0.vcpus[0].continuation().to_vec(),
            Ok(_) => break 0,
            Err(error) => break error.errno(),
        }
        pieces += 1;
    };
    world.hv.platform.pending.store(false, Ordering::Relaxed);
    *op = world.get(ARGS);
    (result, pieces)
}

#[test]
fn a_domain_of_many_vcpus_is_made_and_ended_in_pieces() {
    let world = World::new(256);
    let free = world.hv.frames.free_pages();
    let wanted = XenDomctlCreatedomain {
        max_vcpus: MAX_VCPUS,
        max_grant_frames: -1,
        max_maptrack_frames: -1,
        ..XenDomctlCreatedomain::default()
    };
    let mut op = XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, DomId::new(0), &wanted);
    let (result, pieces) = in_pieces(&world, &mut op);
    assert_eq!(result, 0);
    assert!(pieces >= MAX_VCPUS as usize, "{pieces}");
    let domain = world.hv.domains.get(DomId::new(op.domain)).expect("it is in the list");
    assert_eq!(domain.vcpus.len(), MAX_VCPUS as usize);
    assert!(domain.vcpus.iter().enumerate().all(|(n, vcpu)| vcpu.id.raw() as usize == n));
    world.hv.grow_grant_table(&domain, 3).expect("memory");
    drop(domain);
    let mut op = XenDomctl::new(XEN_DOMCTL_DESTROYDOMAIN, DomId::new(op.domain));
    let (result, pieces) = in_pieces(&world, &mut op);
    assert_eq!(result, 0);
    assert!(pieces > MAX_VCPUS as usize, "{pieces}: its timers, then its grant table");
    assert!(!world.hv.domains.contains(DomId::new(op.domain)), "gone, though not all of it is freed");
    // What is left goes a vCPU at a time, where others find the time.
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    let steps = (0..1000).take_while(|_| {
        world.hv.reap_dead();
        world.hv.unfinished.has_dead()
    });
    assert!(steps.count() >= MAX_VCPUS as usize - 2);
    world.hv.platform.pending.store(false, Ordering::Relaxed);
    assert_eq!(world.hv.frames.free_pages(), free);
}

#[test]
fn a_domain_that_is_not_made_to_the_end_is_given_up() {
    let world = World::new(256);
    let free = world.hv.frames.free_pages();
    let wanted = XenDomctlCreatedomain { max_vcpus: 9, ..XenDomctlCreatedomain::default() };
    world.put(ARGS, &XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, DomId::new(0), &wanted));
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    let once = world.raw(&world.dom0, 0, __HYPERVISOR_DOMCTL, &[ARGS]);
    assert_eq!(once, Ok(Outcome::Continue));
    world.hv.platform.pending.store(false, Ordering::Relaxed);
    // It asks for another instead.
    let other = create(&world, 2);
    assert_eq!(other.vcpus.len(), 2);
    assert_eq!(simple(&world, XEN_DOMCTL_DESTROYDOMAIN, &other), 0);
    drop(other);
    world.hv.reap_dead();
    assert_eq!(world.hv.frames.free_pages(), free);
    // A number that is taken while it is made.
    let mut op = XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, DomId::new(77), &wanted);
    world.put(ARGS, &op);
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    assert_eq!(world.raw(&world.dom0, 0, __HYPERVISOR_DOMCTL, &[ARGS]), Ok(Outcome::Continue));
    world.hv.platform.pending.store(false, Ordering::Relaxed);
    let taker = world.hv.create_domain(Some(DomId::new(77)), DomainConfig::default()).expect("free");
    assert_eq!(domctl(&world, &mut op), HypercallError::Exists.errno());
    assert!(Arc::ptr_eq(&taker, &world.hv.domains.get(DomId::new(77)).expect("the other")));
    assert_eq!(world.hv.frames.free_pages(), free - 1);
}

#[test]
fn limits_that_are_too_large_are_refused() {
    let world = World::new(256);
    let too_large = [(MAX_GRANT_FRAMES + 1, 0), (1, MAX_MAPTRACK_FRAMES + 1)];
    for (grants, maptrack) in too_large.into_iter().chain([(MAX_GRANT_FRAMES, MAX_MAPTRACK_FRAMES)]) {
        let wanted = XenDomctlCreatedomain {
            max_vcpus: 1,
            max_grant_frames: grants as i32,
            max_maptrack_frames: maptrack as i32,
            ..XenDomctlCreatedomain::default()
        };
        let mut op = XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, DomId::new(0), &wanted);
        let fits = grants <= MAX_GRANT_FRAMES && maptrack <= MAX_MAPTRACK_FRAMES;
        assert_eq!(domctl(&world, &mut op), if fits { 0 } else { HypercallError::Invalid.errno() });
    }
}

#[test]
fn timers_that_are_due_together_fire_in_pieces() {
    let world = World::new(256);
    let guest = world.guest(100);
    let due = world.hv.platform.now_ns() + 1_000;
    for vcpu in &guest.vcpus {
        world.hv.arm_timer(vcpu, TimerKind::Singleshot, Some(due));
    }
    let set =
        || guest.vcpus.iter().filter(|v| world.hv.timer_deadline(v, TimerKind::Singleshot).is_some()).count();
    world.hv.do_softirqs(CpuId::BOOT);
    for left in [68, 36, 4, 0] {
        world.pass(1_000);
        world.hv.do_softirqs(CpuId::BOOT);
        assert_eq!(set(), left);
        let next = world.hv.platform.timer.load(Ordering::Relaxed);
        assert_eq!(left > 0, next <= world.hv.platform.now_ns(), "the rest at once");
    }
}

#[test]
fn a_timer_that_wakes_a_herd_fires_alone() {
    let world = World::new(256);
    let guests = [1, 2].map(|_| world.guest(9));
    let due = world.hv.platform.now_ns() + 1_000;
    for guest in &guests {
        guest.vcpus[1..].iter().for_each(|vcpu| guest.events.poller_entered(vcpu, None));
        world.hv.arm_timer(&guest.vcpus[0], TimerKind::Singleshot, Some(due));
    }
    let left = || {
        let is_set =
            |guest: &&Arc<Domain>| world.hv.timer_deadline(&guest.vcpus[0], TimerKind::Singleshot).is_some();
        guests.iter().filter(is_set).count()
    };
    for expected in [1, 0] {
        world.pass(1_000);
        world.hv.do_softirqs(CpuId::BOOT);
        assert_eq!(left(), expected);
    }
}

#[test]
fn who_runs_sees_a_new_calibration_at_once() {
    let world = World::new(256);
    let running = world.settle().expect("somebody runs");
    let info = running.info.get().expect("in shared_info");
    let shown = info.load_u32(TIME_OFFSET);
    world.hv.platform.calibrations.fetch_add(2, Ordering::Relaxed);
    world.hv.clock_changed();
    assert_eq!(info.load_u32(TIME_OFFSET), shown + 2);
}

/// What the hypervisor lent to a domain is not lent to the next one of its number, whatever is still to be freed.
#[test]
fn a_new_domain_of_a_number_does_not_get_the_page_of_the_last() {
    let world = World::new(256);
    let old = create(&world, 8);
    let (id, page) = (old.id, old.shared_info_mfn);
    assert_eq!(simple(&world, XEN_DOMCTL_DESTROYDOMAIN, &old), 0);
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    drop(old);
    world.hv.reap_dead();
    assert!(
        !world.hv.domains.contains(id) && world.hv.unfinished.has_dead(),
        "its vCPUs are still to be freed"
    );
    world.hv.platform.pending.store(false, Ordering::Relaxed);
    let new = world.hv.create_domain(Some(id), DomainConfig::default()).expect("the number is free");
    assert!(world.hv.get_page(page, &new).is_none(), "the former domain's shared_info");
}
