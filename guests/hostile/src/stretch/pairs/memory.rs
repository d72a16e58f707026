//! Calls that give memory back, take it, and exchange it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use pvrt::mem::Pages;
use pvrt::space::*;
use ring_abi::hypercall::*;
use ring_abi::memory::*;
use ring_abi::types::PAGE_SIZE;

use super::Act;
use super::kinds::{alternating, multicall};
use crate::memory::reservation;

/// Pages of each kind.
const PAGES: usize = 512;
/// Exchanges of a multicall.
const CALLS: usize = 4;

/// Pages that are no longer mapped: their frames, and their own numbers.
fn unmapped(mapped: usize) -> Option<(Vec<u64>, Vec<u64>)> {
    let pages = Pages::zeroed(PAGES).ok()?;
    let frames = (0..PAGES).map(|n| pages.mfn(n).raw()).collect();
    let numbers = (0..PAGES).map(|n| pages.pfn(n).raw()).collect();
    for n in 0..PAGES - mapped {
        map((pages.va() + n * PAGE_SIZE) as u64, 0);
    }
    // No code may use these pages again.
    core::mem::forget(pages);
    Some((frames, numbers))
}

fn exchange(list: &mut [u64], order: u32, out: &mut [u64], out_order: u32) -> i64 {
    let mut arg = XenMemoryExchange {
        r#in: reservation(list.as_mut_ptr() as u64, list.len() as u64, order),
        out: reservation(out.as_mut_ptr() as u64, out.len() as u64, out_order),
        nr_exchanged: 0,
    };
    op(__HYPERVISOR_MEMORY_OP, XENMEM_EXCHANGE, &mut arg)
}

/// Exchanges pages for an extent, and the extent for pages.
pub(super) fn exchanges() -> Option<Act> {
    let (mut frames, numbers) = unmapped(0)?;
    let mut large = [0];
    alternating(move |is_first| {
        if is_first {
            large[0] = numbers[0];
            return exchange(&mut frames, 0, &mut large, 9);
        }
        frames.copy_from_slice(&numbers);
        exchange(&mut large, 9, &mut frames, 0)
    })
}

/// Exchanges of pages of which the last is mapped.
pub(super) fn refused_exchanges() -> Option<Act> {
    let (mut frames, _) = unmapped(1)?;
    let mut place = Box::new(0u64);
    let exchange = XenMemoryExchange {
        r#in: reservation(frames.as_mut_ptr() as u64, PAGES as u64, 0),
        out: reservation((&raw mut *place) as u64, 1, 9),
        nr_exchanged: 0,
    };
    let mut exchanges: Vec<XenMemoryExchange> = (0..CALLS).map(|_| exchange).collect();
    let mut calls: Vec<MulticallEntry> = exchanges
        .iter_mut()
        .map(|arg| MulticallEntry {
            op: __HYPERVISOR_MEMORY_OP.into(),
            result: 0,
            args: [XENMEM_EXCHANGE.into(), (&raw mut *arg) as u64, 0, 0, 0, 0],
        })
        .collect();
    core::mem::forget((exchanges, frames, place));
    Some(Box::new(move || multicall(&mut calls)))
}

/// Gives pages back, and takes as many.
pub(super) fn reservations() -> Option<Act> {
    let (mut frames, numbers) = unmapped(0)?;
    alternating(move |is_first| {
        if !is_first {
            frames.copy_from_slice(&numbers);
        }
        let command = if is_first { XENMEM_DECREASE_RESERVATION } else { XENMEM_POPULATE_PHYSMAP };
        let mut arg = reservation(frames.as_mut_ptr() as u64, PAGES as u64, 0);
        op(__HYPERVISOR_MEMORY_OP, command, &mut arg)
    })
}
