//! Memory of the kernel: the kernel's pages, mappings of other domains' pages, the heap.
//!
//! Layout of an image: the linear map of all pseudo-physical pages begins at 0xffffffff80000000 and has at most 1 GiB.
//! The window region begins at 0xffffffffc0000000 and has 512 MiB, for mappings that come and go and for memory gained
//! after start. On the host, pages come from the process's heap, machine frame numbers are made up, and a mapping of
//! frames is the frames' own addresses.
#![allow(unsafe_code)] // pages are addresses until they are wrapped

#[cfg(any(freestanding, test))] // pages of an image
pub(crate) mod bitmap;
mod foreign;
#[cfg(freestanding)]
pub(crate) mod heap;
#[cfg(not(freestanding))]
pub(crate) mod host;
#[cfg(not(freestanding))]
pub(crate) mod host_heap;
#[cfg(freestanding)]
pub(crate) mod tables;
pub(crate) mod tail;
#[cfg(freestanding)]
pub(crate) mod window;

#[cfg(not(freestanding))]
use host as arch;
#[cfg(freestanding)]
use tables as arch;

pub(crate) use foreign::free_window;
#[cfg(freestanding)]
pub(crate) use foreign::take_window;
pub use foreign::{ForeignMap, MapError, map_foreign, map_mmio};
#[cfg(freestanding)]
pub use window::WindowPages;

use crate::account::Charge;
use ring_abi::shared::{SharedBytes, SharedMemory};
use ring_abi::types::{Mfn, PAGE_SIZE, Pfn};

/// The frame number that a frame has in its domain, by the machine-to-physical table: the domain's own word for it, or `u64::MAX`.
///
/// # Panics
/// On a frame beyond the machine's last ([`crate::hypercall::memory::maximum_ram_page`]) the processor faults.
pub fn m2p(mfn: Mfn) -> u64 {
    arch::m2p(mfn)
}

/// Neither the kernel's pages nor the hypervisor had enough memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// Where a run of pages came from, and so where the run goes back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The memory the domain started with.
    Start,
    /// Taken from the hypervisor. The number is that of the run's first pseudo-physical page.
    #[cfg_attr(not(freestanding), allow(dead_code))]
    Grown(u64),
}

/// A run of whole pages at consecutive addresses. This value owns the pages, and dropping the value gives the pages
/// back. The machine frames behind the run are in no order. [`SharedBytes`] reaches the run's bytes, since another
/// domain may have a grant of the pages. A view of the bytes borrows the pages:
///
/// ```compile_fail,E0505
/// fn freed_too_early(pages: pvrt::mem::Pages) {
///     let bytes = pages.bytes();
///     drop(pages);
///     bytes.store_u32(0, 1);
/// }
/// ```
#[derive(Debug)]
pub struct Pages {
    va: usize,
    count: usize,
    origin: Origin,
    /// The account to which the pages are charged.
    _charge: Charge,
}

impl Pages {
    /// Takes `count` pages (at least one) from the kernel's own memory, or else from the hypervisor, and charges them
    /// to the current account. The pages have whatever contents they had before.
    ///
    /// # Errors
    /// [`OutOfMemory`]: neither the kernel nor the hypervisor gives so many pages.
    pub fn alloc(count: usize) -> Result<Self, OutOfMemory> {
        match arch::take_pages(count) {
            Some(va) => {
                Ok(Self { va, count, origin: Origin::Start, _charge: Charge::take(count * PAGE_SIZE) })
            }
            None => populate(count),
        }
    }

    /// The run at `va` of which an owner let go.
    #[cfg(freestanding)]
    pub(crate) fn adopt(va: usize, count: usize) -> Self {
        Self { va, count, origin: tables::origin_of(va), _charge: Charge::none() }
    }

    /// Takes pages that were promised to accounts, and charges the pages to no account.
    #[cfg(freestanding)]
    pub(crate) fn promised(count: usize) -> Option<Self> {
        let va = tables::take_promised(count)?;
        Some(Self { va, count, origin: Origin::Start, _charge: Charge::none() })
    }

    /// Like [`alloc`](Self::alloc), but the pages are filled with zeros.
    ///
    /// # Errors
    /// [`OutOfMemory`]: neither the kernel nor the hypervisor gives so many pages.
    pub fn zeroed(count: usize) -> Result<Self, OutOfMemory> {
        let pages = Self::alloc(count)?;
        // SAFETY: the pages were just taken: nothing else refers to them.
        unsafe { core::ptr::write_bytes(pages.va as *mut u8, 0, pages.len()) };
        Ok(pages)
    }

