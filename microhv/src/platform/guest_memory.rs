//! Guest virtual memory, through the page tables that are loaded.

use core::marker::PhantomData;

use ring_abi::types::GuestVa;

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
    /// Where the copy stopped.
    pub va: GuestVa,
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
