//! CPUs and CPU pools as the toolstack asks for them: Xen's numbers and Xen's errors.

use ring_abi::domctl::*;
use ring_abi::errno as e;
use ring_abi::hypercall::{__HYPERVISOR_DOMCTL, __HYPERVISOR_SYSCTL};
use ring_abi::payload::Payload;
use ring_abi::sysctl::*;
use ring_abi::types::DomId;

use super::*;
use crate::platform::CpuId;

/// Where a bitmap is.
const MAP: u64 = ARGS + 2048;

/// A machine of three CPUs.
fn world() -> World {
    let world = World::new(64);
    for cpu in [1, 2].into_iter().filter_map(CpuId::new) {
        assert!(world.hv.add_cpu(cpu));
    }
    world.hv.platform.on_cpu(0);
    world
}

fn sysctl<T: Payload>(world: &World, domain: &Arc<Domain>, cmd: u32, payload: &mut T) -> i64 {
    world.put(ARGS, &XenSysctl::with(cmd, payload));
    let result = world.call(domain, __HYPERVISOR_SYSCTL, &[ARGS]);
    *payload = world.get::<XenSysctl>(ARGS).payload();
    result
}

fn pool(world: &World, op: u32, cpupool_id: u32, change: impl FnOnce(&mut XenSysctlCpupoolOp)) -> i64 {
    let cpumap = XenctlBitmap { bitmap: MAP, nr_bits: 64, ..XenctlBitmap::default() };
    let mut wanted = XenSysctlCpupoolOp { op, cpupool_id, cpumap, ..XenSysctlCpupoolOp::default() };
    change(&mut wanted);
    let result = sysctl(world, &world.dom0, XEN_SYSCTL_CPUPOOL_OP, &mut wanted);
    if result == 0 && op == XEN_SYSCTL_CPUPOOL_OP_CREATE { wanted.cpupool_id.into() } else { result }
}

fn hotplug(world: &World, domain: &Arc<Domain>, op: u32, cpu: u32) -> i64 {
    sysctl(world, domain, XEN_SYSCTL_CPU_HOTPLUG, &mut XenSysctlCpuHotplug { cpu, op })
}

fn refusal(errno: i32) -> i64 {
    -i64::from(errno)
}

#[test]
fn cpus_stop_and_go_on_by_xens_rules() {
    use ring_abi::sysctl::{
        XEN_SYSCTL_CPU_HOTPLUG_OFFLINE as OFFLINE, XEN_SYSCTL_CPU_HOTPLUG_ONLINE as ONLINE,
    };
    let world = world();
    let (dom0, guest) = (&world.dom0, world.guest(1));
    assert_eq!(hotplug(&world, &guest, OFFLINE, 1), refusal(e::EPERM));
    for (op, cpu, errno) in [
        (OFFLINE, 0, e::EINVAL),
        (OFFLINE, 3, e::EINVAL),
        (ONLINE, 3, e::EINVAL),
        (OFFLINE, u32::MAX, e::EINVAL),
        (ONLINE, 0, e::EEXIST),
        (ONLINE, 2, e::EEXIST),
        (XEN_SYSCTL_CPU_HOTPLUG_SMT_DISABLE, 0, e::EOPNOTSUPP),
        (9, 1, e::EOPNOTSUPP),
    ] {
        assert_eq!(hotplug(&world, dom0, op, cpu), refusal(errno), "{op} {cpu}");
    }
    assert_eq!(hotplug(&world, dom0, OFFLINE, 1), 0);
    assert_eq!(hotplug(&world, dom0, OFFLINE, 1), refusal(e::EEXIST));
    let mut machine = XenSysctlPhysinfo::default();
    assert_eq!(sysctl(&world, dom0, XEN_SYSCTL_PHYSINFO, &mut machine), 0);
    assert_eq!((machine.nr_cpus, machine.max_cpu_id), (2, 2), "numbers stay");
    let mut places = XenSysctlCputopoinfo::default();
    assert_eq!(sysctl(&world, dom0, XEN_SYSCTL_CPUTOPOINFO, &mut places), 0);
    assert_eq!(places.num_cpus, 3);
    assert_eq!(hotplug(&world, dom0, ONLINE, 1), 0);
    assert_eq!(sysctl(&world, dom0, XEN_SYSCTL_PHYSINFO, &mut machine), 0);
    assert_eq!(machine.nr_cpus, 3);
}

