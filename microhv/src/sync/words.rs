//! The words that CPUs share without a lock. Tests under the model checker (`--cfg loom`) have the checker's words in their place:
//! it then tries every interleaving of the code that stands beside a `mod model`, and the orders that the memory model allows.

#[cfg(test)]
#[cfg(loom)]
pub(crate) use checked::{AtomicU64, fence, shared};
#[cfg(not(all(loom, test)))]
pub(crate) use core::sync::atomic::{AtomicU64, fence};

/// A word that lies in memory which guests write too.
#[cfg(not(all(loom, test)))]
#[inline(always)]
pub(crate) const fn shared(word: &AtomicU64) -> &AtomicU64 {
    word
}

#[cfg(test)]
#[cfg(loom)]
mod checked {
    use core::sync::atomic::Ordering;

    pub(crate) use loom::sync::atomic::fence;

    /// A word of the checker's. What changes it sequentially is a full barrier, as a `lock` instruction is.
    #[derive(Debug)]
    #[allow(unreachable_pub)] // a public field of a domain is one
    pub struct AtomicU64(loom::sync::atomic::AtomicU64);

    fn ordered<R>(order: Ordering, change: impl FnOnce() -> R) -> R {
        let barrier = || {
            if order == Ordering::SeqCst {
                fence(Ordering::SeqCst);
            }
        };
        barrier();
        let result = change();
        barrier();
        result
    }

    impl Default for AtomicU64 {
        fn default() -> Self {
            Self::new(0)
        }
    }

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> Self {
            Self(loom::sync::atomic::AtomicU64::new(value))
        }

        pub(crate) fn load(&self, order: Ordering) -> u64 {
            self.0.load(order)
        }

        pub(crate) fn store(&self, value: u64, order: Ordering) {
            self.0.store(value, order);
        }

        pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            ordered(order, || self.0.fetch_add(value, order))
        }

        pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
            ordered(order, || self.0.fetch_sub(value, order))
        }

        pub(crate) fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
            ordered(order, || self.0.fetch_and(value, order))
        }

        pub(crate) fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
            ordered(order, || self.0.fetch_or(value, order))
        }

        pub(crate) fn compare_exchange(
            &self,
            old: u64,
            new: u64,
            done: Ordering,
            failed: Ordering,
        ) -> Result<u64, u64> {
            ordered(done, || self.0.compare_exchange(old, new, done, failed))
        }

        pub(crate) fn compare_exchange_weak(
            &self,
            old: u64,
            new: u64,
            done: Ordering,
            failed: Ordering,
        ) -> Result<u64, u64> {
            self.compare_exchange(old, new, done, failed)
        }

        pub(crate) fn fetch_update(
            &self,
            done: Ordering,
            failed: Ordering,
            change: impl FnMut(u64) -> Option<u64>,
        ) -> Result<u64, u64> {
            ordered(done, || self.0.fetch_update(done, failed, change))
        }
    }

    /// Models have words of their own in the place of shared memory.
    pub(crate) fn shared(_: &core::sync::atomic::AtomicU64) -> &'static AtomicU64 {
        unreachable!("a model has no shared memory")
    }
}
