//! Machine memory.

use core::sync::atomic::AtomicU64;

use ring_abi::shared::SharedBytes;
use ring_abi::types::{Maddr, Mfn, Pfn};

/// Entries of a page table that [`MachineMemory::present_groups`] looks at together.
pub const GROUP: usize = 8;

/// Machine memory: only frames that the frame table says are RAM. And the machine-to-physical table on them.
pub trait MachineMemory {
    /// Loads an aligned u64 (acquire).
    fn load(&self, at: Maddr) -> u64;
    /// Stores an aligned u64 (release).
    fn store(&self, at: Maddr, value: u64);
    /// Replaces `old` at the aligned address by `new`; the error is what was there instead.
    fn compare_exchange(&self, at: Maddr, old: u64, new: u64) -> Result<u64, u64>;
    /// A page-table frame as entries.
    fn table(&self, mfn: Mfn) -> &[AtomicU64; 512];
    /// Which entries of a page-table frame are present: bit n is set when one of the [`GROUP`] from GROUP * n on is.
    fn present_groups(&self, mfn: Mfn) -> u64;
    /// Copies out of machine memory.
    fn read_bytes(&self, from: Maddr, to: &mut [u8]);
    /// Copies into machine memory.
    fn write_bytes(&self, to: Maddr, from: &[u8]);
    /// Copies between two ranges of machine memory that do not cross a page.
    fn copy_bytes(&self, to: Maddr, from: Maddr, len: usize);
    /// Fills a frame with zeros.
    fn zero_frame(&self, mfn: Mfn);
    /// The hypervisor's own view of a whole frame, which is never unmapped. The caller's references see to it that the
    /// frame stays the same domain's.
    fn shared(&self, mfn: Mfn) -> SharedBytes<'static>;
    /// Sets the machine-to-physical entry of a frame; [`Pfn::INVALID`]: the frame has no place in its domain.
    fn set_m2p(&self, mfn: Mfn, pfn: Pfn);
}
