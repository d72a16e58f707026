//! Dispatch, continuations, multicalls, versions.

mod cpus;
mod duels;
mod nonsense;
mod policy;
mod wild;
mod xstate;

use core::sync::atomic::Ordering;

use ring_abi::callback::*;
use ring_abi::console_io::*;
use ring_abi::guest_context::{CpuUserRegs, TrapInfo};
use ring_abi::hypercall::*;
use ring_abi::segment::*;
use ring_abi::types::DomId;
use ring_abi::version::*;
use ring_abi::vm_assist::*;

use alloc::sync::Arc;

use super::*;
use crate::domain::{Domain, PauseFlags};
use crate::platform::{Paging, Registers, SegmentBase};
use crate::testing::{ARGS, World};

fn errno(error: HypercallError) -> i64 {
    error.errno()
}

#[test]
fn unknown_numbers_are_enosys() {
    let world = World::new(64);
    let guest = world.guest(1);
    for number in [6u64, 11, 16, 19, 27, 28, 34, 40, 48, 55, 56, 63, 64, u32::MAX.into(), 1 << 32, u64::MAX] {
        let mut regs = CpuUserRegs { rax: number, rip: 0x1000, ..CpuUserRegs::default() };
        let vcpu = &guest.vcpus[0];
        let mut cur = Current { hv: &*world.hv, domain: &guest, vcpu, regs: &mut regs };
        if !at_once(cur.domain, cur.vcpu, cur.regs) {
            dispatch(&mut cur);
        }
        assert_eq!(regs.rax as i64, errno(HypercallError::NoSys), "{number}");
        assert_eq!(regs.rip, 0x1000);
    }
    assert!(guest.vcpus[0].history.newest_first().next().is_some());
}

#[test]
fn a_writer_sleeps_while_the_line_is_full_and_loses_nothing() {
    let world = World::new(64);
    let text: [u8; 300] = core::array::from_fn(|n| n as u8);
    world.put(ARGS, &text);
    world.hv.platform.events.lock().console_limit = Some(200);
    let vcpu = &world.dom0.vcpus[0];
    let is_asleep = || vcpu.pause_flags.load(Ordering::Relaxed) & PauseFlags::POLLING != 0;
    let write = |count: u64, at: u64| {
        world.raw(&world.dom0, 0, __HYPERVISOR_CONSOLE_IO, &[CONSOLEIO_WRITE.into(), count, at])
    };
    assert_eq!(write(0, ASKS_WHETHER_BUSY), Ok(Outcome::OK), "there is room");
    assert_eq!(write(300, ARGS), Ok(Outcome::Continue));
    assert!(is_asleep());
    let rest = vcpu.continuation();
    assert_eq!(rest[1..3], [100, ARGS + 200]);
    let busy = Outcome::Done(HypercallError::Again.errno() as u64);
    assert_eq!(write(0, ASKS_WHETHER_BUSY), Ok(busy), "asked first");
    assert_eq!(write(0, ARGS), Ok(Outcome::OK), "as Xen has it, nothing is written at once");
    // The writer wakes after its time, but the line is as full as before.
    world.settle();
    world.pass(1_000_000);
    world.settle();
    assert!(!is_asleep());
    assert_eq!(write(rest[1], rest[2]), Ok(Outcome::Continue));
    assert_eq!(vcpu.continuation()[1..3], rest[1..3]);
    world.hv.platform.events.lock().console_limit = None;
    assert_eq!(write(rest[1], rest[2]), Ok(Outcome::OK));
    assert_eq!(world.hv.platform.events.lock().console, text);
}

#[test]
fn a_continuation_executes_the_instruction_again() {
    let world = World::new(64);
    world.put(ARGS, &[0x41u8; 300]);
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    let mut regs = CpuUserRegs {
        rax: __HYPERVISOR_CONSOLE_IO.into(),
        rdi: 0,
        rsi: 300,
        rdx: ARGS,
        rip: 0x1002,
        rbx: 77,
        r10: 10,
        r8: 8,
        r9: 9,
        ..CpuUserRegs::default()
    };
    let mut steps = 0;
    loop {
        let vcpu = &world.dom0.vcpus[0];
        let mut cur = Current { hv: &*world.hv, domain: &world.dom0, vcpu, regs: &mut regs };
        if !at_once(cur.domain, cur.vcpu, cur.regs) {
            dispatch(&mut cur);
        }
        if regs.rip == 0x1002 {
            break;
        }
        assert_eq!((regs.rip, regs.rax, regs.rbx), (0x1000, __HYPERVISOR_CONSOLE_IO.into(), 77));
        regs.rip += 2;
        steps += 1;
    }
    assert_eq!((steps, regs.rax), (2, 0));
    assert_eq!((regs.r10, regs.r8, regs.r9), (10, 8, 9), "registers without an argument stay");
    assert_eq!(world.hv.platform.events.lock().console, [0x41; 300]);
}

