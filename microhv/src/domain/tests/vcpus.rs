//! vCPUs: their contexts, and what the hypervisor writes for them into the guest's memory.

use core::sync::atomic::Ordering;

use ring_abi::domctl::*;
use ring_abi::guest_context::{VGCF_IN_KERNEL, VGCF_ONLINE, VcpuGuestContext};
use ring_abi::hypercall::*;
use ring_abi::shared_info::TIME_OFFSET;
use ring_abi::types::Mfn;
use ring_abi::vcpu::*;

use super::*;
use crate::hypercall::HypercallError;
use crate::platform::*;
use crate::sched::pools::{Change, Policy};
use crate::testing::{ARGS, World};

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
    context.ctrlreg[4] = u64::MAX;
    domain.shared_info.fill(0, 4096, 0); // as builders do
    assert_eq!(set_context(&world, &domain, 0, &context), 0);
    assert_ne!(domain.shared_info.load_u32(0xc04), 0, "the wall clock is there");
    assert_ne!(domain.shared_info.load_u32(0x38), 0, "the clock's multiplier is there");
    assert!(domain.vcpus[0].is_up());
    assert_eq!(domain.vcpus[0].cr3_kernel.get(), Some(l4));
    let place = XenDomctlVcpucontext { vcpu: 0, ctxt: MORE, ..XenDomctlVcpucontext::default() };
    world.put(MORE, &VcpuGuestContext::default());
    assert_eq!(domctl(&world, &mut XenDomctl::with(XEN_DOMCTL_GETVCPUCONTEXT, domain.id, &place)), 0);
    let seen: VcpuGuestContext = world.get(MORE);
    assert_eq!((seen.user_regs.rip, seen.user_regs.rsi), (0x1234, 0x5678));
    assert_eq!(seen.ctrlreg[3], l4.raw() << 12);
    assert_eq!(seen.ctrlreg[4], 0x5_000c, "TSD, DE, FSGSBASE and OSXSAVE: what guests may set here");
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
    assert!(!domain.vcpus[0].is_up() && domain.vcpus[0].cr3_kernel.get().is_none());
    assert_eq!(simple(&world, XEN_DOMCTL_DESTROYDOMAIN, &domain), 0);
    assert_eq!(world.hv.frames.free_pages(), free + 2, "its table's page, and its grant table's");
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
    crate::time::update_areas(&world.hv.platform, &guest, &guest.vcpus[0]);
    assert!(guest.vcpus[0].areas_stale.load(Ordering::Relaxed), "user tables are loaded: later");
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

/// Sets or reads the affinity of a domain's vCPU; the result, and the hard and soft maps afterwards.
fn affinity(world: &World, domain: &Domain, command: u32, flags: u32, maps: [u64; 2]) -> (i64, [u64; 2]) {
    world.put(MORE, &maps);
    let map = |at| XenctlBitmap { bitmap: at, nr_bits: 64, ..XenctlBitmap::default() };
    let (cpumap_hard, cpumap_soft) = (map(MORE), map(MORE + 8));
    let op = XenDomctlVcpuaffinity { vcpu: 0, flags, cpumap_hard, cpumap_soft };
    let result = domctl(world, &mut XenDomctl::with(command, domain.id, &op));
    (result, world.get(MORE))
}

#[test]
fn affinity_is_set_and_what_takes_effect_comes_back() {
    let world = World::new(256);
    let domain = create(&world, 1);
    for cpu in [1, 2].into_iter().filter_map(CpuId::new) {
        assert!(world.hv.add_cpu(cpu));
    }
    let (hard, soft) = (XEN_VCPUAFFINITY_HARD, XEN_VCPUAFFINITY_SOFT);
    let set = |flags, maps| affinity(&world, &domain, XEN_DOMCTL_SETVCPUAFFINITY, flags, maps);
    let get = |flags| affinity(&world, &domain, XEN_DOMCTL_GETVCPUAFFINITY, flags, [7, 7]);
    let invalid = HypercallError::Invalid.errno();
    assert_eq!(get(hard | soft), (0, [u64::MAX; 2]));
    assert_eq!(set(hard, [0xf6, 9]), (0, [6, 9]), "of CPUs 1, 2 and more there are two");
    assert_eq!(get(hard), (0, [0xf6, 7]), "the rest is kept for CPUs that come");
    assert_eq!(set(soft, [9, 0xf3]), (0, [9, 2]), "soft affinity counts within hard affinity");
    assert_eq!(get(hard | soft), (0, [0xf6, 0xf3]));
    assert_eq!(set(hard | soft, [1, 8]).0, invalid, "there is no CPU 3");
    assert_eq!(set(hard, [0xf8, 0]).0, invalid);
    assert_eq!((set(0, [1, 1]).0, get(0).0), (invalid, invalid));
    assert_eq!(get(hard | soft), (0, [0xf6, 0xf3]), "nothing was changed");
}

#[test]
fn a_vcpu_that_a_context_takes_down_gives_up_its_cpu() {
    let world = World::new(256);
    let (hv, cpu) = (&world.hv, CpuId::new(1).expect("few CPUs"));
    assert!(hv.add_cpu(cpu));
    let pool = hv.sched.create_pool(None, Policy::Null).expect("a pool");
    for change in [Change::Remove { pool: 0, cpu }, Change::Add { pool, cpu }] {
        assert_eq!(hv.change_cpus(change), Ok(()));
    }
    let guests = [(); 2].map(|()| world.guest(1));
    for guest in &guests {
        assert_eq!(hv.move_to_pool(guest, pool), Ok(()));
        world.settle_on(cpu);
    }
    hv.hold(&guests[0].vcpus[0], PauseFlags::BLOCKED);
    world.settle_on(cpu);
    assert_eq!(guests[1].vcpus[0].running_on(), None, "the CPU stays the sleeper's");
    hv.platform.on_cpu(0);
    guests[0].mm.set_max_pages(16);
    let l4 = base(&world, &guests[0]);
    let context = VcpuGuestContext { flags: VGCF_IN_KERNEL, ..good_context(l4) };
    assert_eq!(set_context(&world, &guests[0], 0, &context), 0);
    world.settle_on(cpu);
    assert_eq!(guests[1].vcpus[0].running_on(), Some(cpu));
}
