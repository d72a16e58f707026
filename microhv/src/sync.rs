//! Locks, each with its place in one order, so that no two CPUs wait for each other (I18).
//!
//! Under a lock, only locks of ranks that stand below its own in [`rank`] are taken. A second lock of the same rank is taken
//! by [`lock_pair`] alone. The rank is part of a lock's type and costs nothing. On the host each thread keeps a list of the
//! locks that it holds, and panics when it takes one against the order.
//!
//! The crate `spin` is used here alone.

pub(crate) mod words;

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use lock_api::{GuardNoSend, RawMutex};

use crate::return_stack;

#[cfg(any(test, feature = "testing"))]
use crate::testing::{held::Held, turns};

/// A value that is written once, at start-up, before there is a second CPU, so no reader waits for the value.
pub use spin::Once;

/// What a CPU does for others in each turn of a wait.
static SERVE: Once<fn()> = Once::new();

/// Sets what a CPU does for others while it waits for another CPU. At start-up.
pub fn serve_by(serve: fn()) {
    SERVE.call_once(|| serve);
}

/// Waits for another CPU until `is_over`, which is asked after each turn. All waits are here, out of line: of what a CPU executes between two
/// moments at which it takes interrupts, the counting plugin replaces what is in this function by what the others execute meanwhile.
#[cold]
#[inline(never)]
pub fn wait_until(is_over: &mut dyn FnMut() -> bool) {
    let _filled = return_stack::fill_at_end();
    loop {
        wait_a_turn();
        if is_over() {
            break;
        }
    }
}

/// Waits for what another CPU makes possible, by [`wait_until`].
pub fn wait_for<T>(mut get: impl FnMut() -> Option<T>) -> T {
    loop {
        let mut got = None;
        wait_until(&mut || {
            got = get();
            got.is_some()
        });
        if let Some(got) = got {
            break got;
        }
    }
}

/// One turn of a wait for another CPU. The other may wait for what this CPU is asked to do, so that is done first: it takes no
/// lock, so every lock may be held here.
pub fn wait_a_turn() {
    if let Some(serve) = SERVE.get() {
        serve();
    }
    #[cfg(not(any(test, feature = "testing")))]
    core::hint::spin_loop();
    #[cfg(any(test, feature = "testing"))]
    turns::wait();
}

/// Another CPU may come between here: tests let CPUs take turns at such places. Each lock is one.
#[inline(always)]
pub(crate) fn may_come_between() {
    #[cfg(any(test, feature = "testing"))]
    turns::point();
}

/// Another CPU may come between two words of the scheduler here, which no lock guards. Tests of such words let CPUs take turns here too.
#[inline(always)]
pub(crate) fn may_come_between_words() {
    #[cfg(any(test, feature = "testing"))]
    turns::fine_point();
}

/// How many CPUs wait for a lock.
static WAITING: AtomicU32 = AtomicU32::new(0);

/// Whether a CPU waits for a lock, which takes no interrupt meanwhile. A long operation under a lock then ends its piece, as for an
/// interrupt of its own CPU: the CPU that waits would else hear of its timers when the other's whole call is over. (I13)
pub fn is_waited_for() -> bool {
    WAITING.load(Ordering::Relaxed) != 0
}

/// Turns in which a CPU that waits for a lock sees, on any machine, that the lock is free.
const TURNS: u32 = 64;

/// Gives the CPUs that wait for locks some turns to take those that this CPU has let go of. The caller holds no lock.
#[cold]
pub fn give_way() {
    give_turns(is_waited_for);
}

/// Gives turns as long as `is_waited_for`, and says how many.
fn give_turns(mut is_waited_for: impl FnMut() -> bool) -> u32 {
    let mut given = 0;
    while given < TURNS && is_waited_for() {
        wait_a_turn();
        given += 1;
    }
    given
}

/// The heap's lock, as the allocator wants the lock. The lock's place in the order is [`rank::Heap`], which nothing
/// checks: there is no such heap on the host.
#[derive(Debug)]
pub struct HeapLock(AtomicBool);

impl HeapLock {
    #[cold]
    #[inline(never)]
    fn wait(&self) {
        wait_until(&mut || !self.0.load(Ordering::Relaxed) && self.try_lock());
    }
}

#[allow(unsafe_code)] // what the allocator asks of a lock
// SAFETY: one exchange from free to held has one winner, who alone frees the lock.
unsafe impl RawMutex for HeapLock {
    #[allow(clippy::declare_interior_mutable_const)] // as the trait has it
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = GuardNoSend;

