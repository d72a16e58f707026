use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::types::{DomId, Maddr, Mfn};
use ring_abi::vm_assist::VMASST_TYPE_ARCHITECTURAL_IOPL;
use zerocopy::IntoBytes;

use super::*;
use crate::Hypervisor;
use crate::domain::Current;
use crate::domain::{Callback, Domain, DomainConfig, TrapGate};
use crate::emul::far_returns;
use crate::frames::FrameTable;
use crate::platform::MachineMemory;
use crate::testing::TestMachine;

/// A machine whose guest addresses are machine addresses, and a domain with one vCPU.
struct Scene {
    hv: Hypervisor<TestMachine>,
    domain: Arc<Domain>,
    regs: CpuUserRegs,
}

const STACK: u64 = 0x8008;
const KERNEL_STACK: u64 = 0x6000;
const HANDLER: u64 = 0xffff_ffff_8100_0000;

impl Scene {
    fn new() -> Self {
        let machine = TestMachine::new(16);
        let shared = machine.shared(Mfn::new(1));
        let domain = Domain::new(DomId::new(1), DomainConfig::default(), Mfn::new(1), shared);
        {
            let entries = &domain.vcpus[0].entries;
            for vector in [3, 6, 7, 13, 14, 0x21, 0x80] {
                entries.traps[vector].set(TrapGate {
                    address: HANDLER + vector as u64,
                    cs: 0xe033,
                    dpl: 3,
                    masks_events: vector == 14,
                });
            }
            entries.event.set(Callback { address: HANDLER + 0x1000, masks_events: false });
            entries.syscall.set(Callback { address: HANDLER + 0x2000, masks_events: false });
            entries.failsafe.set(Callback { address: HANDLER + 0x3000, masks_events: true });
        }
        domain.vcpus[0].kernel_stack.set(0xe02b, KERNEL_STACK + 8);
        let regs = CpuUserRegs {
            rip: 0x1000,
            cs: 0xe033,
            ss: 0xe02b,
            rsp: STACK,
            rflags: 0x4_4302, // AC, NT, TF, IF
            rcx: 0xc,
            r11: 0xb,
            ..Default::default()
        };
        Self { hv: Hypervisor::new(machine, FrameTable::default()), domain, regs }
    }

