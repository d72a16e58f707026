//! The end of the hypervisor by its own fault: a report on the console, then the machine stops.
#![allow(unsafe_code)] // walks stack frames

use core::arch::asm;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use microhv::boot::memory_map::Range;
use microhv::console::kept;
use microhv::platform::CpuSet;
use microhv::sync::Once;
use ring_abi::guest_context::CpuUserRegs;
use x86_64::registers::control::Cr2;

use super::machine::hypervisor_if_up;
use super::{apic, cpu, paging, percpu, serial};

/// What isa-debug-exit reports: the machine starts again.
pub(crate) const EXIT_RESTART: u8 = 0x12;
/// A panic.
pub(crate) const EXIT_PANIC: u8 = 0x13;
/// dom0 powered the machine off, and made no report of its own.
pub(crate) const EXIT_OFF: u8 = 0x14;
/// The loader's dom0 kernel was refused.
pub(crate) const EXIT_REFUSED: u8 = 0x15;
/// Frames of a backtrace.
const BACKTRACE_FRAMES: usize = 32;

/// The isa-debug-exit port, if the command line named one: a write there ends the emulator.
pub(crate) static DEBUG_EXIT: Once<Option<u16>> = Once::new();
/// A failure that ends the machine makes it start again, so that the loader's default comes back: nobody else does that for a
/// machine that is far away. `noreboot` or a port for a report leave the machine halted instead.
pub(crate) static RESTARTS: AtomicBool = AtomicBool::new(false);
/// How long a failure stays on the screen before that, in ticks of the TSC: some seconds.
const SHOWN_TICKS: u64 = 1 << 34;
/// The CPU that panics; `u32::MAX`: none.
static PANICKING: AtomicU32 = AtomicU32::new(u32::MAX);

/// Memory that keeps the report across a warm reset: below what domains get. QEMU's BIOS clears what is below, the image's place is
/// filled by each loader, and GRUB puts files wherever it has room above 1 MiB.
pub(crate) const KEPT: Range = Range { start: 0x9_0000, end: 0x9_2000 };
/// That memory was free RAM when the hypervisor started.
static IS_KEPT: AtomicBool = AtomicBool::new(false);
/// Where the report begins among the hypervisor's messages.
static REPORT_START: AtomicU64 = AtomicU64::new(0);

/// CPUs that have stopped since another panics, a bit each.
static STOPPED: AtomicU64 = AtomicU64::new(0);
/// How many ticks of the TSC a panic waits for other CPUs: they stop at once, unless they cannot any more.
const STOP_TICKS: u64 = 1 << 28;

unsafe extern "C" {
    static __build_id_start: u8;
    static __build_id_end: u8;
}

/// Ends the emulator with `code`, if the command line named its port.
pub(crate) fn debug_exit(code: u8) {
    if let Some(&Some(port)) = DEBUG_EXIT.get() {
        serial::drain();
        cpu::port_out::<u8>(port, code);
    }
}

/// Starts the machine again after a failure, if [`RESTARTS`] says so. The chipset's port resets most machines, and the exception
/// the rest.
pub(crate) fn restart_if_wanted() {
    // Once: what fails meanwhile halts.
    if !RESTARTS.swap(false, Ordering::Relaxed) {
        return;
    }
    serial::write(b"(microhv) the machine starts again\n");
    serial::drain();
    let began = cpu::rdtsc();
    while cpu::rdtsc().wrapping_sub(began) < SHOWN_TICKS {
        core::hint::spin_loop();
    }
    cpu::port_out::<u8>(0xcf9, 2);
    cpu::port_out::<u8>(0xcf9, 6);
    cpu::triple_fault();
}

/// The build id's bytes: what follows the note's header of 16 bytes.
pub(crate) fn build_id() -> &'static [u8] {
    let start = &raw const __build_id_start;
    let end = &raw const __build_id_end;
    // SAFETY: the linker script puts both symbols around the note.
    let note = unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) };
    note.get(16..).unwrap_or(&[])
}