#[test]
fn pools_answer_as_xens() {
    let world = world();
    let (dom0, guest) = (&world.dom0, world.guest(1));
    let [create, destroy, info, add, remove, migrate, free] = [1, 2, 3, 4, 5, 6, 7];
    let any = XEN_SYSCTL_CPUPOOL_PAR_ANY;
    let cpu = |cpu| move |op: &mut XenSysctlCpupoolOp| op.cpu = cpu;
    let scheduler = |sched_id| move |op: &mut XenSysctlCpupoolOp| op.sched_id = sched_id;
    let domain = |domid| move |op: &mut XenSysctlCpupoolOp| op.domid = domid;
    let none = |_: &mut XenSysctlCpupoolOp| ();
    let map = || world.get::<u64>(MAP);

    let mut first = XenSysctlCpupoolOp { op: info, ..XenSysctlCpupoolOp::default() };
    assert_eq!(sysctl(&world, &guest, XEN_SYSCTL_CPUPOOL_OP, &mut first), refusal(e::EPERM));
    assert_eq!(sysctl(&world, dom0, XEN_SYSCTL_CPUPOOL_OP, &mut first), 0);
    assert_eq!((first.cpupool_id, first.sched_id, first.n_dom), (0, XEN_SCHEDULER_CREDIT2, 2));
    assert_eq!((pool(&world, info, 0, none), map()), (0, 0b111));
    assert_eq!(pool(&world, info, 1, none), refusal(e::ENOENT));
    assert_eq!(pool(&world, create, any, scheduler(XEN_SCHEDULER_CREDIT2 + 1)), refusal(e::ENOENT));
    assert_eq!(pool(&world, create, any, scheduler(XEN_SCHEDULER_NULL)), 1);
    assert_eq!(pool(&world, create, 1, scheduler(XEN_SCHEDULER_NULL)), refusal(e::EEXIST));
    assert_eq!(pool(&world, create, 5, scheduler(XEN_SCHEDULER_CREDIT2)), 5);
    assert_eq!(pool(&world, destroy, 5, none), 0);
    assert_eq!(pool(&world, destroy, 5, none), refusal(e::ENOENT));
    assert_eq!(pool(&world, destroy, 0, none), refusal(e::EBUSY));

    for (op, id, which, errno) in [
        (add, 1, 1, e::ENODEV),
        (add, 9, 1, e::ENOENT),
        (add, 1, 3, e::EINVAL),
        (add, 1, any, e::ENODEV),
        (remove, 1, 1, e::EADDRNOTAVAIL),
        (remove, 0, 3, e::EINVAL),
        (remove, 9, 1, e::ENOENT),
        (99, 0, 0, e::ENOSYS),
    ] {
        assert_eq!(pool(&world, op, id, cpu(which)), refusal(errno), "{op} {id} {which}");
    }
    assert_eq!(pool(&world, remove, 0, cpu(any)), 0, "the last");
    assert_eq!((pool(&world, free, 0, none), map()), (0, 0b100));
    assert_eq!(pool(&world, migrate, 1, domain(guest.id.raw().into())), refusal(e::ENOENT), "no CPU");
    assert_eq!(pool(&world, add, 1, cpu(any)), 0, "the first that is free");
    assert_eq!((pool(&world, info, 1, none), map()), (0, 0b100));
    assert_eq!(pool(&world, migrate, 1, domain(0)), refusal(e::EPERM), "dom0 stays");
    assert_eq!(pool(&world, migrate, 1, domain(999)), refusal(e::ESRCH));
    assert_eq!(pool(&world, migrate, 9, domain(guest.id.raw().into())), refusal(e::ENOENT));
    assert_eq!(pool(&world, migrate, 1, domain(guest.id.raw().into())), 0);
    assert_eq!(pool(&world, migrate, 1, domain(guest.id.raw().into())), 0, "it is there");
    assert_eq!(pool(&world, remove, 1, cpu(2)), refusal(e::EBUSY));
    assert_eq!(pool(&world, destroy, 1, none), refusal(e::EBUSY));
    assert_eq!(hotplug(&world, dom0, XEN_SYSCTL_CPU_HOTPLUG_OFFLINE, 2), refusal(e::ENODEV));
}

