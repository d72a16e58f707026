//! A virtual CPU: registers, what the guest said about the CPU, whether the CPU may run, its clock.

#![allow(unsafe_code)] // the register frame is written by entry code while the vCPU runs

use alloc::boxed::Box;
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::shared::SharedBytes;
use ring_abi::shared_info::{UPCALL_MASK_OFFSET, UPCALL_PENDING_OFFSET};
use ring_abi::types::{DomId, Mfn, VcpuId};

use super::info::INFO_BYTES;
use super::{CallHistory, EntryPoints, GuestCpu, InfoCell, KernelStack, LEGACY_MAX_VCPUS};
use crate::evtchn::state::VcpuEvents;
use crate::platform::{CpuId, DescriptorWindow};
use crate::sched::state::VcpuSched;
use crate::sync::words::AtomicU32;
use crate::sync::{Mutex, may_come_between, may_come_between_words, rank};
use crate::time::state::VcpuTime;

/// Why a vCPU does not run: bits of `Vcpu::pause_flags`.
#[derive(Clone, Copy, Debug)]
pub struct PauseFlags;

impl PauseFlags {
    /// The vCPU is not up.
    pub const DOWN: u32 = 1;
    /// The vCPU waits for an event (`SCHEDOP_block`, `SCHEDOP_poll`).
    pub const BLOCKED: u32 = 2;
    /// The vCPU waits in `SCHEDOP_poll`: any of the ports that it polls, masked or not, ends the wait.
    pub const POLLING: u32 = 4;
    /// The vCPU waits, in whatever way.
    pub const WAITING: u32 = Self::BLOCKED | Self::POLLING;
}

/// Floating-point state as `XSAVE` or `FXSAVE` keep it.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct FpuArea(UnsafeCell<[u8; Self::BYTES]>);

impl FpuArea {
    /// Enough for x87, SSE, AVX, MPX and AVX-512.
    pub const BYTES: usize = 2752;
    /// From here on to byte 511, the processor leaves the bytes to software: the machine keeps the vCPU's XCR0 there.
    pub const SOFTWARE_OFFSET: usize = 464;

    /// The x87 and SSE part as `FXSAVE` writes it. The vCPU does not run.
    pub fn legacy(&self) -> [u8; 512] {
        // SAFETY: the first 512 bytes of the area; a caller who did not stop the vCPU gets stale bytes, no more.
        unsafe { self.as_ptr().cast::<[u8; 512]>().read_volatile() }
    }

    /// Sets the x87 and SSE part. Bits of MXCSR that do not exist are dropped. The bytes at the end of the part are
    /// software's, and stay. The vCPU does not run.
    pub fn set_legacy(&self, image: &[u8; 512]) {
        let mut image = *image;
        image[26] = 0; // MXCSR bits 16-31 are reserved: loading them faults
        image[27] = 0;
        // SAFETY: within the area, which nobody else touches while the vCPU does not run.
        unsafe {
            image[Self::SOFTWARE_OFFSET..].copy_from_slice(&self.legacy()[Self::SOFTWARE_OFFSET..]);
            self.as_ptr().cast::<[u8; 512]>().write_volatile(image);
            // XSTATE_BV: x87 and SSE are as given, the rest as it was.
            let state_bv = self.as_ptr().add(512).cast::<u64>();
            state_bv.write_volatile(state_bv.read_volatile() | 3);
        }
    }

    /// Copies the area, but for software's bytes, which become 0. The vCPU does not run.
    ///
    /// # Panics
    /// `to` is not as long as the area.
    pub(crate) fn copy_to(&self, to: &mut [u8]) {
        for (index, word) in to.chunks_exact_mut(8).enumerate() {
            // SAFETY: `word` keeps to the area; as in `legacy`, who did not stop the vCPU gets stale bytes, no more.
            word.copy_from_slice(&unsafe { self.word(index * 8).read_volatile() }.to_le_bytes());
        }
        to[Self::SOFTWARE_OFFSET..512].fill(0);
    }

    /// The vCPU's XCR0: x87 and SSE before it ran. The vCPU does not run.
    pub(crate) fn xcr0(&self) -> u64 {
        // SAFETY: `word` keeps to the area, where the machine keeps a word of its own; else as in `copy_to`.
        match unsafe { self.word(Self::SOFTWARE_OFFSET).read_volatile() } {
            0 => 3,
            xcr0 => xcr0,
        }
    }

