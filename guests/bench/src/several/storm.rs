//! The same operation without end, alone and beside another party, in turns.
#![allow(unsafe_code)] // a party goes from one vCPU to another and back

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use pvrt::time;

use super::ops::{self, Operation};
use super::{number, peers, sleeper, start};
use crate::{polling, vcpus};

/// What of a turn's beginning and end does not count: the parties do not change at one instant.
const MARGIN_NS: u64 = 5_000_000;
/// Operations between two looks at the clock.
const BATCH: u64 = 32;
/// The operation that never leaves the guest: what the emulator and the host give is measured by that, in every other group of
/// three turns.
const CONTROL: &str = "compute";

/// What a party did: operations and nanoseconds, alone and beside the other.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    ops: [u64; 2],
    ns: [u64; 2],
}

/// One kind of operation.
struct Storm {
    kind: &'static str,
    /// The operation, and what never leaves the guest, with what was done of each.
    work: [(Operation, Done); 2],
}

/// One party's work.
struct Party {
    part: u64,
    start: u64,
    slot: u64,
    slots: u64,
    storms: Vec<Storm>,
}

/// vCPU 1's party, and 1 when its figures are there.
static SECOND: AtomicPtr<Party> = AtomicPtr::new(core::ptr::null_mut());
static ENDED: AtomicU64 = AtomicU64::new(0);

/// Storms as one party, or as both: all kinds of a list, one after another.
///
/// # Errors
/// There is no such operation, something for it is missing, or the start is past.
pub(super) async fn run(boot: &pvrt::BootInfo) -> Result<(), String> {
    let kinds = boot.option("kind").unwrap_or_default();
    let (slot, slots) = (number(boot, "slot").unwrap_or(100_000_000), number(boot, "slots").unwrap_or(60));
    let peer = peers::meet(boot).await?;
    ops::install()?;
    let start = peer.as_ref().map_or_else(|| start(boot), |peer| Ok(peer.start))?;
    let party = |part, vcpu| -> Result<Party, String> {
        let work = |kind| ops::find(kind, vcpu, peer.as_ref()).map(|operation| (operation, Done::default()));
        let storm = |kind| Ok(Storm { kind, work: [work(kind)?, work(CONTROL)?] });
        let storms = kinds.split(',').map(storm).collect::<Result<_, String>>()?;
        Ok(Party { part, start, slot, slots, storms })
    };
    if boot.option("part") == Some("both") {
        let (mut first, second) = (party(0, 0)?, Box::into_raw(Box::new(party(1, 1)?)));
        SECOND.store(second, Ordering::Release);
        polling::mask(1);
        vcpus::start_second(on_second).map_err(|errno| format!("vCPU 1: {errno}"))?;
        first.storm()?;
        while ENDED.load(Ordering::Acquire) == 0 {
            sleeper::sleep_until(time::now_ns() + MARGIN_NS)?;
        }
        back_to_runtime();
        first.report();
        // SAFETY: vCPU 1 has ended its use of the party.
        unsafe { &*second }.report();
    } else {
        let mut party = party(number(boot, "part").ok_or("part= is missing")?, 0)?;
        party.storm()?;
        back_to_runtime();
        party.report();
    }
    Ok(())
}

/// Gives vCPU 0 back to the runtime. Storms of events have also cleared what says that the runtime's ports are pending.
fn back_to_runtime() {
    pvrt::install_handlers();
    polling::look_again();
}

extern "C" fn on_second() -> ! {
    // SAFETY: vCPU 0 left a party that nobody else uses, and keeps its hands off it.
    let party = unsafe { &mut *SECOND.load(Ordering::Acquire) };
    if let Err(error) = ops::install().and_then(|()| party.storm()) {
        pvrt::println!("several skipped: {error}");
    }
    ENDED.store(1, Ordering::Release);
    loop {
        // The domain ends when vCPU 0 does.
        let _ = sleeper::sleep_until(time::now_ns() + 1_000_000_000);
    }
}

impl Party {
    /// Takes its turns.
    fn storm(&mut self) -> Result<(), String> {
        let Self { part, slot, slots, .. } = *self;
        let mut begin = self.start;
        for storm in &mut self.storms {
            for turn in 0..slots {
                sleeper::sleep_until(begin + MARGIN_NS)?;
                begin += slot;
                // Party 0 works in turns 0 and 1 of three, party 1 in turns 1 and 2.
                if turn % 3 == 2 - 2 * part {
                    continue;
                }
                let (operation, done) = &mut storm.work[(turn / 3 % 2) as usize];
                done.add(usize::from(turn % 3 == 1), begin - MARGIN_NS, operation);
            }
        }
        Ok(())
    }

    fn report(&self) {
        for Storm { kind, work } in &self.storms {
            for (name, (_, Done { ops, ns })) in ["storm", "control"].into_iter().zip(work) {
                pvrt::println!(
                    "several {name} {} {kind} {} ops {} ns alone {} ops {} ns beside",
                    self.part,
                    ops[0],
                    ns[0],
                    ops[1],
                    ns[1]
                );
            }
        }
    }
}

impl Done {
    /// Does `operation` until the time `until`, in the company `beside`: 0 alone, 1 beside the other.
    fn add(&mut self, beside: usize, until: u64, operation: &mut Operation) {
        let from = time::now_ns();
        let mut now = from;
        while now < until {
            for _ in 0..BATCH {
                operation();
            }
            self.ops[beside] += BATCH;
            now = time::now_ns();
        }
        self.ns[beside] += now.saturating_sub(from);
    }
}
