//! The mapper's side: a record for each handle.
//!
//! Records lie in chunks that stay where they are, so that a table that grows is not copied.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ring_abi::types::Mfn;

use super::{Access, GrantError, Granted};

/// What a mapping is for: page tables, devices, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gnttab) struct Uses(u8);

impl Uses {
    /// A page-table entry maps the frame.
    pub(in crate::gnttab) const HOST: Self = Self(1);
    /// A device may use the frame.
    pub(in crate::gnttab) const DEVICE: Self = Self(2);

    #[inline]
    pub(in crate::gnttab) fn new(host: bool, device: bool) -> Self {
        Self(u8::from(host) | u8::from(device) << 1)
    }

    #[inline]
    pub(in crate::gnttab) const fn are_none(self) -> bool {
        self.0 == 0
    }

    #[inline]
    pub(in crate::gnttab) const fn have(self, one: Self) -> bool {
        self.0 & one.0 != 0
    }

    /// Those of both.
    #[inline]
    pub(in crate::gnttab) const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    #[inline]
    pub(in crate::gnttab) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// One mapping of another domain's grant.
#[derive(Clone, Debug)]
pub(in crate::gnttab) struct Mapping {
    /// The granter's entries, and no more of the granter.
    pub(in crate::gnttab) granted: Arc<Granted>,
    pub(in crate::gnttab) gref: u32,
    pub(in crate::gnttab) frame: Mfn,
    pub(in crate::gnttab) access: Access,
    pub(in crate::gnttab) uses: Uses,
    /// The page-table entry was named by its machine address, not by a virtual one.
    pub(in crate::gnttab) contains_pte: bool,
}

#[derive(Debug)]
enum Slot {
    /// The next free handle, or [`END`].
    Free(u32),
    /// Given out, and its mapping is being made or taken apart.
    Busy,
    Used(Mapping),
}

/// No handle: the end of the list of free ones.
const END: u32 = u32::MAX;

/// Records of a chunk.
const CHUNK: usize = 256;

type Chunk = [Slot; CHUNK];

/// The handles of one domain. Guarded by `GrantTable::maptrack`.
#[derive(Debug)]
pub(in crate::gnttab) struct Maptrack {
    /// Room for handles; those from `used` on were never given out.
    chunks: Vec<Box<Chunk>>,
    used: u32,
    free: u32,
    in_use: u32,
    limit: u32,
}

impl Maptrack {
    pub(in crate::gnttab) const fn new(limit: u32) -> Self {
        Self { chunks: Vec::new(), used: 0, free: END, in_use: 0, limit }
    }

    pub(in crate::gnttab) const fn in_use(&self) -> u32 {
        self.in_use
    }

    /// Handles that were ever given out.
    pub(in crate::gnttab) fn len(&self) -> u32 {
        self.used
    }

    #[inline]
    fn slot(&mut self, handle: u32) -> Option<&mut Slot> {
        let chunk = self.chunks.get_mut(handle as usize / CHUNK)?;
        Some(&mut chunk[handle as usize % CHUNK])
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> + '_ {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// The frames that devices may use, and how: each holds references of its own.
    pub(in crate::gnttab) fn device_frames(&self) -> impl Iterator<Item = (Mfn, Access)> + '_ {
        self.slots().filter_map(|slot| match slot {
            Slot::Used(mapping) if mapping.uses.have(Uses::DEVICE) => Some((mapping.frame, mapping.access)),
            _ => None,
        })
    }

    /// The frames that are mapped, and how.
    #[cfg(any(test, feature = "testing"))]
    pub(in crate::gnttab) fn host_frames(&self) -> impl Iterator<Item = (Mfn, Access)> + '_ {
        self.slots().filter_map(|slot| match slot {
            Slot::Used(mapping) if mapping.uses.have(Uses::HOST) => Some((mapping.frame, mapping.access)),
            _ => None,
        })
    }

    /// Bytes that [`Maptrack::grow`] takes; `None`: there is room, or no more is allowed.
    #[inline]
    pub(in crate::gnttab) fn wants_room(&self) -> Option<usize> {
        (self.free == END && !self.has_fresh() && self.used < self.limit).then(|| self.growth())
    }

    /// Whether there is room for a handle that was never given out.
    fn has_fresh(&self) -> bool {
        (self.used as usize) < self.chunks.len() * CHUNK
    }

    #[cold]
    fn growth(&self) -> usize {
        let full = self.chunks.len() == self.chunks.capacity();
        size_of::<Chunk>() + if full { 2 * self.chunks.len() * size_of::<Box<Chunk>>() } else { 0 }
    }

    /// Makes room for more handles, if there is memory. Without room, `reserve` fails.
    #[cold]
    pub(in crate::gnttab) fn grow(&mut self) {
        // Not as an array: that would be built on the stack.
        let mut chunk = Vec::new();
        if chunk.try_reserve_exact(CHUNK).is_err() || self.chunks.try_reserve(1).is_err() {
            return;
        }
        chunk.extend((0..CHUNK).map(|_| Slot::Free(END)));
        let chunk: Result<Box<Chunk>, _> = chunk.into_boxed_slice().try_into();
        self.chunks.extend(chunk);
    }

