//! The client: requests and their answers, watches, transactions.

#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::str::FromStr;
use core::sync::atomic::{AtomicBool, Ordering};
use pvrt::event::Port;
use pvrt::executor::sync::{Channel, Notify, Sender, oneshot};
use pvrt::executor::{select, spawn};
use ring_abi::errno::Errno;
use ring_abi::io::xs_wire::*;
use ring_abi::ring::bytes::ByteRing;
use ring_abi::shared::SharedBytes;
use spin::Mutex;

use super::wire::{Assembler, Message, TooLong, strings};
use super::{Result, StoreError};

/// The connection to xenstored. All clones share one connection.
#[derive(Clone)]
pub struct Xenstore {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// There is something to send.
    outgoing: Notify,
    broken: AtomicBool,
}

/// Guarded by a leaf lock: held for table changes only.
#[derive(Default)]
struct State {
    next_id: u32,
    next_token: u64,
    queue: VecDeque<Vec<u8>>,
    waiting: BTreeMap<u32, Sender<Message>>,
    watches: BTreeMap<String, Arc<Channel<()>>>,
}

impl Xenstore {
    /// Starts a client on the ring page that xenstored shares, with the page's event channel. The client's task runs
    /// for ever, or until the ring breaks.
    ///
    /// # Errors
    /// [`StoreError::Broken`]: the page is too small.
    pub fn connect(page: SharedBytes<'static>, port: Port) -> Result<Self> {
        let ring = ring_abi::io::xs_wire::client(page).map_err(|_| StoreError::Broken)?;
        let inner = Arc::new(Inner {
            state: Mutex::default(),
            outgoing: Notify::new(),
            broken: AtomicBool::new(false),
        });
        spawn(pump(inner.clone(), ring, port));
        Ok(Self { inner })
    }

    /// Starts a transaction: the transaction's requests see one state of the store and happen at once, or not at all.
    ///
    /// # Errors
    /// [`StoreError`]: xenstored allows no further transaction, or the connection broke.
    pub async fn begin(&self) -> Result<Transaction> {
        let answer = self.inner.request(XS_TRANSACTION_START, 0, &[b"\0"]).await?;
        let id =
            strings(&answer).next().flatten().and_then(|text| text.parse().ok()).ok_or(StoreError::Broken)?;
        Ok(Transaction { store: self.clone(), id, ended: false })
    }

    /// Watches a node and everything below it. The watch fires once at the start.
    ///
    /// # Errors
    /// [`StoreError`]: xenstored refused the watch, the path is too long or holds a NUL, or the connection broke.
    pub async fn watch(&self, path: &str) -> Result<Watch> {
        // One waiting event says as much as many do: other domains may write as often as they like, and do not fill
        // this kernel's memory.
        let channel = Arc::new(Channel::new(1));
        let token = {
            let mut state = self.inner.state.lock();
            state.next_token += 1;
            let token = alloc::format!("w{}", state.next_token);
            state.watches.insert(token.clone(), channel.clone());
            token
        };
        // From here on dropping the watch takes the token away again.
        let watch = Watch { store: self.clone(), path: path.to_string(), token, events: channel };
        let parts = [path.as_bytes(), b"\0", watch.token.as_bytes(), b"\0"];
        self.inner.request(XS_WATCH, 0, &parts).await?;
        Ok(watch)
    }
}

/// Requests on nodes, within a transaction or without. Relative paths start at the domain's home.
pub trait Nodes: Sync {
    /// Sends a request of this scope and gives the answer's payload.
    #[doc(hidden)]
    fn request(&self, kind: u32, parts: &[&[u8]]) -> impl Future<Output = Result<Vec<u8>>> + Send;

    /// A node's value.
    fn read(&self, path: &str) -> impl Future<Output = Result<Vec<u8>>> + Send {
        async move { self.request(XS_READ, &[path.as_bytes(), b"\0"]).await }
    }

    /// A node's value as text.
    fn read_str(&self, path: &str) -> impl Future<Output = Result<String>> + Send {
        async move {
            let value = self.read(path).await?;
            String::from_utf8(value).map_err(|_| StoreError::BadValue(path.to_string()))
        }
    }

    /// A node's value parsed as a number or the like.
    fn read_as<T: FromStr>(&self, path: &str) -> impl Future<Output = Result<T>> + Send {
        async move {
            let text = self.read_str(path).await?;
            text.trim().parse().map_err(|_| StoreError::BadValue(path.to_string()))
        }
    }

