#![allow(unsafe_code)] // the one place that touches memory another domain may write, through raw pointers
//! Memory that another domain, or the hypervisor, may change at any time.
//!
//! There is never a Rust reference to such bytes. [`SharedBytes`] reads and writes such bytes by value, each access
//! once (I22). Bounds are checked like a slice index: an offset outside is this program's own mistake and panics. The
//! caller checks an offset that a peer chose first, or passes the offset to [`SharedBytes::get`].

mod owner;

use core::marker::PhantomData;
use core::ops::Deref;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

pub use owner::{SharedMemory, leaked_pages};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::types::PAGE_SIZE;

/// Copies up to this many bytes are done in place, word by word.
const SHORT_COPY_BYTES: usize = 16;

/// Copies from this many bytes on use a string instruction instead of a loop.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const STRING_COPY_BYTES: usize = 256;

/// A view of a run of shared bytes. Copies of the view reach the same memory.
///
/// The view does not own the mapping but borrows the mapping for `'a`: code that unmaps or frees the memory takes the
/// owner by value, and the compiler refuses this while a view is still used. `'static` is memory that is never
/// unmapped. (I21)
#[derive(Clone, Copy, Debug)]
pub struct SharedBytes<'a> {
    ptr: *mut u8,
    len: usize,
    memory: PhantomData<&'a [AtomicU8]>,
}

// SAFETY: every access is an atomic or a volatile string copy of plain bytes by value, so that any thread may make it
// at any time; the maker of the value promised that the memory stays valid.
unsafe impl Send for SharedBytes<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for SharedBytes<'_> {}

macro_rules! width {
    ($raw:ty, $atomic:ty, $load:ident, $store:ident, $swap:ident, $or:ident, $and:ident, $cmpxchg:ident) => {
        /// Loads the value at `offset` (acquire).
        ///
        /// # Panics
        /// If the value is not wholly inside, or not naturally aligned. The other accesses of this width panic for the
        /// same reasons.
        #[inline]
        #[must_use]
        pub fn $load(&self, offset: usize) -> $raw {
            let ptr = self.aligned(offset, size_of::<$raw>()).cast::<$raw>();
            // SAFETY: `aligned` checked bounds and alignment; the memory is valid while `self` is used.
            unsafe { <$atomic>::from_ptr(ptr) }.load(Ordering::Acquire)
        }

        /// Stores the value at `offset` (release).
        #[inline]
        pub fn $store(&self, offset: usize, value: $raw) {
            let ptr = self.aligned(offset, size_of::<$raw>()).cast::<$raw>();
            // SAFETY: as in the load.
            unsafe { <$atomic>::from_ptr(ptr) }.store(value, Ordering::Release);
        }

        /// Stores a value and returns the one before, as one full barrier.
        #[inline]
        pub fn $swap(&self, offset: usize, value: $raw) -> $raw {
            let ptr = self.aligned(offset, size_of::<$raw>()).cast::<$raw>();
            // SAFETY: as in the load.
            unsafe { <$atomic>::from_ptr(ptr) }.swap(value, Ordering::SeqCst)
        }

        /// Sets the bits of `bits` and returns the value before, as one full barrier.
        #[inline]
        pub fn $or(&self, offset: usize, bits: $raw) -> $raw {
            let ptr = self.aligned(offset, size_of::<$raw>()).cast::<$raw>();
            // SAFETY: as in the load.
            unsafe { <$atomic>::from_ptr(ptr) }.fetch_or(bits, Ordering::SeqCst)
        }

        /// Keeps only the bits of `bits` and returns the value before, as one full barrier.
        #[inline]
        pub fn $and(&self, offset: usize, bits: $raw) -> $raw {
            let ptr = self.aligned(offset, size_of::<$raw>()).cast::<$raw>();
            // SAFETY: as in the load.
            unsafe { <$atomic>::from_ptr(ptr) }.fetch_and(bits, Ordering::SeqCst)
        }

        /// Stores `new` if the value is `old`.
        ///
        /// # Errors
        /// The value at `offset`, if that value is not `old`.
        #[inline]
        pub fn $cmpxchg(&self, offset: usize, old: $raw, new: $raw) -> Result<$raw, $raw> {
            let ptr = self.aligned(offset, size_of::<$raw>()).cast::<$raw>();
            // SAFETY: as in the load.
            unsafe { <$atomic>::from_ptr(ptr) }.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
        }
    };
}

