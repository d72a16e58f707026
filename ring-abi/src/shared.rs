//! Bytes that another domain may write at any time.
//!
//! No reference to such memory is ever formed: a value is copied out by one access and then private. The accesses are
//! atomic where the width allows it, so that a concurrent writer gives an old or a new value, never a torn one.

#![allow(unsafe_code)] // the one place that touches shared memory

use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A range of shared memory, checked at every access. It does not own the mapping.
#[derive(Clone, Copy, Debug)]
pub struct SharedBytes {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: every access is atomic or a volatile copy of plain bytes, for which no thread needs exclusive use.
unsafe impl Send for SharedBytes {}
// SAFETY: as for `Send`.
unsafe impl Sync for SharedBytes {}

macro_rules! accessors {
    ($atomic:ty, $value:ty, $load:ident, $store:ident) => {
        /// Loads the naturally aligned value at `offset` (acquire).
        ///
        /// # Panics
        /// When the value is not inside the range or not aligned: offsets are ours, never a peer's.
        #[inline]
        pub fn $load(&self, offset: usize) -> $value {
            // SAFETY: `at` checked that the aligned value lies in the mapped range.
            unsafe { <$atomic>::from_ptr(self.at::<$value>(offset)) }.load(Ordering::Acquire)
        }

        /// Stores the naturally aligned value at `offset` (release).
        ///
        /// # Panics
        /// When the value is not inside the range or not aligned.
        #[inline]
        pub fn $store(&self, offset: usize, value: $value) {
            // SAFETY: `at` checked that the aligned value lies in the mapped range.
            unsafe { <$atomic>::from_ptr(self.at::<$value>(offset)) }.store(value, Ordering::Release);
        }
    };
}

macro_rules! read_modify_write {
    ($atomic:ty, $value:ty, $or:ident, $and:ident, $swap:ident, $compare_exchange:ident) => {
        /// Sets the bits of `bits` at `offset`; the value before.
        #[inline]
        pub fn $or(&self, offset: usize, bits: $value) -> $value {
            // SAFETY: `at` checked that the aligned value lies in the mapped range.
            unsafe { <$atomic>::from_ptr(self.at::<$value>(offset)) }.fetch_or(bits, Ordering::AcqRel)
        }

        /// Keeps only the bits of `bits` at `offset`; the value before.
        #[inline]
        pub fn $and(&self, offset: usize, bits: $value) -> $value {
            // SAFETY: `at` checked that the aligned value lies in the mapped range.
            unsafe { <$atomic>::from_ptr(self.at::<$value>(offset)) }.fetch_and(bits, Ordering::AcqRel)
        }

        /// Exchanges the value at `offset`; the value before.
        #[inline]
        pub fn $swap(&self, offset: usize, value: $value) -> $value {
            // SAFETY: `at` checked that the aligned value lies in the mapped range.
            unsafe { <$atomic>::from_ptr(self.at::<$value>(offset)) }.swap(value, Ordering::AcqRel)
        }

        /// Replaces `old` at `offset` by `new`.
        ///
        /// # Errors
        /// What was there instead of `old`.
        #[inline]
        pub fn $compare_exchange(&self, offset: usize, old: $value, new: $value) -> Result<$value, $value> {
            // SAFETY: `at` checked that the aligned value lies in the mapped range.
            unsafe { <$atomic>::from_ptr(self.at::<$value>(offset)) }.compare_exchange(
                old,
                new,
                Ordering::AcqRel,
                Ordering::Acquire,
            )
        }
    };
}

impl SharedBytes {
    /// The `len` bytes at `ptr`.
    ///
    /// # Safety
    /// The range stays mapped, readable and (if it is written through this) writable for as long as this value or a copy
    /// of it is used, is 8-aligned, and no Rust reference to any byte of it exists meanwhile.
    pub const unsafe fn new(ptr: *mut u8, len: usize) -> Self {
        Self { ptr, len }
    }

    /// Bytes in the range.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the range has no byte.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first byte.
    pub const fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// The `len` bytes from `offset`; `None` if they are not all inside.
    pub fn slice(&self, offset: usize, len: usize) -> Option<Self> {
        (offset <= self.len && len <= self.len - offset)
            // SAFETY: the offset lies within the range that `new`'s caller vouched for.
            .then(|| Self { ptr: unsafe { self.ptr.add(offset) }, len })
    }

    accessors!(AtomicU8, u8, load_u8, store_u8);
    accessors!(AtomicU16, u16, load_u16, store_u16);
    accessors!(AtomicU32, u32, load_u32, store_u32);
    accessors!(AtomicU64, u64, load_u64, store_u64);
    read_modify_write!(AtomicU8, u8, or_u8, and_u8, swap_u8, compare_exchange_u8);
    read_modify_write!(AtomicU32, u32, or_u32, and_u32, swap_u32, compare_exchange_u32);
    read_modify_write!(AtomicU64, u64, or_u64, and_u64, swap_u64, compare_exchange_u64);

    /// Copies the bytes from `offset` into private memory.
    ///
    /// # Panics
    /// When they are not all inside the range.
    #[inline]
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        let from = self.range(offset, to.len());
        // SAFETY: the range was checked, and `to` is private memory that cannot overlap what nobody has a reference to.
        // A peer's concurrent write can only change which plain bytes are copied.
        unsafe { core::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) }
    }

    /// Copies private bytes to `offset`.
    ///
    /// # Panics
    /// When they do not fit in the range.
    #[inline]
    pub fn write(&self, offset: usize, from: &[u8]) {
        let to = self.range(offset, from.len());
        // SAFETY: as in `read`.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }

    /// Fills `len` bytes from `offset` with `byte`.
    ///
    /// # Panics
    /// When they are not all inside the range.
    pub fn fill(&self, offset: usize, len: usize, byte: u8) {
        let to = self.range(offset, len);
        // SAFETY: the range was checked.
        unsafe { core::ptr::write_bytes(to, byte, len) }
    }

    #[inline]
    fn range(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset <= self.len && len <= self.len - offset, "access outside the shared range");
        // SAFETY: the offset lies within the range that `new`'s caller vouched for.
        unsafe { self.ptr.add(offset) }
    }

    #[inline]
    fn at<T>(&self, offset: usize) -> *mut T {
        let ptr = self.range(offset, size_of::<T>()).cast::<T>();
        assert!(ptr.is_aligned(), "unaligned access to shared memory");
        ptr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_checked_and_little_endian() {
        let mut page = [0u64; 8];
        // SAFETY: `page` outlives `bytes` and is not touched meanwhile.
        let bytes = unsafe { SharedBytes::new(page.as_mut_ptr().cast(), 64) };
        bytes.store_u32(4, 0x0102_0304);
        assert_eq!(bytes.load_u64(0), 0x0102_0304 << 32);
        assert_eq!(bytes.load_u8(7), 1);
        assert_eq!(bytes.or_u32(4, 0xf000_0000), 0x0102_0304);
        assert_eq!(bytes.compare_exchange_u32(4, 0, 1), Err(0xf102_0304));
        let mut out = [0; 3];
        bytes.read(5, &mut out);
        assert_eq!(out, [3, 2, 0xf1]);
        assert!(bytes.slice(60, 5).is_none());
        assert!(bytes.slice(usize::MAX, 1).is_none());
        assert_eq!(bytes.slice(60, 4).map(|s| s.len()), Some(4));
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn one_byte_too_many_panics() {
        let mut page = [0u64; 1];
        // SAFETY: as above.
        let bytes = unsafe { SharedBytes::new(page.as_mut_ptr().cast(), 8) };
        bytes.read(1, &mut [0; 8]);
    }
}