    /// Places of the list that it has.
    #[cfg(test)]
    pub(in crate::gnttab) fn room(&self) -> usize {
        self.chunks.capacity()
    }

    /// Frees a chunk of a domain that is gone. `false`: there is none.
    pub(in crate::gnttab) fn shrink(&mut self) -> bool {
        self.chunks.pop().is_some()
    }

    /// A handle of a mapping that was made. Where [`Maptrack::wants_room`], room is to be made before.
    #[inline]
    pub(in crate::gnttab) fn add(&mut self, mapping: Mapping) -> Result<u32, GrantError> {
        let handle = self.reserve()?;
        self.set(handle, mapping);
        Ok(handle)
    }

    /// Takes the mapping of a handle out and gives the handle back, if it is for a device alone and its frame is at the
    /// machine address `at`, which is not 0.
    #[inline]
    pub(in crate::gnttab) fn take_for_device(&mut self, handle: u32, at: u64) -> Option<Mapping> {
        let free = self.free;
        let slot = self.slot(handle)?;
        if !matches!(slot, Slot::Used(mapping)
            if mapping.uses == Uses::DEVICE && at != 0 && mapping.frame.maddr().raw() == at)
        {
            return None;
        }
        let Slot::Used(mapping) = core::mem::replace(slot, Slot::Free(free)) else { return None };
        self.free = handle;
        self.in_use -= 1;
        Some(mapping)
    }

    /// A handle for a mapping that is to be made. Where [`Maptrack::wants_room`], room is to be made before.
    #[inline]
    pub(in crate::gnttab) fn reserve(&mut self) -> Result<u32, GrantError> {
        let handle = if self.free != END {
            self.free
        } else if self.used < self.limit && self.has_fresh() {
            self.used += 1;
            self.used - 1
        } else {
            return Err(GrantError::NoDeviceSpace);
        };
        let slot = self.slot(handle).ok_or(GrantError::NoDeviceSpace)?;
        let Slot::Free(next) = core::mem::replace(slot, Slot::Busy) else {
            unreachable!("the free list holds free handles")
        };
        self.free = next; // none of a handle that was never given out
        self.in_use += 1;
        Ok(handle)
    }

    /// The record of a handle that was given out.
    #[inline]
    fn held(&mut self, handle: u32) -> &mut Slot {
        &mut self.chunks[handle as usize / CHUNK][handle as usize % CHUNK]
    }

    /// Completes [`Maptrack::reserve`] or [`Maptrack::take`].
    #[inline]
    pub(in crate::gnttab) fn set(&mut self, handle: u32, mapping: Mapping) {
        *self.held(handle) = Slot::Used(mapping);
    }

    /// Gives a reserved or taken handle back.
    #[inline]
    pub(in crate::gnttab) fn release(&mut self, handle: u32) {
        let next = self.free;
        *self.held(handle) = Slot::Free(next);
        self.free = handle;
        self.in_use -= 1;
    }

    /// Takes the mapping of a handle out, so that nobody else works on it; [`Maptrack::set`] or [`Maptrack::release`]
    /// follows.
    #[inline]
    pub(in crate::gnttab) fn take(&mut self, handle: u32) -> Result<Mapping, GrantError> {
        let slot = self.slot(handle).ok_or(GrantError::BadHandle)?;
        if !matches!(slot, Slot::Used(_)) {
            return Err(GrantError::BadHandle);
        }
        match core::mem::replace(slot, Slot::Busy) {
            Slot::Used(mapping) => Ok(mapping),
            Slot::Free(_) | Slot::Busy => Err(GrantError::BadHandle),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_grows_by_chunks_that_stay_where_they_are() {
        let mut maptrack = Maptrack::new(3 * CHUNK as u32);
        let mut places = Vec::new();
        for handle in 0..3 * CHUNK as u32 {
            if let Some(bytes) = maptrack.wants_room() {
                assert!(handle.is_multiple_of(CHUNK as u32));
                assert!(bytes < 2 * size_of::<Chunk>(), "however large the table is");
                maptrack.grow();
            }
            assert_eq!(maptrack.reserve(), Ok(handle));
            if handle.is_multiple_of(CHUNK as u32) {
                places.push(core::ptr::from_mut(maptrack.held(handle)));
            }
        }
        assert_eq!((maptrack.wants_room(), maptrack.reserve()), (None, Err(GrantError::NoDeviceSpace)));
        for (n, place) in places.into_iter().enumerate() {
            assert_eq!(core::ptr::from_mut(maptrack.held((n * CHUNK) as u32)), place);
        }
        maptrack.release(7);
        maptrack.release(600);
        assert_eq!([maptrack.reserve(), maptrack.reserve()], [Ok(600), Ok(7)]);
        assert!(maptrack.reserve().is_err() && maptrack.take(3 * CHUNK as u32).is_err());
        assert_eq!((0..4).map(|_| maptrack.shrink()).collect::<Vec<_>>(), [true, true, true, false]);
    }

    #[test]
    fn without_room_there_is_no_handle() {
        let mut maptrack = Maptrack::new(10);
        assert_eq!(maptrack.reserve(), Err(GrantError::NoDeviceSpace));
        maptrack.grow();
        assert_eq!((0..11).filter(|_| maptrack.reserve().is_ok()).count(), 10, "the limit, not the room");
    }
}