    /// Like [`read_as`](Self::read_as), but gives `default` for a node that does not exist.
    fn read_or<T: FromStr + Send>(&self, path: &str, default: T) -> impl Future<Output = Result<T>> + Send {
        async move {
            match self.read_as(path).await {
                Err(error) if error.is_missing() => Ok(default),
                other => other,
            }
        }
    }

    /// Sets a node's value. Xenstored makes the node, and the nodes above it, where they are missing.
    fn write(&self, path: &str, value: impl AsRef<[u8]> + Send) -> impl Future<Output = Result<()>> + Send {
        async move {
            let value = value.as_ref().to_vec();
            self.request(XS_WRITE, &[path.as_bytes(), b"\0", &value]).await.map(drop)
        }
    }

    /// Makes a node without a value, unless it exists.
    fn mkdir(&self, path: &str) -> impl Future<Output = Result<()>> + Send {
        async move { self.request(XS_MKDIR, &[path.as_bytes(), b"\0"]).await.map(drop) }
    }

    /// Removes a node and everything below it.
    fn rm(&self, path: &str) -> impl Future<Output = Result<()>> + Send {
        async move { self.request(XS_RM, &[path.as_bytes(), b"\0"]).await.map(drop) }
    }

    /// The names of a node's children.
    fn directory(&self, path: &str) -> impl Future<Output = Result<Vec<String>>> + Send {
        async move {
            let answer = self.request(XS_DIRECTORY, &[path.as_bytes(), b"\0"]).await?;
            strings(&answer).map(|name| name.ok_or_else(|| StoreError::BadValue(path.to_string()))).collect()
        }
    }
}

impl Nodes for Xenstore {
    async fn request(&self, kind: u32, parts: &[&[u8]]) -> Result<Vec<u8>> {
        self.inner.request(kind, 0, parts).await
    }
}

impl Xenstore {
    /// The path of this domain's home, `/local/domain/N`.
    ///
    /// # Errors
    /// [`StoreError`]: xenstored refused a request, or the connection broke.
    pub async fn home(&self) -> Result<String> {
        let domid = self.read_str("domid").await?;
        let answer = self.request(XS_GET_DOMAIN_PATH, &[domid.as_bytes(), b"\0"]).await?;
        strings(&answer).next().flatten().ok_or(StoreError::Broken)
    }
}

/// Requests that happen together. A transaction that is dropped without [`commit`](Self::commit) changes nothing.
pub struct Transaction {
    store: Xenstore,
    id: u32,
    ended: bool,
}

impl Nodes for Transaction {
    async fn request(&self, kind: u32, parts: &[&[u8]]) -> Result<Vec<u8>> {
        self.store.inner.request(kind, self.id, parts).await
    }
}

