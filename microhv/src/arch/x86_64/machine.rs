//! The library's [`Platform`] on the hardware.
#![allow(unsafe_code)] // machine memory through the direct map, registers

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use microhv::Hypervisor;
use microhv::boot::acpi::Acpi;
use microhv::emul::{self, Emulated};
use microhv::hypercall::Current;
use microhv::mem::emulate::FaultOutcome;
use microhv::platform::*;
use microhv::traps;
use ring_abi::shared::SharedBytes;
use ring_abi::types::{Maddr, Mfn, PAGE_SIZE};

use super::cpu::{self, msr};
use super::guest_access::{self, DataSegment};
use super::percpu::{self, Local};
use super::{apic, fpu, heap, paging, panic, power, serial, start, time, windows};

/// How long a machine may take to go off or to start again, in ns.
const POWER_NS: u64 = 1_000_000_000;

/// The hypervisor of this machine.
pub(crate) type Hv = Hypervisor<Machine>;
/// The vCPU that runs here, and all it may act on.
pub(crate) type Cur<'a> = Current<'a, Machine>;

/// What cannot be found out by an instruction.
#[derive(Debug)]
pub(crate) struct Machine {
    /// ACPI's tables.
    pub(crate) acpi: &'static Acpi,
    /// Wall time at system time 0.
    pub(crate) boot_wall_ns: u64,
    /// What the boot CPU is.
    pub(crate) info: MachineInfo,
    /// Halt instead of a restart.
    pub(crate) no_reboot: bool,
}

struct Global(UnsafeCell<MaybeUninit<Hv>>);

// SAFETY: written once before any other use; `Hypervisor` is shared by all CPUs and is `Sync`.
unsafe impl Sync for Global {}

static HYPERVISOR: Global = Global(UnsafeCell::new(MaybeUninit::uninit()));
static IS_UP: AtomicBool = AtomicBool::new(false);

/// Installs the hypervisor.
///
/// # Safety
/// Once, at start-up, before [`hypervisor`].
pub(crate) unsafe fn install(hv: Hv) -> &'static mut Hv {
    // SAFETY: the caller's duty; nobody else has a reference yet.
    let hv = unsafe { (*HYPERVISOR.0.get()).write(hv) };
    IS_UP.store(true, Ordering::Release);
    hv
}

/// The hypervisor. Only after [`install`].
#[inline(always)]
pub(crate) fn hypervisor() -> &'static Hv {
    // SAFETY: guests and interrupts come only after `install`.
    unsafe { (*HYPERVISOR.0.get()).assume_init_ref() }
}

/// The hypervisor, if it is installed.
pub(crate) fn hypervisor_if_up() -> Option<&'static Hv> {
    IS_UP.load(Ordering::Acquire).then(hypervisor)
}

/// Calls `act` with the current vCPU. There is one: a guest was just interrupted, or is about to go on.
#[inline(always)]
pub(crate) fn with_current<R>(local: &'static Local, act: impl FnOnce(&mut Cur<'_>) -> R) -> R {
    debug_assert!(local.is_busy());
    // SAFETY: only called where a vCPU runs.
    let (domain, vcpu) = unsafe { local.current_unchecked() };
    // SAFETY: the frame of the vCPU that runs here is this CPU's alone, and callers do not nest.
    let regs = unsafe { &mut *vcpu.regs_ptr() };
    act(&mut Current { hv: hypervisor(), domain, vcpu, regs })
}

/// This CPU.
#[inline(always)]
pub(crate) fn this_cpu() -> CpuId {
    CpuId::BOOT
}

/// Loads an L4, which flushes what is not marked global.
#[inline]
pub(crate) fn load_l4(maddr: u64) {
    // SAFETY: a validated L4, or the hypervisor's: both hold the hypervisor's slots.
    unsafe { cpu::set_cr3(maddr) };
}

/// Flushes what is marked global too, which guests' user pages are.
pub(crate) fn flush_global() {
    if !flush_by_global_pages() {
        load_l4(cpu::cr3());
    }
}

