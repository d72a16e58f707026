//! What the policy needs of a machine. The binary implements it for the hardware, tests for plain memory.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

use ring_abi::shared::SharedBytes;
use ring_abi::types::{Maddr, Mfn};

/// The most physical CPUs that are used.
pub const MAX_CPUS: usize = 64;

/// Entries of a page table that [`Platform::present_groups`] looks at together.
pub const GROUP: usize = 8;

/// A physical CPU, counted from 0 (the boot CPU).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(u32);

impl CpuId {
    /// The boot CPU.
    pub const BOOT: Self = Self(0);

    /// CPU number `raw`, or `None` from [`MAX_CPUS`] on.
    pub const fn new(raw: u32) -> Option<Self> {
        if (raw as usize) < MAX_CPUS { Some(Self(raw)) } else { None }
    }

    /// The number.
    #[inline]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The number as an index, below [`MAX_CPUS`].
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A set of physical CPUs, a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CpuSet(u64);

impl CpuSet {
    /// No CPU.
    pub const EMPTY: Self = Self(0);
    /// Every CPU there could be.
    pub const ALL: Self = Self(u64::MAX);

    /// The set with bit n for CPU n.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Bit n for CPU n.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Just `cpu`.
    pub const fn only(cpu: CpuId) -> Self {
        Self(1 << cpu.0)
    }

    /// Whether `cpu` is in it.
    pub const fn contains(self, cpu: CpuId) -> bool {
        self.0 & (1 << cpu.0) != 0
    }

    /// Adds `cpu`.
    pub const fn with(self, cpu: CpuId) -> Self {
        Self(self.0 | 1 << cpu.0)
    }

    /// Whether no CPU is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Says that this CPU owes no flush of its TLB, so that guest memory may be reached by guest addresses.
///
/// A translation that a flush is owed for may lead anywhere, and a hypercall that reads its arguments through it reads
/// what is not the guest's (I5). So every access takes one of these, and only those who know can make one: a session on
/// page tables, which flushes first ([`Mm::settle`](crate::mem::tables::Mm)); and what runs while this CPU has no such
/// session: [`Current`](crate::hypercall::Current), which a session borrows as a whole, and the switch of vCPUs.
#[derive(Debug)]
pub struct Settled<'a>(PhantomData<&'a mut ()>);

impl Settled<'_> {
    /// The caller answers for it that no flush is owed.
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }
}

/// A guest virtual address could not be read or written: not mapped so, or the hypervisor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestFault {
    /// Where the copy stopped.
    pub va: u64,
}

/// How the TSC gives system time: ns = `system_ns` + (((tsc - `tsc`) << `shift`) * `mul` >> 32).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeParams {
    /// TSC value at which system time was `system_ns`.
    pub tsc: u64,
    /// System time in ns at `tsc`.
    pub system_ns: u64,
    /// 32.32 fixed-point ns per shifted tick.
    pub mul: u32,
    /// Left shift of the tick count, right when negative.
    pub shift: i8,
    /// Changes whenever the other fields do.
    pub generation: u32,
    /// TSC frequency.
    pub tsc_khz: u32,
    /// All CPUs' TSCs tell the same, so that one set of parameters holds for whoever reads, wherever it runs.
    pub is_stable: bool,
}

/// What the machine is to do when everything is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerAction {
    /// Turn the power off (ACPI S5).
    Off,
    /// Start again.
    Reboot,
    /// Stop as broken: dom0 crashed.
    Crash,
}

/// A segment base that `set_segment_base` sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentBase {
    /// FS.
    Fs,
    /// GS of guest user mode.
    GsUser,
    /// GS of guest kernel mode.
    GsKernel,
}

/// Where the processor sees a vCPU's GDT and LDT. The vCPU keeps the window; the machine makes and ends it.
#[derive(Debug, Default)]
pub struct DescriptorWindow(AtomicU64);

impl DescriptorWindow {
    /// The machine's name for the window; 0: none.
    #[inline]
    pub fn place(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Sets what the machine calls the window; the former name.
    pub fn replace(&self, place: u64) -> u64 {
        self.0.swap(place, Ordering::AcqRel)
    }
}

/// A page of a vCPU's descriptor-table window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorPage {
    /// Page 0-13 of the GDT.
    Gdt(u8),
    /// Page 0-15 of the LDT.
    Ldt(u8),
}

/// The four result registers of `cpuid`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidResult {
    /// eax.
    pub eax: u32,
    /// ebx.
    pub ebx: u32,
    /// ecx.
    pub ecx: u32,
    /// edx.
    pub edx: u32,
}

/// What is known of the machine, as `sysctl` tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineInfo {
    /// CPUs in use.
    pub cpus: u32,
    /// TSC frequency.
    pub cpu_khz: u32,
    /// CPUID leaf 1 edx, ecx; 0x80000001 edx, ecx; 7 ebx ...: the words of `xen_sysctl_physinfo.hw_cap`.
    pub hw_cap: [u32; 8],
    /// Bytes of the hypervisor's heap that are in use.
    pub heap_used_bytes: u64,
    /// Bytes that the heap has taken from the frame allocator.
    pub heap_bytes: u64,
}

