//! What the ways in call: find out what happened, and hand that to the library.
#![allow(unsafe_code)] // functions that assembly calls

use core::sync::atomic::Ordering;

use microhv::emul::{self, Emulated, far_returns, table_writes};
use microhv::frames::pte::is_guest_address;
use microhv::hypercall;
use microhv::mem::dirty::faults;
use microhv::platform::{SOFTIRQ_TIMER, Vector};
use microhv::return_stack;
use microhv::sync;
use microhv::traps::{self, TrapVector};
use ring_abi::guest_context::CpuUserRegs;
use ring_abi::hypercall::__HYPERVISOR_IRET;
use ring_abi::types::GuestVa;
use x86_64::registers::control::Cr2;
use x86_64::registers::debug::Dr6;

use super::machine::{Cur, hypervisor};
use super::percpu::{self, Local};
use super::{apic, cpu, guest_access, machine_check, panic, serial, smap, switch, time, windows};

/// The debug status register with nothing to say.
const DR6_CLEAR: u64 = 0xffff_0ff0;

/// SYSCALL from 64-bit ring 3: a hypercall of the guest's kernel, or a system call for that kernel.
///
/// Each way has a function of its own, entered by a jump, so that none pays for the registers that another saves.
#[unsafe(no_mangle)]
extern "C" fn syscall_from_guest() {
    let local = percpu::local();
    // SAFETY: a guest was just interrupted.
    let (domain, vcpu) = unsafe { local.current_unchecked() };
    if vcpu.user_mode.load(Ordering::Relaxed) {
        return user_syscall(local);
    }
    // SAFETY: this CPU's frame, which nobody else uses.
    let regs = unsafe { &mut *local.frame() };
    if regs.rax == u64::from(__HYPERVISOR_IRET) {
        return iret(local);
    }
    if !hypercall::at_once(domain, vcpu, regs) {
        hypercall(local);
    }
}

#[inline(never)]
extern "C" fn hypercall(local: &'static Local) {
    local.with_current(hypercall::dispatch);
}

#[inline(never)]
extern "C" fn user_syscall(local: &'static Local) {
    local.with_current(traps::syscall);
}

#[inline(never)]
extern "C" fn iret(local: &'static Local) {
    local.with_current(|cur| {
        cur.vcpu.history.record(__HYPERVISOR_IRET);
        traps::iret(cur);
    });
}

/// SYSCALL from 32-bit code, and SYSENTER, whose frame has 3 for cs.
#[unsafe(no_mangle)]
extern "C" fn compat_syscall_from_guest() {
    let local = percpu::local();
    local.with_current(|cur| if cur.regs.cs == 3 { traps::sysenter(cur) } else { traps::syscall32(cur) });
}

/// #UD.
const UNDEFINED: u32 = 6;
/// #PF.
const PAGE_FAULT: u32 = 14;
/// Exceptions that are more than bounced, a bit each: #DB, NMI, #UD, #NM, #GP, #PF, #MC.
const SPECIAL: u32 = 1 << 1 | 1 << 2 | 1 << 6 | 1 << 7 | 1 << 13 | 1 << 14 | 1 << 18;
/// Exceptions with an error code that are just bounced: #TS, #NP, #SS, #AC.
const WITH_ERROR: u32 = 1 << 10 | 1 << 11 | 1 << 12 | 1 << 17;

/// Bits of a page fault's error code: the page is present, the access was ring 3's, a reserved bit is set, the access was a
/// fetch of an instruction.
const PRESENT: u32 = 1;
const USER: u32 = 4;
const RESERVED: u32 = 8;
const FETCH: u32 = 16;

/// An exception or interrupt while a guest ran.
#[unsafe(no_mangle)]
extern "C" fn trap_from_guest() {
    let local = percpu::local();
    // SAFETY: this CPU's frame, which nobody else uses.
    let vector = unsafe { (*local.frame()).entry_vector };
    if vector == PAGE_FAULT {
        page_fault(local)
    } else if vector == UNDEFINED {
        undefined(local)
    } else if vector < 32 && (SPECIAL | WITH_ERROR) >> vector & 1 == 0 {
        plain_trap(local)
    } else {
        special_trap(local)
    }
}

/// An exception that is just bounced, and has no error code.
#[inline(never)]
extern "C" fn plain_trap(local: &'static Local) {
    local.with_current(|cur| traps::deliver_plain(cur, TrapVector(cur.regs.entry_vector as u8)));
}

/// #UD: kernels often ask for CPUID by an undefined instruction.
#[inline(never)]
extern "C" fn undefined(local: &'static Local) {
    local.with_current(|cur| {
        if !emul::forced_cpuid(cur) {
            other_undefined(cur);
        }
    });
}

#[inline(never)]
fn other_undefined(cur: &mut Cur<'_>) {
    if !emulate(cur, TrapVector::UNDEFINED) && !traps::int1(cur) {
        traps::deliver_exception(cur, TrapVector::UNDEFINED, None);
    }
}

