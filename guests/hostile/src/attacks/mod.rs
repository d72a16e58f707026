//! What keeps dom0, or the machine's CPU, busy for as long as this domain lives: for `cargo xtask bench neighbour`, which
//! measures what a neighbour gets meanwhile. Each takes only what any guest may.

mod console;
mod life;
mod store;

use alloc::boxed::Box;
use core::pin::Pin;

use frontends::xenbus::{StoreError, Xenstore};
use pvrt::event::Port;
use pvrt::{BootInfo, println};

/// An attack under way that takes xenstore; it ends when that fails.
pub(crate) type Running = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

/// What an attack does.
pub(crate) enum Act {
    /// Without xenstore.
    Alone(fn()),
    /// With it.
    Store(fn(Xenstore) -> Running),
}

/// An attack: its name, and what it does.
pub(crate) type Attack = (&'static str, Act);

/// All of them.
const ATTACKS: &[Attack] = &[
    ("newlines", Act::Alone(console::newlines)),
    ("directories", Act::Store(|store| Box::pin(store::directories(store)))),
    ("reboot-at-once", Act::Alone(life::reboot)),
];

/// The attack that `case` names.
pub(crate) fn find(case: Option<&str>) -> Option<&'static Attack> {
    ATTACKS.iter().find(|(name, _)| Some(*name) == case)
}

/// Runs an attack. Should the attack end, that is said.
pub(crate) async fn run((name, act): &Attack, boot: BootInfo) {
    println!("hostile: {name} from now on");
    match act {
        Act::Alone(act) => act(),
        Act::Store(act) => {
            let Some(info) = boot.store else { return println!("hostile: FAIL {name}: no xenstore") };
            let ended = match Xenstore::connect(info.page, Port::adopt(info.port)) {
                Ok(store) => act(store).await,
                Err(error) => Err(error),
            };
            println!("hostile: FAIL {name}: ended with {ended:?}");
        }
    }
    pvrt::console::flush().await;
}