impl SharedBytes<'static> {
    /// Views words of our own, which live for ever, as shared bytes.
    #[must_use]
    pub const fn from_static(words: &'static [AtomicU64]) -> Self {
        Self { ptr: words.as_ptr().cast::<u8>().cast_mut(), len: size_of_val(words), memory: PhantomData }
    }
}

impl<'a> SharedBytes<'a> {
    /// The value at `offset`, for accesses that look at bounds no more.
    ///
    /// # Panics
    /// If the value is not wholly inside, or not naturally aligned.
    #[inline]
    #[must_use]
    pub fn word_u16(&self, offset: usize) -> &'a AtomicU16 {
        let ptr = self.aligned(offset, size_of::<u16>()).cast::<u16>();
        // SAFETY: `aligned` checked bounds and alignment; the memory is valid for `'a`.
        unsafe { AtomicU16::from_ptr(ptr) }
    }

    /// The value at `offset`, and its two lowest bytes, for accesses that look at bounds no more.
    ///
    /// # Panics
    /// If the value is not wholly inside, or not naturally aligned.
    #[inline]
    #[must_use]
    pub fn word_u64(&self, offset: usize) -> (&'a AtomicU64, &'a AtomicU16) {
        let ptr = self.aligned(offset, size_of::<u64>());
        // SAFETY: `aligned` checked bounds and alignment; the memory is valid for `'a`.
        unsafe { (AtomicU64::from_ptr(ptr.cast()), AtomicU16::from_ptr(ptr.cast())) }
    }
}

