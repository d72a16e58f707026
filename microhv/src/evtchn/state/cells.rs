//! The cells of a domain's ports, in buckets of 64 that are made when first needed and stay until the domain is dead.

#![allow(unsafe_code)] // a send reaches its bucket by one load

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use ring_abi::types::Port;

use super::{MAX_PORTS, PortCell, TWO_LEVEL_PORTS};
use crate::nospec::{At, Wrapped};

/// Ports of a bucket.
pub(in crate::evtchn) const BUCKET: usize = 64;
/// Buckets of the ports that two levels have too.
const NEAR: usize = TWO_LEVEL_PORTS as usize / BUCKET;
/// Buckets of the other ports.
const FAR: usize = MAX_PORTS as usize / BUCKET - NEAR;

type Bucket = [PortCell; BUCKET];

/// A list of its own that is made once, when first needed.
#[derive(Debug)]
#[must_use = "the list is freed when the value is dropped"]
struct Made<T>(AtomicPtr<T>);

impl<T> Default for Made<T> {
    fn default() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }
}

impl<T> Made<T> {
    #[inline]
    fn get(&self) -> Option<&T> {
        // SAFETY: what was stored is a leaked box that only `free` takes back, which has the cells for itself.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    fn free(&mut self) {
        let list = core::mem::replace(self.0.get_mut(), ptr::null_mut());
        if !list.is_null() {
            // SAFETY: the list came from `Box::into_raw` in `make`, and `&mut self` says that nobody has a reference any more.
            drop(unsafe { Box::from_raw(list) });
        }
    }
}

impl<T: Default, const N: usize> Made<[T; N]> {
    /// The list; `None`: there is no memory for it. The caller holds `Ports::binding`, so that each is made once.
    fn make(&self) -> Option<&[T; N]> {
        if self.get().is_none() {
            // Not as an array: that would be built on the stack.
            let mut made = Vec::new();
            made.try_reserve_exact(N).ok()?;
            made.extend((0..N).map(|_| T::default()));
            let made: Box<[T; N]> = made.into_boxed_slice().try_into().ok()?;
            self.0.store(Box::into_raw(made), Ordering::Release);
        }
        self.get()
    }
}

impl<T> Drop for Made<T> {
    fn drop(&mut self) {
        self.free();
    }
}

/// The cells of all ports.
#[derive(Debug)]
pub(in crate::evtchn) struct Cells {
    near: [Made<Bucket>; NEAR],
    far: Made<[Made<Bucket>; FAR]>,
}

impl Cells {
    pub(in crate::evtchn) fn new() -> Self {
        Self { near: [const { Made(AtomicPtr::new(ptr::null_mut())) }; NEAR], far: Made::default() }
    }

    /// The cell of `port`, if its bucket was made.
    #[inline]
    pub(in crate::evtchn) fn get(&self, port: Port) -> Option<&PortCell> {
        if port.raw() >= TWO_LEVEL_PORTS { self.get_far(port) } else { self.get_near(port) }
    }

    /// Does the same as [`Cells::get`] for the ports that two levels have.
    #[inline]
    pub(in crate::evtchn) fn get_near(&self, port: Port) -> Option<&PortCell> {
        Some(self.near.within(port.raw() as usize / BUCKET)?.get()?.wrapped(port.raw() as usize))
    }

    #[cold]
    #[inline(never)]
    fn get_far(&self, port: Port) -> Option<&PortCell> {
        let at = port.raw() as usize;
        Some(self.far.get()?.at(at / BUCKET - NEAR)?.get()?.wrapped(at))
    }

    /// Bytes that [`Self::make`] takes for `port`, in one piece at most.
    pub(in crate::evtchn) fn missing(&self, port: Port) -> usize {
        if self.get(port).is_some() {
            0
        } else if port.raw() >= TWO_LEVEL_PORTS && self.far.get().is_none() {
            size_of::<[Made<Bucket>; FAR]>()
        } else {
            size_of::<Bucket>()
        }
    }

    /// The cell of `port`, which is below [`MAX_PORTS`]; `None`: there is no memory for it. The caller holds `Ports::binding`,
    /// so that each bucket is made once.
    pub(in crate::evtchn) fn make(&self, port: Port) -> Option<&PortCell> {
        let bucket = port.raw() as usize / BUCKET;
        match bucket.checked_sub(NEAR) {
            None => self.near.at(bucket)?.make()?,
            Some(far) => self.far.make()?.at(far)?.make()?,
        };
        self.get(port)
    }
}

/// The cells of a domain that is dead: no port was ever open then.
#[derive(Debug)]
pub(crate) struct PortRecords {
    cells: Cells,
    /// Buckets that may have been made, the lowest ones.
    buckets: usize,
}

impl PortRecords {
    pub(super) fn new(cells: Cells, buckets: usize) -> Self {
        Self { cells, buckets }
    }

    /// Frees a piece. `false`: no piece is left.
    pub(crate) fn shrink(&mut self) -> bool {
        let Some(last) = self.buckets.checked_sub(1) else { return false };
        self.buckets = last;
        let slot = match last.checked_sub(NEAR) {
            None => Some(&mut self.cells.near[last]),
            // SAFETY: `&mut self` says that nobody else has a reference to what was made.
            Some(far) => unsafe { self.cells.far.0.get_mut().as_mut() }.map(|list| &mut list[far]),
        };
        slot.map(Made::free);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_stay_where_they_are() {
        let cells = Cells::new();
        let port = Port::new;
        for none in [0, TWO_LEVEL_PORTS, MAX_PORTS - 1, MAX_PORTS, u32::MAX] {
            assert!(cells.get(port(none)).is_none());
        }
        for at in [65, TWO_LEVEL_PORTS + 1] {
            let first = ptr::from_ref(cells.make(port(at)).expect("memory"));
            assert!(cells.get(port(at - 1)).is_some() && cells.get(port(at + 63)).is_none());
            assert!(ptr::eq(first, cells.make(port(at)).expect("memory")));
            assert!(ptr::eq(first, cells.get(port(at)).expect("made")));
        }
        cells.make(port(TWO_LEVEL_PORTS - 1));
        cells.make(port(MAX_PORTS - 1)).expect("memory");
        assert!(cells.get(port(MAX_PORTS)).is_none());
    }

    #[test]
    fn each_bucket_is_freed_in_its_turn() {
        let cells = Cells::new();
        for port in [1, TWO_LEVEL_PORTS - 1, TWO_LEVEL_PORTS, TWO_LEVEL_PORTS + 64] {
            cells.make(Port::new(port));
        }
        let mut records = PortRecords::new(cells, NEAR + 2);
        for _ in 0..3 {
            assert!(records.shrink());
        }
        assert!(records.cells.get(Port::new(TWO_LEVEL_PORTS)).is_none());
        assert!(records.cells.get(Port::new(TWO_LEVEL_PORTS - 1)).is_none());
        assert!(records.cells.get(Port::new(1)).is_some());
        assert_eq!((0..NEAR).filter(|_| records.shrink()).count(), NEAR - 1);
        assert!(records.cells.get(Port::new(1)).is_none());
    }
}