/// #PF: the most frequent of all, and mostly the guest's kernel's to see.
#[inline(never)]
extern "C" fn page_fault(local: &'static Local) {
    enum Else {
        Table,
        FirstWrite,
        RightsOfRing0,
    }
    let cr2 = Cr2::read_raw();
    // Functions that save registers for themselves are called once this one is done with the vCPU.
    let otherwise = local.with_current(|cur| {
        let error = cur.regs.error_code;
        if error & USER == 0 {
            Some(Else::RightsOfRing0)
        } else if faults::may_be(cur, error) {
            Some(Else::FirstWrite)
        } else if table_writes::may_be(cur, cr2, error) {
            Some(Else::Table)
        } else {
            traps::page_fault(cur, cr2, error);
            None
        }
    });
    match otherwise {
        Some(Else::Table) => table_write(local, cr2),
        Some(Else::FirstWrite) => first_write(local, cr2),
        Some(Else::RightsOfRing0) => ring_0_fault(local, cr2),
        None => {}
    }
}

/// #PF of a write by a guest whose memory is tracked.
#[inline(never)]
extern "C" fn first_write(local: &'static Local, cr2: u64) {
    let is_table = local.with_current(|cur| {
        let is_resolved = faults::resolve(cur, traps::loaded_l4(cur.vcpu), cr2);
        let is_table = !is_resolved && table_writes::may_be(cur, cr2, cur.regs.error_code);
        if !is_resolved && !is_table {
            traps::page_fault(cur, cr2, cur.regs.error_code);
        }
        is_table
    });
    if is_table {
        table_write(local, cr2);
    }
}

/// #PF at a page table, which the guest's kernel may have written to.
#[inline(never)]
extern "C" fn table_write(local: &'static Local, cr2: u64) {
    local.with_current(|cur| {
        if !table_writes::emulate(cur, cr2) {
            traps::page_fault(cur, cr2, cur.regs.error_code);
        }
    });
}

/// #PF of an access by rights of ring 0: at the LDT, or by SMAP.
#[inline(never)]
extern "C" fn ring_0_fault(local: &'static Local, cr2: u64) {
    local.with_current(|cur| {
        let error = cur.regs.error_code;
        if !fault_by_rights_of_ring_0(cur, cr2, error) {
            traps::page_fault(cur, cr2, error);
        }
    });
}

/// A page fault at an access that ring 3 made by rights of ring 0; whether that was seen to. A processor loads descriptors so.
/// QEMU's emulator before 9.1 also does what IRET and far transfers do on the stack, and SMAP then keeps the guest off its own pages.
#[cold]
#[inline(never)]
fn fault_by_rights_of_ring_0(cur: &mut Cur<'_>, cr2: u64, error: u32) -> bool {
    if error & (PRESENT | RESERVED) == 0
        && let Some(offset) = windows::ldt_offset(&cur.vcpu.window, cr2)
    {
        ldt_fault(cur, offset, error);
        return true;
    }
    let is_by_smap = error & PRESENT != 0 && is_guest_address(GuestVa::new(cr2)) && smap::is_on();
    if is_by_smap && !far_returns::emulate(cur) {
        smap::give_up();
    }
    is_by_smap
}

#[inline(never)]
extern "C" fn special_trap(local: &'static Local) {
    local.with_current(special_trap_of);
}

#[inline(never)]
fn special_trap_of(cur: &mut Cur<'_>) {
    let (vector, error) = (cur.regs.entry_vector, cur.regs.error_code);
    match vector {
        1 => {
            let status = Dr6::read_raw();
            // The processor never clears the status.
            cpu::set_dr6(DR6_CLEAR);
            cur.vcpu.cpu.lock().debug[6] = status;
            traps::deliver_exception(cur, TrapVector::DEBUG, None);
        }
        2 => panic::stop_if_another_panics(),
        7 => traps::device_not_available(cur),
        13 => {
            if !traps::software_interrupt(cur, error) && (error != 0 || !emulate(cur, TrapVector::PROTECTION))
            {
                traps::deliver_exception(cur, TrapVector::PROTECTION, Some(error));
            }
        }
        18 => machine_check::of_guest(cur),
        0x80 => traps::int80(cur),
        32.. => interrupt(vector as u8),
        _ => traps::deliver_exception(cur, TrapVector(vector as u8), Some(error)),
    }
}