/// The machine. All methods take `&self`: implementations are shared by all CPUs.
///
/// Interrupts are off in every call.
pub trait Platform: Sync + Sized + 'static {
    // --- Machine memory: only frames that the frame table says are RAM. ---

    /// Loads an aligned u64 (acquire).
    fn load(&self, at: Maddr) -> u64;
    /// Stores an aligned u64 (release).
    fn store(&self, at: Maddr, value: u64);
    /// Replaces `old` at the aligned address by `new`; the error is what was there instead.
    fn compare_exchange(&self, at: Maddr, old: u64, new: u64) -> Result<u64, u64>;
    /// A page-table frame as entries.
    fn table(&self, mfn: Mfn) -> &[AtomicU64; 512];
    /// Which entries of a page-table frame are present: bit n is set when one of the [`GROUP`] from GROUP * n on is.
    fn present_groups(&self, mfn: Mfn) -> u64 {
        let any = |group: &[AtomicU64]| group.iter().any(|entry| entry.load(Ordering::Acquire) & 1 != 0);
        let groups = self.table(mfn).chunks(GROUP).enumerate();
        groups.fold(0, |bits, (n, group)| bits | u64::from(any(group)) << n)
    }
    /// Copies out of machine memory.
    fn read_bytes(&self, from: Maddr, to: &mut [u8]);
    /// Copies into machine memory.
    fn write_bytes(&self, to: Maddr, from: &[u8]);
    /// Copies between two ranges of machine memory that do not cross a page.
    fn copy_bytes(&self, to: Maddr, from: Maddr, len: usize);
    /// Fills a frame with zeros.
    fn zero_frame(&self, mfn: Mfn);
    /// The hypervisor's own view of a whole frame. The view is never unmapped; that the frame stays the same domain's is
    /// for the caller's references to see to.
    fn shared(&self, mfn: Mfn) -> SharedBytes<'static>;

    // --- Guest virtual memory through the loaded page tables. ---

    /// Reads guest memory with the rights of the guest's kernel; stops at the first fault.
    fn copy_from_guest(&self, settled: Settled<'_>, to: &mut [u8], va: u64) -> Result<(), GuestFault>;
    /// Writes guest memory with the rights of the guest's kernel; stops at the first fault.
    fn copy_to_guest(&self, settled: Settled<'_>, va: u64, from: &[u8]) -> Result<(), GuestFault>;

    /// Writes the words of a trap frame at guest address `va`, with the rights of the guest's kernel.
    fn write_frame<const N: usize>(
        &self,
        settled: Settled<'_>,
        va: u64,
        words: [u64; N],
    ) -> Result<(), GuestFault> {
        self.copy_to_guest(settled, va, zerocopy::IntoBytes::as_bytes(&words))
    }
    /// Reads a few words at guest address `va`, with the rights of the guest's kernel.
    fn read_words(&self, settled: Settled<'_>, to: &mut [u64], va: u64) -> Result<(), GuestFault> {
        self.copy_from_guest(settled, zerocopy::IntoBytes::as_mut_bytes(to), va)
    }
    /// Reads the words of a frame at guest address `va`, with the rights of the guest's kernel.
    fn read_frame<const N: usize>(&self, settled: Settled<'_>, va: u64) -> Result<[u64; N], GuestFault> {
        let mut words = [0; N];
        self.copy_from_guest(settled, zerocopy::IntoBytes::as_mut_bytes(&mut words), va)?;
        Ok(words)
    }

    // --- Paging. ---

    /// Loads a page-table base, which flushes what is not global.
    fn load_cr3(&self, l4: Mfn);
    /// Loads a page-table base and flushes this CPU's TLB, global entries included.
    fn load_cr3_flushing(&self, l4: Mfn) {
        self.load_cr3(l4);
        self.flush_tlb_local();
    }
    /// Flushes this CPU's TLB, global entries included.
    fn flush_tlb_local(&self);
    /// Flushes one page of this CPU's TLB.
    fn invlpg(&self, va: u64);
    /// Flushes the TLBs of `cpus`, and waits until it is done.
    fn flush_tlb(&self, cpus: CpuSet);
    /// Writes the hypervisor's slots (256-271) of a guest L4 that is being validated.
    fn fill_hypervisor_slots(&self, l4: Mfn);
    /// Sets the machine-to-physical entry of a frame; `None` is all ones.
    fn set_m2p(&self, mfn: Mfn, pfn: Option<u64>);
    /// The machine-to-physical entry of a frame.
    fn m2p(&self, mfn: Mfn) -> Option<u64>;
    /// Maps a frame at a page of a vCPU's descriptor window, or the null page.
    fn set_descriptor_page(&self, window: &DescriptorWindow, page: DescriptorPage, frame: Option<Mfn>);

    // --- vCPU state that lives in registers while the vCPU runs. ---

    /// Makes the window of a new vCPU. `false`: out of memory.
    fn create_window(&self, window: &DescriptorWindow) -> bool;
    /// Frees what [`Platform::create_window`] made. The vCPU runs nowhere.
    fn destroy_window(&self, window: &DescriptorWindow);
    /// Exchanges the loaded GS base with the other mode's: the vCPU goes from kernel to user mode or back.
    fn swap_gs(&self);
    /// Sets a segment base of the running vCPU. The value was checked to be canonical.
    fn set_segment_base(&self, base: SegmentBase, value: u64);
    /// A segment base of the running vCPU as it is now.
    fn segment_base(&self, base: SegmentBase) -> u64;
    /// Loads GS of guest user mode from a selector of the guest; a bad one loads null.
    fn load_user_gs(&self, selector: u16);
    /// Sets a debug register of this CPU. The value was checked.
    fn set_debug_register(&self, index: u8, value: u64);
    /// Reads a debug register of this CPU.
    fn debug_register(&self, index: u8) -> u64;
    /// Sets CR0.TS of this CPU, so that the next floating-point instruction traps.
    fn set_task_switched(&self, on: bool);
    /// Loads the GDT and LDT registers anew if they are those of this window: its LDT has `ldt_entries` entries now. The
    /// vCPU may be another than the one that runs.
    fn reload_descriptor_tables(&self, window: &DescriptorWindow, ldt_entries: u16);

    // --- Time and CPUs. ---

    /// System time: ns since boot.
    fn now_ns(&self) -> u64;
    /// This CPU's TSC.
    fn tsc(&self) -> u64;
    /// How the TSC gives system time.
    fn time_params(&self) -> TimeParams;
    /// `TimeParams::generation` alone.
    fn clock_generation(&self) -> u32 {
        self.time_params().generation
    }
    /// Wall time in ns since 1970 at system time 0, as read from the RTC at boot.
    fn boot_wall_ns(&self) -> u64;
    /// Programs this CPU's timer interrupt: system time, or none.
    fn set_timer(&self, deadline_ns: Option<u64>);
    /// The CPU that this runs on.
    fn cpu(&self) -> CpuId;
    /// Makes another CPU look at its pending work.
    fn kick(&self, cpu: CpuId);
    /// Whether the hypervisor's heap can give a piece of `bytes`, and has then still what a call needs for
    /// itself while it runs. That there are free frames says little: a guest chooses which are free, and the heap grows by
    /// frames in a row.
    fn heap_has_room(&self, bytes: usize) -> bool;
    /// Whether an interrupt is waiting: long operations then return a continuation. A `true` stays so until an interrupt
    /// is taken, which is at the return to the guest at the latest: all callers of what asked hear the same. (I13)
    fn work_pending(&self) -> bool;

    // --- Devices. ---

    /// Writes to the serial console, for a domain, what there is room for; gives how much. Nobody waits for the line.
    fn console_write(&self, bytes: &[u8]) -> usize;
    /// Whether so much waits for the serial line that a domain should print no more than it must.
    fn console_is_busy(&self) -> bool;
    /// Reads the kept console output from byte `from` of all that was ever written; the start of what is given (later
    /// than `from` when that is gone) and its length.
    fn console_log(&self, from: u64, to: &mut [u8]) -> (u64, usize);
    /// Forgets the kept console output.
    fn clear_console_log(&self);
    /// Turns the machine off or restarts it. Returns only on the host.
    fn power(&self, action: PowerAction);
    /// Reads a port: `size` 1, 2 or 4 bytes.
    fn port_in(&self, port: u16, size: u8) -> u32;
    /// Writes a port: `size` 1, 2 or 4 bytes.
    fn port_out(&self, port: u16, size: u8, value: u32);
    /// Reads an aligned u32 of a device's memory.
    fn mmio_read(&self, at: Maddr) -> u32;
    /// Writes an aligned u32 of a device's memory.
    fn mmio_write(&self, at: Maddr, value: u32);
    /// Address and data of the message that raises `vector` on the boot CPU.
    fn msi_message(&self, vector: u8) -> (u64, u32);
    /// Lets a legacy interrupt line (0-15) raise `vector`, or nothing.
    fn route_line(&self, line: u8, vector: Option<u8>);
    /// Masks or unmasks a legacy interrupt line (0-15).
    fn mask_line(&self, line: u8, masked: bool);
    /// What the CPU answers to `cpuid`.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult;
    /// XCR0 bits that guests may set; 0 where microhv switches by `FXSAVE`.
    fn xcr0_mask(&self) -> u64;
    /// Loads XCR0 for the running vCPU. The value was checked against [`Platform::xcr0_mask`].
    fn set_xcr0(&self, value: u64);
    /// IA32_EFER of this CPU.
    fn efer(&self) -> u64;
    /// The hypervisor's command line.
    fn command_line(&self) -> &str {
        ""
    }
    /// The image's build id; empty: none.
    fn build_id(&self) -> &[u8] {
        &[]
    }
    /// Facts for `sysctl`.
    fn machine_info(&self) -> MachineInfo;
}