    #[inline]
    fn lock(&self) {
        if !self.try_lock() {
            self.wait();
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A place in the order of locks.
pub trait Rank {
    /// The place: the outermost is the least.
    const PLACE: Place;
}

macro_rules! ranks {
    ($($(#[$doc:meta])* $rank:ident,)*) => {
        /// The ranks as values.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs)] // see `rank`
        pub enum Place { $($rank,)* }

        /// All ranks, outermost first, with what a lock of each guards.
        pub mod rank {
            $(
                $(#[$doc])*
                #[derive(Debug, Default)]
                pub struct $rank;

                impl super::Rank for $rank {
                    const PLACE: super::Place = super::Place::$rank;
                }
            )*
        }
    };
}

ranks! {
    /// What start-up found of the machine; held while dom0 is built.
    Found,
    /// `Domain::contexts`: one context of a vCPU is set at a time; the holder keeps the lock for all changes that a
    /// context makes.
    Contexts,
    /// `Unfinished::dead`: domains that are dead and not gone.
    Dead,
    /// `Unfinished::making`: domains that are being made.
    Making,
    /// `Domain::shutdown`: whether and why a domain stopped.
    Shutdown,
    /// `Domain::watchdogs`: which watchdogs a domain has; held while their timers are set.
    Watchdogs,
    /// `Tracking::round`: how far a round of a domain's dirty tracking has come.
    Round,
    /// `DomainMm::tables`: types and entries of a domain's page tables; two domains' are never held at once.
    PageTables,
    /// `GrantTable::maptrack`: a domain's handles. Never held together with `GrantEntries`, nor across a change of page
    /// tables.
    Maptrack,
    /// `GrantTable::entries`: a domain's grants in use; two domains' in the order of their ids, for copies.
    GrantEntries,
    /// `Ports::binding`: which ports of a domain are open; two domains' in the order of their ids.
    Binding,
    /// `PortCell::state`: what one port is; held while an event of the port is delivered. Never two.
    Port,
    /// `Ports::fifo`: the event queues of a domain, and the pages of the guest's that they are in.
    Fifo,
    /// `Domain::permissions`: the ports, interrupts and device memory that a domain may use.
    Permissions,
    /// `Irqs::config`: the PCI configuration ports.
    PciConfig,
    /// `Irqs::state`: physical interrupts and vectors.
    Irqs,
    /// `FrameTable::read_only`: device frames that no domain may write.
    ReadOnlyFrames,
    /// `Domain::tsc`: how a domain's TSC behaves.
    Tsc,
    /// `Domain::time_offset`: how far a domain's wall clock is from the machine's. Held while the domain's clock is written.
    TimeOffset,
    /// `Domain::handle`: the toolstack's name of a domain.
    Handle,
    /// `Vcpu::cpu`: what a vCPU has set of its processor.
    GuestCpu,
    /// `Vcpu::time`: a vCPU's timers, runstate and clock areas.
    VcpuTime,
    /// `PerCpu::queue`: one CPU's run queue.
    RunQueue,
    /// `PerCpu::core`: what the CPUs of one core run.
    Core,
    /// `Time::queues`: one CPU's timers.
    TimerQueue,
    /// `Scheduler::pools`: which CPUs are whose.
    Pools,
    /// `DomainList::domains`: the domains by id. Held while one is looked up, so that a frame's owner is found under any
    /// lock above.
    DomainList,
    /// `DomainMm::memory_map`: the map that the toolstack gave a domain.
    MemoryMap,
    /// `DomainMm::cleaning`: extents that a domain is to get.
    Cleaning,
    /// `DomainMm::claim`: what a domain claimed and does not own yet.
    Claim,
    /// `DomainMm::pages`: how many frames of each region a domain owns.
    OwnedPages,
    /// `Console::input`: bytes that were typed.
    ConsoleInput,
    /// `Reports`: how much is said about guests.
    Reports,
    /// Places of descriptor windows.
    Windows,
    /// Device registers that are mapped.
    DeviceWindow,
    /// The I/O APICs' registers.
    IoApics,
    /// When the clock was measured last, and against what.
    ClockFit,
    /// The serial line's output: there may be a message under any lock above.
    SerialOutput,
    /// The heap ([`HeapLock`]): memory is allocated under any lock above, and the heap grows by free frames.
    Heap,
    /// Memory of the heap for when there are no free frames.
    EarlyHeap,
    /// `FrameTable::zones`: the free frames.
    FreeFrames,
}

/// A lock of the rank `R`, for one holder at a time.
#[derive(Debug, Default)]
pub struct Mutex<R, T> {
    lock: spin::Mutex<T>,
    rank: PhantomData<R>,
}

/// A [`Mutex`] that is held. The guard stays on the CPU that took the lock.
#[must_use = "the lock is free again when this is dropped"]
#[derive(Debug)]
pub struct MutexGuard<'a, T> {
    inner: spin::MutexGuard<'a, T>,
    /// This field is dropped after `inner`: the note of the lock lasts as long as the lock is held.
    _held: Held,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<R: Rank, T> Mutex<R, T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { lock: spin::Mutex::new(value), rank: PhantomData }
    }

    /// The value that the lock guards, where the caller is the value's only owner.
    #[inline]
    pub fn get_mut(&mut self) -> &mut T {
        self.lock.get_mut()
    }

    /// Waits for the lock.
    #[inline(always)]
    #[track_caller]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.lock_of(None)
    }

    /// Waits for this lock, which is a lock of the domain `owner`. The caller may hold another lock of the same rank if
    /// the other lock comes first in the order of [`lock_pair`].
    #[inline(always)]
    #[track_caller]
    fn lock_of(&self, owner: Option<u16>) -> MutexGuard<'_, T> {
        let order = owner.map(|number| (number, self.address()));
        MutexGuard { _held: Held::in_order(R::PLACE, order), inner: self.take() }
    }

    fn address(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    #[inline(always)]
    fn take(&self) -> spin::MutexGuard<'_, T> {
        may_come_between();
        self.lock.try_lock().unwrap_or_else(|| self.wait())
    }

    /// Apart, so that a lock that is free costs no more than the exchange.
    #[cold]
    #[inline(never)]
    fn wait(&self) -> spin::MutexGuard<'_, T> {
        let _filled = return_stack::fill_at_end();
        WAITING.fetch_add(1, Ordering::Relaxed);
        let inner = wait_for(|| if self.lock.is_locked() { None } else { self.lock.try_lock() });
        WAITING.fetch_sub(1, Ordering::Relaxed);
        inner
    }

    /// Takes the lock if the lock is free, even against the order, since the caller does not wait.
    #[cfg(any(test, feature = "testing"))]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.lock.try_lock().map(|inner| MutexGuard { inner, _held: Held::out_of_order(R::PLACE) })
    }

