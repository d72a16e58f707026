//! Several vCPUs of a guest, and a neighbour with as many, each of which uses what another is just taking away.
//!
//! The second vCPU writes and reads without end at two addresses. The first unmaps the page there without asking for a flush, and makes
//! it something else: a page table, a GDT, free memory that the neighbour takes, a page that the neighbour borrows. The others call the
//! hypervisor about one page, all at the same time. `case=storm seconds=N peer=DOMID` on the command line.
//!
//! **What would show a stale use.** Each domain writes words of its own, so that a word of the neighbour's in this domain's memory, or any
//! word in memory that was just given, is one. The words that are written while the page is a table or a GDT would be an entry of
//! the hypervisor's memory, and a descriptor of ring 0.

mod rounds;
mod users;

use core::sync::atomic::Ordering;

use pvrt::{BootInfo, println, time};

use self::rounds::Storm;

/// The upper half of the words of a domain: this, and the domain's number.
const OWN_WORD: u64 = 0x5ec2 << 48;
/// A data segment of ring 3.
const DESCRIPTOR: u64 = 0x00cf_f300_0000_ffff;

/// A word of the domain `number`.
fn word_of(number: u16, n: u64) -> u64 {
    OWN_WORD | u64::from(number) << 32 | n << 1 & 0xffff_fffe
}

/// Whether the word is one of another domain's.
fn is_anothers(word: u64) -> bool {
    let own = rounds::NUMBER.load(Ordering::Relaxed);
    word >> 48 == OWN_WORD >> 48 && word >> 32 & 0xffff != own
}

/// Runs the storm, for as many seconds as the command line says, or without end. `false`: something stale was used.
pub(crate) async fn run(boot: BootInfo) -> bool {
    let number = |key| boot.option(key).and_then(|text| text.parse::<u64>().ok());
    let peer = number("peer").unwrap_or(0) as u16;
    let Some(mut storm) = Storm::new(peer) else {
        println!("storm: FAIL no memory, or no number");
        return false;
    };
    let others = users::start();
    println!("storm: {others} other vCPUs, peer {peer}");
    let end = number("seconds").map(|seconds| time::now_ns() + seconds * 1_000_000_000);
    let mut wrong = None;
    while end.is_none_or(|end| time::now_ns() < end) {
        wrong = storm.round().or_else(Storm::seen);
        if wrong.is_some() {
            break;
        }
        // The console and the timers of this kernel get their turn.
        if storm.count() % 64 == 0 {
            time::sleep(1_000_000).await;
        }
    }
    users::end();
    storm.report();
    if let Some(wrong) = &wrong {
        println!("storm: FAIL {wrong}");
    }
    wrong.is_none()
}
