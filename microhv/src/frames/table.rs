//! The frame table: every machine frame's entry, which frames are memory, and the free ones.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use ring_abi::memory::{E820_RAM, E820Entry};
use ring_abi::types::Mfn;

use super::buddy::{MAX_ORDER, Zone};
use super::info::{FrameInfo, TypeWord, UseWord};
use super::pte::{FRAME, PSE, Pte};
use crate::nospec::At;
use crate::rangeset::RangeSet;
use crate::sync::{Mutex, rank};

/// Most ranges of memory that a firmware map may have.
pub const MAX_RANGES: usize = 32;
/// The bits of an address by which every CPU with L1TF finds a line in its first-level cache.
const L1D_ADDRESS: u64 = FRAME & ((1 << 44) - 1);
/// First frame above 4 GiB.
const HIGH: u32 = 1 << 20;

/// Owner, type and counts of every machine frame, and the allocator of the free ones. The default has no frames.
///
/// A frame that is memory and has no owner is free or the hypervisor's own: no guest can reach it. A frame that is no
/// memory belongs to a device.
#[derive(Debug, Default)]
pub struct FrameTable {
    infos: &'static [FrameInfo],
    /// Ranges of frames that are memory: start, end.
    ram: ArrayVec<(u32, u32), MAX_RANGES>,
    /// Free frames: below 4 GiB, and above.
    zones: Mutex<rank::FreeFrames, [Zone; 2]>,
    /// Frames freed so far that some CPU's TLB may know.
    freed: AtomicU64,
    /// How many of the frames in `freed` were freed before the last flush of all CPUs began.
    flushed: AtomicU64,
    /// Pages claimed by domains which they do not own yet.
    pub(crate) claimed: AtomicU64,
    /// One past the last address of memory where entries that are not present may name none; else 0.
    no_absent_below: AtomicU64,
    /// Devices' frames that no domain may write.
    read_only: Mutex<rank::ReadOnlyFrames, RangeSet>,
}

impl FrameTable {
    /// A table over `infos`, all zero, entry n for frame n. `ram` are the ranges of frames (start, end exclusive) that
    /// are memory; none of these frames is free yet. Ranges beyond [`MAX_RANGES`] or the entries are left out.
    pub fn over(infos: &'static [FrameInfo], ram: &[(Mfn, Mfn)]) -> Self {
        let end = infos.len().min(u32::MAX as usize - 1) as u64;
        let ranges = ram.iter().map(|&(from, to)| (from.raw().min(end) as u32, to.raw().min(end) as u32));
        let ranges = ranges.filter(|(from, to)| from < to);
        Self { infos: &infos[..end as usize], ram: ranges.take(MAX_RANGES).collect(), ..Self::default() }
    }

    /// A table for `frames` frames on the host, all memory, all free but the first `reserved`. The memory of the
    /// table's entries is never given back.
    #[cfg(any(test, feature = "testing"))]
    pub fn for_tests(frames: usize, reserved: u64) -> Self {
        let infos: alloc::vec::Vec<FrameInfo> = (0..frames).map(|_| FrameInfo::default()).collect();
        let end = Mfn::new(frames as u64);
        let table = Self::over(alloc::boxed::Box::leak(infos.into_boxed_slice()), &[(Mfn::new(0), end)]);
        table.add_free(Mfn::new(reserved), end);
        table
    }