/// An interrupt of the machine, whatever was running.
fn interrupt(vector: u8) {
    percpu::local().interrupt_waits.store(false, Ordering::Relaxed);
    let hv = hypervisor();
    if vector != apic::SPURIOUS_VECTOR {
        apic::end_of_interrupt();
    }
    match vector {
        apic::TIMER_VECTOR => {
            if time::refit() {
                hv.clock_changed();
            }
            serial::send();
            machine_check::look(cpu::rdtsc());
            hv.raise_softirq(percpu::this_cpu(), SOFTIRQ_TIMER);
        }
        apic::KICK_VECTOR => {
            switch::serve();
            // No lock is held here. Without that, this CPU would have the lock again before the CPU that waits has seen that the lock is free.
            if percpu::local().gives_way.swap(false, Ordering::Relaxed) {
                sync::give_way();
            }
        }
        apic::SPURIOUS_VECTOR => {}
        apic::SERIAL_VECTOR => serial::interrupt(hv),
        _ => hv.device_interrupt(Vector(vector)),
    }
}

/// An exception or interrupt in ring 0. What was interrupted finds the CPU's return stack full: the image check sees that.
#[unsafe(no_mangle)]
extern "C" fn trap_from_hypervisor(regs: &mut CpuUserRegs) {
    let _filled = return_stack::fill_at_end();
    if regs.entry_vector >= 32 {
        return interrupt(regs.entry_vector as u8);
    }
    if regs.entry_vector == PAGE_FAULT && ldt_page_brought_in(Cr2::read_raw()) {
        return;
    }
    if regs.entry_vector == PAGE_FAULT && is_kept_off(regs) {
        panic::unmarked_access(regs);
    }
    match guest_access::fix_up(regs.rip) {
        Some(to) => {
            regs.rip = to;
            regs.rflags &= !traps::flags::AC; // the CLAC behind the access is skipped
        }
        None => panic::unexpected_trap(regs),
    }
}

/// Whether ring 0 faulted at a guest's address without STAC: an error of the hypervisor's, even at an address that may fault.
fn is_kept_off(regs: &CpuUserRegs) -> bool {
    regs.rflags & traps::flags::AC == 0
        && regs.error_code & FETCH == 0
        && is_guest_address(GuestVa::new(Cr2::read_raw()))
        && smap::is_on()
}

/// The IRET to the guest faulted: the guest's registers cannot be as the frame says, which is untouched. The guest's kernel gets the
/// exception, as if the instruction after the return had raised the fault.
#[unsafe(no_mangle)]
extern "C" fn refused_iret(vector: u32, error: u32) {
    percpu::local().with_current(|cur| {
        cur.regs.entry_vector = vector;
        cur.regs.error_code = error;
        if vector == PAGE_FAULT
            && let Some(offset) = windows::ldt_offset(&cur.vcpu.window, Cr2::read_raw())
        {
            return ldt_fault(cur, offset, error);
        }
        let error = matches!(vector, 10..=14).then_some(error);
        traps::deliver_exception(cur, TrapVector(vector as u8), error);
    });
}

/// Double fault, and NMI, machine checks and debug exceptions in ring 0. The return stack: as in [`trap_from_hypervisor`].
#[unsafe(no_mangle)]
extern "C" fn trap_on_own_stack(regs: &mut CpuUserRegs) {
    let _filled = return_stack::fill_at_end();
    match regs.entry_vector {
        // A breakpoint of the guest hit our access to the guest's memory, or the guest entered with TF set (SYSENTER) or
        // with a pending breakpoint (MOV SS): nothing to do but to go on, without TF.
        1 => {
            regs.rflags &= !traps::flags::TF;
            cpu::set_dr6(DR6_CLEAR);
        }
        2 => panic::stop_if_another_panics(),
        18 => machine_check::of_hypervisor(regs),
        _ => panic::unexpected_trap(regs),
    }
}

/// What the library makes of a faulting instruction of the guest: `true` when the guest goes on.
fn emulate(cur: &mut Cur<'_>, vector: TrapVector) -> bool {
    match emul::emulate(cur, vector) {
        Emulated::Done | Emulated::Again => true,
        Emulated::PageFault { address, write } => {
            traps::page_fault(cur, address, if write { 2 } else { 0 });
            true
        }
        Emulated::NotEmulated => false,
    }
}

/// The guest's LDT was used at byte `offset`, whose page is not mapped.
#[cold]
#[inline(never)]
fn ldt_fault(cur: &mut Cur<'_>, offset: u64, error: u32) {
    if !cur.hv.fault_in_ldt(cur.domain, cur.vcpu, offset) {
        // Where the guest has its LDT, not where the processor sees it.
        let base = cur.vcpu.cpu.lock().ldt_base;
        traps::page_fault(cur, base.wrapping_add(offset), error);
    }
}

/// Whether `cr2`, at which ring 0 faulted, is in the running vCPU's LDT window, and the page there was brought in.
fn ldt_page_brought_in(cr2: u64) -> bool {
    let Some(current) = percpu::local().current() else { return false };
    let Some(offset) = windows::ldt_offset(&current.vcpu().window, cr2) else { return false };
    hypervisor().fault_in_ldt(current.domain(), current.vcpu(), offset)
}
