//! Xenstore's wire protocol, message by message: a client that sends and receives only when a case asks for
//! it.
//!
//! A case may send invalid messages by the first calls; the calls further down send valid requests.
//!
//! ABI: `xen/include/public/io/xs_wire.h`; protocol: `docs/misc/xenstore.txt`.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pvrt::event::Port;
use pvrt::executor::time;
use pvrt::hypercall::sched;
use ring_abi::errno::Errno;
use ring_abi::io::xs_wire::*;
use ring_abi::ring::bytes::ByteRing;
use ring_abi::shared::SharedBytes;
use zerocopy::{FromBytes, IntoBytes};

use crate::{Problem, Verdict};

/// How long an answer may take.
const PATIENCE_NS: u64 = 10_000_000_000;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The message's header.
    pub header: XsdSockmsg,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Message {
    /// A request with the right length in its header.
    pub fn request(kind: u32, req_id: u32, tx_id: u32, payload: &[u8]) -> Self {
        let header = XsdSockmsg { r#type: kind, req_id, tx_id, len: payload.len() as u32 };
        Self { header, payload: payload.to_vec() }
    }

    /// The message's bytes on the ring.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.as_bytes().to_vec();
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// The answer's payload, or the error that it names.
    pub fn answer(&self) -> Answer {
        if self.header.r#type != XS_ERROR {
            return Ok(self.payload.clone());
        }
        let text = self.payload.strip_suffix(&[0]).unwrap_or(&self.payload);
        Err(error_from_name(text).unwrap_or(Errno::EINVAL))
    }
}

/// The answer of xenstored to a request: a payload, or the error that the answer names (`EINVAL` for an
/// unknown name).
pub type Answer<T = Vec<u8>> = Result<T, Errno>;

/// A watch's event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The node that changed.
    pub path: String,
    /// The watch's token.
    pub token: String,
    /// The header's field for a request's id: 0.
    pub req_id: u32,
    /// The header's field for a transaction's id: 0.
    pub tx_id: u32,
}

/// The connection. A future of the connection may be dropped at any time: bytes to send stay queued, and answers
/// that no caller waits for are dropped.
pub struct Store {
    ring: ByteRing<SharedBytes<'static>>,
    page: SharedBytes<'static>,
    port: Port,
    next_id: u32,
    outgoing: VecDeque<u8>,
    incoming: Vec<u8>,
    answers: VecDeque<Message>,
    events: VecDeque<Event>,
}

impl Store {
    /// Takes the client's end of the ring `page`.
    ///
    /// # Errors
    /// [`Problem::Error`]: `page` is not the size of a page.
    pub fn connect(page: SharedBytes<'static>, port: Port) -> Verdict<Self> {
        let ring = client(page).map_err(|error| Problem::Error(format!("xenstore: {error}")))?;
        Ok(Self {
            ring,
            page,
            port,
            next_id: 1,
            outgoing: VecDeque::new(),
            incoming: Vec::new(),
            answers: VecDeque::new(),
            events: VecDeque::new(),
        })
    }

