//! Keys of the serial console, after three `^A`: each dumps one kind of state.

mod dumps;

use crate::Hypervisor;
use crate::mem::check;
use crate::platform::Platform;

/// A key, its name, and its handler. Interrupts are off in the hypervisor, so the code that a key interrupts holds no lock
/// on this CPU.
type Key<P> = (u8, &'static str, fn(&Hypervisor<P>));

const fn keys<P: Platform>() -> [Key<P>; 9] {
    [
        (b'C', "crash: the hypervisor panics", |_| panic!("asked for by a debug key")),
        (b'H', "hypervisor heap", dumps::heap),
        (b'M', "check the frame table", check::check),
        (b'd', "registers", dumps::registers),
        (b'e', "event channels", dumps::event_channels),
        (b'h', "show this help", |_| {
            for (key, what, _) in keys::<P>() {
                log::info!("key '{}': {what}", char::from(key));
            }
        }),
        (b'm', "memory", check::memory),
        (b'q', "domains and vCPUs", dumps::domains),
        (b'r', "run queues", dumps::run_queues),
    ]
}

impl<P: Platform> Hypervisor<P> {
    /// Does what `key` stands for; `false` when it stands for nothing.
    pub fn debug_key(&self, key: u8) -> bool {
        let Some((_, what, handler)) = keys().into_iter().find(|&(known, ..)| known == key) else {
            return false;
        };
        log::info!("'{}' pressed -> {what}", char::from(key));
        handler(self);
        true
    }
}
