//! Keys of the serial console, after three `^A`: each dumps one kind of state.

mod dumps;

use alloc::collections::BTreeMap;
use core::fmt;

use crate::Hypervisor;
use crate::platform::Platform;

/// What a key does. It must not take a lock that the interrupted code may hold: interrupts are off in the hypervisor,
/// so none is held on this CPU.
pub type KeyHandler<P> = fn(&Hypervisor<P>);

/// The keys. Registered before the first domain runs.
pub struct DebugKeys<P: Platform> {
    keys: BTreeMap<u8, (&'static str, KeyHandler<P>)>,
}

impl<P: Platform> fmt::Debug for DebugKeys<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys().map(|key| char::from(*key))).finish()
    }
}

impl<P: Platform> DebugKeys<P> {
    /// No keys.
    pub const fn new() -> Self {
        Self { keys: BTreeMap::new() }
    }

    /// Adds a key; the last registration of a key counts.
    pub fn register(&mut self, key: u8, what: &'static str, handler: KeyHandler<P>) {
        self.keys.insert(key, (what, handler));
    }

    /// Registers the keys of this module.
    pub(crate) fn register_own(&mut self) {
        self.register(b'q', "domains and vCPUs", dumps::domains);
        self.register(b'r', "run queues", dumps::run_queues);
        self.register(b'e', "event channels", dumps::event_channels);
        self.register(b'd', "registers", dumps::registers);
        self.register(b'm', "memory", crate::mem::dump::memory);
        self.register(b'M', "check the frame table", crate::mem::dump::check);
        self.register(b'H', "hypervisor heap", dumps::heap);
        self.register(b'h', "show this help", |hv| {
            for (key, (what, _)) in &hv.debug_keys.keys {
                log::info!("key '{}': {what}", char::from(*key));
            }
        });
    }
}

impl<P: Platform> Default for DebugKeys<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Does what `key` stands for; `false` when it stands for nothing.
    pub fn debug_key(&self, key: u8) -> bool {
        let Some((what, handler)) = self.debug_keys.keys.get(&key) else { return false };
        log::info!("'{}' pressed -> {what}", char::from(key));
        handler(self);
        true
    }
}