    /// Address of the first byte.
    pub fn va(&self) -> usize {
        self.va
    }

    /// Number of pages.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Number of bytes.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.count * PAGE_SIZE
    }

    /// The machine frame behind page `index`.
    ///
    /// # Panics
    /// When the run has no such page.
    pub fn mfn(&self, index: usize) -> Mfn {
        assert!(index < self.count);
        arch::mfn_of(self.va + index * PAGE_SIZE)
    }

    /// The pseudo-physical number of page `index`.
    ///
    /// # Panics
    /// When the run has no such page.
    pub fn pfn(&self, index: usize) -> Pfn {
        assert!(index < self.count);
        match self.origin {
            Origin::Start => arch::linear_pfn(self.va + index * PAGE_SIZE),
            Origin::Grown(first) => Pfn::new(first + index as u64),
        }
    }

    /// Gives the pages away for ever: they are never freed.
    pub fn leak(self) -> SharedBytes<'static> {
        let pages = core::mem::ManuallyDrop::new(self);
        // SAFETY: the pages stay mapped for ever, since nobody drops them, and are reached through accessors alone.
        unsafe { shared_at(pages.va, pages.count) }
    }

    /// The bytes of all pages.
    pub fn bytes(&self) -> SharedBytes<'_> {
        self.shared()
    }

    /// The bytes of page `index`.
    ///
    /// # Panics
    /// When the run has no such page.
    pub fn page(&self, index: usize) -> SharedBytes<'_> {
        self.shared().slice(index * PAGE_SIZE, PAGE_SIZE).expect("a page of this run")
    }
}

impl SharedMemory for Pages {
    fn shared(&self) -> SharedBytes<'_> {
        // SAFETY: the pages are mapped while `self` lives, and the accessor borrows `self`.
        unsafe { shared_at(self.va, self.count) }
    }
}

/// Pages as shared bytes.
///
/// # Safety
/// The pages stay mapped for the lifetime of the accessor, and are reached only through such accessors.
unsafe fn shared_at<'a>(va: usize, count: usize) -> SharedBytes<'a> {
    // SAFETY: promised by the caller.
    unsafe { SharedBytes::new(va as *mut u8, count * PAGE_SIZE) }
}

impl Drop for Pages {
    fn drop(&mut self) {
        match self.origin {
            Origin::Start => arch::give_pages(self.va, self.count),
            Origin::Grown(first) => arch::shrink(self.va, self.count, first),
        }
    }
}

/// Takes `count` pages from the hypervisor, whatever the kernel itself has. The pages go back to the hypervisor on
/// drop.
///
/// # Errors
/// [`OutOfMemory`]: the machine has not so many free pages, or the domain's limit forbids so many.
pub fn populate(count: usize) -> Result<Pages, OutOfMemory> {
    let (va, first) = arch::grow(count).ok_or(OutOfMemory)?;
    Ok(Pages { va, count, origin: first, _charge: Charge::take(count * PAGE_SIZE) })
}

/// Gives pages back to where they came from. Dropping the pages does the same.
pub fn release(pages: Pages) {
    drop(pages);
}

/// The machine frame that maps address `va` of this kernel (the linear map or a [`Pages`]).
pub fn mfn_of(va: usize) -> Mfn {
    arch::mfn_of(va)
}

/// Makes sure that `bytes` more can be allocated on the heap.
///
/// # Errors
/// The number of bytes that are missing.
pub(crate) fn secure(bytes: usize) -> Result<(), usize> {
    arch::secure(bytes)
}

/// How much memory there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Pages the domain has: at start and gained since.
    pub total_pages: usize,
    /// Number of free pages, of the pages that the kernel had at start.
    pub free_pages: usize,
    /// Pages gained from the hypervisor and not yet given back.
    pub grown_pages: usize,
    /// Window pages in use by mappings.
    pub window_pages: usize,
    /// Bytes of heap that allocations have.
    pub heap_bytes: usize,
    /// Number of allocations that live on the heap.
    pub heap_objects: usize,
}

/// How much memory there is now.
pub fn usage() -> Usage {
    arch::usage()
}
