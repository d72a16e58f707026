//! The mapper's side: a record for each handle.
//!
//! Records lie in chunks that stay where they are, so that a table that grows is not copied.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ring_abi::types::{GrantHandle, GrantRef, Mfn};

use super::entries::Granted;
use super::pin::EntryPin;
use super::{Access, GrantError, UseKind};
use crate::nospec::{At, Wrapped};
use crate::sync::{Mutex, rank};

/// What a mapping is for: page tables, devices, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Uses(u8);

impl Uses {
    pub(crate) const NONE: Self = Self(0);

    #[inline]
    pub(crate) const fn new(host: bool, device: bool) -> Self {
        Self(host as u8 * UseKind::Host as u8 | device as u8 * UseKind::Device as u8)
    }

    #[inline]
    pub(crate) const fn have(self, kind: UseKind) -> bool {
        self.0 & kind as u8 != 0
    }

    /// Those of both.
    #[inline]
    pub(crate) const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    #[inline]
    pub(crate) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// One mapping of another domain's grant. The record owns the pins of its uses, and the references of a use by devices; those
/// of a use by the host belong to the page-table entry.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    /// The granter's entries, and no more of the granter.
    granted: Arc<Granted>,
    gref: GrantRef,
    pub(crate) frame: Mfn,
    pub(crate) access: Access,
    pub(crate) uses: Uses,
    /// The page-table entry was named by its machine address, not by a virtual one.
    pub(crate) contains_pte: bool,
}

impl Mapping {
    /// The mapping of `frame` that owns what `pin` stands for, and with `both` a use of the other kind too. The caller forgets
    /// them.
    #[inline(always)]
    pub(crate) fn new(frame: Mfn, pin: &EntryPin<'_>, both: bool, contains_pte: bool) -> Self {
        let uses = Uses::new(both || pin.kind == UseKind::Host, both || pin.kind == UseKind::Device);
        Self { granted: pin.granted.clone(), gref: pin.gref, frame, access: pin.access, uses, contains_pte }
    }

    /// The pin of a use that the mapping has, which ends now.
    #[inline(always)]
    pub(crate) fn pin(&self, kind: UseKind) -> Option<EntryPin<'_>> {
        let &Self { ref granted, gref, access, .. } = self;
        self.uses.have(kind).then(|| EntryPin { granted, gref, kind, access })
    }
}

#[derive(Debug)]
enum Slot {
    /// The next free handle, or [`END`].
    Free(GrantHandle),
    /// Given out, and held by a [`HeldHandle`].
    Busy,
    Used(Mapping),
}

/// No handle: the end of the list of free ones.
const END: GrantHandle = GrantHandle::new(u32::MAX);

/// Records of a chunk: as many as a "maptrack frame" of the toolstack's limit has in the reference, with 16 bytes each.
const CHUNK: usize = 256;

type Chunk = [Slot; CHUNK];

/// The handles of one domain, behind their lock.
pub(crate) type Handles = Mutex<rank::Maptrack, Maptrack>;

/// The handles of one domain.
#[derive(Debug)]
pub(crate) struct Maptrack {
    chunks: Vec<Box<Chunk>>,
    max_chunks: usize,
    free: GrantHandle,
}

impl Maptrack {
    pub(crate) const fn new(max_chunks: u32) -> Self {
        Self { chunks: Vec::new(), max_chunks: max_chunks as usize, free: END }
    }

