//! The cells of a domain's ports: 64 buckets of 64, made when first needed, there until the domain is dead.

#![allow(unsafe_code)] // a send reaches its bucket by one load

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use ring_abi::types::Port;

use super::MAX_PORTS;
use super::PortCell;

const BUCKETS: usize = 64;
const BUCKET: usize = MAX_PORTS as usize / BUCKETS;

type Bucket = [PortCell; BUCKET];

/// The cells of all ports.
#[derive(Debug)]
pub(in crate::evtchn) struct Cells {
    buckets: Box<[AtomicPtr<Bucket>; BUCKETS]>,
}

impl Cells {
    /// Bytes that a bucket takes.
    pub(in crate::evtchn) const BUCKET_BYTES: usize = size_of::<Bucket>();

    pub(in crate::evtchn) fn new() -> Self {
        Self { buckets: Box::new([const { AtomicPtr::new(ptr::null_mut()) }; BUCKETS]) }
    }

    /// The cell of `port`, if its bucket was made.
    #[inline]
    pub(in crate::evtchn) fn get(&self, port: Port) -> Option<&PortCell> {
        let port = port.raw();
        if port >= MAX_PORTS {
            return None;
        }
        let bucket = self.buckets[port as usize / BUCKET].load(Ordering::Acquire);
        // SAFETY: a bucket, once stored, is a leaked box that only `clear` takes back, which has the cells for itself.
        let bucket = unsafe { bucket.as_ref() }?;
        Some(&bucket[port as usize % BUCKET])
    }

    /// The cell of `port`, which is below [`MAX_PORTS`]; `None`: there is no memory for it. The caller holds `Ports::binding`,
    /// so that each bucket is made once.
    pub(in crate::evtchn) fn make(&self, port: Port) -> Option<&PortCell> {
        let slot = &self.buckets[port.raw() as usize / BUCKET];
        if slot.load(Ordering::Acquire).is_null() {
            // Not as an array: that would be built on the stack.
            let mut made = Vec::new();
            made.try_reserve_exact(BUCKET).ok()?;
            made.extend((0..BUCKET).map(|_| PortCell::default()));
            let made: Box<Bucket> = made.into_boxed_slice().try_into().ok()?;
            slot.store(Box::into_raw(made), Ordering::Release);
        }
        self.get(port)
    }

    /// Frees all buckets: no port was ever open then.
    pub(in crate::evtchn) fn clear(&mut self) {
        for slot in self.buckets.iter_mut() {
            let bucket = core::mem::replace(slot.get_mut(), ptr::null_mut());
            if !bucket.is_null() {
                // SAFETY: the bucket came from `Box::into_raw` in `make`, and `&mut self` says that nobody has a reference any more.
                drop(unsafe { Box::from_raw(bucket) });
            }
        }
    }
}

impl Drop for Cells {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_stay_where_they_are() {
        let cells = Cells::new();
        let port = Port::new;
        for none in [0, MAX_PORTS, u32::MAX] {
            assert!(cells.get(port(none)).is_none());
        }
        let first = ptr::from_ref(cells.make(port(65)).expect("memory"));
        assert!(cells.get(port(64)).is_some() && cells.get(port(128)).is_none());
        assert!(ptr::eq(first, cells.make(port(65)).expect("memory")));
        assert!(ptr::eq(first, cells.get(port(65)).expect("made")));
        cells.make(port(MAX_PORTS - 1));
    }
}