/// Loads an L4 and flushes what is marked global too.
#[inline]
pub(crate) fn load_l4_flushing_global(maddr: u64) {
    load_l4(maddr);
    flush_by_global_pages();
}

/// Flushes all by turning global pages off and on; `false`: they are off, and a load of CR3 flushes all.
#[inline]
fn flush_by_global_pages() -> bool {
    let cr4 = cpu::cr4();
    let is_on = cr4 & paging::CR4_PGE != 0;
    if is_on {
        // SAFETY: turns global pages off and on again, nothing else.
        unsafe {
            cpu::set_cr4(cr4 & !paging::CR4_PGE);
            cpu::set_cr4(cr4);
        }
    }
    is_on
}

/// Lets `rdtsc` in ring 3 trap, or not.
pub(crate) fn set_tsc_trapping(on: bool) {
    const CR4_TSD: u64 = 1 << 2;
    let cr4 = cpu::cr4();
    let wanted = if on { cr4 | CR4_TSD } else { cr4 & !CR4_TSD };
    if wanted != cr4 {
        // SAFETY: the hypervisor may read the TSC in any case.
        unsafe { cpu::set_cr4(wanted) };
    }
}

/// Machine memory as a pointer.
#[inline(always)]
fn at(maddr: u64) -> *mut u8 {
    paging::direct(maddr) as *mut u8
}

#[inline(always)]
fn word(at_maddr: Maddr) -> &'static AtomicU64 {
    debug_assert!(at_maddr.raw().is_multiple_of(8));
    // SAFETY: callers pass aligned addresses of RAM frames by the frame table; the direct map is there for ever, and
    // guests' concurrent accesses are atomic words to us.
    unsafe { &*at(at_maddr.raw()).cast::<AtomicU64>() }
}

impl MachineMemory for Machine {
    #[inline]
    fn load(&self, at: Maddr) -> u64 {
        word(at).load(Ordering::Acquire)
    }

    #[inline]
    fn store(&self, at: Maddr, value: u64) {
        word(at).store(value, Ordering::Release);
    }

    #[inline]
    fn compare_exchange(&self, at: Maddr, old: u64, new: u64) -> Result<u64, u64> {
        word(at).compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
    }

    #[inline]
    fn table(&self, mfn: Mfn) -> &[AtomicU64; 512] {
        // SAFETY: as in `word`: a whole RAM frame.
        unsafe { &*at(mfn.maddr().raw()).cast() }
    }

    #[inline(never)] // four copies would be 8 KiB
    fn present_groups(&self, mfn: Mfn) -> u64 {
        let groups;
        // A present bit goes by way of the carry into the top of the word, which 64 of them fill. The compiler would
        // load every entry by an instruction of its own: this runs at each pin, for mostly empty tables.
        // SAFETY: reads a whole RAM frame, as `table` gives it; another CPU may set its accessed and dirty bits.
        unsafe {
            asm!(
                "2:",
                ".irp group, 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960",
                "mov {any:e}, [{at} + \\group]",
                ".irp entry, 8, 16, 24, 32, 40, 48, 56",
                "or {any:e}, [{at} + \\group + \\entry]",
                ".endr",
                "shr {any:e}, 1",
                "rcr {groups}, 1",
                ".endr",
                "add {at}, 1024",
                "dec {left:e}",
                "jnz 2b",
                at = inout(reg) at(mfn.maddr().raw()) => _, any = out(reg) _, groups = out(reg) groups,
                left = inout(reg) 4 => _,
                options(nostack, readonly),
            );
        }
        groups
    }

    fn read_bytes(&self, from: Maddr, to: &mut [u8]) {
        // SAFETY: RAM by the frame table; `to` is private.
        unsafe { core::ptr::copy_nonoverlapping(at(from.raw()), to.as_mut_ptr(), to.len()) };
    }

    fn write_bytes(&self, to: Maddr, from: &[u8]) {
        // SAFETY: as in `read_bytes`.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), at(to.raw()), from.len()) };
    }

