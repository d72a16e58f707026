//! Flushes that CPUs order of each other: each order has a number, and each CPU says which orders its last flush came after.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The orders of all CPUs.
#[derive(Debug, Default)]
pub struct FlushOrders(AtomicU64);

impl FlushOrders {
    /// No order yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// A new order, for entries that the caller has changed. A full barrier: what the caller reads after, such as which CPUs
    /// may remember the entries, is read after the change.
    pub fn order(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// What one CPU is asked, and has done.
#[derive(Debug, Default)]
pub struct FlushState {
    asked: AtomicBool,
    /// The last order that came before this CPU's last flush.
    done: AtomicU64,
}

impl FlushState {
    /// Never asked.
    pub const fn new() -> Self {
        Self { asked: AtomicBool::new(false), done: AtomicU64::new(0) }
    }

    /// Asks the CPU, which is another than the caller's. Returns whether the CPU has to be interrupted for that.
    #[must_use]
    pub fn ask(&self) -> bool {
        !self.asked.swap(true, Ordering::SeqCst)
    }

    /// Whether another CPU waits for this one.
    #[inline(always)]
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether the CPU has flushed, from beginning to end, after `order`.
    pub fn has_done(&self, order: u64) -> bool {
        self.done.load(Ordering::Acquire) >= order
    }

    /// Whether the CPU remembers nothing that is older than `order`: the CPU has flushed after, or is not up any more. A CPU that goes
    /// drops all that it remembers of guests before, uses no guest's tables while it is away, and flushes when it is back.
    pub fn is_over(&self, order: u64, is_up: impl FnOnce() -> bool) -> bool {
        self.has_done(order) || !is_up()
    }

    /// Flushes this CPU's TLB by `flush`, on this CPU.
    #[inline(always)]
    pub fn flush(&self, orders: &FlushOrders, flush: impl FnOnce()) {
        let order = orders.0.load(Ordering::SeqCst);
        flush();
        self.done.store(order, Ordering::Release);
    }

    /// Flushes as another CPU asked. The mark goes before the orders are read: who finds the mark still set gave an order
    /// before, and this flush comes after that.
    pub fn serve(&self, orders: &FlushOrders, flush: impl FnOnce()) {
        self.asked.swap(false, Ordering::SeqCst);
        self.flush(orders, flush);
    }
}
