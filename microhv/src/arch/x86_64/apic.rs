//! Interrupt controllers: the local APIC with the library's [`Cpus`], I/O APICs, and the old PICs, which are silenced.
//!
//! A register is named by its place in memory (xAPIC); its MSR (x2APIC) has the number `0x800 + place / 16`.
#![allow(unsafe_code)] // device registers

use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use microhv::boot::acpi::{self, Acpi, IsaOverride};
use microhv::boot::local_apic::{self, Access, LAST_SHORT_ID};
use microhv::platform::{CpuId, CpuSet, Cpus, MAX_CPUS};
use microhv::sync::{self, Mutex, Once, rank};

use super::cpu::{self, msr, port_out};
use super::machine::Machine;
use super::paging;
use super::percpu::{self, this_cpu};

/// Vector of the local timer.
pub(crate) const TIMER_VECTOR: u8 = 0xf0;
/// Vector by which another CPU asks this one to look at its work.
pub(crate) const KICK_VECTOR: u8 = 0xf1;
/// Vector of the serial line.
pub(crate) const SERIAL_VECTOR: u8 = 0xe8;
/// Spurious interrupts; their handler must not end an interrupt.
pub(crate) const SPURIOUS_VECTOR: u8 = 0xff;

const ID: u64 = 0x20;
const TASK_PRIORITY: u64 = 0x80;
const END_OF_INTERRUPT: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const REQUESTED: u64 = 0x200;
const COMMAND_LOW: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const TIMER: u64 = 0x320;
const LINT0: u64 = 0x350;
const LINT1: u64 = 0x360;
const ERROR: u64 = 0x370;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

const MASKED: u32 = 1 << 16;
/// In a command: the level is high, as all commands that are sent here have it.
const ASSERT: u32 = 1 << 14;
/// In a command: the former is not delivered yet.
const IS_PENDING: u32 = 1 << 12;

/// Where the local APIC's registers are mapped; 0: they are MSRs. `init` sets it before anything else here is called.
static LOCAL: AtomicU64 = AtomicU64::new(0);

/// By which way the registers are reached.
pub(crate) fn access() -> Access {
    if LOCAL.load(Ordering::Relaxed) == 0 { Access::Msr } else { Access::Memory }
}

const fn msr_of(register: u64) -> u32 {
    0x800 + (register >> 4) as u32
}

fn read(register: u64) -> u32 {
    match LOCAL.load(Ordering::Relaxed) {
        0 => cpu::read_msr(msr_of(register)) as u32,
        // SAFETY: `init` mapped the register page.
        page => unsafe { ((page + register) as *const u32).read_volatile() },
    }
}

#[inline]
fn write(register: u64, value: u32) {
    match LOCAL.load(Ordering::Relaxed) {
        0 => write_msr(register, value.into()),
        // SAFETY: as in `read`.
        page => unsafe { ((page + register) as *mut u32).write_volatile(value) },
    }
}

#[cold]
fn write_msr(register: u64, value: u64) {
    // SAFETY: the local APIC is in x2APIC mode, and its registers change nothing that Rust code relies on.
    unsafe { cpu::write_msr(msr_of(register), value) };
}

/// Masks the PICs after moving them to vectors that nobody uses, where a late interrupt does no harm.
fn silence_pics() {
    for (command, vectors, cascade) in [(0x20, 0x20, 4), (0xa0, 0x28, 2)] {
        port_out::<u8>(command, 0x11);
        for word in [vectors, cascade, 1, 0xff] {
            port_out::<u8>(command + 1, word);
        }
    }
}

/// Turns the boot CPU's local APIC on, all its sources masked; maps the I/O APICs and masks all their pins. `x2apic` is what the
/// command line asks.
pub(crate) fn init(acpi: &Acpi, x2apic: Option<bool>) {
    silence_pics();
    let base = cpu::read_msr(msr::APIC_BASE);
    let (access, why) = local_apic::access(x2apic, cpu::cpuid(1, 0), base);
    log::info!("local APIC: {why}");
    if access == Access::Memory {
        let address = acpi.local_apic.unwrap_or(base & 0x000f_ffff_ffff_f000);
        LOCAL.store(paging::device(address).expect("a place for the local APIC"), Ordering::Relaxed);
    }
    init_local();
    if id() > LAST_SHORT_ID {
        log::warn!("interrupts of devices do not reach the boot CPU, whose APIC id is {}", id());
    }
    IO_APICS.call_once(|| Mutex::new(acpi.io_apics.iter().filter_map(IoApic::masked).collect()));
}

