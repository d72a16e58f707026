#![cfg_attr(freestanding, no_std)]
//! The policy of microhv: every rule that decides what a guest may do.
//!
//! The library knows no register, port or instruction of the machine: those stand behind [`platform::Platform`],
//! which the binary implements for the hardware and [`testing::TestMachine`] for host tests.
//!
//! Which module may name which: the rooms in `docs/ARCHITECTURE.md`.
//!
//! The order of all locks (I18): [`sync::rank`].

extern crate alloc;

pub mod boot;
pub mod console;
mod debug_keys;
pub mod domain;
pub mod emul;
pub mod evtchn;
pub mod frames;
pub mod gnttab;
mod growth;
pub mod hypercall;
pub mod lifecycle;
pub mod machine_check;
pub mod mem;
pub mod nospec;
pub mod pirq;
pub mod platform;
pub mod rangeset;
pub mod return_stack;
pub mod sched;
pub mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod time;
pub mod traps;

use platform::Platform;

/// The hypervisor: the machine and everything that is known about its guests. There is one instance.
#[derive(Debug)]
pub struct Hypervisor<P: Platform> {
    /// The machine.
    pub platform: P,
    /// Every frame's owner, type and counts.
    pub frames: frames::FrameTable,
    /// All domains that exist, the dying included.
    pub domains: domain::DomainList,
    /// Domains that are being made, or that have ended and are not freed yet.
    pub unfinished: lifecycle::Unfinished,
    /// Run queues.
    pub sched: sched::Scheduler,
    /// Timers and the wall clock.
    pub time: time::Time,
    /// The console's input, and how much is said about guests.
    pub console: console::Console,
    /// Physical interrupts.
    pub irqs: pirq::Irqs,
}

impl<P: Platform> Hypervisor<P> {
    /// A hypervisor without domains over `platform`, whose usable frames `frames` describes.
    pub fn new(platform: P, frames: frames::FrameTable) -> Self {
        Self {
            platform,
            frames,
            domains: domain::DomainList::default(),
            unfinished: lifecycle::Unfinished::default(),
            sched: sched::Scheduler::default(),
            time: time::Time::default(),
            console: console::Console::default(),
            irqs: pirq::Irqs::default(),
        }
    }
}
