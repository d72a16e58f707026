//! The words that CPUs share without a lock. Tests under the model checker (`--cfg loom`) have the checker's words in their place:
//! it then tries every interleaving of the code that stands beside a `mod model`, and the orders that the memory model allows.

#[cfg(test)]
#[cfg(loom)]
pub(crate) use checked::{AtomicU32, AtomicU64, fence, shared};
#[cfg(not(all(loom, test)))]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, fence};

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

    /// A word of the checker's. What changes it sequentially is a full barrier, as a `lock` instruction is.
    macro_rules! word {
        ($name:ident, $value:ty) => {
            #[derive(Debug)]
            #[allow(unreachable_pub)] // a public field of a domain is one
            pub struct $name(loom::sync::atomic::$name);

            impl Default for $name {
                fn default() -> Self {
                    Self::new(0)
                }
            }

            #[allow(dead_code)] // both have the same
            impl $name {
                pub(crate) fn new(value: $value) -> Self {
                    Self(loom::sync::atomic::$name::new(value))
                }

                pub(crate) fn load(&self, order: Ordering) -> $value {
                    self.0.load(order)
                }

                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    self.0.store(value, order);
                }

                pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                    ordered(order, || self.0.swap(value, order))
                }

                pub(crate) fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                    ordered(order, || self.0.fetch_add(value, order))
                }

                pub(crate) fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                    ordered(order, || self.0.fetch_sub(value, order))
                }

                pub(crate) fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                    ordered(order, || self.0.fetch_and(value, order))
                }

                pub(crate) fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                    ordered(order, || self.0.fetch_or(value, order))
                }

                pub(crate) fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                    ordered(order, || self.0.fetch_max(value, order))
                }

                pub(crate) fn compare_exchange(
                    &self,
                    old: $value,
                    new: $value,
                    done: Ordering,
                    failed: Ordering,
                ) -> Result<$value, $value> {
                    ordered(done, || self.0.compare_exchange(old, new, done, failed))
                }

                pub(crate) fn compare_exchange_weak(
                    &self,
                    old: $value,
                    new: $value,
                    done: Ordering,
                    failed: Ordering,
                ) -> Result<$value, $value> {
                    self.compare_exchange(old, new, done, failed)
                }

                pub(crate) fn fetch_update(
                    &self,
                    done: Ordering,
                    failed: Ordering,
                    change: impl FnMut($value) -> Option<$value>,
                ) -> Result<$value, $value> {
                    ordered(done, || self.0.fetch_update(done, failed, change))
                }
            }
        };
    }

    word!(AtomicU32, u32);
    word!(AtomicU64, u64);

    /// Models have words of their own in the place of shared memory.
    pub(crate) fn shared(_: &core::sync::atomic::AtomicU64) -> &'static AtomicU64 {
        unreachable!("a model has no shared memory")
    }
}
