//! A small xenstored for tests, on the other end of a real ring page.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use pvrt::event::Port;
use pvrt::executor::sync::Notify;
use pvrt::executor::{select, spawn};
use pvrt::mem::Pages;
use ring_abi::io::xs_wire::*;
use ring_abi::ring::bytes::ByteRing;
use ring_abi::shared::SharedBytes;
use ring_abi::types::DomId;
use spin::Mutex;

use super::Xenstore;
use super::wire::{Assembler, Message, strings};

/// The store, shared by the test and the serving task.
#[derive(Clone)]
pub(crate) struct TestStore {
    state: Arc<Mutex<Store>>,
    changed: Arc<Notify>,
    page: SharedBytes<'static>,
}

#[derive(Default)]
struct Store {
    nodes: BTreeMap<String, Vec<u8>>,
    watches: Vec<(String, String)>,
    /// Watch events not yet sent: path and token.
    events: Vec<(String, String)>,
    /// By transaction id: the generation at which the transaction began, and the transaction's view of the store.
    transactions: BTreeMap<u32, (u64, BTreeMap<String, Vec<u8>>)>,
    generation: u64,
    next_transaction: u32,
}

/// A path as the store keeps it.
fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_string() } else { alloc::format!("/local/domain/1/{path}") }
}

/// What a read of a node says that is not there: Xen's store tells that only where the domain may look.
fn missing(nodes: &BTreeMap<String, Vec<u8>>, path: &str) -> &'static str {
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let is_below = |name: &String| name.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'));
    if path.starts_with("/local/domain/1/") || nodes.keys().any(is_below) { "ENOENT" } else { "EACCES" }
}

impl Store {
    fn changed(&mut self, path: &str) {
        self.generation += 1;
        for (watched, token) in &self.watches {
            let full = absolute(watched);
            if path == full || path.strip_prefix(&full).is_some_and(|rest| rest.starts_with('/')) {
                // Named as the watch was: relative or absolute.
                let name = alloc::format!("{watched}{}", &path[full.len()..]);
                self.events.push((name, token.clone()));
            }
        }
    }

    fn answer(&mut self, message: &Message) -> Result<Vec<u8>, &'static str> {
        let kind = message.header.r#type;
        let tx = message.header.tx_id;
        let mut args = strings(&message.payload).map(|arg| arg.unwrap_or_default());
        let first = args.next().unwrap_or_default();
        let path = absolute(&first);
        let nodes = match self.transactions.get_mut(&tx) {
            Some((_, view)) => view,
            None if tx == 0 => &mut self.nodes,
            None => return Err("ENOENT"),
        };
        let below = alloc::format!("{path}/");
        match kind {
            XS_READ => nodes.get(&path).cloned().ok_or_else(|| missing(nodes, &path)),
            XS_WRITE | XS_MKDIR => {
                let value =
                    if kind == XS_WRITE { message.payload[first.len() + 1..].to_vec() } else { Vec::new() };
                nodes.insert(path.clone(), value);
                if tx == 0 {
                    self.changed(&path);
                }
                Ok(b"OK\0".to_vec())
            }
            XS_RM => {
                nodes.retain(|name, _| *name != path && !name.starts_with(&below));
                if tx == 0 {
                    self.changed(&path);
                }
                Ok(b"OK\0".to_vec())
            }
            XS_DIRECTORY => {
                let mut names: Vec<&str> = nodes
                    .keys()
                    .filter_map(|name| name.strip_prefix(&below))
                    .filter_map(|rest| rest.split('/').next())
                    .collect();
                names.dedup();
                if names.is_empty() && !nodes.contains_key(&path) {
                    return Err("ENOENT");
                }
                Ok(names.into_iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect())
            }
            XS_WATCH => {
                let token = args.next().unwrap_or_default();
                self.events.push((first.clone(), token.clone()));
                self.watches.push((first, token));
                Ok(b"OK\0".to_vec())
            }
            XS_UNWATCH => {
                let token = args.next().unwrap_or_default();
                self.watches.retain(|watch| *watch != (first.clone(), token.clone()));
                Ok(b"OK\0".to_vec())
            }
            XS_TRANSACTION_START => {
                self.next_transaction += 1;
                let view = self.nodes.clone();
                self.transactions.insert(self.next_transaction, (self.generation, view));
                Ok(alloc::format!("{}\0", self.next_transaction).into_bytes())
            }
            XS_TRANSACTION_END => {
                let (began, view) = self.transactions.remove(&tx).ok_or("ENOENT")?;
                if first == "T" {
                    if began != self.generation {
                        return Err("EAGAIN");
                    }
                    let old = core::mem::replace(&mut self.nodes, view);
                    let new = self.nodes.clone();
                    for path in
                        new.iter().filter(|(path, value)| old.get(*path) != Some(value)).map(|(p, _)| p)
                    {
                        self.changed(path);
                    }
                }
                Ok(b"OK\0".to_vec())
            }
            XS_GET_DOMAIN_PATH => Ok(alloc::format!("/local/domain/{first}\0").into_bytes()),
            _ => Err("ENOSYS"),
        }
    }
}

