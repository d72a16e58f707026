//! What of a vCPU lives in the processor while the vCPU runs.

use core::sync::atomic::{AtomicU64, Ordering};

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::types::Mfn;

use super::CpuId;

/// A segment base that [`Registers::set_segment_base`] sets.
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

/// A page of a [`DescriptorWindow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorPage {
    /// Page 0-13 of the GDT.
    Gdt(u8),
    /// Page 0-15 of the LDT.
    Ldt(u8),
}

/// vCPUs' descriptor tables.
pub trait DescriptorWindows {
    /// Makes the window of a new vCPU. `false`: out of memory.
    fn create_window(&self, window: &DescriptorWindow) -> bool;
    /// Frees what [`DescriptorWindows::create_window`] made. The vCPU runs nowhere.
    fn destroy_window(&self, window: &DescriptorWindow);
    /// Maps a frame at a page of a vCPU's window, or the null page.
    fn set_descriptor_page(&self, window: &DescriptorWindow, page: DescriptorPage, frame: Option<Mfn>);
    /// Loads the GDT and LDT registers anew if they are those of this window: its LDT has `ldt_entries` entries now. The
    /// vCPU may be another than the one that runs.
    fn reload_descriptor_tables(&self, window: &DescriptorWindow, ldt_entries: u16);
}

/// Registers of the vCPU that runs.
pub trait Registers {
    /// The general registers of the vCPU that `cpu` has loaded, as they were at its last entry. Read while that CPU may write them:
    /// for a report to a person.
    fn frame_of(&self, cpu: CpuId) -> Option<CpuUserRegs>;
    /// Exchanges the loaded GS base with the other mode's: the vCPU goes from kernel to user mode or back.
    fn swap_gs(&self);
    /// Sets a segment base. The value was checked to be canonical.
    fn set_segment_base(&self, base: SegmentBase, value: u64);
    /// A segment base as it is now.
    fn segment_base(&self, base: SegmentBase) -> u64;
    /// Loads GS of guest user mode from a selector of the guest; a bad one loads null.
    fn load_user_gs(&self, selector: u16);
    /// Sets a debug register. The value was checked.
    fn set_debug_register(&self, index: u8, value: u64);
    /// Sets CR4.FSGSBASE: instructions that read and set the bases of FS and GS do so in ring 3, or are undefined there. Only
    /// where the CPU has them.
    fn set_base_instructions(&self, on: bool);
    /// Sets CR0.TS, so that the next floating-point instruction traps.
    fn set_task_switched(&self, on: bool);
    /// Loads XCR0. The value was checked against [`super::MachineFacts::xcr0_mask`].
    fn set_xcr0(&self, value: u64);
}
