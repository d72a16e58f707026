//! Messages on a byte stream: messages arrive, and are fetched, in pieces of any size.

#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use ring_abi::io::xs_wire::{self as wire, XENSTORE_PAYLOAD_MAX, XsdSockmsg};
use zerocopy::{FromBytes, IntoBytes};

use super::path::Path;
use super::price;
use super::watch::Watch;

/// A queue of so many places is kept for the next message.
const QUEUE_KEPT: usize = 8;

/// Bytes of room, beyond the payload, that a reply may have while the reply waits.
const SPARE: usize = 64;

/// Bytes of a reply, with its header, that is sent without a buffer on the heap.
const SHORT_REPLY: usize = 64;

/// Bytes of a header.
const HEADER_BYTES: usize = size_of::<XsdSockmsg>();

/// A whole request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The message's header; `len` is the payload's length.
    pub header: XsdSockmsg,
    /// The bytes after the header, at most 4096.
    pub payload: Vec<u8>,
}

/// A header announced more than [`XENSTORE_PAYLOAD_MAX`] bytes: the end of the message is unknown, so no later message
/// can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong {
    /// The length that the header announced.
    pub len: u32,
}

/// Bytes received and not yet a whole message.
#[derive(Default)]
pub struct Input {
    bytes: VecDeque<u8>,
}

impl Input {
    /// Bytes that the buffer takes: one message of the greatest size, so that a whole message always fits.
    pub const CAPACITY: usize = HEADER_BYTES + XENSTORE_PAYLOAD_MAX;
    /// Most bytes of heap for the buffer: its room doubles as it grows, and stays.
    pub(super) const KEPT: usize = price::object(2 * Self::CAPACITY);

    /// Bytes that may be pushed now.
    pub fn room(&self) -> usize {
        Self::CAPACITY - self.bytes.len()
    }

