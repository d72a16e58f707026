//! Checking a table's entries and taking the references of the entries; giving those references back.

use core::sync::atomic::Ordering;

use ring_abi::types::{DOMID_XEN, DomId, Mfn};

use super::MemError;
use super::session::{FrameOwner, Mm};
use crate::frames::info::{PageType, TypeWord};
use crate::frames::pte::{self, Pte};
use crate::platform::{GROUP, Platform};

/// Number of groups of a level 1 table whose entries are given back between two looks at waiting work: 64 entries, each
/// of which may hold the last reference on its page.
const GROUPS_PER_LOOK: u32 = 64 / GROUP as u32;

/// The groups, of those in the bits of `groups`, with slots from `from` on.
const fn from_slot(groups: u64, from: usize) -> u64 {
    if from < 512 { groups & u64::MAX << (from / GROUP) } else { 0 }
}

/// The groups, of those in the bits of `groups`, with slots below `below`.
const fn below_slot(groups: u64, below: usize) -> u64 {
    let count = below.div_ceil(GROUP) as u32;
    if count == 0 { 0 } else { groups & u64::MAX >> (u64::BITS - count) }
}

impl<P: Platform> Mm<'_, P> {
    /// Checks the entries from `from` on of a table that has just got its type. The caller holds one type reference and
    /// one general reference on the table; on an error both are gone.
    pub(super) fn validate(&mut self, mfn: Mfn, level: u8, from: usize) -> Result<(), MemError> {
        if self.hv.frames.refuses_absent_memory() && from == 0 && self.has_absent_memory(mfn, level) {
            self.invalidate(mfn, level, 0);
            return Err(MemError::Invalid);
        }
        // One copy of the loop for level 1, which has by far the most entries.
        match level {
            1 => self.take_entries(mfn, 1, from)?,
            _ => self.take_entries(mfn, level, from)?,
        }
        if level == 4 {
            self.hv.platform.fill_hypervisor_slots(mfn);
        }
        if level == 1 && self.is_of_tracked() {
            self.begin_tracking(mfn);
        }
        let info = self.hv.frames.held(mfn);
        info.set_kind(TypeWord(info.load_kind().0 | TypeWord::VALIDATED).with_progress(0));
        Ok(())
    }

    /// Whether an entry of a table is not present and names memory.
    #[cold]
    #[inline(never)]
    fn has_absent_memory(&self, mfn: Mfn, level: u8) -> bool {
        let ours = |slot| level == 4 && pte::is_hypervisor_slot(slot);
        let table = self.hv.platform.table(mfn);
        table.iter().enumerate().any(|(slot, cell)| {
            let entry = Pte::new(cell.load(Ordering::Relaxed));
            !entry.is_present() && !ours(slot) && !self.hv.frames.may_be_absent(entry)
        })
    }

    #[inline(always)]
    fn take_entries(&mut self, mfn: Mfn, level: u8, from: usize) -> Result<(), MemError> {
        let (hv, dom) = (self.hv, self.dom);
        let table = hv.platform.table(mfn);
        let mut groups = from_slot(hv.platform.present_groups(mfn), from);
        let mut worked = false;
        while groups != 0 {
            let first = groups.trailing_zeros() as usize * GROUP;
            groups &= groups - 1;
            // Below `from`, entries hold their references already.
            let slots = first.max(from)..first + GROUP;
            for (slot, cell) in slots.clone().zip(&table[slots]) {
                let entry = Pte::new(cell.load(Ordering::Relaxed));
                if !entry.is_present() || (level == 4 && pte::is_hypervisor_slot(slot)) {
                    continue;
                }
                let taken = if level == 1 {
                    self.get_leaf(entry, FrameOwner::Domain(dom))
                } else if worked && hv.platform.work_pending() {
                    Err(MemError::Restart)
                } else {
                    worked = true;
                    self.get_child(level, entry).map(|()| entry)
                };
                let refused = match taken {
                    Ok(taken) => {
                        cell.store(taken.stored(level).raw(), Ordering::Relaxed);
                        continue;
                    }
                    Err(error) => error,
                };
                match refused {
                    MemError::Restart => self.make_partial(mfn, slot),
                    _ if level == 1 => self.invalidate(mfn, 1, slot),
                    _ => self.invalidate_later(mfn, slot),
                }
                return Err(refused);
            }
        }
        Ok(())
    }

    /// Gives back what the entries below `below` hold, then the caller's type and general reference on the table.
    /// What takes too long is deferred.
    pub(super) fn invalidate(&mut self, mfn: Mfn, level: u8, below: usize) {
        if level == 1 && self.is_tracked(mfn) {
            self.end_tracking(mfn);
        }
        let given = match level {
            1 => self.put_entries(mfn, 1, below),
            _ => self.put_entries(mfn, level, below),
        };
        if let Err(left) = given {
            return self.invalidate_later(mfn, left);
        }
        let info = self.hv.frames.held(mfn);
        let now = info.load_kind();
        debug_assert!(now.count() == 1);
        info.set_kind(TypeWord::new(now.page_type(), 0));
        self.hv.put_page(mfn);
    }

    /// Gives back the entries below `below`, from the last on. `Err`: something else waits, and the entries below this
    /// slot are left.
    #[inline(always)]
    fn put_entries(&mut self, mfn: Mfn, level: u8, below: usize) -> Result<(), usize> {
        let table = self.hv.platform.table(mfn);
        let mut groups = below_slot(self.hv.platform.present_groups(mfn), below);
        let (mut worked, mut until_look) = (false, GROUPS_PER_LOOK);
        while groups != 0 {
            let first = groups.ilog2() as usize * GROUP;
            groups &= !(1 << (first / GROUP));
            for slot in (first..below.min(first + GROUP)).rev() {
                let entry = Pte::new(table[slot].load(Ordering::Relaxed));
                if !entry.is_present() || (level == 4 && pte::is_hypervisor_slot(slot)) {
                    continue;
                }
                if level == 1 {
                    self.put_leaf(entry);
                    continue;
                }
                if worked && self.is_to_stop() {
                    return Err(slot + 1);
                }
                worked = true;
                self.put_table(entry.frame());
            }
            // Above level 1, the loop checks for pending work before each entry.
            if level != 1 {
                continue;
            }
            until_look -= 1;
            if until_look == 0 {
                until_look = GROUPS_PER_LOOK;
                if groups != 0 && self.is_to_stop() {
                    return Err(first);
                }
            }
        }
        Ok(())
    }

    /// Leaves the table partial and notes the table for invalidation. If there is no room for the note, the table is
    /// invalidated now.
    pub(super) fn invalidate_later(&mut self, mfn: Mfn, below: usize) {
        if self.has_room_for_deferred() {
            self.make_partial(mfn, below);
            self.tables.deferred.push(mfn);
        } else {
            let level = self.hv.frames.held(mfn).load_kind().page_type().level();
            self.invalidate(mfn, level, below);
        }
    }

    /// Whether something else waits, and the rest of a table can be left for later.
    fn is_to_stop(&self) -> bool {
        self.hv.platform.work_pending() && self.has_room_for_deferred()
    }

    /// Whether one more table can be left for later. There always is room, by the argument at `DEFERRED`. If that
    /// argument were wrong, an operation would take longer, and nothing else.
    fn has_room_for_deferred(&self) -> bool {
        let has_room = !self.tables.deferred.is_full();
        debug_assert!(has_room, "more tables were left for later than an operation gives back");
        has_room
    }

    /// Takes the references of a present entry in a table of level 2-4, which names a table of the level below.
    ///
    /// No table may be named as if it were of a lower level ("linear" page tables, as Xen with `pv-linear-pt=false`):
    /// an L4 that maps itself would make the hypervisor's tables appear at addresses in the guest's range. The
    /// processor keeps user mode from them, but not the hypervisor, which copies from and to guest addresses. (I8)
    pub(super) fn get_child(&mut self, level: u8, entry: Pte) -> Result<(), MemError> {
        if !entry.is_allowed(level) {
            return Err(MemError::Invalid);
        }
        self.get_table(entry.frame(), level - 1)
    }

    /// Takes the references of a present level 1 entry. The result is the entry without the bits that it may not have.
    ///
    /// # Errors
    /// `Invalid`: the entry has bits that no entry may have, or names memory without an owner. `NotPermitted`: the
    /// frame or device is another's. `Busy`: the entry would give write access to a page table, to descriptors, or to
    /// the hypervisor's page.
    #[inline]
    pub(super) fn get_leaf(&mut self, entry: Pte, owner: FrameOwner<'_>) -> Result<Pte, MemError> {
        let mfn = entry.frame();
        let id = match owner {
            FrameOwner::Domain(dom) => dom.id,
            FrameOwner::Hypervisor => DomId::new(DOMID_XEN),
            FrameOwner::Devices(_) => return self.get_device_leaf(entry, owner),
        };
        let Some(page) = self.hv.get_page_of(mfn, id) else { return self.get_device_leaf(entry, owner) };
        // Memory is always mapped write-back: other types alias the hypervisor's own mapping (XSA-154, 402).
        if entry.has(pte::MEMORY_TYPE) {
            return Err(page.refused(MemError::Invalid));
        }
        if entry.has(pte::RW) {
            self.get_writable(page, owner)?.into_raw();
        } else {
            page.into_raw();
        }
        Ok(entry)
    }

    /// Like [`Mm::get_leaf`], for a frame that is not the owner's memory: the frame is a device's, or is refused.
    #[cold]
    fn get_device_leaf(&mut self, entry: Pte, owner: FrameOwner<'_>) -> Result<Pte, MemError> {
        let mfn = entry.frame();
        let frames = &self.hv.frames;
        if frames.info(mfn).is_some_and(|info| info.owner().is_some()) {
            return Err(MemError::NotPermitted);
        }
        if frames.is_ram(mfn) {
            return Err(MemError::Invalid);
        }
        let (FrameOwner::Domain(rights) | FrameOwner::Devices(rights)) = owner else {
            return Err(MemError::Invalid);
        };
        let may = |dom: &crate::domain::Domain| dom.permissions.lock().iomem.contains(mfn.raw());
        if !may(rights) || (rights.id != self.dom.id && !may(self.dom)) {
            return Err(MemError::NotPermitted);
        }
        Ok(entry.for_device(frames.is_protected_device_frame(mfn)))
    }

    /// Gives back what a present level 1 entry holds.
    #[inline]
    pub(super) fn put_leaf(&mut self, entry: Pte) {
        let Some((mfn, info)) = self.hv.frames.find(entry.frame()) else { return };
        let using = info.load_use();
        if using.owner().is_none() {
            return; // a device's
        }
        if entry.has(pte::RW) {
            if !using.is_owned_by(self.dom.id) {
                return self.forget_page(mfn);
            }
            info.put_type();
        } else {
            let kind = info.load_kind();
            if kind.page_type() == PageType::SegDesc && kind.count() > 0 && using.is_owned_by(self.dom.id) {
                self.drop_ldts(); // it may be unmapped so as to be used as something else
            }
        }
        self.hv.put_page(mfn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_cut_at_slots() {
        assert_eq!(
            (from_slot(u64::MAX, 0), from_slot(u64::MAX, 511), from_slot(u64::MAX, 512)),
            (u64::MAX, 1 << 63, 0)
        );
        assert_eq!((from_slot(u64::MAX, 7), from_slot(u64::MAX, 8)), (u64::MAX, !1));
        assert_eq!((below_slot(u64::MAX, 0), below_slot(u64::MAX, 1), below_slot(u64::MAX, 8)), (0, 1, 1));
        assert_eq!((below_slot(u64::MAX, 9), below_slot(u64::MAX, 504)), (3, u64::MAX >> 1));
        assert_eq!((below_slot(u64::MAX, 512), below_slot(2, 8)), (u64::MAX, 0));
    }
}
