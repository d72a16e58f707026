//! Attacks that keep dom0, or the machine's CPU, busy for as long as this domain lives. `cargo xtask bench neighbour`
//! measures what a neighbour gets meanwhile. Each attack does only what any guest may do.

mod console;
mod cpu;
mod disk;
mod life;
mod memory;
mod store;

use alloc::boxed::Box;
use core::pin::Pin;

use frontends::xenbus::{StoreError, Xenstore};
use pvrt::boot::StoreInfo;
use pvrt::event::Port;
use pvrt::{BootInfo, println};

/// A running attack that uses xenstore. The attack ends when xenstore fails.
pub(crate) type Running = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

/// What an attack does.
pub(crate) enum Act {
    /// An attack without xenstore.
    Alone(fn()),
    /// An attack that writes xenstore's ring itself.
    Ring(fn(StoreInfo)),
    /// An attack that uses a xenstore client.
    Store(fn(Xenstore) -> Running),
}

/// An attack: its name, and what it does.
pub(crate) type Attack = (&'static str, Act);

/// All attacks.
const ATTACKS: &[Attack] = &[
    ("newlines", Act::Alone(console::newlines)),
    ("lines", Act::Alone(console::lines)),
    ("bytes", Act::Alone(console::bytes)),
    ("ruined-input", Act::Alone(console::ruined_input)),
    ("directories", Act::Store(|store| Box::pin(store::directories(store)))),
    ("writes", Act::Store(|store| Box::pin(store::writes(store)))),
    ("watches", Act::Store(|store| Box::pin(store::watches(store)))),
    ("transactions", Act::Store(|store| Box::pin(store::transactions(store)))),
    ("subtrees", Act::Store(|store| Box::pin(store::subtrees(store)))),
    ("prefixes", Act::Store(|store| Box::pin(store::prefixes(store)))),
    ("removals", Act::Store(|store| Box::pin(store::removals(store)))),
    ("long-commits", Act::Store(|store| Box::pin(store::long_commits(store)))),
    ("long-perms", Act::Store(|store| Box::pin(store::long_perms(store)))),
    ("quotas", Act::Store(|store| Box::pin(store::quotas(store)))),
    ("watched", Act::Store(|store| Box::pin(store::watched(store)))),
    ("floods", Act::Store(|store| Box::pin(store::floods(store)))),
    ("mute", Act::Ring(store::mute)),
    ("unheard", Act::Store(|store| Box::pin(store::unheard(store)))),
    ("ring-of-reads", Act::Store(|store| Box::pin(disk::reads(store)))),
    ("indirect", Act::Store(|store| Box::pin(disk::indirect(store)))),
    ("barriers", Act::Store(|store| Box::pin(disk::barriers(store)))),
    ("garbage", Act::Store(|store| Box::pin(disk::garbage(store)))),
    ("reconnect", Act::Store(|store| Box::pin(disk::reconnect(store)))),
    ("reboot-at-once", Act::Alone(life::reboot)),
    ("crash-at-once", Act::Alone(life::crash)),
    ("yields", Act::Alone(cpu::yields)),
    ("event-storm", Act::Alone(cpu::events)),
    ("hypercalls", Act::Alone(cpu::hypercalls)),
    ("herd", Act::Store(|store| Box::pin(cpu::herd(store)))),
    ("scattered-lists", Act::Store(|store| Box::pin(memory::scattered_lists(store)))),
];

/// The attack that `case` names.
pub(crate) fn find(case: Option<&str>) -> Option<&'static Attack> {
    ATTACKS.iter().find(|(name, _)| Some(*name) == case)
}

/// Runs an attack, and prints a line if the attack ends.
pub(crate) async fn run((name, act): &Attack, boot: BootInfo) {
    println!("hostile: {name} from now on");
    let ended = match (act, boot.store) {
        (Act::Alone(act), _) => {
            act();
            Ok(())
        }
        (Act::Ring(act), Some(info)) => {
            act(info);
            Ok(())
        }
        (Act::Store(act), Some(info)) => match Xenstore::connect(info.page, Port::adopt(info.port)) {
            Ok(store) => act(store).await,
            Err(error) => Err(error),
        },
        (_, None) => Err(StoreError::Broken),
    };
    println!("hostile: FAIL {name}: ended with {ended:?}");
    pvrt::console::flush().await;
}
