//! The mapper's side: a record for each handle.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ring_abi::types::Mfn;

use super::{Access, GrantError};
use crate::domain::Domain;

/// One mapping of another domain's grant.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    pub(super) granter: Arc<Domain>,
    pub(super) gref: u32,
    pub(super) frame: Mfn,
    pub(super) access: Access,
    /// A page-table entry maps it.
    pub(super) host: bool,
    /// That entry was named by its machine address, not by a virtual one.
    pub(super) contains_pte: bool,
    /// A device may use it.
    pub(super) device: bool,
}

#[derive(Debug)]
enum Slot {
    /// The next free handle.
    Free(Option<u32>),
    /// Given out, and its mapping is being made or taken apart.
    Busy,
    Used(Mapping),
}

/// Handles that there is room for at first.
const FIRST_SLOTS: usize = 64;

/// The handles of one domain. Guarded by `GrantTable::maptrack`.
#[derive(Debug)]
pub(super) struct Maptrack {
    slots: Vec<Slot>,
    free: Option<u32>,
    in_use: u32,
    limit: u32,
}

impl Maptrack {
    pub(super) const fn new(limit: u32) -> Self {
        Self { slots: Vec::new(), free: None, in_use: 0, limit }
    }

    pub(super) const fn in_use(&self) -> u32 {
        self.in_use
    }

    pub(super) fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The frames that devices may use, and how: each holds references of its own.
    pub(super) fn device_frames(&self) -> impl Iterator<Item = (Mfn, Access)> + '_ {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Used(mapping) if mapping.device => Some((mapping.frame, mapping.access)),
            _ => None,
        })
    }

    /// The frames that are mapped, and how.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn host_frames(&self) -> impl Iterator<Item = (Mfn, Access)> + '_ {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Used(mapping) if mapping.host => Some((mapping.frame, mapping.access)),
            _ => None,
        })
    }

    /// Bytes that [`Maptrack::grow`] takes; `None`: there is room, or no more is allowed.
    pub(super) fn wants_room(&self) -> Option<usize> {
        let full = self.free.is_none() && self.slots.len() == self.slots.capacity();
        (full && self.len() < self.limit).then(|| self.next_capacity() * size_of::<Slot>())
    }

    fn next_capacity(&self) -> usize {
        (2 * self.slots.len()).max(FIRST_SLOTS).min(self.limit as usize)
    }

    /// Makes room for more handles, if there is memory.
    pub(super) fn grow(&mut self) {
        let more = self.next_capacity().saturating_sub(self.slots.len());
        // Without room, `reserve` fails.
        let _ = self.slots.try_reserve_exact(more);
    }

    /// A handle of a mapping that was made. Where [`Maptrack::wants_room`], room is to be made before.
    #[inline]
    pub(super) fn add(&mut self, mapping: Mapping) -> Result<u32, GrantError> {
        let handle = self.reserve()?;
        self.set(handle, mapping);
        Ok(handle)
    }

    /// Takes the mapping of a handle out and gives the handle back, if it is for a device alone and its frame is at the
    /// machine address `at`, which is not 0.
    #[inline]
    pub(super) fn take_for_device(&mut self, handle: u32, at: u64) -> Option<Mapping> {
        let free = self.free;
        let slot = self.slots.get_mut(handle as usize)?;
        if !matches!(slot, Slot::Used(mapping)
            if mapping.device && !mapping.host && at != 0 && mapping.frame.maddr().raw() == at)
        {
            return None;
        }
        let Slot::Used(mapping) = core::mem::replace(slot, Slot::Free(free)) else { return None };
        self.free = Some(handle);
        self.in_use -= 1;
        Some(mapping)
    }

    /// A handle for a mapping that is to be made. Where [`Maptrack::wants_room`], room is to be made before.
    #[inline]
    pub(super) fn reserve(&mut self) -> Result<u32, GrantError> {
        let handle = match self.free {
            Some(handle) => {
                let Slot::Free(next) = self.slots[handle as usize] else {
                    unreachable!("the free list holds free handles")
                };
                self.free = next;
                self.slots[handle as usize] = Slot::Busy;
                handle
            }
            None => {
                let handle = self.len();
                if handle >= self.limit {
                    return Err(GrantError::NoDeviceSpace);
                }
                if self.slots.len() == self.slots.capacity() {
                    return Err(GrantError::NoDeviceSpace);
                }
                self.slots.push(Slot::Busy);
                handle
            }
        };
        self.in_use += 1;
        Ok(handle)
    }

    /// Completes [`Maptrack::reserve`] or [`Maptrack::take`].
    #[inline]
    pub(super) fn set(&mut self, handle: u32, mapping: Mapping) {
        self.slots[handle as usize] = Slot::Used(mapping);
    }

    /// Gives a reserved or taken handle back.
    #[inline]
    pub(super) fn release(&mut self, handle: u32) {
        self.slots[handle as usize] = Slot::Free(self.free);
        self.free = Some(handle);
        self.in_use -= 1;
    }

    /// Takes the mapping of a handle out, so that nobody else works on it; [`Maptrack::set`] or [`Maptrack::release`]
    /// follows.
    #[inline]
    pub(super) fn take(&mut self, handle: u32) -> Result<Mapping, GrantError> {
        let slot = self.slots.get_mut(handle as usize).ok_or(GrantError::BadHandle)?;
        if !matches!(slot, Slot::Used(_)) {
            return Err(GrantError::BadHandle);
        }
        match core::mem::replace(slot, Slot::Busy) {
            Slot::Used(mapping) => Ok(mapping),
            Slot::Free(_) | Slot::Busy => Err(GrantError::BadHandle),
        }
    }
}