    /// Whether the buffer holds nothing, not even part of a message.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes as many of `bytes` as fit, and returns their number.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.bytes.extend(&bytes[..taken]);
        taken
    }

    fn header(&self) -> Result<Option<XsdSockmsg>, TooLong> {
        if self.bytes.len() < HEADER_BYTES {
            return Ok(None);
        }
        let header = match XsdSockmsg::read_from_prefix(self.bytes.as_slices().0) {
            Ok((header, _)) => header,
            // The header goes over the end of the ring buffer.
            Err(_) => {
                let mut raw = [0; HEADER_BYTES];
                for (to, from) in raw.iter_mut().zip(&self.bytes) {
                    *to = *from;
                }
                XsdSockmsg::read_from_bytes(&raw).unwrap_or_default()
            }
        };
        if header.len as usize > XENSTORE_PAYLOAD_MAX {
            Err(TooLong { len: header.len })
        } else {
            Ok(Some(header))
        }
    }

    /// Is a whole message, or an error, waiting?
    pub fn is_ready(&self) -> bool {
        match self.header() {
            Ok(Some(header)) => self.bytes.len() - HEADER_BYTES >= header.len as usize,
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Takes the next message, if the message is whole.
    ///
    /// # Errors
    /// [`TooLong`]: the message's end is unknown, and the stream is lost.
    pub fn take(&mut self) -> Result<Option<Message>, TooLong> {
        let Some(header) = self.header()? else { return Ok(None) };
        let whole = HEADER_BYTES + header.len as usize;
        if self.bytes.len() < whole {
            return Ok(None);
        }
        let payload = match self.bytes.as_slices().0.get(HEADER_BYTES..whole) {
            Some(payload) => Vec::from(payload),
            None => self.bytes.range(HEADER_BYTES..whole).copied().collect(),
        };
        self.bytes.drain(..whole);
        Ok(Some(Message { header, payload }))
    }
}

/// A message that waits to be fetched.
pub(crate) enum Outgoing {
    /// An answer.
    Reply(Message),
    /// An event of a watch, for a change at this path.
    Event(Arc<Watch>, Path),
}

/// Replies and events in order, fetched in pieces.
pub(crate) struct Output {
    queue: VecDeque<Outgoing>,
    /// The events in `queue`, by [`watch_id`] and path: one search tells whether the same event waits already.
    waiting: BTreeSet<(usize, Path)>,
    replies: usize,
    /// Bytes that the events in `queue` cost.
    event_bytes: usize,
    /// Bytes of the payloads of the replies in `queue`.
    reply_bytes: usize,
    /// The message that is being fetched, and the number of its bytes that are sent. A short reply lies in `short` and
    /// needs no heap, while `current` is empty.
    current: Vec<u8>,
    short: [u8; SHORT_REPLY],
    short_len: usize,
    sent: usize,
}

impl Default for Output {
    fn default() -> Self {
        Output {
            queue: VecDeque::new(),
            waiting: BTreeSet::new(),
            replies: 0,
            event_bytes: 0,
            reply_bytes: 0,
            current: Vec::new(),
            short: [0; SHORT_REPLY],
            short_len: 0,
            sent: 0,
        }
    }
}

impl Output {
    /// Number of waiting messages, a message that is partly fetched included.
    pub(crate) fn len(&self) -> usize {
        self.queue.len() + usize::from(!self.fetched().is_empty())
    }

    /// The bytes of the message that is being fetched that are still to be sent.
    #[inline]
    fn fetched(&self) -> &[u8] {
        let whole = if self.short_len > 0 { &self.short[..self.short_len] } else { &self.current[..] };
        &whole[self.sent..]
    }

    /// Number of replies of which no byte was fetched.
    pub(crate) fn replies(&self) -> usize {
        self.replies
    }

    /// Events waiting.
    pub(crate) fn events(&self) -> usize {
        self.queue.len() - self.replies
    }

    /// Bytes of heap for the waiting events, with the most for the events' places in the queue.
    pub(crate) fn event_bytes(&self) -> usize {
        self.event_bytes
    }

    /// Whether nothing waits that is on the heap. An idle queue keeps hardly any room, and the price of a connection
    /// has that room.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.current.is_empty()
    }

    /// Bytes of heap for all that waits.
    pub(crate) fn kept(&self) -> usize {
        let places = price::object(self.queue.capacity() * size_of::<Outgoing>());
        let current = price::object(self.current.capacity());
        places + current + self.event_bytes + self.reply_bytes
    }

    /// Queues an answer.
    pub(crate) fn push_reply(&mut self, mut message: Message) {
        if message.payload.capacity() > message.payload.len() + SPARE {
            message.payload.shrink_to_fit();
        }
        self.reply_bytes += reply_cost(&message);
        self.queue.push_back(Outgoing::Reply(message));
        self.replies += 1;
    }

    /// Queues an event, unless the same is waiting already.
    pub(crate) fn push_event(&mut self, watch: Arc<Watch>, path: Path) {
        if self.waiting.insert((watch_id(&watch), path.clone())) {
            self.event_bytes += event_cost(&watch, &path);
            self.queue.push_back(Outgoing::Event(watch, path));
        }
    }

    /// Merges events: one event, for the watched path itself, stands for all waiting events of a watch. The watch whose
    /// events take most comes first, then the next, until all events together take at most `bytes` or each watch has
    /// one event. A watch with few events keeps its events, whatever other watches are told of.
    pub(crate) fn merge_events(&mut self, bytes: usize) {
        let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
        for out in &self.queue {
            if let Outgoing::Event(watch, path) = out {
                *taken.entry(watch_id(watch)).or_default() += event_cost(watch, path);
            }
        }
        let mut taken: Vec<(usize, usize)> = taken.into_iter().map(|(id, taken)| (taken, id)).collect();
        taken.sort_unstable();
        let mut left = self.event_bytes;
        // The watches whose events become one event, with that event's path once the event has its place.
        let mut merged: BTreeMap<usize, Option<Path>> = BTreeMap::new();
        while left > bytes
            && let Some((taken, id)) = taken.pop()
            && taken > EVENT_PLACE
        {
            left = left - taken + EVENT_PLACE;
            merged.insert(id, None);
        }
        let (event_bytes, waiting) = (&mut self.event_bytes, &mut self.waiting);
        self.queue.retain_mut(|out| {
            let Outgoing::Event(watch, path) = out else { return true };
            let Some(one) = merged.get_mut(&watch_id(watch)) else { return true };
            *event_bytes -= event_cost(watch, path);
            waiting.remove(&(watch_id(watch), path.clone()));
            if one.is_some() {
                return false;
            }
            path.clone_from(&watch.path);
            *event_bytes += EVENT_PLACE;
            *one = Some(path.clone());
            true
        });
        waiting.extend(merged.into_iter().filter_map(|(id, path)| Some((id, path?))));
    }

    /// Drops all events: no watch is left.
    pub(crate) fn forget_watches(&mut self) {
        self.queue.retain(|out| matches!(out, Outgoing::Reply(_)));
        self.trim();
        self.waiting.clear();
        self.event_bytes = 0;
    }

    /// Drops the events of a watch that is gone.
    pub(crate) fn forget_watch(&mut self, watch: &Arc<Watch>) {
        let (dropped, waiting) = (&mut self.event_bytes, &mut self.waiting);
        self.queue.retain(|out| match out {
            Outgoing::Event(w, path) if Arc::ptr_eq(w, watch) => {
                *dropped -= event_cost(w, path);
                waiting.remove(&(watch_id(w), path.clone()));
                false
            }
            _ => true,
        });
        self.trim();
    }

    /// An empty queue keeps little room.
    #[inline]
    fn trim(&mut self) {
        if self.queue.is_empty() && self.queue.capacity() > QUEUE_KEPT {
            self.queue = VecDeque::new();
        }
    }

    /// Takes the next message whole: for clients within dom0.
    pub(crate) fn pop(&mut self) -> Option<Outgoing> {
        let out = self.queue.pop_front()?;
        self.trim();
        match &out {
            Outgoing::Reply(message) => {
                self.replies -= 1;
                self.reply_bytes -= reply_cost(message);
            }
            Outgoing::Event(watch, path) => {
                self.event_bytes -= event_cost(watch, path);
                self.waiting.remove(&(watch_id(watch), path.clone()));
            }
        }
        Some(out)
    }

    /// Bytes to send now; empty if there are none.
    pub(crate) fn bytes(&mut self) -> &[u8] {
        while self.fetched().is_empty() {
            self.current.clear();
            (self.short_len, self.sent) = (0, 0);
            match self.pop() {
                Some(Outgoing::Reply(message)) => self.fetch(&message),
                Some(Outgoing::Event(watch, path)) => encode_event(&watch, &path, &mut self.current),
                None => break,
            }
        }
        self.fetched()
    }

    fn fetch(&mut self, Message { header, payload }: &Message) {
        let len = HEADER_BYTES + payload.len();
        if let Some(short) = self.short.get_mut(..len) {
            let (head, rest) = short.split_at_mut(HEADER_BYTES);
            head.copy_from_slice(header.as_bytes());
            rest.copy_from_slice(payload);
            self.short_len = len;
        } else {
            self.current.reserve_exact(len);
            self.current.extend_from_slice(header.as_bytes());
            self.current.extend_from_slice(payload);
        }
    }

    /// Notes that the first `count` of [`Output::bytes`] have been sent.
    pub(crate) fn consume(&mut self, count: usize) {
        self.sent += count.min(self.fetched().len());
        if self.fetched().is_empty() {
            // An idle connection holds no buffer.
            self.current = Vec::new();
            (self.short_len, self.sent) = (0, 0);
        }
    }
}

