//! One vCPU's registers for another's, and idleness; registers of the vCPU that runs: the library's [`Registers`].
//!
//! Entry code stores the general registers in the CPU's frame. They, and what stays in the processor (segments and their bases,
//! floating point, debug registers, tables), are switched here, and only when another vCPU than the last comes: an idle CPU keeps
//! what the last vCPU had.
#![allow(unsafe_code)] // per-CPU state, and the frame that entry code fills

use alloc::sync::Arc;
use core::arch::asm;
use core::sync::atomic::{Ordering, compiler_fence};

use microhv::domain::{Domain, GuestCpu, Vcpu, VcpuRef};
use microhv::platform::{CpuId, Cpus, Paging, Registers, SOFTIRQ_SCHEDULE, SOFTIRQ_TIMER, SegmentBase};
use microhv::return_stack;
use microhv::sched::Decision;
use microhv::sync::wait_until;
use microhv::traps;
use ring_abi::guest_context::CpuUserRegs;
use ring_abi::types::Maddr;
use x86_64::instructions::interrupts;
use x86_64::instructions::segmentation::{DS, ES, FS, GS, Segment};
use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::registers::debug::{DebugAddressRegister, Dr0, Dr1, Dr2, Dr3, Dr7};

use super::cpu::{self, msr};
use super::guest_access::{load_gs_selector, load_selectors};
use super::machine::{Hv, Machine};
use super::percpu::{self, Local, this_cpu};
use super::{apic, descriptors, fpu, machine_check, paging, speculation, windows};

/// `settscinfo`'s mode in which each `rdtsc` traps.
const TSC_MODE_ALWAYS_EMULATE: u32 = 1;
/// DR7 with nothing enabled.
const DR7_OFF: u64 = 0x400;
/// DR7's enable bits.
const DR7_ENABLE: u64 = 0xff;

/// Does what other CPUs wait for, at once: in their interrupt, and while this CPU waits for another.
pub(crate) fn serve() {
    let local = percpu::local();
    if local.flush_if_asked(paging::flush_local) && !local.is_busy() {
        // The next flush should not ask this CPU, as long as it is idle.
        local.asked_to_let_go.store(true, Ordering::Release);
    }
}

/// Does the work that waits on this CPU until a vCPU is current and nothing waits.
#[cold]
#[inline(never)]
pub(crate) fn do_pending_work(hv: &'static Hv, local: &'static Local) {
    let _filled = return_stack::fill_at_end();
    let id = hv.platform.cpu();
    let pending = local.pending();
    loop {
        cpu::take_interrupts();
        hv.do_softirqs(id);
        cpu::take_interrupts();
        // The run queue is read only on request: each read begins a new time slice, with more timer work.
        if pending.load(Ordering::Acquire) & SOFTIRQ_SCHEDULE != 0
            && let Decision::Switch(next) = hv.schedule(id, local.is_busy())
        {
            switch_to(hv, local, next);
        }
        if pending.load(Ordering::Acquire) != 0 {
            continue;
        }
        if local.is_busy() {
            // SAFETY: a vCPU runs here.
            let (_, vcpu) = unsafe { local.current_unchecked() };
            if !vcpu.nmi_pending.load(Ordering::Acquire) {
                return;
            }
            local.with_current(traps::deliver_nmi);
            continue;
        }
        // What that logs may be work for this CPU, so that comes before the last look for work.
        machine_check::look(cpu::rdtsc());
        while pending.load(Ordering::Acquire) == 0 {
            if local.asked_to_let_go.load(Ordering::Acquire) {
                let_go(hv, local);
                if local.is_to_park.load(Ordering::Acquire) {
                    park(hv, local);
                    break;
                }
            }
            // No wake-up is lost: the CPU takes no interrupt before it sleeps.
            // The compiler may move no store past the sleep: handlers read what this CPU runs.
            compiler_fence(Ordering::SeqCst);
            speculation::ahead_of_idleness();
            interrupts::enable_and_hlt();
            interrupts::disable();
        }
    }
}

/// Saves what this CPU, which is idle, keeps of the vCPU that ran last, and leaves its tables.
#[cold]
fn let_go(hv: &Hv, local: &'static Local) {
    local.asked_to_let_go.store(false, Ordering::Relaxed);
    // SAFETY: this CPU is idle, so nothing refers to the vCPU that ran last.
    let Some(previous) = (unsafe { local.replace_loaded(None) }) else { return };
    save(local, previous.vcpu());
    descriptors::leave_window();
    local.flush_by(|| hv.platform.load_cr3_flushing(Maddr::new(paging::hypervisor_l4()).mfn()));
    leave_tables(local, previous.domain());
    previous.vcpu().set_holder(None);
}

