//! A lock that lets tasks wait, and not the vCPU.

use super::Notify;
use core::ops::{Deref, DerefMut};
use spin::Mutex as Spin;

/// A lock that may be held across `await`.
pub struct Mutex<T> {
    value: Spin<T>,
    freed: Notify,
}

impl<T> Mutex<T> {
    /// An unlocked lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { value: Spin::new(value), freed: Notify::new() }
    }

    /// Locks at once or not at all.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let guard = self.value.try_lock()?;
        Some(MutexGuard { guard: Some(guard), freed: &self.freed })
    }

    /// Waits until the lock is free and takes it.
    pub async fn lock(&self) -> MutexGuard<'_, T> {
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            self.freed.notified().await;
        }
    }
}

/// Holds a [`Mutex`].
pub struct MutexGuard<'a, T> {
    /// `Some` until dropped.
    guard: Option<spin::MutexGuard<'a, T>>,
    freed: &'a Notify,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.guard.as_deref().expect("held until dropped")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_deref_mut().expect("held until dropped")
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        // Free first, then wake: the woken task must find the lock free.
        self.guard = None;
        self.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::{block_on_test, join_all, spawn_join, yield_now};
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    #[test]
    fn the_lock_is_held_across_await() {
        let lock = Arc::new(Mutex::new(0u32));
        block_on_test(async {
            let all: Vec<_> = (0..4)
                .map(|_| {
                    let lock = lock.clone();
                    spawn_join(async move {
                        let mut guard = lock.lock().await;
                        let before = *guard;
                        yield_now().await;
                        *guard = before + 1;
                    })
                })
                .collect();
            join_all(all).await;
            assert_eq!(*lock.lock().await, 4);
        });
    }
}