    /// All entries, for a model that is held against them.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn entries(&self) -> &'static [FrameInfo] {
        self.infos
    }

    /// Hands free frames of memory (start, end exclusive) to the allocator, as a few large blocks.
    pub fn add_free(&self, start: Mfn, end: Mfn) {
        let (mut at, end) = (start.raw(), end.raw().min(self.infos.len() as u64));
        let mut zones = self.zones.lock();
        while at < end {
            let fits = (u64::BITS - 1 - (end - at).leading_zeros()) as u8;
            let order = (at.trailing_zeros() as u8).min(fits).min(MAX_ORDER);
            zones[usize::from(at >= u64::from(HIGH))].release(self.infos, at as u32, order);
            at += 1 << order;
        }
    }

    /// The entry of a frame, if the table reaches to the frame.
    #[inline]
    pub fn info(&self, mfn: Mfn) -> Option<&FrameInfo> {
        self.find(mfn).map(|(_, info)| info)
    }

    /// A frame that a guest may have named, and its entry, if the table reaches to the frame. Code that goes on to use the frame
    /// uses this number.
    #[inline]
    pub(crate) fn find(&self, mfn: Mfn) -> Option<(Mfn, &FrameInfo)> {
        #[cfg(any(test, feature = "testing"))]
        crate::testing::turns::point();
        #[cfg(any(test, feature = "testing"))]
        crate::testing::looks::note(crate::testing::looks::Look::Entry(mfn));
        let (at, info) = self.infos.find(mfn.raw() as usize)?;
        Some((Mfn::new(at as u64), info))
    }

    /// The entry of a frame on which there is a reference. [`FrameTable::find`] gave its number, or a page table has it.
    ///
    /// # Panics
    /// If the table does not reach to the frame.
    #[inline]
    pub(crate) fn held(&self, mfn: Mfn) -> &FrameInfo {
        #[cfg(any(test, feature = "testing"))]
        crate::testing::turns::point();
        &self.infos[mfn.raw() as usize]
    }

    /// Whether the frame is memory.
    pub fn is_ram(&self, mfn: Mfn) -> bool {
        self.ram.iter().any(|&(start, end)| (start.into()..end.into()).contains(&mfn.raw()))
    }

    /// Frames of memory.
    pub fn total_pages(&self) -> u64 {
        self.ram.iter().map(|(start, end)| u64::from(end - start)).sum()
    }

    /// Free frames.
    pub fn free_pages(&self) -> u64 {
        self.zones.lock().iter().map(Zone::free).sum()
    }

    /// Pages that domains claimed and do not own yet.
    pub fn claimed(&self) -> u64 {
        self.claimed.load(Ordering::Relaxed)
    }

    /// One past the last frame of memory.
    pub fn end(&self) -> Mfn {
        Mfn::new(self.ram.iter().map(|&(_, end)| end.into()).max().unwrap_or(0))
    }

    /// From now on an entry of a page table that is not present may name no memory: a CPU with L1TF reads ahead what its
    /// first-level cache has of that memory.
    pub fn refuse_absent_memory(&self) {
        self.no_absent_below.store(self.end().maddr().raw(), Ordering::Relaxed);
    }

    /// Whether [`FrameTable::refuse_absent_memory`] was called.
    pub(crate) fn refuses_absent_memory(&self) -> bool {
        self.no_absent_below.load(Ordering::Relaxed) != 0
    }

    /// Whether `entry`, which is not present, may be in a page table. Frame 0 is firmware's; a large page from there on is not.
    #[inline]
    pub(crate) fn may_be_absent(&self, entry: Pte) -> bool {
        entry == Pte::NONE || self.is_no_memory(entry)
    }

    #[cold]
    #[inline(never)]
    fn is_no_memory(&self, entry: Pte) -> bool {
        let at = entry.raw() & L1D_ADDRESS;
        at == 0 && !entry.has(PSE) || at >= self.no_absent_below.load(Ordering::Relaxed)
    }

    /// Takes 2^`order` free frames, aligned to their size, with any contents; all below 2^`address_bits` bytes if
    /// `address_bits` is not 0. The frames are the hypervisor's own.
    ///
    /// Some TLB may still know the frames: [`FrameTable::stale`] says so. `Hypervisor::alloc_frames` cares for that.
    pub(crate) fn take(&self, order: u8, address_bits: u8) -> Option<Mfn> {
        if order > MAX_ORDER {
            return None;
        }
        let limited = (1..44).contains(&address_bits);
        let mut zones = self.zones.lock();
        let [low, high] = &mut *zones;
        if !limited && let Some(at) = high.alloc(self.infos, order) {
            return Some(Mfn::new(u64::from(at)));
        }
        let at = low.alloc(self.infos, order)?;
        if limited && address_bits < 32 && (u64::from(at) + (1 << order)) << 12 > 1 << address_bits {
            low.release(self.infos, at, order);
            return None;
        }
        Some(Mfn::new(u64::from(at)))
    }

    /// Gives back 2^`order` frames without an owner. [`FrameTable::stale`] counts the frames that a TLB may know.
    pub fn release(&self, mfn: Mfn, order: u8) {
        let mut known = 0;
        for info in &self.infos[mfn.raw() as usize..mfn.raw() as usize + (1 << order)] {
            let using = info.load_use();
            assert!(using.0 & !UseWord::KNOWN == 0, "only frames that are nobody's can be released");
            known += u64::from(using.has(UseWord::KNOWN));
            info.using.store(0, Ordering::Relaxed);
            info.set_kind(TypeWord::CLEAN);
        }
        if known > 0 {
            self.freed.fetch_add(known, Ordering::AcqRel);
        }
        self.zones.lock()[usize::from(mfn.raw() >= u64::from(HIGH))].release(
            self.infos,
            mfn.raw() as u32,
            order,
        );
    }

    /// Frees a frame whose last reference is gone.
    pub(crate) fn free_used(&self, mfn: Mfn) {
        let info = self.held(mfn);
        assert_eq!(info.load_kind().count(), 0, "a freed frame has no type references");
        info.using.store(UseWord::KNOWN, Ordering::Release);
        self.release(mfn, 0);
    }

    /// If frames were freed that a TLB may know: the number that the caller tells [`FrameTable::flushed`] after a flush
    /// of all CPUs.
    #[inline]
    pub(crate) fn stale(&self) -> Option<u64> {
        let freed = self.freed.load(Ordering::Acquire);
        (self.flushed.load(Ordering::Acquire) < freed).then_some(freed)
    }

    /// All CPUs were flushed after [`FrameTable::stale`] gave `freed`.
    pub(crate) fn flushed(&self, freed: u64) {
        self.flushed.fetch_max(freed, Ordering::AcqRel);
    }

    /// Makes a frame that the allocator gave an owner's.
    pub(crate) fn publish(&self, mfn: Mfn, using: UseWord, kind: TypeWord) {
        self.held(mfn).publish(using, kind);
    }

    /// The memory map for the first domain.
    pub fn memory_map(&self) -> Vec<E820Entry> {
        let bytes = |frames: u32| u64::from(frames) << 12;
        let entry = |&(from, to)| E820Entry { addr: bytes(from), size: bytes(to - from), r#type: E820_RAM };
        self.ram.iter().map(entry).collect()
    }

    /// Makes device frames `first..=last` read-only to every domain, mappings made before excepted. (I12)
    pub fn protect_device_frames(&self, first: Mfn, last: Mfn) {
        self.read_only.lock().add(first.raw(), last.raw());
    }

    /// Takes [`FrameTable::protect_device_frames`] back.
    pub fn unprotect_device_frames(&self, first: Mfn, last: Mfn) {
        self.read_only.lock().remove(first.raw(), last.raw());
    }

    /// Entries of frames `first..`, at most `count`.
    pub(crate) fn slice(&self, first: u64, count: u64) -> &[FrameInfo] {
        let end = (first + count).min(self.infos.len() as u64);
        &self.infos[first.min(end) as usize..end as usize]
    }

    pub(crate) fn is_protected_device_frame(&self, mfn: Mfn) -> bool {
        self.read_only.lock().contains(mfn.raw())
    }
}

