//! One frame's entry in the frame table: two atomic words, and the steps that are legal on them.
//!
//! *Use word*: a count of general references, the owner, flags. A frame goes back to the allocator when the count
//! reaches zero; ownership itself is one reference ([`UseWord::ALLOCATED`]). *Type word*: how the frame is used, and
//! how often. The type changes only while the type count is zero. (I2)

use core::sync::atomic::Ordering;

use ring_abi::types::{DOMID_INVALID, DomId};

use crate::sync::words::AtomicU64;

/// What a frame is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum PageType {
    /// Nothing that matters.
    None = 0,
    /// Level 1 page table.
    L1 = 1,
    /// Level 2 page table.
    L2 = 2,
    /// Level 3 page table.
    L3 = 3,
    /// Level 4 page table.
    L4 = 4,
    /// Page of a GDT or LDT.
    SegDesc = 5,
    /// The hypervisor's own page which guests may map for reading alone.
    ReadOnly = 6,
    /// Mapped for writing.
    Writable = 7,
}

impl PageType {
    /// The page-table type of `level` 1-4.
    ///
    /// # Panics
    /// For any other level.
    pub const fn table(level: u8) -> Self {
        assert!(level >= 1 && level <= 4, "a page table has level 1 to 4");
        Self::from_bits(level as u64)
    }

    /// The level of a page table, 0 for anything else.
    pub const fn level(self) -> u8 {
        if self as u8 <= Self::L4 as u8 { self as u8 } else { 0 }
    }

    const fn from_bits(bits: u64) -> Self {
        match bits & 7 {
            0 => Self::None,
            1 => Self::L1,
            2 => Self::L2,
            3 => Self::L3,
            4 => Self::L4,
            5 => Self::SegDesc,
            6 => Self::ReadOnly,
            _ => Self::Writable,
        }
    }
}

/// The highest count of references; one more reference is refused.
const COUNT_LIMIT: u32 = u32::MAX - 16;

/// The use word: bits 0-31 general references (in a free block's head: the previous block), 32-47 owner + 1 (0:
/// no owner), flags from 48 on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct UseWord(pub(crate) u64);

impl UseWord {
    /// One reference is held by ownership itself.
    pub(crate) const ALLOCATED: u64 = 1 << 48;
    /// Head of a free block.
    pub(crate) const FREE: u64 = 1 << 49;
    /// The hypervisor's page, lent to the owner. The owner's count of pages does not include the page.
    pub(crate) const LENT: u64 = 1 << 50;
    /// A guest could map the frame, so that any CPU's TLB may translate to it. Only the allocator forgets this, and has
    /// all CPUs flushed before it gives the frame to anybody. (I4)
    pub(crate) const KNOWN: u64 = 1 << 51;
    /// The owner of a frame whose former owner is gone, and that references of others keep: no domain has this id, and
    /// no domain can refer to the frame anew.
    const ORPHAN: DomId = DomId::new(DOMID_INVALID);

    pub(crate) const fn owned(owner: DomId, flags: u64) -> Self {
        Self(1 | Self::owner_bits(owner) | flags | Self::ALLOCATED | Self::KNOWN)
    }

    /// The same use word, with no owner, so that no domain can refer to the frame anew, and without the mark of
    /// ownership's reference.
    const fn orphaned(self) -> Self {
        Self(self.0 & !(0xffff << 32 | Self::ALLOCATED) | Self::owner_bits(Self::ORPHAN))
    }

    const fn owner_bits(owner: DomId) -> u64 {
        (owner.raw() as u64 + 1) << 32
    }

    pub(crate) const fn count(self) -> u32 {
        self.0 as u32
    }

    pub(crate) fn is_owned_by(self, owner: DomId) -> bool {
        self.0 >> 32 & 0xffff == owner.raw() as u64 + 1
    }

    /// The owner, if there is one.
    pub(crate) fn owner(self) -> Option<DomId> {
        let raw = self.0 >> 32 & 0xffff;
        (raw != 0).then(|| DomId::new((raw - 1) as u16))
    }

    pub(crate) const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }
}