#[test]
fn domains_begin_in_a_pool_and_have_its_scheduler() {
    let world = world();
    let domctl = |op: &XenDomctl| {
        world.put(ARGS, op);
        let result = world.call(&world.dom0, __HYPERVISOR_DOMCTL, &[ARGS]);
        (result, world.get::<XenDomctl>(ARGS))
    };
    let made_in = |cpupool_id: u32| {
        let wanted = XenDomctlCreatedomain {
            max_vcpus: 1,
            max_grant_frames: 4,
            max_maptrack_frames: 4,
            cpupool_id,
            ..XenDomctlCreatedomain::default()
        };
        let (result, op) = domctl(&XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, DomId::new(0), &wanted));
        if result == 0 { i64::from(op.domain) } else { result }
    };
    assert_eq!(made_in(1), refusal(e::ESRCH));
    assert_eq!(pool(&world, 1, 1, |op| op.sched_id = XEN_SCHEDULER_NULL), 1);
    assert_eq!(made_in(1), refusal(e::ENODEV), "a pool without a CPU");
    assert_eq!(pool(&world, 5, 0, |op| op.cpu = 2), 0);
    assert_eq!(pool(&world, 4, 1, |op| op.cpu = 2), 0);
    let id = DomId::new(u16::try_from(made_in(1)).expect("made"));
    let (result, told) = domctl(&XenDomctl::new(XEN_DOMCTL_GETDOMAININFO, id));
    assert_eq!((result, told.payload::<XenDomctlGetdomaininfo>().cpupool), (0, 1));
    for (sched_id, expected) in [(XEN_SCHEDULER_CREDIT2, refusal(e::EINVAL)), (XEN_SCHEDULER_NULL, 0)] {
        let cmd = XEN_DOMCTL_SCHEDOP_GETINFO;
        let share = XenDomctlSchedulerOp { sched_id, cmd, ..XenDomctlSchedulerOp::default() };
        let (result, _) = domctl(&XenDomctl::with(XEN_DOMCTL_SCHEDULER_OP, id, &share));
        assert_eq!(result, expected, "{sched_id}");
    }
    // A CPU of no use to the pool's domains is refused as affinity.
    let map = |bits: u64, at| {
        world.put(at, &bits);
        XenctlBitmap { bitmap: at, nr_bits: 64, ..XenctlBitmap::default() }
    };
    for (bits, expected) in [(0b011, refusal(e::EINVAL)), (0b110, 0)] {
        let (cpumap_hard, flags) = (map(bits, MAP), XEN_VCPUAFFINITY_HARD);
        let wanted =
            XenDomctlVcpuaffinity { vcpu: 0, flags, cpumap_hard, ..XenDomctlVcpuaffinity::default() };
        let (result, _) = domctl(&XenDomctl::with(XEN_DOMCTL_SETVCPUAFFINITY, id, &wanted));
        assert_eq!(result, expected, "{bits:b}");
    }
    assert_eq!(world.get::<u64>(MAP), 0b100, "what takes effect");
}