    /// The ring page, for cases on its indices.
    pub fn page(&self) -> SharedBytes<'static> {
        self.page
    }

    /// The event channel to the daemon.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// A request id that was not used before.
    pub fn new_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        id
    }

    /// Puts all bytes on the ring unchanged, waiting for room.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the daemon's indices are impossible, or the daemon takes nothing.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Verdict {
        self.outgoing.extend(bytes);
        let end = time::now_ns() + PATIENCE_NS;
        loop {
            self.turn()?;
            if self.outgoing.is_empty() {
                return Ok(());
            }
            self.wait(end, "xenstored takes no request").await?;
        }
    }

    /// Sends a message unchanged.
    ///
    /// # Errors
    /// The errors of [`send_bytes`](Self::send_bytes).
    pub async fn send(&mut self, message: &Message) -> Verdict {
        self.send_bytes(&message.to_bytes()).await
    }

    /// Returns the next message that is no event, whichever request it answers.
    ///
    /// # Errors
    /// [`Problem::Fail`]: no answer came, or an invalid message.
    pub async fn next_answer(&mut self) -> Verdict<Message> {
        let end = time::now_ns() + PATIENCE_NS;
        loop {
            self.turn()?;
            if let Some(message) = self.answers.pop_front() {
                return Ok(message);
            }
            self.wait(end, "xenstored does not answer").await?;
        }
    }

    /// Returns the answer to request `req_id`, and drops other answers before it.
    ///
    /// # Errors
    /// The errors of [`next_answer`](Self::next_answer).
    pub async fn answer_to(&mut self, req_id: u32) -> Verdict<Message> {
        loop {
            let message = self.next_answer().await?;
            if message.header.req_id == req_id {
                return Ok(message);
            }
        }
    }

    /// Returns the next watch event; `None` if no event comes within `ms`.
    ///
    /// # Errors
    /// [`Problem::Fail`]: an invalid message came.
    pub async fn event(&mut self, ms: u64) -> Verdict<Option<Event>> {
        let end = time::now_ns() + ms * 1_000_000;
        loop {
            self.turn()?;
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let now = time::now_ns();
            if now >= end {
                return Ok(None);
            }
            // An event or the end of the time: both lead to another look at the ring.
            let _ = time::timeout(end - now, self.port.wait()).await;
        }
    }

    /// Drops the events that have come so far.
    ///
    /// # Errors
    /// The errors of [`event`](Self::event).
    pub async fn drop_events(&mut self) -> Verdict {
        // The daemon sends earlier events before the answer to this request.
        self.read("domid").await?.ok();
        self.events.clear();
        Ok(())
    }

    /// Writes as many queued bytes as fit, and reads all bytes that have come.
    fn turn(&mut self) -> Verdict {
        let bad = |error| Problem::Fail(format!("xenstore ring: {error}"));
        let mut moved = false;
        if !self.outgoing.is_empty() {
            let count = self.ring.write(self.outgoing.make_contiguous()).map_err(bad)?;
            self.outgoing.drain(..count);
            moved |= count > 0;
        }
        let mut piece = [0; 256];
        loop {
            let count = self.ring.read(&mut piece).map_err(bad)?;
            if count == 0 {
                break;
            }
            moved = true;
            self.incoming.extend_from_slice(&piece[..count]);
        }
        if moved {
            self.port.notify();
        }
        while let Ok((header, rest)) = XsdSockmsg::read_from_prefix(&self.incoming) {
            let len = header.len as usize;
            if len > XENSTORE_PAYLOAD_MAX {
                return Err(Problem::Fail(format!("xenstored sent a message of {len} bytes")));
            }
            let Some(payload) = rest.get(..len) else { break };
            let message = Message { header, payload: payload.to_vec() };
            self.incoming.drain(..size_of::<XsdSockmsg>() + len);
            if header.r#type == XS_WATCH_EVENT {
                let mut parts = strings(&message.payload).into_iter();
                let (path, token) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                self.events.push_back(Event { path, token, req_id: header.req_id, tx_id: header.tx_id });
            } else {
                self.answers.push_back(message);
            }
        }
        Ok(())
    }

    async fn wait(&self, end: u64, why: &str) -> Verdict {
        let now = time::now_ns();
        if now >= end || time::timeout(end - now, self.port.wait()).await.is_err() {
            return Err(Problem::Fail(why.into()));
        }
        Ok(())
    }

    /// Sends a request of transaction `tx_id` (0 for none) and returns its answer.
    ///
    /// # Errors
    /// [`Problem::Fail`]: no answer comes, or an answer of another type than the request's.
    pub async fn ask(&mut self, kind: u32, tx_id: u32, payload: &[u8]) -> Verdict<Answer> {
        let id = self.new_id();
        self.send(&Message::request(kind, id, tx_id, payload)).await?;
        let message = self.answer_to(id).await?;
        let given = message.header.r#type;
        ensure!(
            given == kind || given == XS_ERROR,
            "the answer to a request of type {kind} has type {given}"
        );
        Ok(message.answer())
    }

    /// Does the same as [`ask`](Self::ask) without a transaction, but holds the vCPU until the answer comes: for a
    /// kernel that has nothing else to do.
    ///
    /// # Errors
    /// The errors of [`ask`](Self::ask).
    pub fn ask_at_once(&mut self, kind: u32, payload: &[u8]) -> Verdict<Answer> {
        let id = self.new_id();
        self.outgoing.extend(Message::request(kind, id, 0, payload).to_bytes());
        let end = time::now_ns() + PATIENCE_NS;
        loop {
            self.turn()?;
            if let Some(at) = self.answers.iter().position(|message| message.header.req_id == id) {
                let message = self.answers.remove(at).map(|message| message.answer());
                return message.ok_or_else(|| Problem::Error("an answer is gone".into()));
            }
            ensure!(time::now_ns() < end, "xenstored does not answer");
            sched::yield_cpu();
        }
    }

    /// The value of a node, as text.
    ///
    /// # Errors
    /// The errors of [`ask`](Self::ask), as for the functions below.
    pub async fn read(&mut self, path: &str) -> Verdict<Answer<String>> {
        let answer = self.ask(XS_READ, 0, &nul(path)).await?;
        Ok(answer.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    /// Sets a node.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn write(&mut self, path: &str, value: &str) -> Verdict<Answer> {
        let mut payload = nul(path);
        payload.extend_from_slice(value.as_bytes());
        self.ask(XS_WRITE, 0, &payload).await
    }

    /// Removes a node and everything below it.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn remove(&mut self, path: &str) -> Verdict<Answer> {
        self.ask(XS_RM, 0, &nul(path)).await
    }

    /// The names of a node's children.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn directory(&mut self, path: &str) -> Verdict<Answer<Vec<String>>> {
        Ok(self.ask(XS_DIRECTORY, 0, &nul(path)).await?.map(|list| strings(&list)))
    }

    /// Sets a watch.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn watch(&mut self, path: &str, token: &str) -> Verdict<Answer> {
        self.ask(XS_WATCH, 0, &[nul(path), nul(token)].concat()).await
    }

    /// Removes a watch.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn unwatch(&mut self, path: &str, token: &str) -> Verdict<Answer> {
        self.ask(XS_UNWATCH, 0, &[nul(path), nul(token)].concat()).await
    }
}

/// Text with the NUL behind it.
pub fn nul(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// The strings of a payload, each ended by a NUL (the last one's may be missing).
pub fn strings(payload: &[u8]) -> Vec<String> {
    let payload = payload.strip_suffix(&[0]).unwrap_or(payload);
    if payload.is_empty() {
        return Vec::new();
    }
    payload.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).to_string()).collect()
}