/// Turns this CPU's local APIC on, all its sources masked. The registers of each CPU's are at one address, which [`init`]
/// mapped, or are MSRs.
pub(crate) fn init_local() {
    for base in local_apic::ways_to(access(), cpu::read_msr(msr::APIC_BASE)) {
        // SAFETY: the APIC ends on, at its address, in the mode that all its users here go by.
        unsafe { cpu::write_msr(msr::APIC_BASE, base) };
    }
    write(TASK_PRIORITY, 0);
    write(TIMER, MASKED);
    write(LINT0, MASKED);
    write(LINT1, 4 << 8); // NMI
    write(ERROR, MASKED);
    write(DIVIDE, 0xb); // by 1
    write(SPURIOUS, 1 << 8 | u32::from(SPURIOUS_VECTOR));
}

/// The APIC ids of the CPUs by their numbers: the boot CPU's, which this runs on, then the others' in the order of ACPI's
/// table.
pub(crate) fn ids(acpi: &Acpi) -> ArrayVec<u32, MAX_CPUS> {
    let own = id();
    core::iter::once(own).chain(acpi.cpus.iter().copied().filter(|&id| id != own)).take(MAX_CPUS).collect()
}

/// Sends an interrupt command to the CPU with this APIC id.
fn send(apic_id: u32, command: u32) {
    if access() == Access::Msr {
        return send_by_msr(u64::from(apic_id) << 32 | u64::from(ASSERT | command));
    }
    // A command that is written over a pending one may be lost.
    while read(COMMAND_LOW) & IS_PENDING != 0 {
        core::hint::spin_loop();
    }
    write(COMMAND_HIGH, apic_id << 24);
    write(COMMAND_LOW, ASSERT | command);
}

/// Sends a command in x2APIC mode, where none is ever pending.
#[cold]
fn send_by_msr(command: u64) {
    // SAFETY: fences change no memory. Writes of these MSRs wait for no earlier store, which the CPU that is interrupted is
    // to see: Intel SDM volume 3, "x2APIC register address space".
    unsafe { core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags)) };
    write_msr(COMMAND_LOW, command);
}

/// Stops a CPU until [`send_start`].
pub(crate) fn send_init(apic_id: u32) {
    send(apic_id, 5 << 8);
}

/// Stops all other CPUs for ever, by an NMI, whose handler sees that this CPU panics.
pub(crate) fn stop_others() {
    const MOST_LOOKS: u32 = 1 << 20;
    let command = 3 << 18 | ASSERT | 4 << 8;
    match access() {
        Access::Memory => {
            // This CPU may have panicked right after a command. A panic waits for nothing without end.
            let _ = (0..MOST_LOOKS).find(|_| read(COMMAND_LOW) & IS_PENDING == 0);
            write(COMMAND_LOW, command);
        }
        Access::Msr => send_by_msr(command.into()),
    }
}

/// Interrupts this CPU, as soon as it takes interrupts.
#[cold]
fn kick_self() {
    send(id(), u32::from(KICK_VECTOR));
}

/// Nothing was to be done, and no interrupt waited, when this CPU looked: the counting plugin counts from here, by this function's name, how long an
/// interrupt waits that comes now.
#[cold]
#[inline(never)]
fn nothing_waits() {
    core::hint::black_box(());
}

/// Wakes a CPU that sleeps with interrupts off.
fn send_nmi(apic_id: u32) {
    send(apic_id, 4 << 8);
}

/// Lets a CPU that was stopped execute the page `page`, below 1 MiB, in real mode.
pub(crate) fn send_start(apic_id: u32, page: u64) {
    send(apic_id, 6 << 8 | (page >> 12) as u32 & 0xff);
}

/// This CPU's APIC id.
pub(crate) fn id() -> u32 {
    match access() {
        Access::Memory => read(ID) >> 24,
        Access::Msr => read(ID),
    }
}

/// Tells the local APIC that the interrupt was taken.
#[inline]
pub(crate) fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

/// Starts the timer: one interrupt after `ticks` of the bus clock; 0 stops it.
#[inline]
pub(crate) fn start_timer(ticks: u32) {
    write(INITIAL_COUNT, ticks);
}

/// Lets the timer interrupt, once per start.
pub(crate) fn enable_timer() {
    write(TIMER, u32::from(TIMER_VECTOR));
}

/// What is left of the timer's count.
pub(crate) fn timer_count() -> u32 {
    read(CURRENT_COUNT)
}

/// An I/O APIC's register window.
struct IoApic {
    registers: u64,
    gsi_base: u32,
    pins: u32,
}

impl IoApic {
    /// Maps an I/O APIC and masks all its pins.
    fn masked(entry: &acpi::IoApic) -> Option<Self> {
        let registers = paging::device(entry.address)?;
        let mut io_apic = Self { registers, gsi_base: entry.gsi_base, pins: 0 };
        io_apic.pins = (io_apic.read(1) >> 16 & 0xff) + 1;
        (0..io_apic.pins).for_each(|pin| io_apic.write(0x10 + 2 * pin, MASKED));
        Some(io_apic)
    }

