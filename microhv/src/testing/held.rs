//! The locks that each thread holds: one that is taken against the order (I18) panics, and names both.

use alloc::vec::Vec;
use core::cell::RefCell;
use core::marker::PhantomData;

use crate::sync::Place;

/// A lock by its place, and by its owner's number and its address where two of one rank are taken.
type Lock = (Place, Option<(u16, usize)>);

std::thread_local! {
    static LOCKS: RefCell<Vec<Lock>> = const { RefCell::new(Vec::new()) };
}

/// A lock that this thread holds.
#[derive(Debug)]
pub(crate) struct Held {
    lock: Lock,
    not_sent: PhantomData<*const ()>,
}

impl Held {
    /// Notes a lock that this thread is about to wait for.
    ///
    /// # Panics
    /// If the thread holds a lock that must be taken after this one.
    #[track_caller]
    pub(crate) fn in_order(place: Place, owner: Option<(u16, usize)>) -> Self {
        let is_before = |&(at, of): &Lock| at < place || at == place && of.is_some() && of < owner;
        let wrong = LOCKS.with_borrow(|locks| locks.iter().copied().find(|held| !is_before(held)));
        // What a panic drops may take locks while others are held still.
        if let Some(held) = wrong.filter(|_| !std::thread::panicking()) {
            panic!("lock {:?} is taken while {held:?} is held, against the order", (place, owner));
        }
        Self::note((place, owner))
    }

    /// Notes a lock that was free.
    pub(crate) fn out_of_order(place: Place) -> Self {
        Self::note((place, None))
    }

    fn note(lock: Lock) -> Self {
        LOCKS.with_borrow_mut(|locks| locks.push(lock));
        Self { lock, not_sent: PhantomData }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        LOCKS.with_borrow_mut(|locks| {
            // Of several that are alike any will do.
            let place = locks.iter().rposition(|lock| *lock == self.lock);
            locks.swap_remove(place.expect("noted when it was taken"));
        });
    }
}