impl SharedBytes<'_> {
    /// Wraps `len` bytes at `ptr`.
    ///
    /// # Safety
    /// For the whole lifetime that the caller gives the value, the bytes are mapped, and writable if a storing method
    /// is called; and nothing in this program reaches them but through atomics or values made by this function.
    /// `ptr` is aligned to 8 bytes.
    #[must_use]
    pub const unsafe fn new(ptr: *mut u8, len: usize) -> Self {
        Self { ptr, len, memory: PhantomData }
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Are there no bytes?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first byte.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// The `len` bytes from `offset` on; `None` if these bytes are not all inside.
    #[must_use]
    pub const fn slice(&self, offset: usize, len: usize) -> Option<Self> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => {
                // SAFETY: within the memory that the maker of `self` vouched for.
                Some(Self { ptr: unsafe { self.ptr.add(offset) }, len, memory: PhantomData })
            }
            _ => None,
        }
    }

    #[inline]
    fn inside(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset <= self.len && len <= self.len - offset, "access outside shared memory");
        // SAFETY: within the memory, as just checked.
        unsafe { self.ptr.add(offset) }
    }

    #[inline(always)]
    fn aligned(&self, offset: usize, size: usize) -> *mut u8 {
        let ptr = self.inside(offset, size);
        assert!(ptr.addr().is_multiple_of(size), "misaligned access to shared memory");
        ptr
    }

    width!(u8, AtomicU8, load_u8, store_u8, swap_u8, or_u8, and_u8, compare_exchange_u8);
    width!(u16, AtomicU16, load_u16, store_u16, swap_u16, or_u16, and_u16, compare_exchange_u16);
    width!(u32, AtomicU32, load_u32, store_u32, swap_u32, or_u32, and_u32, compare_exchange_u32);
    width!(u64, AtomicU64, load_u64, store_u64, swap_u64, or_u64, and_u64, compare_exchange_u64);

    /// Copies bytes out. Each byte is read once, and the order of the reads is not set.
    ///
    /// # Panics
    /// If the bytes are not all inside.
    #[inline]
    pub fn read(&self, offset: usize, target: &mut [u8]) {
        let source = self.inside(offset, target.len());
        // SAFETY: `inside` checked the source; the target is ours alone.
        unsafe { copy(source, target.as_mut_ptr(), target.len()) }
    }

    /// Copies bytes in. Each byte is written once, and the order of the writes is not set.
    ///
    /// # Panics
    /// If the bytes are not all inside.
    #[inline]
    pub fn write(&self, offset: usize, source: &[u8]) {
        let target = self.inside(offset, source.len());
        // SAFETY: `inside` checked the target; the source is ours to read.
        unsafe { copy(source.as_ptr().cast_mut(), target, source.len()) }
    }

    /// Copies `len` bytes from `offset` on to `target`, which is shared memory as well. Each byte is read once. Where both are
    /// the same memory, the target's bytes are any of those that were there.
    ///
    /// # Panics
    /// If the bytes are not all inside on both sides.
    #[inline]
    pub fn copy_to(&self, offset: usize, target: &SharedBytes<'_>, to: usize, len: usize) {
        let (source, target) = (self.inside(offset, len), target.inside(to, len));
        // SAFETY: `inside` checked the bounds of both sides; the makers of the two views keep the memory valid as long as the
        // views live, and hand out no reference to it.
        unsafe { copy_any(source, target, len) }
    }

    /// Sets `len` bytes to `value`.
    ///
    /// # Panics
    /// If the bytes are not all inside.
    pub fn fill(&self, offset: usize, len: usize, value: u8) {
        let target = self.inside(offset, len);
        // SAFETY: `inside` checked the target.
        unsafe { fill(target, len, value) }
    }

    /// Copies a structure out.
    ///
    /// # Panics
    /// If the structure is not wholly inside.
    #[inline]
    #[must_use]
    pub fn read_value<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        let mut value = T::new_zeroed();
        self.read(offset, value.as_mut_bytes());
        value
    }

    /// Copies a structure in.
    ///
    /// # Panics
    /// If the structure is not wholly inside.
    #[inline]
    pub fn write_value<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) {
        self.write(offset, value.as_bytes());
    }
}