/// Bytes as hexadecimal digits.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl core::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

macro_rules! report {
    ($($arguments:tt)*) => { serial::print(format_args!("{}\n", format_args!($($arguments)*))) };
}

/// Prints registers.
pub(crate) fn print_registers(r: &CpuUserRegs) {
    let (vector, error, cr2, cr3) = (r.entry_vector, r.error_code, Cr2::read_raw(), cpu::cr3());
    let stack = format_args!("rsp {:016x} ss {:04x}", r.rsp, r.ss);
    report!("  rip {:016x} cs {:04x} {stack} rflags {:08x}", r.rip, r.cs, r.rflags);
    report!("  rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}", r.rax, r.rbx, r.rcx, r.rdx);
    report!("  rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}", r.rsi, r.rdi, r.rbp, r.r8);
    report!("  r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}", r.r9, r.r10, r.r11, r.r12);
    report!("  r13 {:016x} r14 {:016x} r15 {:016x}", r.r13, r.r14, r.r15);
    report!("  vector {vector} error {error:#x} cr2 {cr2:016x} cr3 {cr3:016x}");
}

/// Prints return addresses from the frame pointer `rbp` on, as far as they lie in the image's data and the CPUs' areas.
pub(crate) fn print_backtrace(mut rbp: u64) {
    let is_ours = |va: u64| (paging::IMAGE..paging::DEVICES).contains(&va) || percpu::areas().contains(&va);
    let inside = |va: u64| is_ours(va) && va.is_multiple_of(8);
    for n in 0..BACKTRACE_FRAMES {
        if !inside(rbp) || !inside(rbp + 8) {
            break;
        }
        // SAFETY: both words lie in the hypervisor's ranges; a frame pointer that leads to an unmapped page there faults,
        // which a second panic ends.
        let (next, ip) = unsafe { ((rbp as *const u64).read(), ((rbp + 8) as *const u64).read()) };
        report!("  #{n} {ip:#018x}");
        if next <= rbp {
            break;
        }
        rbp = next;
    }
}

fn print_current() {
    // Until there is a hypervisor, the boot stack may be in use, which leads to no data.
    if hypervisor_if_up().is_none() {
        return;
    }
    let Some(current) = percpu::local().current() else {
        report!("no vCPU was running");
        return;
    };
    report!("running {current:?}, last hypercalls (newest first):");
    for number in current.history.newest_first() {
        serial::print(format_args!(" {number}"));
    }
    report!("");
    // SAFETY: this CPU's frame, of integers: nothing else of this CPU goes on.
    print_registers(&unsafe { percpu::local().frame().read_volatile() });
}

/// The memory of [`KEPT`].
///
/// # Safety
/// The memory is RAM, and nobody else uses it: at start-up, and when no other CPU runs any more.
unsafe fn kept_memory() -> &'static mut [u8] {
    // SAFETY: the direct map has all RAM, by the boot tables too; the rest is the caller's duty.
    unsafe { core::slice::from_raw_parts_mut(paging::direct(KEPT.start) as *mut u8, KEPT.bytes() as usize) }
}

/// Tells of the panic that ended the last start, if there was one, and is ready for the next. Once, at start-up: the memory is
/// free RAM, and is set aside.
pub(crate) fn tell_of_the_last() {
    // SAFETY: the caller's word; this is the boot CPU alone.
    let memory = unsafe { kept_memory() };
    if let Some(report) = kept::report(memory).and_then(|report| str::from_utf8(report).ok()) {
        log::warn!("a panic ended the last start:");
        report.lines().for_each(|line| log::info!("| {line}"));
    }
    kept::forget(memory);
    IS_KEPT.store(true, Ordering::Relaxed);
}