    fn act<R>(&mut self, act: impl FnOnce(&mut Current<'_, TestMachine>) -> R) -> R {
        let vcpu = &self.domain.vcpus[0];
        act(&mut Current { hv: &self.hv, domain: &self.domain, vcpu, regs: &mut self.regs })
    }

    fn set_mask(&self, mask: u8) {
        self.domain.vcpus[0].info.get().unwrap().store_u8(1, mask);
    }

    fn mask(&self) -> u8 {
        self.domain.vcpus[0].info.get().unwrap().load_u8(1)
    }

    fn words(&self, at: u64, count: usize) -> Vec<u64> {
        (0..count as u64).map(|n| self.hv.platform.load(Maddr::new(at + 8 * n))).collect()
    }

    fn user(&self) {
        self.domain.vcpus[0].user_mode.store(true, Ordering::Relaxed);
    }

    fn put_frame(&self, at: u64, words: &[u64]) {
        self.hv.platform.write_bytes(Maddr::new(at), words.as_bytes());
    }

    fn is_crashed(&self) -> bool {
        self.domain.shutdown.lock().is_shut_down
    }
}

use std::vec::Vec;

#[test]
fn exception_from_kernel_mode() {
    let mut scene = Scene::new();
    scene.set_mask(0);
    scene.act(|cur| deliver_exception(cur, TrapVector(3), None));
    let sp = (STACK & !15) - 7 * 8;
    assert_eq!(scene.words(sp, 7), [0xc, 0xb, 0x1000, 0xe030, 0x4_4302, STACK, 0xe02b]);
    assert_eq!((scene.regs.rip, scene.regs.rsp), (HANDLER + 3, sp));
    assert_eq!((scene.regs.cs, scene.regs.ss), (0xe033, 0xe02b));
    assert_eq!(scene.regs.rflags, 0x202, "AC, NT and TF are clear");
    assert_eq!(scene.mask(), 0);
    assert_eq!(scene.regs.entry_vector, ENTRY_SYSCALL);
}

#[test]
fn nmi_comes_once_and_past_masked_events() {
    let mut scene = Scene::new();
    scene.set_mask(1);
    scene.user();
    let before = scene.regs;
    scene.act(deliver_nmi);
    assert_eq!(scene.regs, before, "none was sent");
    scene.domain.vcpus[0].nmi_pending.store(true, Ordering::Relaxed);
    scene.act(deliver_nmi);
    assert_eq!(scene.regs, before, "no handler");
    let gate = TrapGate { address: HANDLER + 2, cs: 0xe033, dpl: 0, masks_events: false };
    scene.domain.vcpus[0].entries.traps[2].set(gate);
    scene.domain.vcpus[0].nmi_pending.store(true, Ordering::Relaxed);
    scene.act(deliver_nmi);
    assert_eq!((scene.regs.rip, scene.mask()), (HANDLER + 2, 1));
    assert_eq!(scene.regs.rsp, KERNEL_STACK - 7 * 8);
    let after = scene.regs;
    scene.act(deliver_nmi);
    assert_eq!(scene.regs, after);
}

#[test]
fn what_is_executed_for_a_guest_that_steps_traps_behind_it() {
    let mut scene = Scene::new();
    scene.domain.vcpus[0].entries.traps[1].set(TrapGate { address: HANDLER + 1, ..TrapGate::default() });
    // ud2, "xen", cpuid, nop
    scene.put_frame(0x1000, &[u64::from_le_bytes([0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0xa2, 0x90])]);
    scene.regs.rflags &= !flags::TF;
    let before = scene.regs;
    assert!(scene.act(crate::emul::forced_cpuid));
    assert_eq!((scene.regs.rip, scene.domain.vcpus[0].cpu.lock().debug[6] >> 14 & 1), (0x1007, 0));
    scene.regs = before;
    scene.regs.rflags |= flags::TF;
    assert!(scene.act(crate::emul::forced_cpuid));
    assert_eq!(scene.regs.rip, HANDLER + 1);
    assert_eq!(scene.domain.vcpus[0].cpu.lock().debug[6] >> 14 & 1, 1);
    let sp = (STACK & !15) - 7 * 8;
    assert_eq!(scene.words(sp, 3)[2], 0x1007, "the frame is that of the next instruction");
    assert_eq!(scene.words(sp, 5)[4] & flags::TF, flags::TF);
}

#[test]
fn int1_is_a_debug_exception_behind_it() {
    let mut scene = Scene::new();
    scene.domain.vcpus[0].entries.traps[1].set(TrapGate { address: HANDLER + 1, ..TrapGate::default() });
    scene.put_frame(0x1000, &[0xf1]);
    assert!(scene.act(int1));
    assert_eq!(scene.regs.rip, HANDLER + 1);
    assert_eq!(scene.words((STACK & !15) - 7 * 8, 3)[2], 0x1001);
    scene.regs.rip = 0x1008;
    scene.put_frame(0x1008, &[0x0b0f]);
    assert!(!scene.act(int1), "ud2 is what it is");
    assert_eq!(scene.regs.rip, 0x1008);
}

#[test]
fn page_fault_from_user_mode_masks_events() {
    let mut scene = Scene::new();
    scene.set_mask(0);
    scene.user();
    scene.act(|cur| page_fault(cur, 0xdead_b000, 6));
    let sp = KERNEL_STACK - 8 * 8;
    assert_eq!(scene.words(sp, 8), [0xc, 0xb, 6, 0x1000, 0xe033, 0x4_4302, STACK, 0xe02b]);
    assert_eq!(scene.mask(), 1);
    assert_eq!(scene.domain.vcpus[0].info.get().unwrap().load_u64(16), 0xdead_b000);
    assert!(!scene.domain.vcpus[0].user_mode.load(Ordering::Relaxed));
    assert_eq!(scene.hv.platform.events.lock().gs_swaps, 1);
}

#[test]
fn page_fault_of_the_kernel_has_no_user_bit_and_shows_the_mask() {
    let mut scene = Scene::new();
    scene.set_mask(1);
    scene.act(|cur| page_fault(cur, 0, 7));
    let sp = (STACK & !15) - 8 * 8;
    assert_eq!(scene.words(sp, 5), [0xc, 0xb, 3, 0x1000, 0xe030 | 1 << 32]);
    assert_eq!(scene.words(sp + 40, 1), [0x4_4102], "IF is the mask's inverse");
}

#[test]
fn event_masks_always() {
    let mut scene = Scene::new();
    scene.set_mask(0);
    scene.domain.vcpus[0].info.get().unwrap().store_u8(0, 1);
    scene.act(deliver_event);
    assert_eq!(scene.regs.rip, HANDLER + 0x1000);
    assert_eq!(scene.mask(), 1);
    assert!(!scene.domain.vcpus[0].upcall_due(), "masked now");
}

#[test]
fn a_null_handler_or_a_bad_stack_crashes() {
    let mut scene = Scene::new();
    scene.act(|cur| deliver_exception(cur, TrapVector(5), None));
    assert!(scene.is_crashed());
    for rsp in [0xffff_8000_0000_1000, 0x1_0000_0000, 0] {
        let mut scene = Scene::new();
        scene.regs.rsp = rsp;
        scene.act(|cur| deliver_exception(cur, TrapVector(3), None));
        assert!(scene.is_crashed(), "{rsp:#x}");
    }
}

#[test]
fn syscall_and_its_absence() {
    let mut scene = Scene::new();
    scene.user();
    scene.act(syscall);
    assert_eq!(scene.regs.rip, HANDLER + 0x2000);
    let mut scene = Scene::new();
    scene.user();
    scene.domain.vcpus[0].entries.syscall.set(Callback::default());
    scene.act(syscall);
    assert_eq!(scene.regs.rip, HANDLER + 6);
    assert_eq!(scene.words(KERNEL_STACK - 7 * 8, 3)[2], 0xffe, "#UD at the instruction");
}

#[test]
fn sysenter_leaves_interrupts_on() {
    let mut scene = Scene::new();
    scene.domain.vcpus[0].entries.sysenter.set(Callback { address: HANDLER + 0x4000, masks_events: true });
    scene.user();
    scene.regs.rflags = flags::NT | 2; // the instruction has cleared IF
    scene.act(sysenter);
    assert_eq!((scene.regs.rip, scene.regs.rflags), (HANDLER + 0x4000, flags::IF | 2));
}

#[test]
fn sysenter_without_callback_is_a_protection_fault() {
    let mut scene = Scene::new();
    scene.user();
    scene.act(sysenter);
    assert_eq!(scene.regs.rip, HANDLER + 13);
    assert_eq!(scene.words(KERNEL_STACK - 8 * 8, 3)[2], 0);
}

#[test]
fn int_n_by_the_trap_table() {
    for (dpl, user, delivered) in [(3, true, true), (2, true, false), (1, false, true), (0, false, false)] {
        let mut scene = Scene::new();
        scene.hv.platform.write_bytes(Maddr::new(0x1000), &[0xcd, 0x21]);
        let gate = &scene.domain.vcpus[0].entries.traps[0x21];
        gate.set(TrapGate { dpl, ..gate.get() });
        if user {
            scene.user();
        }
        // QEMU's wrong error code: the vector comes from the instruction.
        assert!(scene.act(|cur| software_interrupt(cur, 0x21 * 16 + 2)));
        assert_eq!(scene.regs.rip, HANDLER + if delivered { 0x21 } else { 13 });
        let base = if user { KERNEL_STACK } else { STACK & !15 };
        let frame = if delivered { scene.words(base - 56, 3)[2] } else { scene.words(base - 64, 4)[3] };
        assert_eq!(frame, if delivered { 0x1002 } else { 0x1000 });
    }
}

#[test]
fn other_protection_faults_are_no_int() {
    let mut scene = Scene::new();
    assert!(!scene.act(|cur| software_interrupt(cur, 0)));
    assert!(!scene.act(|cur| software_interrupt(cur, 0x102)), "no `int` at rip");
    scene.regs.rip = u64::MAX;
    assert!(!scene.act(|cur| software_interrupt(cur, 0x102)));
}

#[test]
fn int80_goes_direct() {
    let mut scene = Scene::new();
    scene.act(int80);
    assert_eq!(scene.regs.rip, HANDLER + 0x80);
    let mut scene = Scene::new();
    scene.domain.vcpus[0].entries.traps[0x80].set(TrapGate { address: 0, ..TrapGate::default() });
    scene.act(int80);
    assert_eq!(scene.regs.rip, HANDLER + 13);
    assert_eq!(scene.words((STACK & !15) - 64, 4)[2..], [0x402, 0xffe]);
}

#[test]
fn device_not_available_clears_ts() {
    let mut scene = Scene::new();
    scene.domain.vcpus[0].cpu.lock().cr0 |= 8;
    scene.act(device_not_available);
    assert_eq!(scene.domain.vcpus[0].cpu.lock().cr0 & 8, 0);
    assert_eq!(scene.regs.rip, HANDLER + 7);
}

#[test]
fn failsafe_frame() {
    let mut scene = Scene::new();
    scene.set_mask(0);
    scene.act(|cur| deliver_failsafe(cur, [1, 2, 3, 4]));
    let sp = (STACK & !15) - 11 * 8;
    assert_eq!(scene.words(sp, 8), [0xc, 0xb, 1, 2, 3, 4, 0x1000, 0xe030]);
    assert_eq!(scene.mask(), 1);
}

#[test]
fn iret_to_kernel_mode() {
    let mut scene = Scene::new();
    scene.regs.rsp = 0x5000;
    scene.put_frame(0x5000, &[1, 2, 3, 0, 0x7000, 0xe030, 0x23_3202, 0x7008, 0xe02b]);
    scene.act(iret);
    let regs = &scene.regs;
    assert_eq!((regs.rax, regs.r11, regs.rcx, regs.rip, regs.rsp), (1, 2, 3, 0x7000, 0x7008));
    assert_eq!((regs.cs, regs.ss, regs.entry_vector), (0xe033, 0xe02b, 0));
    assert_eq!(regs.rflags, 0x21_0202, "IOPL and VM are gone");
    assert_eq!(scene.mask(), 0);
}

#[test]
fn iopl_is_in_frames_with_the_assist() {
    for (assist, shown) in [(0, 0), (1 << VMASST_TYPE_ARCHITECTURAL_IOPL, 2)] {
        let mut scene = Scene::new();
        scene.domain.assist.store(assist, Ordering::Relaxed);
        scene.domain.vcpus[0].iopl.store(2 << 12, Ordering::Relaxed);
        scene.act(|cur| deliver_exception(cur, TrapVector(3), None));
        let flags = scene.words((STACK & !15) - 3 * 8, 1)[0];
        assert_eq!(flags >> 12 & 3, shown, "{flags:#x}");
        assert_eq!(scene.regs.rflags >> 12 & 3, 0, "the processor's own");
    }
}

#[test]
fn iret_sets_iopl_with_the_assist() {
    for (assist, level) in [(0, 1), (1 << VMASST_TYPE_ARCHITECTURAL_IOPL, 3)] {
        let mut scene = Scene::new();
        scene.domain.assist.store(assist, Ordering::Relaxed);
        scene.domain.vcpus[0].iopl.store(1 << 12, Ordering::Relaxed);
        scene.regs.rsp = 0x5000;
        scene.put_frame(0x5000, &[1, 2, 3, 0, 0x7000, 0xe030, 0x3202, 0x7008, 0xe02b]);
        scene.act(iret);
        assert_eq!(scene.domain.vcpus[0].iopl.load(Ordering::Relaxed), level << 12);
        assert_eq!(scene.regs.rflags, 0x202, "the processor's own level stays 0");
    }
}

#[test]
fn iret_from_a_syscall_masks_when_if_is_clear() {
    let mut scene = Scene::new();
    scene.set_mask(0);
    scene.regs.rsp = 0x5000;
    scene.put_frame(0x5000, &[1, 2, 3, 0x100, 0x7000, 0xe033 & !3, 0x2, 0x7008, 0xe02b]);
    scene.act(iret);
    assert_eq!(scene.regs.entry_vector, ENTRY_SYSCALL);
    assert_eq!(scene.regs.rflags, 0x202, "the real IF stays on");
    assert_eq!(scene.mask(), 1);
}

#[test]
fn iret_to_user_mode_needs_user_tables() {
    let mut scene = Scene::new();
    scene.regs.rsp = 0x5000;
    scene.put_frame(0x5000, &[0, 0, 0, 0, 0x7000, 0xe033, 0x202, 0x7008, 0xe02b]);
    scene.act(iret);
    assert!(scene.is_crashed());
    let mut scene = Scene::new();
    scene.regs.rsp = 0x5000;
    scene.put_frame(0x5000, &[0, 0, 0, 0, 0x7000, 0xe033, 0x202, 0x7008, 0xe02b]);
    scene.domain.vcpus[0].cr3_user.replace(Some(Mfn::new(9)));
    scene.act(iret);
    assert!(scene.domain.vcpus[0].user_mode.load(Ordering::Relaxed));
    assert_eq!(scene.hv.platform.cr3(), Some(Mfn::new(9)));
}

#[test]
fn iret_from_a_bad_stack_crashes() {
    for rsp in [u64::MAX - 8, 0xffff_8000_0000_0000, 0x1_0000 - 8] {
        let mut scene = Scene::new();
        scene.regs.rsp = rsp;
        scene.act(iret);
        assert!(scene.is_crashed(), "{rsp:#x}");
    }
}

#[test]
fn returns_in_ring_3_are_executed_for_the_guest() {
    let after = |code: &[u8], cs: u16, frame: &[u64]| {
        let mut scene = Scene::new();
        scene.user();
        scene.regs.cs = cs;
        scene.regs.rflags &= !flags::TF;
        scene.put_frame(STACK, frame);
        scene.hv.platform.write_bytes(Maddr::new(scene.regs.rip), code);
        let before = scene.regs;
        let is_done = scene.act(far_returns::emulate);
        assert!(is_done || scene.regs == before);
        let regs = scene.regs;
        is_done.then_some((regs.rip, regs.cs, regs.rflags, regs.rsp, regs.ss))
    };
    // IF stays set, and IOPL 0.
    let frame = [0x4444, 0xe033, 0x4_3001, 0x5000, 0xe02b];
    assert_eq!(after(&[0x48, 0xcf], 0xe033, &frame), Some((0x4444, 0xe033, 0x4_0203, 0x5000, 0xe02b)));
    let dwords = [0xe023 << 32 | 0x4444, 0x7000 << 32 | 1, 0xe02b];
    assert_eq!(after(&[0xcf], 0xe033, &dwords), Some((0x4444, 0xe023, 0x203, 0x7000, 0xe02b)));
    let returned = |cs, bytes| Some((0x4444, cs, 0x4_4202, STACK + bytes, 0xe02b));
    assert_eq!(after(&[0x48, 0xcb], 0xe033, &frame), returned(0xe033, 16));
    assert_eq!(after(&[0x48, 0xca, 0x18, 0x80], 0xe033, &frame), returned(0xe033, 16 + 0x8018));
    assert_eq!(after(&[0xcb], 0xe033, &dwords), returned(0xe023, 8));
    // Another instruction, operands of 16 bits, a lock, code of 32 bits: not executed.
    for (code, cs) in [
        (&[0x90][..], 0xe033),
        (&[0xff, 0x1f], 0xe033),
        (&[0x66, 0xcf], 0xe033),
        (&[0xf0, 0xcf], 0xe033),
        (&[0xcf], 0xe023),
    ] {
        assert_eq!(after(code, cs, &frame), None, "{code:x?}");
    }
    // Selectors of other rings than 3, for the code or the stack.
    for (code, frame) in [
        (&[0x48, 0xcf], [1, 0xe008, 2, 0x5000, 0xe02b]),
        (&[0x48, 0xcf], [1, 0xe033, 2, 0x5000, 0xe010]),
        (&[0x48, 0xcb], [1, 0xe031, 0, 0, 0]),
    ] {
        assert_eq!(after(code, 0xe033, &frame).map(|after| after.0), Some(HANDLER + 13), "{frame:x?}");
    }
}

#[test]
fn a_return_in_ring_3_from_a_stack_that_is_not_there_is_a_page_fault() {
    let mut scene = Scene::new();
    scene.user();
    scene.regs.rsp = 0x10_0000;
    scene.hv.platform.write_bytes(Maddr::new(scene.regs.rip), &[0x48, 0xcf]);
    assert!(scene.act(far_returns::emulate));
    assert_eq!(scene.regs.rip, HANDLER + 14);
    assert_eq!(scene.domain.vcpus[0].cr2.load(Ordering::Relaxed), 0x10_0000);
}