    /// Handles that are given out.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> u32 {
        let slots = self.chunks.iter().flat_map(|chunk| chunk.iter());
        slots.filter(|slot| !matches!(slot, Slot::Free(_))).count() as u32
    }

    /// All handles, free ones too.
    pub(crate) fn len(&self) -> u32 {
        (self.chunks.len() * CHUNK) as u32
    }

    #[inline]
    fn slot(&mut self, handle: GrantHandle) -> Option<&mut Slot> {
        let handle = handle.raw() as usize;
        Some(self.chunks.at_mut(handle / CHUNK)?.wrapped_mut(handle))
    }

    /// The frames that are mapped for a kind of use, and how.
    pub(super) fn frames(&self, kind: UseKind) -> impl Iterator<Item = (Mfn, Access)> + '_ {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).filter_map(move |slot| match slot {
            Slot::Used(mapping) if mapping.uses.have(kind) => Some((mapping.frame, mapping.access)),
            _ => None,
        })
    }

    /// Bytes that [`Maptrack::grow`] takes; `None`: there is room, or no more is allowed.
    #[inline]
    pub(crate) fn wants_room(&self) -> Option<usize> {
        (self.free == END && self.chunks.len() < self.max_chunks).then(|| self.growth())
    }

    #[cold]
    fn growth(&self) -> usize {
        let full = self.chunks.len() == self.chunks.capacity();
        size_of::<Chunk>() + if full { 2 * self.chunks.len() * size_of::<Box<Chunk>>() } else { 0 }
    }

    /// Makes room for more handles where none is free, if there is memory. Without room, `reserve` fails.
    #[cold]
    pub(crate) fn grow(&mut self) {
        // Not as an array: that would be built on the stack.
        let mut chunk = Vec::new();
        if chunk.try_reserve_exact(CHUNK).is_err() || self.chunks.try_reserve(1).is_err() {
            return;
        }
        let first = self.len();
        let last = first + CHUNK as u32 - 1;
        chunk.extend((first..last).map(|n| Slot::Free(GrantHandle::new(n + 1))));
        chunk.push(Slot::Free(END));
        let chunk: Result<Box<Chunk>, _> = chunk.into_boxed_slice().try_into();
        self.chunks.extend(chunk);
        self.free = GrantHandle::new(first);
    }

    /// Chunks for which the list has room.
    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.chunks.capacity()
    }

    /// Frees a chunk of a domain that is gone. `false`: there is none.
    pub(crate) fn shrink(&mut self) -> bool {
        self.chunks.pop().is_some()
    }

    /// Takes the mapping of a handle out and gives the handle back, if it is for a device alone and its frame is at the
    /// machine address `at`, which is not 0.
    #[inline]
    pub(crate) fn take_for_device(&mut self, handle: GrantHandle, at: u64) -> Option<Mapping> {
        const DEVICE: Uses = Uses::new(false, true);
        let free = self.free;
        let slot = self.slot(handle)?;
        if !matches!(slot, Slot::Used(mapping)
            if mapping.uses == DEVICE && at != 0 && mapping.frame.maddr().raw() == at)
        {
            return None;
        }
        let Slot::Used(mapping) = core::mem::replace(slot, Slot::Free(free)) else { return None };
        self.free = handle;
        Some(mapping)
    }

    /// A handle for a mapping that is to be made. Where [`Maptrack::wants_room`], room is to be made before.
    ///
    /// # Errors
    /// `NoDeviceSpace`: no handle is left.
    #[inline]
    pub(crate) fn reserve(&mut self) -> Result<GrantHandle, GrantError> {
        let handle = self.free;
        let slot = self.slot(handle).ok_or(GrantError::NoDeviceSpace)?;
        let Slot::Free(next) = core::mem::replace(slot, Slot::Busy) else {
            unreachable!("the free list holds free handles")
        };
        self.free = next;
        Ok(handle)
    }

    /// The record of a handle that was given out.
    #[inline]
    fn held(&mut self, handle: GrantHandle) -> &mut Slot {
        self.slot(handle).expect("a handle that was given out has a record")
    }

    /// Lets a handle that was reserved or taken have a mapping.
    #[inline(always)]
    pub(crate) fn set(&mut self, handle: GrantHandle, mapping: Mapping) {
        *self.held(handle) = Slot::Used(mapping);
    }

    /// Gives a reserved or taken handle back.
    #[inline]
    fn release(&mut self, handle: GrantHandle) {
        let next = self.free;
        *self.held(handle) = Slot::Free(next);
        self.free = handle;
    }
}