impl TestStore {
    pub(crate) fn new() -> Self {
        let page = Pages::zeroed(1).expect("a page").leak();
        Self { state: Arc::default(), changed: Arc::default(), page }
    }

    /// Sets a node from the test.
    pub(crate) fn set(&self, path: &str, value: &str) {
        {
            let mut state = self.state.lock();
            let path = absolute(path);
            state.nodes.insert(path.clone(), value.as_bytes().to_vec());
            state.changed(&path);
        }
        self.changed.notify_one();
    }

    /// Removes a node and all below, from the test.
    pub(crate) fn remove(&self, path: &str) {
        {
            let mut state = self.state.lock();
            let path = absolute(path);
            let below = alloc::format!("{path}/");
            let gone: Vec<String> = state
                .nodes
                .keys()
                .filter(|name| **name == path || name.starts_with(&below))
                .cloned()
                .collect();
            for name in gone {
                state.nodes.remove(&name);
                state.changed(&name);
            }
        }
        self.changed.notify_one();
    }

    pub(crate) fn get(&self, path: &str) -> Option<String> {
        let value = self.state.lock().nodes.get(&absolute(path)).cloned()?;
        String::from_utf8(value).ok()
    }

    pub(crate) fn watch_count(&self) -> usize {
        self.state.lock().watches.len()
    }

    pub(crate) fn open_transactions(&self) -> usize {
        self.state.lock().transactions.len()
    }

    /// Makes the ring's indices nonsense.
    pub(crate) fn break_ring(&self) {
        self.page.store_u32(RSP.prod, 0x8000_0000);
    }

    /// Starts the daemon and a client on the two ends of the ring.
    pub(crate) fn connect(&self) -> Xenstore {
        let theirs = Port::alloc_unbound(DomId::new(1)).expect("a port");
        let ours = Port::bind_interdomain(DomId::new(0), theirs.number()).expect("bound");
        let ring = server(self.page).expect("a page is enough");
        spawn(serve(self.clone(), ring, theirs));
        Xenstore::connect(self.page, ours).expect("a page is enough")
    }
}

async fn serve(store: TestStore, mut ring: ByteRing<SharedBytes<'static>>, port: Port) {
    let mut incoming = Assembler::default();
    let mut outgoing: Vec<u8> = Vec::new();
    loop {
        let mut piece = [0; 128];
        let mut moved = false;
        while let Ok(count) = ring.read(&mut piece)
            && count > 0
        {
            moved = true;
            incoming.push(&piece[..count]);
        }
        while let Ok(Some(message)) = incoming.next() {
            let (kind, payload) = match store.state.lock().answer(&message) {
                Ok(payload) => (message.header.r#type, payload),
                Err(name) => (XS_ERROR, alloc::format!("{name}\0").into_bytes()),
            };
            let header = XsdSockmsg { r#type: kind, len: payload.len() as u32, ..message.header };
            outgoing.extend(Message { header, payload }.to_bytes());
        }
        for (path, token) in core::mem::take(&mut store.state.lock().events) {
            let payload = alloc::format!("{path}\0{token}\0").into_bytes();
            let header =
                XsdSockmsg { r#type: XS_WATCH_EVENT, len: payload.len() as u32, ..XsdSockmsg::default() };
            outgoing.extend(Message { header, payload }.to_bytes());
        }
        let Ok(count) = ring.write(&outgoing) else { return };
        outgoing.drain(..count);
        if moved || count > 0 {
            port.notify();
        } else {
            select(port.wait(), store.changed.notified()).await;
        }
    }
}