#[test]
fn the_build_id_needs_room() {
    let world = World::new(64);
    let guest = world.guest(1);
    let ask = |domain, at: u64| world.call(domain, __HYPERVISOR_XEN_VERSION, &[XENVER_BUILD_ID.into(), at]);
    assert_eq!(ask(&guest, 0), errno(HypercallError::NotPermitted));
    assert_eq!(ask(&world.dom0, 0), 4);
    for (room, wanted) in
        [(0u32, errno(HypercallError::Invalid)), (3, errno(HypercallError::NoBuffers)), (4, 4), (100, 4)]
    {
        world.put(ARGS, &room);
        assert_eq!(ask(&world.dom0, ARGS), wanted, "{room}");
    }
}

#[test]
fn console_is_for_the_privileged() {
    let world = World::new(64);
    let guest = world.guest(1);
    let call = |domain, args: &[u64]| world.call(domain, __HYPERVISOR_CONSOLE_IO, args);
    assert_eq!(call(&guest, &[0, 4, ARGS]), errno(HypercallError::NotPermitted));
    assert_eq!(call(&world.dom0, &[2, 4, ARGS]), errno(HypercallError::NoSys));
    assert_eq!(call(&world.dom0, &[0, 4, u64::MAX - 1]), errno(HypercallError::Fault));
    for byte in b"xl list" {
        world.hv.console.push(*byte);
    }
    assert_eq!(call(&world.dom0, &[1, 2, ARGS]), 2);
    assert_eq!(call(&world.dom0, &[1, 100, ARGS + 2]), 5);
    assert_eq!(world.get::<[u8; 7]>(ARGS), *b"xl list");
    assert_eq!(call(&world.dom0, &[1, 100, ARGS]), 0);
}

#[test]
fn multicall_gives_each_entry_its_result() {
    let world = World::new(64);
    let guest = world.guest(1);
    let entry = |op: u32, first: u64| MulticallEntry {
        op: op.into(),
        args: [first, 0, 0, 0, 0, 0],
        ..MulticallEntry::default()
    };
    let list = [
        entry(__HYPERVISOR_XEN_VERSION, XENVER_VERSION.into()),
        entry(__HYPERVISOR_MULTICALL, ARGS),
        entry(9999, 0),
        entry(__HYPERVISOR_XEN_VERSION, XENVER_PAGESIZE.into()),
    ];
    for pending in [false, true] {
        world.hv.platform.pending.store(pending, Ordering::Relaxed);
        world.put(ARGS, &list);
        assert_eq!(world.call(&guest, __HYPERVISOR_MULTICALL, &[ARGS, 4]), 0);
        let done: [MulticallEntry; 4] = world.get(ARGS);
        assert_eq!(
            done.map(|entry| entry.result as i64),
            [0x40011, errno(HypercallError::Invalid), errno(HypercallError::NoSys), 4096]
        );
    }
    assert_eq!(world.call(&guest, __HYPERVISOR_MULTICALL, &[ARGS, 0]), 0);
    assert_eq!(world.call(&guest, __HYPERVISOR_MULTICALL, &[u64::MAX - 63, 1]), errno(HypercallError::Fault));
    let wide =
        MulticallEntry { op: 1 << 32 | u64::from(__HYPERVISOR_XEN_VERSION), ..MulticallEntry::default() };
    world.put(ARGS, &wide);
    assert_eq!(world.call(&guest, __HYPERVISOR_MULTICALL, &[ARGS, 1]), 0);
    assert_eq!(world.get::<MulticallEntry>(ARGS).result as i64, errno(HypercallError::NoSys));
}