    /// Sets the whole area, and XCR0. The vCPU does not run; the caller has checked that the CPU loads this header.
    pub(crate) fn replace(&self, xcr0: u64, area: &[u8; Self::BYTES]) {
        for (index, word) in area.as_chunks::<8>().0.iter().enumerate() {
            // SAFETY: `word` keeps to the area, which nobody else touches: the toolstack's operation holds the domain
            // (`Operation::hold`), so that no CPU has the vCPU.
            unsafe { self.word(index * 8).write_volatile(u64::from_le_bytes(*word)) };
        }
        // SAFETY: as above.
        unsafe {
            self.word(Self::SOFTWARE_OFFSET).write_volatile(xcr0);
            // MXCSR: bits that no CPU has would fault.
            let mxcsr = self.word(24);
            mxcsr.write_volatile(mxcsr.read_volatile() & !0xffff_0000);
        }
    }

    /// The word at byte `at`, a multiple of 8.
    fn word(&self, at: usize) -> *mut u64 {
        assert!(at < Self::BYTES && at.is_multiple_of(8), "a word of the area");
        self.as_ptr().wrapping_add(at).cast()
    }

    /// The bytes, 64-aligned, for the save and restore instructions.
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.get().cast()
    }
}

impl Default for FpuArea {
    /// As the processor has it after `FNINIT`.
    fn default() -> Self {
        let mut bytes = [0; Self::BYTES];
        bytes[..2].copy_from_slice(&0x37fu16.to_le_bytes()); // FCW
        bytes[24..28].copy_from_slice(&0x1f80u32.to_le_bytes()); // MXCSR
        Self(UnsafeCell::new(bytes))
    }
}

// SAFETY: only the CPU that runs, or switches, the vCPU touches the bytes; toolstack access pauses the vCPU first.
unsafe impl Sync for FpuArea {}

/// The registers of a vCPU that no CPU has loaded.
#[derive(Default)]
struct RegsCell(UnsafeCell<CpuUserRegs>);

// SAFETY: the CPU that switches to or from the vCPU writes the registers, and a toolstack while the vCPU is paused and no CPU has it.
unsafe impl Sync for RegsCell {}

/// A frame on which a vCPU holds references, as its number plus 1; 0: none.
#[derive(Debug, Default)]
pub struct FrameSlot(AtomicU64);

impl FrameSlot {
    /// The frame.
    pub fn get(&self) -> Option<Mfn> {
        self.0.load(Ordering::Relaxed).checked_sub(1).map(Mfn::new)
    }

    /// Sets the frame, whose references the caller hands over; the former, whose references it gets.
    pub fn replace(&self, new: Option<Mfn>) -> Option<Mfn> {
        let new = new.map_or(0, |mfn| mfn.raw().wrapping_add(1));
        self.0.swap(new, Ordering::Relaxed).checked_sub(1).map(Mfn::new)
    }