/// Leaves the CPUs that are up, and stops until this CPU is wanted again: with interrupts off, on the hypervisor's tables.
#[cold]
#[inline(never)]
fn park(hv: &Hv, local: &'static Local) {
    apic::start_timer(0);
    local.flush_by(paging::flush_local);
    // What others order from now on is not asked of this CPU. What was asked before is over for them too.
    local.set_up(false);
    while local.is_to_park.load(Ordering::SeqCst) {
        cpu::halt(); // until an NMI
    }
    local.set_up(true);
    // Orders that were given until then are not waited for; those given from now on are.
    local.flush_by(paging::flush_local);
    hv.raise_softirq(hv.platform.cpu(), SOFTIRQ_SCHEDULE | SOFTIRQ_TIMER);
}

/// This CPU has nothing of `previous` any more, and a table of `next` is loaded.
fn left(local: &Local, previous: &VcpuRef, next: &Arc<Domain>) {
    if !Arc::ptr_eq(previous.domain(), next) {
        leave_tables(local, previous.domain());
    }
    previous.vcpu().set_holder(None);
}

/// No table of `domain` is loaded here any more.
fn leave_tables(local: &Local, domain: &Domain) {
    domain.dirty_cpus.fetch_and(!local.bit(), Ordering::SeqCst);
}

fn switch_to(hv: &'static Hv, local: &'static Local, next: Option<VcpuRef>) {
    let Some(next) = next.filter(|next| !hv.must_leave(next.domain())) else {
        return local.set_running(false);
    };
    if local.loaded().is_some_and(|loaded| loaded.same(&next)) {
        local.set_running(true);
    } else {
        // SAFETY: no reference to the former vCPU is used below.
        let previous = unsafe { local.replace_loaded(Some(next)) };
        let held = previous.as_ref().map(|previous| save(local, previous.vcpu()));
        let all_loaded = load(hv, local, previous.as_ref(), held);
        // Only now are the previous vCPU's tables out of use, so that its domain may go.
        drop(previous);
        if let Err(selectors) = all_loaded {
            local.with_current(|cur| traps::deliver_failsafe(cur, selectors));
        }
    }
    // SAFETY: `next` runs here now.
    let (domain, vcpu) = unsafe { local.current_unchecked() };
    hv.switched_in(domain, vcpu);
}

/// Waits until no other CPU has anything of the vCPU that is to run here, and whose table is loaded. First this CPU leaves
/// `previous`: the other CPU may wait for that.
#[cold]
#[inline(never)]
fn wait_for_holder(hv: &Hv, local: &'static Local, previous: Option<&VcpuRef>) {
    // SAFETY: the caller has made the vCPU the one that runs here.
    let (domain, vcpu) = unsafe { local.current_unchecked() };
    descriptors::leave_window();
    if let Some(previous) = previous {
        left(local, previous, domain);
    }
    let mut is_free = || vcpu.holder().map(|other| hv.platform.ask_to_let_go(other)).is_none();
    if !is_free() {
        wait_until(&mut is_free);
    }
}

/// What the processor holds of segments: ds, es, fs and gs, and the bases of FS, GS and the other mode's GS.
#[derive(Clone, Copy)]
struct Segments {
    selectors: [u16; 4],
    bases: [u64; 3],
}

