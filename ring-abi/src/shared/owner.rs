#![forbid(unsafe_code)]
//! Owners of shared memory, whose views live no longer than the owner.

use core::sync::atomic::AtomicU64;

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{SharedBytes, SharedPage};
use crate::types::PAGE_SIZE;

/// An owner of shared memory: a mapping, or memory of our own.
pub trait SharedMemory {
    /// The bytes, as long as the owner is borrowed.
    fn shared(&self) -> SharedBytes<'_>;
}

impl SharedMemory for SharedBytes<'_> {
    fn shared(&self) -> SharedBytes<'_> {
        *self
    }
}

impl SharedMemory for SharedPage<'_> {
    fn shared(&self) -> SharedBytes<'_> {
        self.0
    }
}

impl<T: SharedMemory + ?Sized> SharedMemory for &T {
    fn shared(&self) -> SharedBytes<'_> {
        (**self).shared()
    }
}

impl<T: SharedMemory + ?Sized> SharedMemory for Box<T> {
    fn shared(&self) -> SharedBytes<'_> {
        (**self).shared()
    }
}

impl<T: SharedMemory + ?Sized> SharedMemory for alloc::sync::Arc<T> {
    fn shared(&self) -> SharedBytes<'_> {
        (**self).shared()
    }
}

/// `pages` zeroed pages of this program's own that are never freed, in the shape of shared memory. Tests put both ends
/// of a ring into one program with these pages.
#[must_use]
pub fn leaked_pages(pages: usize) -> SharedBytes<'static> {
    let words = pages * (PAGE_SIZE / 8);
    SharedBytes::from_static((0..words).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak())
}