    /// Frees the lock, whichever CPU holds it.
    ///
    /// # Safety
    /// The holder never goes on.
    #[allow(unsafe_code)] // for a panic's report
    pub unsafe fn force_unlock(&self) {
        // SAFETY: the caller's duty.
        unsafe { self.lock.force_unlock() }
    }
}

/// Takes the locks `a` and `b`, each given with its domain's number, the lower number first. A domain that left the list may
/// still be in use when another has its number: of two locks with one number, the one at the lower address is taken first. The
/// first guard returned is of lock `a`; the second is missing when both are one lock.
#[inline]
#[track_caller]
pub fn lock_pair<'a, R: Rank, T>(
    a: (u16, &'a Mutex<R, T>),
    b: (u16, &'a Mutex<R, T>),
) -> (MutexGuard<'a, T>, Option<MutexGuard<'a, T>>) {
    if core::ptr::eq(a.1, b.1) {
        return (a.1.lock(), None);
    }
    let is_first = a.0 < b.0 || a.0 == b.0 && a.1.address() < b.1.address();
    let (first, second) = if is_first { (a, b) } else { (b, a) };
    let (first, second) = (first.1.lock_of(Some(first.0)), second.1.lock_of(Some(second.0)));
    if is_first { (first, Some(second)) } else { (second, Some(first)) }
}

/// Stands for the host's note of a held lock.
#[cfg(not(any(test, feature = "testing")))]
#[derive(Debug)]
struct Held(PhantomData<*const ()>);

#[cfg(not(any(test, feature = "testing")))]
impl Held {
    #[inline(always)]
    fn in_order(_: Place, _: Option<(u16, usize)>) -> Self {
        Self(PhantomData)
    }
}

mod flushes;
pub use flushes::{FlushOrders, FlushState};

#[cfg(test)]
mod tests;