/// Copies `len` bytes, where one side is shared memory, or both are.
///
/// The copy uses relaxed atomics rather than `ptr::copy`: the compiler may neither repeat nor invent such accesses.
///
/// # Safety
/// Both sides are valid for `len` bytes. The two sides overlap only if both are shared memory.
#[inline(always)]
unsafe fn copy(source: *mut u8, target: *mut u8, len: usize) {
    // The messages of a ring: a known length of a few words, for which the compiler makes as many moves.
    if len <= SHORT_COPY_BYTES && len.is_multiple_of(4) && (source.addr() | target.addr()).is_multiple_of(4) {
        for at in (0..len).step_by(4) {
            // SAFETY: four more bytes are left on both sides, both aligned.
            unsafe {
                let word = AtomicU32::from_ptr(source.add(at).cast()).load(Ordering::Relaxed);
                AtomicU32::from_ptr(target.add(at).cast()).store(word, Ordering::Relaxed);
            }
        }
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { copy_any(source, target, len) }
}

/// As [`copy`], for every length and alignment.
///
/// # Safety
/// As [`copy`].
#[inline(never)]
unsafe fn copy_any(source: *mut u8, target: *mut u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if len >= STRING_COPY_BYTES {
        // SAFETY: valid by the caller's promise; `rep movs` touches only these bytes, and the direction flag is clear.
        unsafe {
            core::arch::asm!(
                "rep movsq",
                "mov ecx, {rest:e}",
                "rep movsb",
                rest = in(reg) len % 8,
                inout("rcx") len / 8 => _,
                inout("rsi") source => _,
                inout("rdi") target => _,
                options(nostack, preserves_flags)
            );
        }
        return;
    }
    let mut done = 0;
    if (source.addr() | target.addr()).is_multiple_of(8) {
        // Packets' headers: a loop costs as much as the words.
        while len - done >= 32 {
            for at in [0, 8, 16, 24] {
                // SAFETY: valid by the caller's promise; 32 more bytes are left on both sides, aligned as was checked above.
                unsafe {
                    let word = AtomicU64::from_ptr(source.add(done + at).cast()).load(Ordering::Relaxed);
                    AtomicU64::from_ptr(target.add(done + at).cast()).store(word, Ordering::Relaxed);
                }
            }
            done += 32;
        }
        while len - done >= 8 {
            // SAFETY: eight more bytes are left on both sides, both aligned.
            unsafe {
                let word = AtomicU64::from_ptr(source.add(done).cast()).load(Ordering::Relaxed);
                AtomicU64::from_ptr(target.add(done).cast()).store(word, Ordering::Relaxed);
            }
            done += 8;
        }
        if done == len {
            return;
        }
    }
    if (source.addr() | target.addr()).is_multiple_of(4) {
        while len - done >= 4 {
            // SAFETY: four more bytes are left on both sides, both aligned (`done` is a multiple of 4).
            unsafe {
                let word = AtomicU32::from_ptr(source.add(done).cast()).load(Ordering::Relaxed);
                AtomicU32::from_ptr(target.add(done).cast()).store(word, Ordering::Relaxed);
            }
            done += 4;
        }
    }
    while done < len {
        // SAFETY: one more byte is left on both sides.
        unsafe {
            let byte = AtomicU8::from_ptr(source.add(done)).load(Ordering::Relaxed);
            AtomicU8::from_ptr(target.add(done)).store(byte, Ordering::Relaxed);
        }
        done += 1;
    }
}

/// Sets `len` bytes of shared memory.
///
/// # Safety
/// `target` is valid for `len` bytes.
unsafe fn fill(target: *mut u8, len: usize, value: u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if len >= STRING_COPY_BYTES {
        // SAFETY: valid by the caller's promise, and the direction flag is clear.
        unsafe {
            core::arch::asm!(
                "rep stosq",
                "mov ecx, {rest:e}",
                "rep stosb",
                rest = in(reg) len % 8,
                in("rax") u64::from(value) * 0x0101_0101_0101_0101,
                inout("rcx") len / 8 => _,
                inout("rdi") target => _,
                options(nostack, preserves_flags)
            );
        }
        return;
    }
    for done in 0..len {
        // SAFETY: within the `len` bytes.
        unsafe { AtomicU8::from_ptr(target.add(done)) }.store(value, Ordering::Relaxed);
    }
}

/// Exactly one shared page.
#[derive(Clone, Copy, Debug)]
pub struct SharedPage<'a>(SharedBytes<'a>);

impl<'a> SharedPage<'a> {
    /// Wraps the page at `ptr`.
    ///
    /// # Safety
    /// The requirements of [`SharedBytes::new`] with 4096 bytes.
    #[must_use]
    pub const unsafe fn new(ptr: *mut u8) -> Self {
        // SAFETY: promised by the caller.
        Self(unsafe { SharedBytes::new(ptr, PAGE_SIZE) })
    }

    /// The page at `index` of a run of pages.
    #[must_use]
    pub const fn of(bytes: SharedBytes<'a>, index: usize) -> Option<Self> {
        match index.checked_mul(PAGE_SIZE) {
            Some(offset) => match bytes.slice(offset, PAGE_SIZE) {
                Some(page) => Some(Self(page)),
                None => None,
            },
            None => None,
        }
    }

    /// The page as bytes.
    #[must_use]
    pub const fn bytes(self) -> SharedBytes<'a> {
        self.0
    }
}

impl<'a> Deref for SharedPage<'a> {
    type Target = SharedBytes<'a>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

#[cfg(test)]
mod tests;