/// A handle whose mapping is being made or taken apart.
#[derive(Debug)]
#[must_use = "the handle is free again when this is dropped"]
pub(crate) struct HeldHandle<'a> {
    pub(crate) handles: &'a Handles,
    pub(crate) handle: GrantHandle,
}

impl<'a> HeldHandle<'a> {
    /// Takes the mapping of a handle out, so that no other vCPU works on it.
    ///
    /// # Errors
    /// `BadHandle`: no such mapping.
    #[inline]
    pub(crate) fn take(handles: &'a Handles, handle: GrantHandle) -> Result<(Self, Mapping), GrantError> {
        let mut maptrack = handles.lock();
        let slot = maptrack.slot(handle).filter(|slot| matches!(slot, Slot::Used(_)));
        match slot.map(|slot| core::mem::replace(slot, Slot::Busy)) {
            Some(Slot::Used(mapping)) => Ok((Self { handles, handle }, mapping)),
            _ => Err(GrantError::BadHandle),
        }
    }

    /// Lets the handle have a mapping.
    #[inline(always)]
    pub(crate) fn complete(self, mapping: Mapping) -> GrantHandle {
        let handle = self.handle;
        self.handles.lock().set(handle, mapping);
        core::mem::forget(self);
        handle
    }

    /// Gives the handle back, as dropping does.
    #[inline(always)]
    pub(crate) fn release(self) {
        self.handles.lock().release(self.handle);
        core::mem::forget(self);
    }
}

impl Drop for HeldHandle<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        give_up(self.handles, self.handle);
    }
}

/// Gives a handle back on a path that is seldom taken. By value, so that a handle stays in a register on the others.
#[inline(never)]
fn give_up(handles: &Handles, handle: GrantHandle) {
    handles.lock().release(handle);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_grows_by_chunks_that_stay_where_they_are() {
        let mut maptrack = Maptrack::new(3);
        let mut places = Vec::new();
        for n in 0..3 * CHUNK as u32 {
            if let Some(bytes) = maptrack.wants_room() {
                assert!(n.is_multiple_of(CHUNK as u32));
                assert!(bytes < 2 * size_of::<Chunk>(), "however large the table is");
                maptrack.grow();
            }
            let handle = GrantHandle::new(n);
            assert_eq!(maptrack.reserve(), Ok(handle));
            if n.is_multiple_of(CHUNK as u32) {
                places.push(core::ptr::from_mut(maptrack.held(handle)));
            }
        }
        assert_eq!((maptrack.wants_room(), maptrack.reserve()), (None, Err(GrantError::NoDeviceSpace)));
        for (n, place) in places.into_iter().enumerate() {
            assert_eq!(core::ptr::from_mut(maptrack.held(GrantHandle::new((n * CHUNK) as u32))), place);
        }
        let freed = [600, 7].map(GrantHandle::new);
        freed.iter().rev().for_each(|handle| maptrack.release(*handle));
        assert_eq!([maptrack.reserve(), maptrack.reserve()], freed.map(Ok));
        assert!(maptrack.reserve().is_err() && maptrack.slot(GrantHandle::new(3 * CHUNK as u32)).is_none());
        assert_eq!((0..4).map(|_| maptrack.shrink()).collect::<Vec<_>>(), [true, true, true, false]);
    }

    #[test]
    fn without_room_there_is_no_handle() {
        let mut maptrack = Maptrack::new(1);
        assert_eq!(maptrack.reserve(), Err(GrantError::NoDeviceSpace));
        maptrack.grow();
        assert_eq!((0..=CHUNK).filter(|_| maptrack.reserve().is_ok()).count(), CHUNK);
        assert_eq!(maptrack.wants_room(), None);
    }
}