impl Transaction {
    /// Makes the changes. `false`: another connection changed what this transaction saw, and xenstored changed nothing;
    /// the caller starts again.
    ///
    /// # Errors
    /// [`StoreError`]: xenstored refused the changes for another reason than such a conflict, or the connection broke.
    pub async fn commit(mut self) -> Result<bool> {
        self.ended = true;
        match self.store.inner.request(XS_TRANSACTION_END, self.id, &[b"T\0"]).await {
            Ok(_) => Ok(true),
            Err(StoreError::Refused(Errno::EAGAIN)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.ended {
            // Nobody waits for the answer.
            let _ = self.store.inner.send(XS_TRANSACTION_END, self.id, &[b"F\0"]);
        }
    }
}

/// A watch; ended on drop.
pub struct Watch {
    store: Xenstore,
    path: String,
    token: String,
    events: Arc<Channel<()>>,
}

impl Watch {
    /// Waits until the node, or something below the node, has changed since the last call; `None` when the connection
    /// broke.
    pub async fn changed(&self) -> Option<()> {
        self.events.recv().await
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.events.len()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.store.inner.state.lock().watches.remove(&self.token);
        let parts = [self.path.as_bytes(), b"\0", self.token.as_bytes(), b"\0"];
        // Nobody waits for the answer.
        let _ = self.store.inner.send(XS_UNWATCH, 0, &parts);
    }
}

impl Inner {
    /// Queues a request; the result is the receiver of the answer.
    fn send(
        &self,
        kind: u32,
        tx_id: u32,
        parts: &[&[u8]],
    ) -> Result<pvrt::executor::sync::Receiver<Message>> {
        let payload = parts.concat();
        // Xenstored ends each part but a written value at the part's first NUL: a path with a NUL in it would name
        // another node.
        let path_nuls = parts.len() > 1 && parts[0].contains(&0);
        if payload.len() > XENSTORE_PAYLOAD_MAX || path_nuls {
            return Err(StoreError::BadRequest);
        }
        if self.broken.load(Ordering::Acquire) {
            return Err(StoreError::Broken);
        }
        let (sender, receiver) = oneshot();
        {
            let mut state = self.state.lock();
            let req_id = state.next_id;
            state.next_id = req_id.wrapping_add(1);
            let header = XsdSockmsg { r#type: kind, req_id, tx_id, len: payload.len() as u32 };
            state.queue.push_back(Message { header, payload }.to_bytes());
            state.waiting.insert(req_id, sender);
        }
        self.outgoing.notify_one();
        Ok(receiver)
    }

    async fn request(&self, kind: u32, tx_id: u32, parts: &[&[u8]]) -> Result<Vec<u8>> {
        let answer = self.send(kind, tx_id, parts)?.await.map_err(|_| StoreError::Broken)?;
        if answer.header.r#type == XS_ERROR {
            let text = answer.payload.strip_suffix(&[0]).unwrap_or(&answer.payload);
            return Err(StoreError::Refused(error_from_name(text).unwrap_or(Errno::EINVAL)));
        }
        if answer.header.r#type != kind {
            return Err(StoreError::Broken);
        }
        Ok(answer.payload)
    }

    /// Hands a message to the task that waits for the message.
    fn dispatch(&self, message: Message) {
        if message.header.r#type == XS_WATCH_EVENT {
            let mut parts = strings(&message.payload).skip(1);
            if let Some(Some(token)) = parts.next() {
                let channel = self.state.lock().watches.get(&token).cloned();
                if let Some(channel) = channel {
                    // Refused: the watch has ended, or an event waits already.
                    let _ = channel.try_send(());
                }
            }
            return;
        }
        let waiting = self.state.lock().waiting.remove(&message.header.req_id);
        if let Some(sender) = waiting {
            // A request dropped meanwhile needs no answer.
            let _ = sender.send(message);
        }
    }

    /// Fails all that waits, now and later: the connection is broken.
    fn end(&self) {
        self.broken.store(true, Ordering::Release);
        let state = core::mem::take(&mut *self.state.lock());
        for channel in state.watches.values() {
            channel.close();
        }
    }
}

/// Moves bytes between the ring and the tables.
async fn pump(inner: Arc<Inner>, mut ring: ByteRing<SharedBytes<'static>>, port: Port) {
    let mut outgoing: Vec<u8> = Vec::new();
    let mut incoming = Assembler::default();
    loop {
        match turn(&inner, &mut ring, &mut outgoing, &mut incoming) {
            Ok(false) => {
                select(port.wait(), inner.outgoing.notified()).await;
            }
            Ok(true) => port.notify(),
            Err(TooLong) => {
                log::error!("xenstore: the ring is broken");
                inner.end();
                return;
            }
        }
    }
}

/// Moves as many bytes as the ring lets through; `true` when the other side must be notified.
fn turn(
    inner: &Inner,
    ring: &mut ByteRing<SharedBytes<'static>>,
    outgoing: &mut Vec<u8>,
    incoming: &mut Assembler,
) -> core::result::Result<bool, TooLong> {
    let mut moved = false;
    {
        let mut state = inner.state.lock();
        while outgoing.len() < XENSTORE_RING_SIZE
            && let Some(message) = state.queue.pop_front()
        {
            outgoing.extend_from_slice(&message);
        }
    }
    if !outgoing.is_empty() {
        let count = ring.write(outgoing).map_err(|_| TooLong)?;
        outgoing.drain(..count);
        moved |= count > 0;
    }
    let mut piece = [0; 256];
    loop {
        let count = ring.read(&mut piece).map_err(|_| TooLong)?;
        if count == 0 {
            break;
        }
        moved = true;
        incoming.push(&piece[..count]);
    }
    while let Some(message) = incoming.next()? {
        inner.dispatch(message);
    }
    Ok(moved)
}
