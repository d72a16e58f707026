//! Machine memory; guest virtual memory, through the page tables that are loaded; which those are, and what the TLBs remember of
//! them.

use core::marker::PhantomData;
use core::sync::atomic::AtomicU64;

use ring_abi::shared::SharedBytes;
use ring_abi::types::{GuestVa, Maddr, Mfn, Pfn};

use super::CpuSet;

/// Entries of a page table that [`MachineMemory::present_groups`] looks at together.
pub const GROUP: usize = 8;

/// Machine memory: only frames that the frame table says are RAM. And the machine-to-physical table on them.
pub trait MachineMemory {
    /// A frame of page tables or descriptors as entries.
    fn table(&self, mfn: Mfn) -> &[AtomicU64; 512];
    /// Which entries of a page-table frame are present: bit n is set when one of the [`GROUP`] from GROUP * n on is.
    fn present_groups(&self, mfn: Mfn) -> u64;
    /// Copies into machine memory.
    fn write_bytes(&self, to: Maddr, from: &[u8]);
    /// Copies between two ranges of machine memory that do not cross a page.
    fn copy_bytes(&self, to: Maddr, from: Maddr, len: usize);
    /// Fills a frame with zeros.
    fn zero_frame(&self, mfn: Mfn);
    /// The hypervisor's own view of a whole frame, which is never unmapped. The caller's references see to it that the
    /// frame stays the same domain's.
    fn shared(&self, mfn: Mfn) -> SharedBytes<'static>;
    /// The machine-to-physical entry of a frame.
    fn m2p(&self, mfn: Mfn) -> Pfn;
    /// Sets the machine-to-physical entry of a frame; [`Pfn::INVALID`]: the frame has no place in its domain.
    fn set_m2p(&self, mfn: Mfn, pfn: Pfn);
}

/// Page tables as the processor uses them.
pub trait Paging {
    /// Loads a page-table base, which flushes what is not global.
    fn load_cr3(&self, l4: Mfn);
    /// Loads a page-table base and flushes this CPU's TLB, global entries included.
    fn load_cr3_flushing(&self, l4: Mfn);
    /// Flushes this CPU's TLB, global entries included.
    fn flush_tlb_local(&self);
    /// Flushes one page of this CPU's TLB.
    fn invlpg(&self, va: GuestVa);
    /// Flushes the TLBs of `cpus`, and waits until it is done.
    fn flush_tlb(&self, cpus: CpuSet);
    /// An entry of a guest's checked L4 has changed. Whether CPUs run guests on copies of such tables: the caller then owes a
    /// flush, behind which no CPU runs a guest on a copy that was made before.
    #[must_use]
    fn root_changed(&self, l4: Mfn) -> bool;
    /// Writes the hypervisor's slots (256-271) of a guest L4 that is being validated.
    fn fill_hypervisor_slots(&self, l4: Mfn);
}

/// Says that this CPU owes no flush of its TLB, so that guest memory may be reached by guest addresses.
///
/// While a flush is owed, a translation may lead anywhere, and a hypercall that reads its arguments through such a
/// translation reads what is not the guest's (I5). So every access takes a `Settled`, and only code that knows makes one:
/// a session on page tables, which flushes first; and code that runs while this CPU has no such session, which is the
/// holder of the current vCPU (a session borrows that as a whole) and the switch of vCPUs.
#[derive(Debug)]
pub struct Settled<'a>(PhantomData<&'a mut ()>);

impl Settled<'_> {
    /// The caller answers for this: no flush is owed.
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }
}

/// A guest virtual address could not be read or written: not mapped so, or the hypervisor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestFault {
    /// How many bytes were copied: none of those that one instruction copies. A count, so that who copies need not keep the
    /// address for the sake of a fault.
    pub copied: usize,
}

/// Guest virtual memory, reached with the rights of the guest's kernel.
pub trait GuestMemory {
    /// Reads guest memory; stops at the first fault.
    fn copy_from_guest(&self, settled: Settled<'_>, to: &mut [u8], va: GuestVa) -> Result<(), GuestFault>;
    /// Writes guest memory; stops at the first fault.
    fn copy_to_guest(&self, settled: Settled<'_>, va: GuestVa, from: &[u8]) -> Result<(), GuestFault>;
    /// Writes the words of a trap frame at guest address `va`.
    fn write_frame<const N: usize>(
        &self,
        settled: Settled<'_>,
        va: GuestVa,
        words: [u64; N],
    ) -> Result<(), GuestFault>;
    /// Reads a few words at guest address `va`.
    fn read_words(&self, settled: Settled<'_>, to: &mut [u64], va: GuestVa) -> Result<(), GuestFault>;
    /// Reads the words of a frame at guest address `va`.
    fn read_frame<const N: usize>(&self, settled: Settled<'_>, va: GuestVa) -> Result<[u64; N], GuestFault>;
}