/// The type word: bits 0-31 type count, 32-34 type, flags, 40-49 progress, 50-53 flags of dirty tracking, the rest unused. In
/// a free block's head: the next block and the order.
///
/// A type stays in the word when its count is zero, and [`TypeWord::CACHED`] with it, until the frame gets another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TypeWord(pub(crate) u64);

impl TypeWord {
    /// Pinned: one type and one general reference are held by the pin.
    pub(crate) const PINNED: u64 = 1 << 36;
    /// All entries were checked, and hold references.
    pub(crate) const VALIDATED: u64 = 1 << 37;
    /// Entries below `progress` hold references, the rest do not; the state itself holds the one type reference and
    /// one general reference. (I7)
    pub(crate) const PARTIAL: u64 = 1 << 38;
    /// CPUs may use the frame as its type says though no reference is left: by a translation for writing, a cached entry
    /// that leads to it as a table, or a descriptor window. A flush is owed when the frame gets another type. (I3)
    pub(crate) const CACHED: u64 = 1 << 39;
    /// Nobody has written the frame in the first or in the second of the two generations that take turns as the present one of
    /// the owner's dirty tracking. All zero, as in a word that is new: the frame is dirty.
    pub(crate) const CLEAN_IN: [u64; 2] = [1 << 50, 1 << 51];
    /// Either of [`TypeWord::CLEAN_IN`].
    pub(crate) const ANY_CLEAN: u64 = Self::CLEAN_IN[0] | Self::CLEAN_IN[1];
    /// The guest copied an entry that the hypervisor had taken RW from, so more than one entry may stand for a page that is
    /// copied on write: the hypervisor gives no entry of the frame RW back.
    pub(crate) const COPIED: u64 = 1 << 52;
    /// A level 1 table whose entries dirty tracking has been over: [`super::pte::MARK`] in them is the hypervisor's.
    pub(crate) const TRACKED: u64 = 1 << 53;
    const PROGRESS_SHIFT: u32 = 40;
    const PROGRESS_MASK: u64 = 0x3ff << Self::PROGRESS_SHIFT;
    const TYPE_MASK: u64 = 7 << 32;

    /// No type, as no CPU knows the frame: for frames that the allocator gave or gets.
    pub(crate) const CLEAN: Self = Self(0);

    /// A frame that has just got a type; from now on CPUs may use it so.
    pub(crate) const fn new(page_type: PageType, count: u32) -> Self {
        let cached = if matches!(page_type, PageType::None) { 0 } else { Self::CACHED };
        Self((page_type as u64) << 32 | cached | count as u64)
    }

    /// Whether a flush is owed before the frame is used as `wanted`.
    pub(crate) fn needs_flush_for(self, wanted: PageType) -> bool {
        self.has(Self::CACHED) && self.page_type() != wanted
    }

    #[inline]
    pub(crate) const fn count(self) -> u32 {
        self.0 as u32
    }

    pub(crate) const fn page_type(self) -> PageType {
        PageType::from_bits(self.0 >> 32)
    }

    #[inline]
    pub(crate) const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    /// Whether the frame is a page table of type `table` all of whose entries were checked.
    #[inline]
    pub(crate) const fn is_valid_table(self, table: PageType) -> bool {
        self.0 & (Self::VALIDATED | Self::TYPE_MASK) == Self::VALIDATED | (table as u64) << 32
    }

    pub(crate) const fn progress(self) -> usize {
        ((self.0 & Self::PROGRESS_MASK) >> Self::PROGRESS_SHIFT) as usize
    }

    pub(crate) const fn with_progress(self, entries: usize) -> Self {
        Self(self.0 & !Self::PROGRESS_MASK | (entries as u64) << Self::PROGRESS_SHIFT)
    }
}

/// Whether CPUs may still use a frame as what the frame was. The hypervisor flushes those CPUs before the frame is used as
/// something else. (I3)
#[must_use = "CPUs may still use the frame as what it was"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlushOwed(pub(crate) bool);