/// Copies registers: a function of the compiler's for that would be called by a retpoline.
///
/// # Safety
/// Both are valid, and nobody else uses them.
#[inline(always)]
unsafe fn copy_registers(to: *mut CpuUserRegs, from: *const CpuUserRegs) {
    const WORDS: usize = size_of::<CpuUserRegs>() / 8;
    // SAFETY: the caller's duty; the direction flag is clear in all of the hypervisor.
    unsafe {
        asm!("rep movsq", inout("rcx") WORDS => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
}

/// Saves what this CPU has of a vCPU. What stays in the processor until another vCPU's is loaded.
#[inline(always)]
fn save(local: &Local, vcpu: &Vcpu) -> Segments {
    let selectors = [DS::get_reg().0, ES::get_reg().0, FS::get_reg().0, GS::get_reg().0];
    // SAFETY: the frame is this CPU's alone, and has the registers of the vCPU that was loaded.
    let regs = unsafe { &mut *local.frame() };
    [regs.ds, regs.es, regs.fs, regs.gs] = selectors;
    // SAFETY: this CPU switches from the vCPU, so nobody else uses its registers.
    unsafe { copy_registers(vcpu.saved_regs_ptr(), regs) };
    let bases = BASES.map(cpu::read_msr);
    let [fs, active, other] = bases;
    let is_user = vcpu.user_mode.load(Ordering::Relaxed);
    {
        let mut guest = vcpu.cpu.lock();
        guest.fs_base = fs;
        (guest.gs_base_user, guest.gs_base_kernel) = if is_user { (active, other) } else { (other, active) };
        if guest.debug[7] & DR7_ENABLE != 0 {
            Dr7::write_raw(DR7_OFF);
        }
    }
    fpu::set_task_switched(false);
    fpu::save(&vcpu.fpu);
    Segments { selectors, bases }
}

/// Loads the state of the vCPU that is to run, and leaves `previous`, whose registers were saved. The error is the vCPU's data
/// selectors when one of them could not be loaded.
fn load(
    hv: &Hv,
    local: &'static Local,
    previous: Option<&VcpuRef>,
    held: Option<Segments>,
) -> Result<(), [u16; 4]> {
    // SAFETY: the caller has made the vCPU the one that runs here.
    let (domain, vcpu) = unsafe { local.current_unchecked() };
    let l4 = traps::loaded_l4(vcpu).unwrap_or(Maddr::new(paging::hypervisor_l4()).mfn());
    if previous.is_none_or(|previous| !Arc::ptr_eq(previous.domain(), domain)) {
        // A full barrier: whoever changes an entry sees the bit, or this CPU's walks see the change.
        domain.dirty_cpus.fetch_or(local.bit(), Ordering::SeqCst);
        speculation::between_domains();
    }
    local.flush_by(|| hv.platform.load_cr3_flushing(l4));
    let mut previous = previous;
    if vcpu.holder().is_some() {
        wait_for_holder(hv, local, previous.take());
    }
    vcpu.set_holder(Some(this_cpu()));
    let (ldt_entries, fs_base, gs_kernel, gs_user, breaks, cr0, has_bases) = {
        let guest = vcpu.cpu.lock();
        let breaks = guest.debug[7] & DR7_ENABLE != 0;
        let has_bases = guest.cr4 & GuestCpu::CR4_FSGSBASE != 0;
        let bases = (guest.fs_base, guest.gs_base_kernel, guest.gs_base_user);
        (guest.ldt_entries, bases.0, bases.1, bases.2, breaks, guest.cr0, has_bases)
    };
    windows::load(&vcpu.window, ldt_entries);
    if let Some(previous) = previous {
        left(local, previous, domain);
    }
    // SAFETY: the frame is this CPU's alone, and the vCPU that was there is saved.
    let regs = unsafe { &mut *local.frame() };
    // SAFETY: this CPU switches to the vCPU, so nobody else uses its registers.
    unsafe { copy_registers(regs, vcpu.saved_regs_ptr()) };
    set_cr4(domain.tsc_mode.load(Ordering::Relaxed) == TSC_MODE_ALWAYS_EMULATE, has_bases);
    let selectors = [regs.ds, regs.es, regs.fs, regs.gs];
    let is_user = vcpu.user_mode.load(Ordering::Relaxed);
    let (active, other) = if is_user { (gs_user, gs_kernel) } else { (gs_kernel, gs_user) };
    let wanted = Segments { selectors, bases: [fs_base, active, other] };
    let whole = match held {
        Some(held) if held.selectors == [0; 4] && selectors == [0; 4] => {
            write_bases(held, wanted.bases);
            true
        }
        _ => load_segments(wanted, is_user, has_bases),
    };
    if breaks {
        // The values were checked when the guest set them: no breakpoint is in the hypervisor's range.
        let values = vcpu.cpu.lock().debug;
        for index in [0, 1, 2, 3, 6, 7] {
            hv.platform.set_debug_register(index, values[usize::from(index)]);
        }
    }
    fpu::restore(&vcpu.fpu);
    if cr0 & GuestCpu::CR0_TS != 0 {
        fpu::set_task_switched(true);
    }
    if whole { Ok(()) } else { Err(selectors) }
}

/// Loads selectors and bases. Returns whether all selectors have the guest's values.
#[cold]
#[inline(never)]
fn load_segments(wanted: Segments, is_user: bool, has_bases: bool) -> bool {
    let [_, _, fs, gs] = wanted.selectors;
    // Loading a selector may fault an LDT page in, which takes the vCPU's lock.
    let whole = load_selectors(wanted.selectors);
    let mut bases = wanted.bases;
    // The selector of GS goes with user mode's base. In a context that a toolstack saved, a base of 0 with a selector
    // means the base in that selector's descriptor, unless the guest sets bases by instructions, beside any selector.
    // Where a selector could not be loaded, the register may have another vCPU's base.
    let user = if is_user { 1 } else { 2 };
    for (selector, base, register) in [(fs, 0, msr::FS_BASE), (gs, user, msr::GS_BASE)] {
        if whole && selector > 3 && bases[base] == 0 && !has_bases {
            bases[base] = cpu::read_msr(register);
        }
    }
    for (register, base) in BASES.into_iter().zip(bases) {
        // SAFETY: bases of the guest, canonical where they were set; the hypervisor uses neither FS nor GS.
        unsafe { cpu::write_msr(register, base) };
    }
    whole
}

/// The registers of the bases of FS, GS and the other mode's GS.
const BASES: [u32; 3] = [msr::FS_BASE, msr::GS_BASE, msr::SHADOW_GS_BASE];

/// Writes the bases that are not what the processor holds.
#[inline(always)]
fn write_bases(held: Segments, wanted: [u64; 3]) {
    for ((register, held), base) in BASES.into_iter().zip(held.bases).zip(wanted) {
        if held != base {
            // SAFETY: as in `load_segments`.
            unsafe { cpu::write_msr(register, base) };
        }
    }
}

/// Lets `rdtsc` in ring 3 trap, or not, and instructions for the bases of FS and GS be there, or not.
fn set_cr4(traps_tsc: bool, has_bases: bool) {
    const TSC: u64 = Cr4Flags::TIMESTAMP_DISABLE.bits();
    const BASES: u64 = GuestCpu::CR4_FSGSBASE;
    let cr4 = Cr4::read_raw();
    let wanted = cr4 & !(TSC | BASES) | if traps_tsc { TSC } else { 0 } | if has_bases { BASES } else { 0 };
    if wanted != cr4 {
        // SAFETY: the hypervisor may read the TSC in any case, and uses neither base; the CPU has what the guest was offered.
        unsafe { Cr4::write_raw(wanted) };
    }
}

impl Registers for Machine {
    fn frame_of(&self, cpu: CpuId) -> Option<CpuUserRegs> {
        // SAFETY: integers of a CPU that came up, which may be some of one entry and some of the next.
        percpu::local_once_up(cpu).map(|local| unsafe { local.frame().read_volatile() })
    }

    #[inline]
    fn swap_gs(&self) {
        // SAFETY: nothing in ring 0 depends on the GS base.
        unsafe { GS::swap() };
    }

    fn set_segment_base(&self, base: SegmentBase, value: u64) {
        // SAFETY: the value is canonical, and the hypervisor uses neither FS nor GS. Hypercalls come from kernel mode,
        // whose GS base is the active one.
        unsafe { cpu::write_msr(base_msr(base), value) };
    }

    fn segment_base(&self, base: SegmentBase) -> u64 {
        cpu::read_msr(base_msr(base))
    }

    fn load_user_gs(&self, selector: u16) {
        // The selector's base is wanted in the other slot: load it as user mode would, then swap back.
        self.swap_gs();
        load_gs_selector(selector);
        self.swap_gs();
    }

    fn set_debug_register(&self, index: u8, value: u64) {
        // The caller checked the value: no breakpoint is in the hypervisor's range.
        match index {
            0 => Dr0::write(value),
            1 => Dr1::write(value),
            2 => Dr2::write(value),
            3 => Dr3::write(value),
            6 => cpu::set_dr6(value),
            _ => Dr7::write_raw(value),
        }
    }

    fn set_base_instructions(&self, on: bool) {
        set_cr4(Cr4::read_raw() & Cr4Flags::TIMESTAMP_DISABLE.bits() != 0, on);
    }

    fn set_task_switched(&self, on: bool) {
        fpu::set_task_switched(on);
    }

    fn set_xcr0(&self, value: u64) {
        fpu::set_xcr0(value);
    }
}

fn base_msr(base: SegmentBase) -> u32 {
    match base {
        SegmentBase::Fs => msr::FS_BASE,
        SegmentBase::GsKernel => msr::GS_BASE,
        SegmentBase::GsUser => msr::SHADOW_GS_BASE,
    }
}