/// Tells watches apart: where the watch lies, which a waiting event keeps.
fn watch_id(watch: &Arc<Watch>) -> usize {
    Arc::as_ptr(watch).addr()
}

/// Bytes of heap for the places of an event in the queue and in the index.
pub(super) const EVENT_PLACE: usize =
    price::listed_among_many::<Outgoing>() + price::mapped::<(usize, Path), ()>();

/// Bytes of heap for an event. The watch belongs to the connection as long as the event waits.
pub(super) const fn event_price(path: usize) -> usize {
    EVENT_PLACE + price::shared(path)
}

/// Bytes that an event costs. An event for the watched path itself shares the bytes of the watch's path.
fn event_cost(watch: &Watch, path: &Path) -> usize {
    if path.is_clone_of(&watch.path) { EVENT_PLACE } else { event_price(path.key().len()) }
}

fn reply_cost(message: &Message) -> usize {
    price::object(message.payload.capacity())
}

/// Most bytes of heap for `count` replies, and one more that is being fetched.
pub(super) const fn replies_price(count: usize) -> usize {
    let places = 2 * count * size_of::<Outgoing>();
    places + count * price::object(XENSTORE_PAYLOAD_MAX + SPARE) + price::object(2 * Input::CAPACITY)
}

/// Writes an `XS_WATCH_EVENT`; writes nothing if path and token do not fit one message, as Xen does.
fn encode_event(watch: &Watch, path: &Path, out: &mut Vec<u8>) {
    let text = watch.event_text(path);
    let len = text.len() + 1 + watch.token.len() + 1;
    if len > XENSTORE_PAYLOAD_MAX {
        return;
    }
    let header = XsdSockmsg { r#type: wire::XS_WATCH_EVENT, req_id: 0, tx_id: 0, len: len as u32 };
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&text);
    out.push(0);
    out.extend_from_slice(&watch.token);
    out.push(0);
}