#[test]
fn multicall_continues_inside_an_entry() {
    let world = World::new(64);
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    world.put(ARGS + 0x100, &[0x42u8; 300]);
    let write = MulticallEntry {
        op: __HYPERVISOR_CONSOLE_IO.into(),
        args: [0, 300, ARGS + 0x100, 0, 0, 0],
        ..MulticallEntry::default()
    };
    world.put(ARGS, &[write, write]);
    assert_eq!(world.call(&world.dom0, __HYPERVISOR_MULTICALL, &[ARGS, 2]), 0);
    assert_eq!(world.hv.platform.events.lock().console, [0x42; 600]);
    world.put(ARGS, &write);
    let again = world.raw(&world.dom0, 0, __HYPERVISOR_MULTICALL, &[ARGS, 1, 2, 3, 4, 5]);
    assert_eq!(again, Ok(Outcome::Continue));
    assert_eq!(world.dom0.vcpus[0].continuation(), [ARGS, 1, 2, 3, 4, 5]);
}

#[test]
fn multicall_looks_after_each_call_that_is_not_brief() {
    let world = World::new(64);
    let guest = world.guest(1);
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    let entry = |op: u32| MulticallEntry { op: op.into(), ..MulticallEntry::default() };
    let after = |first: u32| {
        world.put(ARGS, &[entry(first), entry(__HYPERVISOR_XEN_VERSION), entry(first)]);
        let result = world.raw(&guest, 0, __HYPERVISOR_MULTICALL, &[ARGS, 3]);
        (result == Ok(Outcome::Continue)).then(|| guest.vcpus[0].continuation()[1])
    };
    for brief in [__HYPERVISOR_XEN_VERSION, __HYPERVISOR_STACK_SWITCH, __HYPERVISOR_FPU_TASKSWITCH] {
        assert_eq!(after(brief), None);
    }
    // These may take long, and eight of them without a look at what waits would take too long.
    for other in
        [__HYPERVISOR_VCPU_OP, __HYPERVISOR_SET_GDT, __HYPERVISOR_GRANT_TABLE_OP, __HYPERVISOR_MEMORY_OP]
    {
        assert_eq!(after(other), Some(2), "call {other}");
    }
}

#[test]
fn features_tell_who_asks() {
    let world = World::new(64);
    let guest = world.guest(1);
    let features = |domain| {
        let mut info = XenFeatureInfo::default();
        assert_eq!(world.op(domain, __HYPERVISOR_XEN_VERSION, XENVER_GET_FEATURES, &mut info), 0);
        info.submap
    };
    assert_eq!((features(&guest), features(&world.dom0)), (0x120e0, 0x228e0));
    let assist = VMASST_TYPE_PAE_EXTENDED_CR3.into();
    assert_eq!(world.call(&guest, __HYPERVISOR_VM_ASSIST, &[VMASST_CMD_ENABLE.into(), assist]), 0);
    assert_eq!(features(&guest), 0x120f0);
    assert_eq!(world.call(&guest, __HYPERVISOR_VM_ASSIST, &[VMASST_CMD_DISABLE.into(), assist]), 0);
    assert_eq!(features(&guest), 0x120e0);
    for (command, kind, error) in [
        (2, 2, HypercallError::NoSys),
        (0, 6, HypercallError::Invalid),
        (0, 64, HypercallError::Invalid),
        (0, u32::MAX, HypercallError::Invalid),
    ] {
        let result = world.call(&guest, __HYPERVISOR_VM_ASSIST, &[command, kind.into()]);
        assert_eq!(result, errno(error));
    }
    let mut other = XenFeatureInfo { submap_idx: 1, submap: 0 };
    assert_eq!(
        world.op(&guest, __HYPERVISOR_XEN_VERSION, XENVER_GET_FEATURES, &mut other),
        errno(HypercallError::Invalid)
    );
    assert_eq!(world.call(&guest, __HYPERVISOR_XEN_VERSION, &[11, ARGS]), errno(HypercallError::NoSys));
}