#[cfg(test)]
mod tests {
    use alloc::boxed::Box;

    use super::*;

    fn table(frames: usize, ram: &[(u64, u64)]) -> FrameTable {
        let infos: Vec<FrameInfo> = (0..frames).map(|_| FrameInfo::default()).collect();
        let ram: Vec<(Mfn, Mfn)> = ram.iter().map(|&(a, b)| (Mfn::new(a), Mfn::new(b))).collect();
        let table = FrameTable::over(Box::leak(infos.into_boxed_slice()), &ram);
        for &(start, end) in &ram {
            table.add_free(start, end);
        }
        table
    }

    #[test]
    fn odd_ranges_are_added_whole() {
        let table = table(256, &[(3, 160), (200, 300)]);
        assert_eq!(table.free_pages(), 157 + 56);
        assert_eq!(table.total_pages(), 157 + 56);
        assert_eq!(table.end(), Mfn::new(256));
        assert!(!table.is_ram(Mfn::new(2)) && table.is_ram(Mfn::new(3)) && !table.is_ram(Mfn::new(160)));
        let mut seen = 0;
        while let Some(mfn) = table.take(0, 0) {
            assert!(table.is_ram(mfn));
            seen += 1;
        }
        assert_eq!(seen, 157 + 56);
    }

    #[test]
    fn address_limits_are_kept() {
        let table = table(64, &[(32, 64)]);
        assert_eq!(table.take(0, 17), None, "below 128 KiB there is nothing");
        assert_eq!(table.free_pages(), 32);
        assert!(table.take(5, 18).is_some());
        assert_eq!(table.take(MAX_ORDER + 1, 0), None);
    }
}