    /// Sets the frame as [`FrameSlot::replace`] does, if there is none yet. Returns whether there was none.
    pub(crate) fn claim(&self, mfn: Mfn) -> bool {
        self.0.compare_exchange(0, mfn.raw().wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Words of the longest trap frame.
pub(crate) const MAX_FRAME: usize = 11;

/// A virtual CPU. The vCPU's domain holds the vCPU, and never moves it while anybody refers to the domain.
#[derive(Default)]
pub struct Vcpu {
    regs: RegsCell,
    /// The vCPU's number in the domain.
    pub id: VcpuId,
    /// The vCPU's domain.
    pub domain_id: DomId,
    /// Whether the guest is in user mode (its user tables and GS base are loaded).
    pub user_mode: AtomicBool,
    /// IOPL as the guest has it, where it stands in the flags: [`Self::IOPL`]. The processor's own stays 0.
    pub iopl: AtomicU64,
    /// CR2 of the last page fault that was bounced, for `getvcpucontext`.
    pub cr2: AtomicU64,
    /// The `vcpu_info`.
    pub info: InfoCell,
    /// What [`PauseFlags`] says.
    pub pause_flags: AtomicU32,
    /// The last hypercalls.
    pub history: CallHistory,
    /// The registered time areas could not be written: the switch to kernel mode writes the areas.
    pub areas_stale: AtomicBool,
    /// The vCPU is to get an NMI when it runs next.
    pub nmi_pending: AtomicBool,
    /// Ports of the vCPU's VIRQs, and the ports that the vCPU polls.
    pub events: VcpuEvents,
    /// Arguments of the hypercall that is to be executed again. Only the vCPU itself uses them.
    continuation: [AtomicU64; 6],
    /// Words of a trap frame that could not be written at once.
    pub(crate) kept_frame: [AtomicU64; MAX_FRAME],
    /// The stack of the guest's kernel.
    pub kernel_stack: KernelStack,
    /// Where the guest's kernel is entered.
    pub entries: EntryPoints,
    /// What the guest told.
    pub cpu: Mutex<rank::GuestCpu, GuestCpu>,
    /// Clock, runstate and timers.
    pub time: Mutex<rank::VcpuTime, VcpuTime>,
    /// L4 of kernel mode, with an L4 type reference.
    pub cr3_kernel: FrameSlot,
    /// L4 of user mode, likewise.
    pub cr3_user: FrameSlot,
    /// Frame of a registered `vcpu_info`, with a writable reference.
    pub info_frame: FrameSlot,
    /// Whether `initialise` (or the toolstack) gave the vCPU a context.
    pub initialised: AtomicBool,
    /// CPU on which the vCPU runs now; `u32::MAX` for none.
    running_on: AtomicU32,
    /// CPU that has the vCPU's state in its registers, or its page tables loaded; `u32::MAX` for none.
    holder: AtomicU32,
    /// Where the processor sees the vCPU's GDT and LDT.
    pub window: DescriptorWindow,
    /// What the scheduler keeps of the vCPU.
    pub sched: VcpuSched,
    /// Floating-point state.
    pub fpu: Box<FpuArea>,
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d{}v{}", self.domain_id.raw(), self.id.raw())
    }
}

impl Vcpu {
    /// IOPL among the flags: two bits.
    pub const IOPL: u64 = 3 << 12;

    /// A vCPU that is down. A vCPU whose number is below 32 has its `vcpu_info` in `shared_info`.
    #[inline(never)]
    pub fn new(domain_id: DomId, id: VcpuId, shared_info: &SharedBytes<'static>) -> Self {
        let place = (id.raw() < LEGACY_MAX_VCPUS).then(|| {
            shared_info.slice(id.raw() as usize * INFO_BYTES, INFO_BYTES).expect("shared_info is a page")
        });
        let info = InfoCell::default();
        if let Some(place) = &place {
            place.store_u8(UPCALL_MASK_OFFSET, 1); // evtchn_upcall_mask: no upcall before the guest asks for them
            info.set(place);
        }
        let [running_on, holder] = [(); 2].map(|()| AtomicU32::new(u32::MAX));
        let pause_flags = AtomicU32::new(PauseFlags::DOWN);
        Self { id, domain_id, info, pause_flags, running_on, holder, ..Self::default() }
    }

    /// A copy of the registers of a vCPU that no CPU has loaded. (I17)
    pub fn saved_regs(&self) -> CpuUserRegs {
        // SAFETY: plain integers; a caller who did not stop the vCPU gets stale words, no more.
        unsafe { self.regs.0.get().read_volatile() }
    }

    /// Sets the registers of a vCPU that no CPU has loaded.
    pub fn set_saved_regs(&self, regs: &CpuUserRegs) {
        // SAFETY: as in `saved_regs`; callers hold the vCPU stopped, so that nobody has a reference.
        unsafe { self.regs.0.get().write_volatile(*regs) }
    }

    /// Where the registers are while no CPU has the vCPU loaded: for the CPU that switches to or from the vCPU.
    pub fn saved_regs_ptr(&self) -> *mut CpuUserRegs {
        self.regs.0.get()
    }

    /// Arguments of the hypercall that is to be executed again.
    pub fn continuation(&self) -> [u64; 6] {
        core::array::from_fn(|n| self.continuation[n].load(Ordering::Relaxed))
    }

    pub(crate) fn set_continuation(&self, args: [u64; 6]) {
        for (slot, value) in self.continuation.iter().zip(args) {
            slot.store(value, Ordering::Relaxed);
        }
    }

    /// Writes registers of the vCPU to the log.
    pub(crate) fn log_registers(&self, level: log::Level, r: &CpuUserRegs) {
        let mode = if self.user_mode.load(Ordering::Relaxed) { "user" } else { "kernel" };
        let stack = format_args!("rflags {:08x} rsp {:04x}:{:016x}", r.rflags, r.ss, r.rsp);
        log::log!(level, "{self:?} ({mode}): rip {:04x}:{:016x} {stack}", r.cs, r.rip);
        log::log!(level, "  rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}", r.rax, r.rbx, r.rcx, r.rdx);
        log::log!(level, "  rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}", r.rsi, r.rdi, r.rbp, r.r8);
        log::log!(level, "  r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}", r.r9, r.r10, r.r11, r.r12);
        log::log!(level, "  r13 {:016x} r14 {:016x} r15 {:016x}", r.r13, r.r14, r.r15);
        let (kernel, user, cr2) =
            (self.cr3_kernel.get(), self.cr3_user.get(), self.cr2.load(Ordering::Relaxed));
        log::log!(level, "  cr3 {kernel:?} user cr3 {user:?} cr2 {cr2:016x}");
    }

    /// CPU on which the vCPU runs now.
    #[inline]
    pub fn running_on(&self) -> Option<CpuId> {
        may_come_between_words();
        CpuId::new(self.running_on.load(Ordering::Acquire))
    }

    /// Whether the vCPU runs on `cpu`, and does not wait to leave `cpu`.
    #[inline]
    pub fn runs_on(&self, cpu: CpuId) -> bool {
        self.running_on.load(Ordering::Acquire) == cpu.raw() && self.pause_flags.load(Ordering::Acquire) == 0
    }

    /// A full barrier: the CPU that begins to run the vCPU then looks whether the vCPU is paused, and the CPU that pauses the
    /// vCPU has said so before it looks where the vCPU runs. So one of the two sees the other.
    pub(crate) fn set_running_on(&self, cpu: Option<CpuId>) {
        may_come_between();
        self.running_on.swap(cpu.map_or(u32::MAX, CpuId::raw), Ordering::SeqCst);
    }

    /// The CPU that has the vCPU's state in its registers: what the vCPU stores is whole only without one.
    #[inline]
    pub fn holder(&self) -> Option<CpuId> {
        CpuId::new(self.holder.load(Ordering::Acquire))
    }

    /// Sets the holder. Only the CPU to which the scheduler gave the vCPU takes the vCPU from none, and only the holder
    /// lets go, after all that it has of the vCPU was saved.
    #[inline]
    pub fn set_holder(&self, cpu: Option<CpuId>) {
        self.holder.store(cpu.map_or(u32::MAX, CpuId::raw), Ordering::Release);
    }

    /// Sets reasons for which the vCPU does not run. A full barrier: the vCPU's CPU then looks whether what the vCPU waits for has
    /// come, and who sends that does so before it looks at the reasons. So one of the two sees the other.
    pub(crate) fn set_reasons(&self, flags: u32) {
        may_come_between_words();
        self.pause_flags.fetch_or(flags, Ordering::SeqCst);
    }

    /// Whether the vCPU waits: for a sender, whose word is sent, with a full barrier.
    #[inline]
    pub(crate) fn is_blocked(&self) -> bool {
        self.pause_flags.load(Ordering::Acquire) & PauseFlags::BLOCKED != 0
    }

    /// Whether the vCPU is up: `initialise` and `up` were done.
    pub fn is_up(&self) -> bool {
        self.pause_flags.load(Ordering::Acquire) & PauseFlags::DOWN == 0
    }

    /// Whether an event upcall is due: pending and not masked.
    #[inline]
    pub fn upcall_due(&self) -> bool {
        self.info.get().is_some_and(|info| {
            info.load_u8(UPCALL_PENDING_OFFSET) != 0 && info.load_u8(UPCALL_MASK_OFFSET) == 0
        })
    }
}

#[cfg(test)]
#[cfg(loom)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_image_leaves_what_is_the_machines() {
        let area = FpuArea::default();
        let mut own = area.legacy();
        own[FpuArea::SOFTWARE_OFFSET] = 7;
        // SAFETY: nobody else has the area.
        unsafe { area.as_ptr().cast::<[u8; 512]>().write(own) };
        area.set_legacy(&[0xff; 512]);
        let now = area.legacy();
        assert_eq!(now[..24], [0xff; 24]);
        assert_eq!(now[24..28], [0xff, 0xff, 0, 0], "MXCSR has 16 bits");
        assert_eq!(now[FpuArea::SOFTWARE_OFFSET..], own[FpuArea::SOFTWARE_OFFSET..]);
    }
}