#[test]
fn strings_end_in_nul() {
    let world = World::new(64);
    for command in [XENVER_EXTRAVERSION, XENVER_CAPABILITIES, XENVER_CHANGESET, XENVER_COMMANDLINE] {
        world.put(ARGS, &[0xffu8; 1024]);
        assert_eq!(world.call(&world.dom0, __HYPERVISOR_XEN_VERSION, &[command.into(), ARGS]), 0);
        assert!(world.get::<[u8; 1024]>(ARGS).contains(&0));
    }
    world.call(&world.dom0, __HYPERVISOR_XEN_VERSION, &[XENVER_CAPABILITIES.into(), ARGS]);
    assert_eq!(&world.get::<[u8; 15]>(ARGS), b"xen-3.0-x86_64\0");
}

#[test]
fn a_trigger_wakes_a_vcpu_for_an_nmi() {
    use ring_abi::domctl::*;
    let world = World::new(64);
    let guest = world.guest(2);
    let vcpu = &guest.vcpus[1];
    vcpu.pause_flags.fetch_or(PauseFlags::BLOCKED, Ordering::Relaxed);
    let send = |domain: &Arc<Domain>, to: u16, trigger, vcpu| {
        let payload = XenDomctlSendtrigger { trigger, vcpu };
        world.put(ARGS, &XenDomctl::with(XEN_DOMCTL_SENDTRIGGER, DomId::new(to), &payload));
        world.call(domain, __HYPERVISOR_DOMCTL, &[ARGS])
    };
    let id = guest.id.raw();
    assert_eq!(send(&world.dom0, id, XEN_DOMCTL_SENDTRIGGER_NMI, 2), errno(HypercallError::NoSuchDomain));
    assert_eq!(send(&world.dom0, id, XEN_DOMCTL_SENDTRIGGER_POWER, 1), errno(HypercallError::Invalid));
    assert_eq!(send(&world.dom0, id, XEN_DOMCTL_SENDTRIGGER_RESET, 1), errno(HypercallError::NoSys));
    assert_eq!(send(&guest, id, XEN_DOMCTL_SENDTRIGGER_NMI, 1), errno(HypercallError::NotPermitted));
    assert!(!vcpu.nmi_pending.load(Ordering::Relaxed));
    assert_eq!(send(&world.dom0, id, XEN_DOMCTL_SENDTRIGGER_NMI, 1), 0);
    assert!(vcpu.nmi_pending.load(Ordering::Relaxed));
    assert_eq!(vcpu.pause_flags.load(Ordering::Relaxed), 0, "it is awake");
}

