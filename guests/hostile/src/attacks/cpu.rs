//! Attacks that keep the hypervisor busy.

use alloc::vec;

use frontends::control::shutdown_request;
use frontends::xenbus::{StoreError, Xenstore};
use pvrt::hypercall::{event, sched};
use pvrt::mem::Pages;
use pvrt::println;
use pvrt::space::*;
use ring_abi::hypercall::*;
use ring_abi::mmu::*;
use ring_abi::types::DOMID_SELF;

use crate::herd::{self, Herd, WokenBy};

/// Herds wake at multiples of this time, so that all herds that were asked since the last multiple wake
/// together.
const TOGETHER_NS: u64 = 10_000_000_000;
const AWAKE_NS: u64 = 2_000_000_000;

/// Yields the CPU as often as possible.
pub(super) fn yields() {
    loop {
        sched::yield_cpu();
    }
}

/// Sends events to this domain itself.
pub(super) fn events() {
    let Ok(port) = event::bind_ipi(0) else { return };
    while event::send(port).is_ok() {}
}

/// Makes the hypercalls that take longest.
pub(super) fn hypercalls() {
    let Ok(page) = Pages::zeroed(1) else { return };
    let own = DOMID_SELF.into();
    map(page.va() as u64, 0);
    let flushes = vec![MmuextOp { cmd: MMUEXT_TLB_FLUSH_ALL, ..MmuextOp::default() }; 20_000];
    let clears =
        vec![MmuextOp { cmd: MMUEXT_CLEAR_PAGE, arg1: page.mfn(0).raw(), ..MmuextOp::default() }; 4096];
    let mut unknown = vec![MulticallEntry { op: 60, result: 0, args: [0; 6] }; 10_000];
    loop {
        for list in [&flushes, &clears] {
            let (at, count) = (list.as_ptr() as u64, list.len() as u64);
            call(__HYPERVISOR_MMUEXT_OP, [at, count, 0, own, 0]);
        }
        let (at, count) = (unknown.as_mut_ptr() as u64, unknown.len() as u64);
        call(__HYPERVISOR_MULTICALL, [at, count, 0, 0, 0]);
    }
}

/// Starts as many vCPUs as a guest can have. The vCPUs sleep until the toolstack asks this domain to shut down;
/// then all run for a while.
pub(super) async fn herd(store: Xenstore) -> Result<(), StoreError> {
    let Some(herd) = Herd::start(WokenBy::Wake).await else { return Ok(()) };
    println!("herd: {} vCPUs sleep", herd.members());
    shutdown_request(&store).await?;
    herd::sleep_until_multiple_of(TOGETHER_NS).await;
    herd.wake(AWAKE_NS);
    herd.all_woken().await;
    println!("herd: {} vCPUs have woken", herd.members());
    core::future::pending().await
}