/// Keeps the report for the next start, and has all of it on the console.
fn finish_report() {
    if IS_KEPT.swap(false, Ordering::Relaxed) {
        // SAFETY: the memory was set aside for this; the other CPUs have stopped, and this one comes here once.
        let memory = unsafe { kept_memory() };
        kept::keep(memory, |to| serial::copy_from(REPORT_START.load(Ordering::Relaxed), to));
        cpu::write_back_caches();
        report!("the report is kept for the next start");
    }
    serial::drain();
}

/// Ends the hypervisor: report, then stop. `regs` and `rbp` are of the place where the hypervisor went wrong.
fn die(regs: Option<&CpuUserRegs>, rbp: u64) -> ! {
    report!("build id {}", Hex(build_id()));
    if let Some(regs) = regs {
        print_registers(regs);
    }
    report!("backtrace:");
    print_backtrace(rbp);
    print_current();
    finish_report();
    debug_exit(EXIT_PANIC);
    restart_if_wanted();
    cpu::halt_for_ever()
}

/// Stops this CPU for ever if another panics.
pub(crate) fn stop_if_another_panics() {
    let (who, me) = (PANICKING.load(Ordering::Acquire), percpu::this_cpu());
    if who != u32::MAX && who != me.raw() {
        STOPPED.fetch_or(CpuSet::only(me).bits(), Ordering::AcqRel);
        cpu::halt_for_ever();
    }
}

/// Stops all other CPUs, and waits until they have stopped, so that none of them writes into the report.
fn stop_others() {
    let others = percpu::online().without(percpu::this_cpu()).bits();
    if others == 0 {
        return;
    }
    apic::stop_others();
    let began = cpu::rdtsc();
    while STOPPED.load(Ordering::Acquire) & others != others && cpu::rdtsc().wrapping_sub(began) < STOP_TICKS
    {
        core::hint::spin_loop();
    }
}

/// Lets no other CPU run anything any more, since the machine ends: a CPU that only halted would leave others with guests that
/// wait for its flushes.
pub(crate) fn end_others() {
    let me = percpu::this_cpu().raw();
    let _ = PANICKING.compare_exchange(u32::MAX, me, Ordering::AcqRel, Ordering::Acquire);
    stop_if_another_panics();
    stop_others();
    serial::break_lock();
}

fn begin() {
    let me = percpu::this_cpu().raw();
    let first = PANICKING.compare_exchange(u32::MAX, me, Ordering::AcqRel, Ordering::Acquire);
    stop_if_another_panics();
    stop_others();
    serial::break_lock();
    if first.is_ok() {
        REPORT_START.store(serial::written(), Ordering::Relaxed);
    } else {
        report!("panic within a panic");
        finish_report();
        debug_exit(EXIT_PANIC);
        restart_if_wanted();
        cpu::halt_for_ever();
    }
}

/// An exception in the hypervisor that nothing expected.
pub(crate) fn unexpected_trap(regs: &CpuUserRegs) -> ! {
    begin();
    report!("PANIC: exception {} in the hypervisor", regs.entry_vector);
    report!("  #- {:#018x}", regs.rip);
    die(Some(regs), regs.rbp)
}

/// A page fault in the hypervisor at a guest's address, which no access to guest memory raised.
pub(crate) fn unmarked_access(regs: &CpuUserRegs) -> ! {
    begin();
    report!("PANIC: the hypervisor used a guest's address {:#x} without STAC (SMAP)", Cr2::read_raw());
    report!("  #- {:#018x}", regs.rip);
    die(Some(regs), regs.rbp)
}

/// The hardware lost something, and nobody knows whose that was.
pub(crate) fn machine_check(regs: &CpuUserRegs, banks: &dyn core::fmt::Display) -> ! {
    begin();
    report!("PANIC: machine check{banks}");
    report!("  #- {:#018x}", regs.rip);
    die(Some(regs), regs.rbp)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin();
    report!("PANIC: {info}");
    let rbp: u64;
    // SAFETY: reading a register changes nothing.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    die(None, rbp)
}