#[test]
fn callbacks_and_traps_are_registered() {
    let world = World::new(64);
    let guest = world.guest(1);
    let register = |kind, flags, address| {
        let mut op = CallbackRegister { r#type: kind, flags, address, ..CallbackRegister::default() };
        world.op(&guest, __HYPERVISOR_CALLBACK_OP, CALLBACKOP_REGISTER, &mut op)
    };
    assert_eq!(register(CALLBACKTYPE_EVENT, 0, 0x1000), 0);
    assert_eq!(register(CALLBACKTYPE_SYSCALL, CALLBACKF_MASK_EVENTS, 0x2000), 0);
    assert_eq!(register(CALLBACKTYPE_SYSCALL32, 0, 0x3000), 0);
    assert_eq!(register(CALLBACKTYPE_SYSENTER_DEPRECATED, 0, 0x3000), errno(HypercallError::NoSys));
    assert_eq!(register(99, 0, 0x3000), errno(HypercallError::NoSys));
    assert_eq!(register(CALLBACKTYPE_NMI, 0, 0x4000), 0);
    assert_eq!(guest.vcpus[0].entries.traps[2].address(), 0x4000);
    let mut none = CallbackUnregister { r#type: CALLBACKTYPE_NMI, ..CallbackUnregister::default() };
    assert_eq!(world.op(&guest, __HYPERVISOR_CALLBACK_OP, CALLBACKOP_UNREGISTER, &mut none), 0);
    assert_eq!(guest.vcpus[0].entries.traps[2].address(), 0);
    assert_eq!(register(CALLBACKTYPE_FAILSAFE, 0, 1 << 63), errno(HypercallError::Invalid));
    {
        let entries = &guest.vcpus[0].entries;
        assert!(
            entries.event.get().masks_events
                && entries.syscall.get().masks_events
                && !entries.syscall32.get().masks_events
        );
        assert_eq!(
            (entries.event.get().address, entries.syscall.get().address, entries.failsafe.get().address),
            (0x1000, 0x2000, 0)
        );
    }
    assert_eq!(world.call(&guest, __HYPERVISOR_SET_CALLBACKS, &[1, 2, 3]), 0);
    assert!(!guest.vcpus[0].entries.syscall.get().masks_events);

    let gate =
        |vector, flags, address| TrapInfo { vector, flags, cs: 0xe030, address, ..TrapInfo::default() };
    world.put(ARGS, &[gate(14, 4, 0x5000), gate(255, 3, 0x6000), gate(1, 0, 0), gate(2, 0, 0x7000)]);
    assert_eq!(world.call(&guest, __HYPERVISOR_SET_TRAP_TABLE, &[ARGS]), 0);
    {
        let entries = &guest.vcpus[0].entries;
        assert_eq!(
            (entries.traps[14].address(), entries.traps[14].get().masks_events, entries.traps[14].get().cs),
            (0x5000, true, 0xe033)
        );
        assert_eq!(
            (entries.traps[255].get().dpl, entries.traps[2].address()),
            (3, 0),
            "address 0 ends the table"
        );
    }
    world.put(ARGS, &[gate(3, 0, 0x0001_0000_0000_0000), gate(0, 0, 0)]);
    assert_eq!(world.call(&guest, __HYPERVISOR_SET_TRAP_TABLE, &[ARGS]), errno(HypercallError::Invalid));
    assert_eq!(world.call(&guest, __HYPERVISOR_SET_TRAP_TABLE, &[0]), 0);
    assert_eq!(guest.vcpus[0].entries.traps[14].address(), 0);
}

#[test]
fn a_trap_table_may_end_with_the_address_space() {
    const TABLES: u64 = 8;
    let world = World::new(64);
    let guest = world.guest(1);
    for table in TABLES..TABLES + 4 {
        world.put(table * 4096 + 511 * 8, &((table + 1) << 12 | 7));
    }
    let gate = TrapInfo { vector: 3, address: 0x5000, ..TrapInfo::default() };
    world.put((TABLES + 4) * 4096, &[gate; 256]);
    world.hv.platform.load_cr3(ring_abi::types::Mfn::new(TABLES));
    for pending in [false, true] {
        world.hv.platform.pending.store(pending, Ordering::Relaxed);
        let last_page = 0u64.wrapping_sub(4096);
        let result = world.call(&guest, __HYPERVISOR_SET_TRAP_TABLE, &[last_page]);
        assert_eq!(result, errno(HypercallError::Fault), "no gate ends it");
    }
}

#[test]
fn breakpoints_are_loaded_when_one_is_turned_on() {
    let world = World::new(64);
    let guest = world.guest(1);
    assert_eq!(world.call(&guest, __HYPERVISOR_SET_DEBUGREG, &[1, 0x5000]), 0);
    world.hv.platform.set_debug_register(1, 0x9999); // another vCPU ran, which loaded its own
    assert_eq!(world.call(&guest, __HYPERVISOR_SET_DEBUGREG, &[7, 1 << 2]), 0);
    assert_eq!(world.hv.platform.debug_register(1), 0x5000);
    assert_eq!(world.hv.platform.debug_register(7), 1 << 2 | 0x400);
}

#[test]
fn stacks_and_segment_bases_are_checked() {
    let world = World::new(64);
    let guest = world.guest(1);
    assert_eq!(world.call(&guest, __HYPERVISOR_STACK_SWITCH, &[0xe028, 0xdead]), 0);
    assert_eq!(guest.vcpus[0].kernel_stack.ss(), 0xe02b);
    let set = |which: u32, base| world.call(&guest, __HYPERVISOR_SET_SEGMENT_BASE, &[which.into(), base]);
    assert_eq!(set(SEGBASE_FS, 0x1234), 0);
    assert_eq!(set(SEGBASE_GS_KERNEL, 1 << 62), errno(HypercallError::Invalid));
    assert_eq!(set(SEGBASE_GS_USER_SEL, 0xffff), 0, "a bad selector loads null");
    assert_eq!(set(4, 0), errno(HypercallError::Invalid));
    assert_eq!(world.hv.platform.events.lock().segment_bases, [(SegmentBase::Fs, 0x1234)]);
}
