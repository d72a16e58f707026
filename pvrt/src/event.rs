//! Event channels: owned ports that tasks wait on.
//!
//! The runtime remembers a port's event until a task waits for it, so no event is missed. Events of a port are not
//! counted: several before a wait are one.

mod kept;

use alloc::vec::Vec;
use core::borrow::Borrow;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use ring_abi::evtchn::EVTCHN_2L_NR_CHANNELS;
use ring_abi::types::{DomId, Port as Number};
use spin::Mutex;

pub use kept::KeptPorts;

use crate::account::Account;
use crate::global::global;
use crate::hypercall::{Result, event as call, physdev};

/// What is known of one port number.
#[derive(Default)]
struct Slot {
    fired: bool,
    waker: Option<Waker>,
}

/// The slot of port `number`, made if need be: the list is charged to the kernel, whatever task opened the port.
fn slot_of(slots: &mut Vec<Slot>, number: usize) -> &mut Slot {
    if slots.len() <= number {
        Account::own().charge(|| slots.resize_with(number + 1, Slot::default));
    }
    &mut slots[number]
}

global! {
    /// By port number. A leaf lock: no waker is called while it is held.
    static SLOTS: Mutex<Vec<Slot>> = Mutex::new(Vec::new());
}

/// Records an event of port `number` and wakes who waits for it.
pub(crate) fn deliver(number: usize) {
    if number >= EVTCHN_2L_NR_CHANNELS {
        return;
    }
    let waker = SLOTS.with(|slots| {
        let mut slots = slots.lock();
        let slot = slot_of(&mut slots, number);
        slot.fired = true;
        slot.waker.take()
    });
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// True when the hypervisor has set the pending flag.
#[cfg(freestanding)]
pub(crate) fn pending() -> bool {
    use ring_abi::shared_info::UPCALL_PENDING_OFFSET;
    crate::shared::info().load_u8(UPCALL_PENDING_OFFSET) != 0
}

/// Takes all pending events off the shared words.
#[cfg(freestanding)]
pub(crate) fn poll() {
    use ring_abi::shared_info::{
        EVTCHN_MASK_OFFSET, EVTCHN_PENDING_OFFSET, PENDING_SEL_OFFSET, UPCALL_PENDING_OFFSET,
    };
    if !pending() {
        return;
    }
    let info = crate::shared::info();
    // First the flag, then the selector, then the words: an event that arrives in between sets them again.
    info.swap_u8(UPCALL_PENDING_OFFSET, 0);
    let mut selector = info.swap_u64(PENDING_SEL_OFFSET, 0);
    while selector != 0 {
        let word = selector.trailing_zeros() as usize;
        selector &= selector - 1;
        let masked = info.load_u64(EVTCHN_MASK_OFFSET + word * 8);
        let mut bits = info.load_u64(EVTCHN_PENDING_OFFSET + word * 8) & !masked;
        info.and_u64(EVTCHN_PENDING_OFFSET + word * 8, !bits);
        while bits != 0 {
            deliver(word * 64 + bits.trailing_zeros() as usize);
            bits &= bits - 1;
        }
    }
}

/// The interrupt behind a port.
#[derive(Debug)]
struct Pirq {
    number: u32,
    needs_eoi: bool,
    /// An event was taken and its interrupt is not yet acknowledged.
    owed: AtomicBool,
}

/// An open event channel port of this domain; closed on drop. One task at a time waits on it.
#[derive(Debug)]
pub struct Port {
    number: Number,
    pirq: Option<Pirq>,
}

impl Port {
    /// Opens a port that `remote` may bind.
    ///
    /// # Errors
    /// `ENOSPC`, `ESRCH`.
    pub fn alloc_unbound(remote: DomId) -> Result<Self> {
        call::alloc_unbound(DomId::SELF, remote).map(Self::adopt)
    }

    /// Opens a port of another domain, `dom`, that `remote` may bind; what a domain builder does. The port is not
    /// this domain's to close.
    ///
    /// # Errors
    /// `EPERM`, `ENOSPC`, `ESRCH`.
    pub fn alloc_unbound_in(dom: DomId, remote: DomId) -> Result<Number> {
        call::alloc_unbound(dom, remote)
    }

    /// Binds a port that `remote` opened for this domain. The new port has an event pending at once.
    ///
    /// # Errors
    /// `EINVAL`: the port does not wait for this domain. `ENOSPC`, `ESRCH`.
    pub fn bind_interdomain(remote: DomId, remote_port: Number) -> Result<Self> {
        call::bind_interdomain(remote, remote_port).map(Self::adopt)
    }

    /// Binds a virtual interrupt, on vCPU 0.
    ///
    /// # Errors
    /// `EEXIST`: bound already. `EPERM`, `EINVAL`.
    pub fn bind_virq(virq: u32) -> Result<Self> {
        call::bind_virq(virq, 0).map(Self::adopt)
    }

    /// Binds a physical interrupt (from [`physdev::map_pirq_msi`]), which is acknowledged before each wait where
    /// the hypervisor asks for it. Unmapping the PIRQ stays the caller's.
    ///
    /// # Errors
    /// `EPERM`, `EEXIST`, `EINVAL`.
    pub fn bind_pirq(pirq: u32) -> Result<Self> {
        let number = call::bind_pirq(pirq, false)?;
        let needs_eoi = physdev::needs_eoi(pirq).unwrap_or(false);
        Ok(Self { number, pirq: Some(Pirq { number: pirq, needs_eoi, owed: AtomicBool::new(false) }) })
    }

    /// Takes over a port that is open already, such as the console's and the xenstore's of a new domain.
    pub fn adopt(number: Number) -> Self {
        Self { number, pirq: None }
    }

    /// The port's number, as the other end must know it.
    pub fn number(&self) -> Number {
        self.number
    }

    /// Sends an event to the other end. A port without another end swallows the event.
    pub fn notify(&self) {
        if let Err(errno) = call::send(self.number) {
            log::debug!("event send on port {}: {errno}", self.number);
        }
    }

    /// Waits for an event: one that came since the last wait ends it at once.
    pub async fn wait(&self) {
        poll_fn(|context| self.poll_event(context)).await;
    }

    /// Takes the event that came since the last wait, or else has the next one wake the task of `context`. For a task that
    /// waits for several ports.
    pub fn poll_event(&self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(pirq) = &self.pirq
            && pirq.owed.swap(false, Ordering::Relaxed)
            && let Err(errno) = physdev::eoi(pirq.number)
        {
            log::warn!("eoi of pirq {}: {errno}", pirq.number);
        }
        let number = self.number.raw() as usize;
        let taken = SLOTS.with(|slots| {
            let mut slots = slots.lock();
            let slot = slot_of(&mut slots, number);
            if core::mem::take(&mut slot.fired) {
                slot.waker = None;
                return Poll::Ready(());
            }
            match &mut slot.waker {
                Some(waker) => waker.clone_from(context.waker()),
                None => slot.waker = Some(context.waker().clone()),
            }
            Poll::Pending
        });
        if let (Poll::Ready(()), Some(pirq)) = (taken, &self.pirq) {
            pirq.owed.store(pirq.needs_eoi, Ordering::Relaxed);
        }
        taken
    }

    /// Takes an event if one came since the last wait.
    pub fn take_event(&self) -> bool {
        SLOTS.with(|slots| {
            let mut slots = slots.lock();
            slots.get_mut(self.number.raw() as usize).is_some_and(|slot| core::mem::take(&mut slot.fired))
        })
    }
}

/// Waits for an event of any of the ports.
pub async fn any<P: Borrow<Port>>(ports: &[P]) {
    poll_fn(|context| {
        // Each is asked, so that no event of this moment wakes the task again.
        let ready = ports.iter().filter(|port| (*port).borrow().poll_event(context).is_ready()).count();
        if ready > 0 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Err(errno) = call::close(self.number) {
            log::debug!("closing port {}: {errno}", self.number);
        }
        let old = SLOTS.with(|slots| {
            let mut slots = slots.lock();
            slots.get_mut(self.number.raw() as usize).map(core::mem::take)
        });
        // The waker goes outside the lock.
        drop(old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::{block_on_test, spawn_join, time};
    use alloc::sync::Arc;
    use ring_abi::errno::Errno;

    #[test]
    fn an_event_before_the_wait_is_kept_once() {
        let server = Port::alloc_unbound(DomId::new(0)).expect("a port");
        let client = Port::bind_interdomain(DomId::new(1), server.number()).expect("bound");
        block_on_test(async {
            // Binding makes the local end pending.
            client.wait().await;
            client.notify();
            client.notify();
            server.wait().await;
            assert_eq!(time::timeout(10, server.wait()).await, Err(time::Elapsed));
            assert!(!server.take_event());
            client.notify();
            assert!(server.take_event());
        });
    }

    #[test]
    fn an_event_wakes_a_waiting_task() {
        let server = Arc::new(Port::alloc_unbound(DomId::new(0)).expect("a port"));
        let client = Port::bind_interdomain(DomId::new(1), server.number()).expect("bound");
        let waiting = server.clone();
        block_on_test(async {
            let done = spawn_join(async move { waiting.wait().await });
            time::sleep(1).await;
            client.notify();
            assert_eq!(done.await, Ok(()));
        });
    }

    #[test]
    fn a_closed_port_cannot_be_bound_and_its_number_comes_again() {
        let port = Port::alloc_unbound(DomId::new(0)).expect("a port");
        let number = port.number();
        drop(port);
        assert_eq!(Port::bind_interdomain(DomId::new(1), number).err(), Some(Errno::EINVAL));
        let again = Port::alloc_unbound(DomId::new(0)).expect("a port");
        assert_eq!(again.number(), number);
        assert!(!again.take_event());
    }

    #[test]
    fn numbers_out_of_range_are_ignored() {
        deliver(EVTCHN_2L_NR_CHANNELS);
        deliver(usize::MAX);
        assert!(!Port::adopt(Number::new(u32::MAX)).take_event());
    }
}