    #[inline]
    fn copy_bytes(&self, to: Maddr, from: Maddr, len: usize) {
        // SAFETY: RAM by the frame table. Ranges of one frame may overlap: bytes are then repeated, which is all that a
        // guest that asks for it gets.
        unsafe {
            core::arch::asm!(
                "rep movsq",
                "mov ecx, {tail:e}",
                "rep movsb",
                tail = in(reg) len & 7,
                inout("rcx") len >> 3 => _, inout("rsi") at(from.raw()) => _, inout("rdi") at(to.raw()) => _,
                options(nostack, preserves_flags),
            );
        }
    }

    #[inline]
    fn zero_frame(&self, mfn: Mfn) {
        // SAFETY: a whole RAM frame that nobody uses yet.
        unsafe { core::ptr::write_bytes(at(mfn.maddr().raw()), 0, PAGE_SIZE) };
    }

    #[inline]
    fn shared(&self, mfn: Mfn) -> SharedBytes<'static> {
        // SAFETY: the direct map covers all RAM for ever; shared frames are reached by atomics or such values alone.
        unsafe { SharedBytes::new(at(mfn.maddr().raw()), PAGE_SIZE) }
    }

    #[inline]
    fn set_m2p(&self, mfn: Mfn, pfn: Option<u64>) {
        if let Some(entry) = paging::m2p_entry(mfn.raw()) {
            entry.store(pfn.unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    #[inline]
    fn m2p(&self, mfn: Mfn) -> Option<u64> {
        let pfn = paging::m2p_entry(mfn.raw())?.load(Ordering::Relaxed);
        (pfn != u64::MAX).then_some(pfn)
    }
}

impl GuestMemory for Machine {
    #[inline(always)]
    fn copy_from_guest(&self, _: Settled<'_>, to: &mut [u8], va: u64) -> Result<(), GuestFault> {
        guest_access::copy_from(to, va)
    }

    #[inline(always)]
    fn copy_to_guest(&self, _: Settled<'_>, va: u64, from: &[u8]) -> Result<(), GuestFault> {
        guest_access::copy_to(va, from)
    }

    #[inline(always)]
    fn write_frame<const N: usize>(
        &self,
        _: Settled<'_>,
        va: u64,
        words: [u64; N],
    ) -> Result<(), GuestFault> {
        guest_access::write_frame(va, words)
    }

    #[inline(always)]
    fn read_words(&self, _: Settled<'_>, to: &mut [u64], va: u64) -> Result<(), GuestFault> {
        guest_access::read_words(to, va)
    }

    #[inline(always)]
    fn read_frame<const N: usize>(&self, _: Settled<'_>, va: u64) -> Result<[u64; N], GuestFault> {
        guest_access::read_frame(va)
    }
}

impl Paging for Machine {
    #[inline]
    fn load_cr3(&self, l4: Mfn) {
        load_l4(l4.maddr().raw());
    }

    #[inline]
    fn load_cr3_flushing(&self, l4: Mfn) {
        load_l4_flushing_global(l4.maddr().raw());
    }

    fn flush_tlb_local(&self) {
        flush_global();
    }

    #[inline]
    fn invlpg(&self, va: u64) {
        // XSA-279: a non-canonical address does nothing; the hypervisor's own pages may be dropped at any time.
        cpu::invlpg(va);
    }

    fn flush_tlb(&self, cpus: CpuSet) {
        if cpus.contains(this_cpu()) {
            flush_global();
        }
    }

    fn fill_hypervisor_slots(&self, l4: Mfn) {
        paging::fill_slots(l4.maddr().raw());
    }
}

impl DescriptorWindows for Machine {
    fn create_window(&self, window: &DescriptorWindow) -> bool {
        windows::create(window)
    }

    fn destroy_window(&self, window: &DescriptorWindow) {
        windows::destroy(window);
    }

    fn set_descriptor_page(&self, window: &DescriptorWindow, page: DescriptorPage, frame: Option<Mfn>) {
        windows::set_page(window, page, frame);
    }

    fn reload_descriptor_tables(&self, window: &DescriptorWindow, ldt_entries: u16) {
        windows::reload(window, ldt_entries);
    }
}

impl Registers for Machine {
    #[inline]
    fn swap_gs(&self) {
        cpu::swapgs();
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
        cpu::swapgs();
        guest_access::load_selector(DataSegment::Gs, selector);
        cpu::swapgs();
    }

    fn set_debug_register(&self, index: u8, value: u64) {
        // SAFETY: the caller checked the value: no breakpoint in the hypervisor.
        unsafe {
            match index {
                0 => cpu::set_dr0(value),
                1 => cpu::set_dr1(value),
                2 => cpu::set_dr2(value),
                3 => cpu::set_dr3(value),
                6 => cpu::set_dr6(value),
                _ => cpu::set_dr7(value),
            }
        }
    }

    fn debug_register(&self, index: u8) -> u64 {
        match index {
            0 => cpu::dr0(),
            1 => cpu::dr1(),
            2 => cpu::dr2(),
            3 => cpu::dr3(),
            6 => cpu::dr6(),
            _ => cpu::dr7(),
        }
    }

    fn set_task_switched(&self, on: bool) {
        fpu::set_task_switched(on);
    }

    fn set_xcr0(&self, value: u64) {
        fpu::set_guest_xcr0(value);
    }
}

impl Clock for Machine {
    #[inline]
    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    #[inline]
    fn tsc(&self) -> u64 {
        cpu::rdtsc()
    }

    fn time_params(&self) -> TimeParams {
        time::params()
    }

    #[inline]
    fn clock_generation(&self) -> u32 {
        time::generation()
    }

    fn boot_wall_ns(&self) -> u64 {
        self.boot_wall_ns
    }

    fn set_timer(&self, deadline_ns: Option<u64>) {
        time::set_timer(deadline_ns);
    }
}

impl Cpus for Machine {
    #[inline]
    fn cpu(&self) -> CpuId {
        this_cpu()
    }

    fn kick(&self, cpu: CpuId) {
        if cpu != this_cpu()
            && let Some(&apic_id) = self.acpi.cpus.get(cpu.index())
        {
            apic::send_kick(apic_id as u8);
        }
    }

    fn work_pending(&self) -> bool {
        // The local APIC's request words are eight uncached reads, and long operations ask once per step: within so
        // many ticks of the last look (some 12 us) the answer is no.
        const TICKS: u64 = 1 << 15;
        let local = percpu::local();
        // What waits goes on waiting while the callers of the one that asked unwind.
        if local.interrupt_waits.load(Ordering::Relaxed) {
            return true;
        }
        let now = self.tsc();
        if now < local.poll_at.load(Ordering::Relaxed) {
            return false;
        }
        local.poll_at.store(now + TICKS, Ordering::Relaxed);
        let waits = apic::is_pending();
        local.interrupt_waits.store(waits, Ordering::Relaxed);
        waits
    }
}

impl SerialConsole for Machine {
    fn console_write(&self, bytes: &[u8]) -> usize {
        serial::write_for_domain(bytes)
    }

    fn console_is_busy(&self) -> bool {
        serial::is_busy()
    }

    fn console_log(&self, from: u64, to: &mut [u8]) -> (u64, usize) {
        serial::kept(from, to)
    }

    fn clear_console_log(&self) {
        serial::clear_kept();
    }
}

impl Devices for Machine {
    fn port_in(&self, port: u16, size: u8) -> u32 {
        match size {
            1 => cpu::inb(port).into(),
            2 => cpu::inw(port).into(),
            _ => cpu::inl(port),
        }
    }

    fn port_out(&self, port: u16, size: u8, value: u32) {
        if panic::is_debug_exit(port) {
            // The emulator ends at once: what was printed before comes out before.
            serial::drain();
        }
        match size {
            1 => cpu::outb(port, value as u8),
            2 => cpu::outw(port, value as u16),
            _ => cpu::outl(port, value),
        }
    }

    fn mmio_read(&self, at: Maddr) -> u32 {
        // SAFETY: `device` maps the page uncached for ever; the caller knows that it is a device's.
        paging::device(at.raw()).map_or(u32::MAX, |va| unsafe { (va as *const u32).read_volatile() })
    }

    fn mmio_write(&self, at: Maddr, value: u32) {
        if let Some(va) = paging::device(at.raw()) {
            // SAFETY: as in `mmio_read`.
            unsafe { (va as *mut u32).write_volatile(value) };
        }
    }

    fn msi_message(&self, vector: u8) -> (u64, u32) {
        // Fixed delivery, physical destination, edge: Intel SDM volume 3, 11.11.
        (0xfee0_0000 | u64::from(apic::id()) << 12, vector.into())
    }

    fn route_line(&self, line: u8, vector: Option<u8>) {
        let wired = self.acpi.isa(line);
        match vector {
            Some(vector) => apic::route(wired, vector, apic::id()),
            None => apic::set_masked(wired.gsi, true),
        }
    }

    fn mask_line(&self, line: u8, masked: bool) {
        apic::set_masked(self.acpi.isa(line).gsi, masked);
    }

    fn power(&self, action: PowerAction) {
        serial::drain();
        match action {
            PowerAction::Off => power::off(self.acpi),
            PowerAction::Reboot if self.no_reboot => {}
            PowerAction::Reboot => power::restart(self.acpi),
            PowerAction::Crash => panic::debug_exit(panic::EXIT_PANIC),
        }
        // It goes off in its own time; what is said is for one that does not.
        let asked_ns = time::now_ns();
        while time::now_ns().saturating_sub(asked_ns) < POWER_NS {
            core::hint::spin_loop();
        }
        serial::write(b"(microhv) the machine is halted\n");
        cpu::halt_for_ever()
    }
}

impl MachineFacts for Machine {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    }

    fn xcr0_mask(&self) -> u64 {
        fpu::components()
    }

    fn efer(&self) -> u64 {
        cpu::read_msr(msr::EFER)
    }

    fn heap_has_room(&self, bytes: usize) -> bool {
        heap::has_room(bytes)
    }

    fn command_line(&self) -> &str {
        start::command_line()
    }

    fn build_id(&self) -> &[u8] {
        panic::build_id()
    }

    fn machine_info(&self) -> MachineInfo {
        MachineInfo {
            cpu_khz: time::params().tsc_khz,
            heap_used_bytes: heap::used_bytes(),
            heap_bytes: heap::bytes(),
            ..self.info
        }
    }
}

impl Platform for Machine {}

fn base_msr(base: SegmentBase) -> u32 {
    match base {
        SegmentBase::Fs => msr::FS_BASE,
        SegmentBase::GsKernel => msr::GS_BASE,
        SegmentBase::GsUser => msr::SHADOW_GS_BASE,
    }
}

/// Facts about this CPU for `sysctl`.
pub(crate) fn cpu_info() -> MachineInfo {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    let (one, extended, seven) = (__cpuid(1), __cpuid(0x8000_0001), __cpuid_count(7, 0));
    let hw_cap = [one.edx, one.ecx, extended.edx, extended.ecx, 0, seven.ebx, seven.ecx, seven.edx];
    MachineInfo { cpus: 1, hw_cap, ..MachineInfo::default() }
}

/// What the library makes of a faulting instruction of the guest: `true` when the guest goes on.
pub(crate) fn emulate(cur: &mut Cur<'_>, vector: u8) -> bool {
    match emul::emulate(cur, vector) {
        Emulated::Done | Emulated::Again => true,
        Emulated::PageFault { address, write } => {
            traps::page_fault(cur, address, if write { 2 } else { 0 });
            true
        }
        Emulated::NotEmulated | Emulated::SoftwareInterrupt { .. } => false,
    }
}

/// A page fault of the guest that the hypervisor may have to deal with: `true` when the guest goes on.
#[inline]
pub(crate) fn page_fault(cur: &mut Cur<'_>, cr2: u64, error: u32) -> bool {
    /// Present, user, reserved bit: with any of them, it was no load of a descriptor whose page is absent.
    const NO_DESCRIPTOR: u32 = 1 | 4 | 8;
    if error & NO_DESCRIPTOR == 0
        && let Some(offset) = windows::ldt_offset(&cur.vcpu.window, cr2)
    {
        ldt_fault(cur, offset, error);
        return true;
    }
    cur.hv.handle_guest_page_fault(cur, cr2, error) == FaultOutcome::Handled
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