    fn read(&self, register: u32) -> u32 {
        // SAFETY: the register page is mapped for ever. Callers hold the lock of `IO_APICS`, or are `masked`, before others can
        // reach it: so the accesses to index and data stay together.
        unsafe {
            (self.registers as *mut u32).write_volatile(register);
            ((self.registers + 0x10) as *const u32).read_volatile()
        }
    }

    fn write(&self, register: u32, value: u32) {
        // SAFETY: as in `read`.
        unsafe {
            (self.registers as *mut u32).write_volatile(register);
            ((self.registers + 0x10) as *mut u32).write_volatile(value);
        }
    }
}

static IO_APICS: Once<Mutex<rank::IoApics, ArrayVec<IoApic, 8>>> = Once::new();

fn with_pin(gsi: u32, act: impl FnOnce(&IoApic, u32)) {
    let Some(io_apics) = IO_APICS.get() else { return };
    let io_apics = io_apics.lock();
    if let Some(owner) = io_apics.iter().find(|io| (io.gsi_base..io.gsi_base + io.pins).contains(&gsi)) {
        act(owner, gsi - owner.gsi_base);
    }
}

/// Sends the interrupts of a line to `vector` on the CPU with this APIC id, which is at most [`LAST_SHORT_ID`].
pub(crate) fn route(line: IsaOverride, vector: u8, apic_id: u32) {
    with_pin(line.gsi, |io_apic, pin| {
        let low = u32::from(vector) | u32::from(line.active_low) << 13 | u32::from(line.level) << 15;
        io_apic.write(0x11 + 2 * pin, apic_id << 24);
        io_apic.write(0x10 + 2 * pin, low);
    });
}

/// Masks or unmasks a line.
pub(crate) fn set_masked(gsi: u32, masked: bool) {
    with_pin(gsi, |io_apic, pin| {
        let low = io_apic.read(0x10 + 2 * pin) & !MASKED;
        io_apic.write(0x10 + 2 * pin, low | if masked { MASKED } else { 0 });
    });
}

impl Cpus for Machine {
    #[inline]
    fn cpu(&self) -> CpuId {
        this_cpu()
    }

    fn kick(&self, cpu: CpuId) {
        if cpu != this_cpu()
            && let Some(&apic_id) = self.apic_ids.get(cpu.index())
        {
            send(apic_id, u32::from(KICK_VECTOR));
        }
    }

    fn ask_to_let_go(&self, cpu: CpuId) {
        if percpu::local_of(cpu).is_some_and(|local| !local.asked_to_let_go.swap(true, Ordering::AcqRel)) {
            self.kick(cpu);
        }
    }

    fn park(&self, cpu: CpuId) -> bool {
        if let Some(local) = percpu::local_of(cpu) {
            local.is_to_park.store(true, Ordering::Release);
            // An idle CPU that is asked for that looks whether it is to park.
            local.asked_to_let_go.store(true, Ordering::Release);
            self.kick(cpu);
        }
        !percpu::online().contains(cpu)
    }

    fn unpark(&self, cpu: CpuId) -> bool {
        let Some(local) = percpu::local_once_up(cpu) else { return false };
        local.is_to_park.store(false, Ordering::SeqCst);
        let is_up = percpu::online().contains(cpu);
        // An NMI may come just before the CPU sleeps: the caller asks again, and another NMI comes.
        if !is_up && let Some(&apic_id) = self.apic_ids.get(cpu.index()) {
            send_nmi(apic_id);
        }
        is_up
    }

    fn online(&self) -> CpuSet {
        percpu::online()
    }

    fn work_pending(&self) -> bool {
        // The local APIC's request words are eight uncached reads, and long operations ask at each step: within this
        // number of ticks after the last read (some 12 us) the answer is no.
        const TICKS: u64 = 1 << 15;
        let local = percpu::local();
        local.flush_if_asked(paging::flush_local);
        // An interrupt that was seen stays pending while the callers unwind, so each of them gets the answer
        // `true`.
        if local.interrupt_waits.load(Ordering::Relaxed) {
            return true;
        }
        let now = cpu::rdtsc();
        if now < local.poll_at.load(Ordering::Relaxed) {
            return false;
        }
        local.poll_at.store(now + TICKS, Ordering::Relaxed);
        // Where one thread of an emulator executes all CPUs by turns, another that waits for this one gets its turn.
        core::hint::spin_loop();
        if (0..8).all(|word| read(REQUESTED + word * 0x10) == 0) {
            if !sync::is_waited_for() {
                nothing_waits();
                return false;
            }
            // The CPU that waits may have an interrupt, and is given the lock as if this CPU had it. Now this CPU has one, too.
            local.gives_way.store(true, Ordering::Relaxed);
            kick_self();
        }
        local.interrupt_waits.store(true, Ordering::Relaxed);
        true
    }
}