/// A frame's entry: 16 bytes. All of them zero, as by default: the frame has no owner.
#[repr(C)]
#[derive(Debug, Default)]
pub struct FrameInfo {
    pub(crate) using: AtomicU64,
    pub(crate) kind: AtomicU64,
}

#[cfg(not(all(loom, test)))]
const _: () = assert!(size_of::<FrameInfo>() == 16);

impl FrameInfo {
    #[inline]
    pub(crate) fn load_use(&self) -> UseWord {
        UseWord(self.using.load(Ordering::Acquire))
    }

    #[inline]
    pub(crate) fn load_kind(&self) -> TypeWord {
        TypeWord(self.kind.load(Ordering::Acquire))
    }

    /// The owner, if there is one.
    #[inline]
    pub fn owner(&self) -> Option<DomId> {
        self.load_use().owner()
    }

    /// The type that the frame has or last had, and how many references hold it.
    pub fn page_type(&self) -> (PageType, u32) {
        let kind = self.load_kind();
        if self.owner().is_some() { (kind.page_type(), kind.count()) } else { (PageType::None, 0) }
    }

    /// Whether the frame is a pinned page table.
    pub fn is_pinned(&self) -> bool {
        self.owner().is_some() && self.load_kind().has(TypeWord::PINNED)
    }

    /// Whether the frame is the hypervisor's page, lent to the frame's owner.
    pub fn is_lent(&self) -> bool {
        self.load_use().has(UseWord::LENT)
    }

    /// Gives a frame that was nobody's an owner. The type is there before the owner: from then on the owner may refer to the
    /// frame. (I10)
    pub(crate) fn publish(&self, using: UseWord, kind: TypeWord) {
        assert!(self.load_use().0 == 0, "an assigned frame was nobody's");
        self.set_kind(kind);
        self.using.store(using.0, Ordering::Release);
    }

    /// Takes a general reference if the frame is in use and `owner`'s. (I1)
    #[inline]
    pub(crate) fn get(&self, owner: DomId) -> bool {
        let mut now = self.load_use();
        loop {
            if !now.is_owned_by(owner) || now.count() == 0 || now.count() >= COUNT_LIMIT {
                return false;
            }
            let next = now.0.wrapping_add(1);
            match self.using.compare_exchange_weak(now.0, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(seen) => now = UseWord(seen),
            }
        }
    }

    /// Gives a general reference back (I15). `true`: this was the last reference, and the caller must free the frame.
    #[inline]
    #[must_use]
    pub(crate) fn put(&self) -> bool {
        let before = UseWord(self.using.fetch_sub(1, Ordering::AcqRel));
        // One comparison serves both cases, since this code runs for each entry that a guest removes.
        if before.count() > 1 {
            return false;
        }
        assert!(before.count() == 1 && before.owner().is_some(), "reference count underflow");
        true
    }

    /// Ends ownership: the reference that ownership held becomes the caller's. `false`: ownership had ended already.
    #[must_use]
    pub(crate) fn end_ownership(&self) -> bool {
        self.using.fetch_and(!UseWord::ALLOCATED, Ordering::AcqRel) & UseWord::ALLOCATED != 0
    }

    /// Ends ownership of a frame that others may refer to longer than the owner's number means the owner. The reference
    /// that ownership held becomes the caller's. `false`: ownership had ended already.
    #[must_use]
    pub(crate) fn orphan(&self) -> bool {
        let orphaned = |now| UseWord(now).has(UseWord::ALLOCATED).then_some(UseWord(now).orphaned().0);
        self.using.fetch_update(Ordering::AcqRel, Ordering::Acquire, orphaned).is_ok()
    }

    /// Takes a reference of a type that needs no validation. The flush comes before the reference is used. `None`: the frame
    /// is in use as something else, or the count would overflow.
    #[inline]
    pub(crate) fn get_type(&self, wanted: PageType) -> Option<FlushOwed> {
        let mut now = self.load_kind();
        loop {
            let (next, changed) = if now.page_type() == wanted {
                if now.count() >= COUNT_LIMIT {
                    return None;
                }
                (now.0.wrapping_add(1), false)
            } else if now.count() == 0 {
                (TypeWord::new(wanted, 1).0, now.needs_flush_for(wanted))
            } else {
                return None;
            };
            match self.kind.compare_exchange_weak(now.0, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(FlushOwed(changed)),
                Err(seen) => now = TypeWord(seen),
            }
        }
    }

