//! Mappings of machine frames: other domains' memory, device registers.

use super::{arch, shared_at};
use ring_abi::errno::Errno;
use ring_abi::shared::{SharedBytes, SharedMemory};
use ring_abi::types::{DomId, Mfn, PAGE_SIZE};

/// A mapping was refused; nothing stays mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapError {
    /// The first frame, by its place in the list, that could not be mapped.
    pub index: usize,
    /// The hypervisor's reason; `ENOMEM` when the window region is full.
    pub errno: Errno,
}

/// Machine frames mapped at consecutive addresses. Dropping the value unmaps all frames in one batch. A view of the
/// bytes borrows the mapping:
///
/// ```compile_fail,E0505
/// fn unmapped_too_early(map: pvrt::mem::ForeignMap) {
///     let bytes = map.page(0);
///     drop(map);
///     bytes.store_u32(0, 1);
/// }
/// ```
#[derive(Debug)]
pub struct ForeignMap {
    va: usize,
    count: usize,
}

impl ForeignMap {
    /// Address of the first byte.
    pub fn va(&self) -> usize {
        self.va
    }

    /// Number of pages.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The bytes of all pages.
    pub fn bytes(&self) -> SharedBytes<'_> {
        self.shared()
    }

    /// The bytes of page `index`.
    ///
    /// # Panics
    /// When the mapping has no such page.
    pub fn page(&self, index: usize) -> SharedBytes<'_> {
        self.shared().slice(index * PAGE_SIZE, PAGE_SIZE).expect("a page of this mapping")
    }
}

impl SharedMemory for ForeignMap {
    fn shared(&self) -> SharedBytes<'_> {
        // SAFETY: the frames are mapped while `self` lives, and the accessor borrows `self`.
        unsafe { shared_at(self.va, self.count) }
    }
}

impl Drop for ForeignMap {
    fn drop(&mut self) {
        arch::unmap_frames(self.va, self.count);
    }
}

/// Maps frames of `dom` (also `DomId::XEN`, `DomId::SELF`), cached.
///
/// # Errors
/// [`MapError`] names the first frame that failed, and the reason:
/// - `EPERM`: the caller has no right over `dom`.
/// - `EINVAL`: the frame is not the domain's, or the frame's type forbids the mapping.
/// - `ENOMEM`: the window or this kernel has no room.
pub fn map_foreign(dom: DomId, mfns: &[Mfn], writable: bool) -> Result<ForeignMap, MapError> {
    let va = arch::map_frames(dom, mfns.iter().copied(), mfns.len(), writable, dom == DomId::IO)?;
    Ok(ForeignMap { va, count: mfns.len() })
}

/// Maps `count` frames of device registers from machine frame `first` on, uncached and writable.
///
/// # Errors
/// [`MapError`] names the first frame that failed, and the reason:
/// - `EPERM` or `EINVAL`: the frame is no device memory that this domain may use.
/// - `ENOMEM`: the window or this kernel has no room.
pub fn map_mmio(first: Mfn, count: usize) -> Result<ForeignMap, MapError> {
    let frames = (0..count as u64).map(|i| Mfn::new(first.raw() + i));
    let va = arch::map_frames(DomId::IO, frames, count, true, true)?;
    Ok(ForeignMap { va, count })
}

#[cfg(freestanding)]
/// Takes `count` pages of window addresses that have page tables and map nothing.
pub(crate) fn take_window(count: usize) -> Option<usize> {
    arch::take_window(count)
}

/// Gives window addresses back; nothing is mapped there any more.
pub(crate) fn free_window(va: usize, count: usize) {
    arch::free_window(va, count);
}
