//! `selftest` on the command line: the runtime's memory, grants, timers and tasks on the real hypervisor.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use pvrt::executor::{join_all, live_tasks, spawn_join};
use pvrt::grant::{self, CopyBatch, GrantUsage, Granted, device_map, device_unmap, map_grants};
use pvrt::hypercall::event::own_domid;
use pvrt::mem::{self, Pages, map_foreign, mfn_of, populate};
use pvrt::{BootInfo, println, time};
use ring_abi::shared::SharedMemory;
use ring_abi::types::{DomId, GrantRef, PAGE_SIZE};

/// The check that failed.
#[derive(Debug)]
pub(crate) struct Failed(&'static str);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "selftest: {}", self.0)
    }
}

fn check(what: &'static str, holds: bool) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(Failed(what)) }
}

/// Runs everything, each part with its cost.
pub(crate) async fn run(boot: BootInfo) -> Result<(), Failed> {
    println!("selftest: {:?}", mem::usage());
    if let Some(ramdisk) = boot.ramdisk {
        // Sums every page: each must be mapped.
        let sum = ramdisk.iter().step_by(PAGE_SIZE).fold(0u64, |sum, byte| sum + u64::from(*byte));
        println!("selftest: ramdisk of {} bytes, page heads sum to {sum}", ramdisk.len());
    }
    let start = time::tsc();
    memory()?;
    println!("selftest: memory: {} ticks", time::tsc() - start);
    let start = time::tsc();
    growth();
    println!("selftest: growth: {} ticks", time::tsc() - start);
    let start = time::tsc();
    grants()?;
    println!("selftest: grants: {} ticks", time::tsc() - start);
    tasks().await?;
    println!("selftest: passed; {:?}", mem::usage());
    Ok(())
}

/// Fills most of the free memory, and the heap.
fn memory() -> Result<(), Failed> {
    let free = mem::usage().free_pages;
    let mut held = Vec::new();
    while let Ok(pages) = Pages::alloc(64.min(free / 4).max(1)) {
        pages.bytes().store_u64(0, held.len() as u64);
        pages.bytes().store_u64(pages.len() - 8, !(held.len() as u64));
        held.push(pages);
        if held.len() * 64 >= free * 3 / 4 {
            break;
        }
    }
    for (index, pages) in held.iter().enumerate() {
        check("pages keep their contents", pages.bytes().load_u64(0) == index as u64)?;
        check("pages keep their ends", pages.bytes().load_u64(pages.len() - 8) == !(index as u64))?;
    }
    let frame = held.first().map(|pages| pages.mfn(0));
    check("addresses have frames", frame == held.first().map(|pages| mfn_of(pages.va())))?;
    drop(held);
    let mut block = vec![1u8; 300_000];
    block[299_999] = 2;
    check("the heap grows", block.iter().map(|byte| u64::from(*byte)).sum::<u64>() == 300_001)
}

/// Takes memory from the hypervisor and gives it back. A domain at its limit gets none.
fn growth() {
    let before = mem::usage();
    match populate(300) {
        Err(error) => println!("selftest: no growth: {error:?}"),
        Ok(pages) => {
            pages.bytes().fill(0, pages.len(), 0x5a);
            pages.bytes().store_u64(pages.len() - 8, 77);
            let own = [pages.mfn(299), pages.mfn(0)];
            match map_foreign(DomId::SELF, &own, true) {
                Ok(map) => {
                    assert_eq!(map.page(0).load_u64(PAGE_SIZE - 8), 77);
                    assert_eq!(map.page(1).load_u64(0), 0x5a5a_5a5a_5a5a_5a5a);
                    assert_eq!(mfn_of(map.va()), own[0]);
                }
                Err(error) => println!("selftest: mapping own frames: {error:?}"),
            }
            drop(pages);
            assert_eq!(mem::usage().grown_pages, before.grown_pages);
        }
    }
}

/// Grants to this domain itself: mapped, mapped for a device, copied.
fn grants() -> Result<(), Failed> {
    const COUNT: usize = 600;
    let own = own_domid().map_err(|_| Failed("own domain number"))?;
    let pages = Pages::zeroed(COUNT).map_err(|_| Failed("pages"))?;
    let granted = Granted::whole(pages, own, false).map_err(|_| Failed("a grant"))?;
    let pages = granted.memory();
    let refs: Vec<GrantRef> = granted.refs().collect();
    let map = map_grants(own, &refs, true).map_err(|_| Failed("mapping grants"))?;
    map.shared().store_u32((COUNT - 1) * PAGE_SIZE, 12345);
    check("a mapping is the page", pages.bytes().load_u32((COUNT - 1) * PAGE_SIZE) == 12345)?;
    check("a mapped grant is in use", granted.in_use())?;
    drop(map);
    check("an unmapped grant is not", !granted.in_use())?;

    let mut mapped = Vec::new();
    device_map(own, &[(refs[0], true), (refs[1], false), (GrantRef::new(u32::MAX), false)], &mut mapped);
    check("a bad reference is refused", mapped.pop().is_some_and(|last| last.is_err()))?;
    let mapped: Vec<_> = mapped.into_iter().flatten().collect();
    check("both good ones are mapped", mapped.len() == 2)?;
    check("a device sees the frame", mapped[0].maddr() == pages.mfn(0).maddr())?;
    device_unmap(mapped);
    check("device access ends", !granted.in_use())?;

    let mut batch = CopyBatch::new();
    let target = pages.page(2).slice(100, 4).ok_or(Failed("a slice"))?;
    let last = refs[COUNT - 1];
    batch.from_grant(own, last, 0, target).map_err(|_| Failed("a copy within a page"))?;
    check("a copy succeeds", batch.run().all(|result| result.is_ok()))?;
    check("a copy is the bytes", pages.page(2).load_u32(100) == 12345)?;
    check("pages that nobody maps come back", granted.end().is_ok())?;
    check("grants come back", grant::usage() == GrantUsage::default())
}

/// Timers in order, many tasks, nothing left behind.
async fn tasks() -> Result<(), Failed> {
    for milliseconds in [1u64, 20] {
        let before = time::now_ns();
        time::sleep(milliseconds * 1_000_000).await;
        let slept = time::now_ns() - before;
        println!("selftest: slept {} us for {milliseconds} ms", slept / 1000);
        check("sleep is long enough", slept >= milliseconds * 1_000_000)?;
    }
    let before = live_tasks();
    let all = (0..100u64).map(|i| {
        spawn_join(async move {
            time::sleep(i % 7 * 1_000_000).await;
            i
        })
    });
    let sum: u64 = join_all(all).await.into_iter().flatten().sum();
    check("every task ends once", sum == 4950 && live_tasks() == before)
}