    /// Takes a reference of the type that the frame has or last had, if that is `wanted`: no flush is owed.
    #[inline]
    pub(crate) fn get_same_type(&self, wanted: PageType) -> bool {
        let more = |now| TypeWord(now).page_type() == wanted && TypeWord(now).count() < COUNT_LIMIT;
        let one_more = |now: u64| more(now).then_some(now.wrapping_add(1));
        self.kind.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok()
    }

    /// Takes one more reference of type `table` on a page table that was checked. The owner's page-table lock is held:
    /// while the count is not zero, nobody else changes the word. `false`: that would be too many.
    #[inline]
    pub(crate) fn get_table(&self, table: PageType) -> bool {
        let now = self.load_kind();
        debug_assert!(now.is_valid_table(table) && now.count() > 0);
        let room = now.count() < COUNT_LIMIT;
        if room {
            self.set_kind(TypeWord(now.0.wrapping_add(1)));
        }
        room
    }

    /// Gives back a reference of a type that needs no invalidation. The word as it was: this is a full barrier behind what the
    /// caller wrote.
    #[inline]
    pub(crate) fn put_type(&self) -> TypeWord {
        let before = TypeWord(self.kind.fetch_sub(1, Ordering::AcqRel));
        assert!(before.count() > 0, "type count underflow");
        before
    }

    /// Sets flags in the type word of a frame to which the caller has a reference. The word as it was.
    pub(crate) fn set_flags(&self, flags: u64) -> TypeWord {
        TypeWord(self.kind.fetch_or(flags, Ordering::AcqRel))
    }

    /// Clears flags likewise; looks first, since most are clear.
    pub(crate) fn clear_flags(&self, flags: u64) {
        if self.load_kind().has(flags) {
            self.kind.fetch_and(!flags, Ordering::AcqRel);
        }
    }

    /// Whether [`FrameInfo::steal`] would take a frame from `owner`, if nothing changed meanwhile.
    pub(crate) fn is_stealable(&self, owner: DomId) -> bool {
        self.load_use() == UseWord::owned(owner, 0) && self.load_kind().count() == 0
    }

    /// Takes a frame away from `owner` if ownership holds the only reference. The frame then has no owner. Both
    /// words keep what CPUs may know of the frame.
    #[must_use]
    pub(crate) fn steal(&self, owner: DomId) -> bool {
        let alone = UseWord::owned(owner, 0).0;
        self.using.compare_exchange(alone, UseWord::KNOWN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Does the same as [`FrameInfo::steal`] for a frame that is lent to `owner` and that no domain maps.
    #[must_use]
    pub(crate) fn steal_lent(&self, owner: DomId) -> bool {
        let alone = UseWord::owned(owner, UseWord::LENT).0;
        self.using.compare_exchange(alone, UseWord::KNOWN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Takes [`FrameInfo::steal_lent`] back.
    pub(crate) fn lend_again(&self, owner: DomId) {
        self.using.store(UseWord::owned(owner, UseWord::LENT).0, Ordering::Release);
    }

    /// Takes [`FrameInfo::steal`] back.
    pub(crate) fn give_back(&self, owner: DomId) {
        self.using.store(UseWord::owned(owner, 0).0, Ordering::Release);
    }

    pub(crate) fn set_kind(&self, kind: TypeWord) {
        self.kind.store(kind.0, Ordering::Release);
    }

    /// Replaces the type word if the word is `old`.
    #[inline]
    pub(crate) fn replace_kind(&self, old: TypeWord, new: TypeWord) -> Option<FlushOwed> {
        let replaced = self.kind.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Acquire);
        replaced.is_ok().then(|| FlushOwed(old.needs_flush_for(new.page_type())))
    }
}

#[cfg(test)]
#[cfg(loom)]
mod model;
#[cfg(test)]
mod tests;
