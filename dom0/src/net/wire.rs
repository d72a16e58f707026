//! What a network card is to the rest of dom0: packets go out with a token each and come in as pages of dom0's.
//!
//! A card moves pages, not bytes. A packet to send is a list of machine addresses, which may be a guest's frames; a
//! packet that came in lies in the card's own receive buffers, from which the hypervisor copies to a guest. No method
//! waits, and one task polls [`Wire::poll_ready`].

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::task::{Context, Poll};

use arrayvec::ArrayVec;
use backends::net::Offload;
use ring_abi::types::{Maddr, Mfn};

/// Most parts of a packet that came in: the buffers of one page each that hold the longest packet, the card's header
/// before the packet, and one that the packet does not begin at a page's start.
pub const MAX_RECEIVED_PARTS: usize = 18;

/// What a card can do. These values do not change while the card lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireFeatures {
    /// The card's Ethernet address.
    pub mac: [u8; 6],
    /// Most bytes of a packet behind the Ethernet header, GSO aside.
    pub mtu: u16,
    /// The card completes checksums: a packet with `Checksum::Partial` may be sent.
    pub checksum: bool,
    /// The card cuts TCP over IPv4: a packet with `GsoKind::TcpV4` may be sent.
    pub tso4: bool,
    /// The card cuts TCP over IPv6: a packet with `GsoKind::TcpV6` may be sent.
    pub tso6: bool,
    /// Most spans of a packet that is sent, at least `MAX_PARTS`.
    pub max_spans: usize,
    /// Most packets that the card has at a time: so many tokens are out at most.
    pub slots: usize,
}

/// A run of bytes in machine memory that lies within one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Machine address of the first byte.
    pub maddr: Maddr,
    /// Length in bytes, at least 1.
    pub len: u32,
}

/// Where a checksum is, of which the packet holds the pseudo header's part only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChecksumAt {
    /// The first byte that is summed, counted from the packet's first: where the TCP or UDP header begins.
    pub start: u16,
    /// Where the sum is written, counted from `start`: 16 for TCP, 6 for UDP.
    pub offset: u16,
}

/// A packet to send.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The work that is left to the card.
    pub offload: &'a Offload,
    /// Needed with `Checksum::Partial`, and so with GSO.
    pub checksum_at: Option<ChecksumAt>,
    /// Bytes up to the payload: Ethernet, IP and TCP headers. Needed with GSO.
    pub header_len: u16,
    /// The packet's bytes, in order.
    pub spans: &'a [Span],
    /// Any number that all packets of a flow have in common, such as a hash of addresses and ports: a card with several
    /// queues keeps the packets of one number in order.
    pub flow: u32,
}

/// Why a card does not take a packet. The card keeps nothing of the packet, and the token does not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransmitError {
    /// The card has as many packets as it can. Some come back by [`Wire::transmitted`].
    Full,
    /// The packet asks for what this card cannot do, or is not within the card's limits: the caller's mistake.
    Unfit(&'static str),
    /// The card works no more.
    Broken,
}

impl fmt::Display for TransmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(f, "the card has as many packets as it can"),
            Self::Unfit(what) => write!(f, "the card does not take such a packet: {what}"),
            Self::Broken => write!(f, "the card works no more"),
        }
    }
}

/// A packet that the card has no more: no byte of the packet is read from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmitted {
    /// The caller's name for the packet.
    pub token: u32,
    /// The card sent the packet. `false`: the card broke and was reset with the packet in its queue.
    pub sent: bool,
}

/// A network card. All methods are for dom0's one thread; a lock inside is held for the call alone.
pub trait Wire: Send + Sync {
    /// The card's name: `eth0` and so on.
    fn name(&self) -> &str;

    /// What the card can do.
    fn features(&self) -> WireFeatures;

    /// Whether the card has a link. A card that broke has none.
    fn link_up(&self) -> bool;

    /// Queues a packet for the next [`Self::kick`]. After `Ok` the token comes back exactly once by
    /// [`Self::transmitted`], and until then the card may read the packet's bytes: the caller keeps the memory.
    ///
    /// If a card that broke does not let itself be reset, then the card may read for ever: the tokens of what it has do
    /// not come back, and the memory stays lent.
    ///
    /// # Errors
    /// [`TransmitError`] says why the card took nothing.
    fn transmit(&self, token: u32, packet: Outgoing<'_>) -> Result<(), TransmitError>;

    /// Tells the card of everything queued since the last kick.
    fn kick(&self);

    /// Says how soon the caller wants to hear of packets that the card has sent, from the next kick on: with `soon` at
    /// once, since somebody waits for the memory; else when it suits the card. A card that always tells at once does
    /// nothing here.
    fn hasten(&self, soon: bool) {
        let _ = soon;
    }

    /// Appends the packets that the card has no more, in the order in which the card let go of them.
    fn transmitted(&self, out: &mut Vec<Transmitted>);

    /// Takes the next packet that came in.
    fn receive(&self) -> Option<Received>;

    /// Number of packets that came in and that nobody gets, since what the card said of them cannot be.
    fn malformed(&self) -> u64;

    /// Ready when a packet came in, sent ones came back, the link changed or the card broke, since the call that said so
    /// last. Else the task of `context` is woken when one of these happens; the last task that asked is the one woken. A
    /// card may wait with its word of sent packets until it has sent most of what it has, unless [`Self::hasten`] said
    /// otherwise.
    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<()>;
}

/// A run of a received packet's bytes, within one of the card's receive buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedPart {
    /// The page of dom0's that is the buffer.
    pub frame: Mfn,
    /// Number of the buffer, as the card counts.
    pub buffer: u16,
    /// First byte within the page.
    pub offset: u16,
    /// Length in bytes, at least 1.
    pub len: u16,
}

/// The parts of a packet that came in.
pub type ReceivedParts = ArrayVec<ReceivedPart, MAX_RECEIVED_PARTS>;

/// A card's receive buffers, as a packet in them needs the buffers. A buffer is a page.
pub trait ReceiveBuffers: Send + Sync {
    /// Reads from buffer `buffer`, from byte `offset` on.
    fn read(&self, buffer: u16, offset: usize, out: &mut [u8]);

    /// Writes to buffer `buffer`, from byte `offset` on.
    fn write(&self, buffer: u16, offset: usize, bytes: &[u8]);

    /// Takes the buffers of `parts` back, for other packets. Each buffer is one packet's until then.
    fn give_back(&self, parts: &[ReceivedPart]);
}

/// A packet that came in. Dropping it gives its buffers back to the card.
pub struct Received {
    /// Bytes of the packet: of all its parts.
    pub len: u32,
    /// What the card says of checksum and segments. A card may lie here as a guest may: these are hints to whoever gets
    /// the packet.
    pub offload: Offload,
    /// Where the checksum is, with `Checksum::Partial`: both within the packet.
    pub checksum_at: Option<ChecksumAt>,
    parts: ReceivedParts,
    buffers: Arc<dyn ReceiveBuffers>,
}

impl Received {
    /// A packet in `buffers`: made by the card's driver, which hands the buffers over.
    pub fn new(
        offload: Offload,
        checksum_at: Option<ChecksumAt>,
        parts: ReceivedParts,
        buffers: Arc<dyn ReceiveBuffers>,
    ) -> Self {
        let len = parts.iter().map(|part| u32::from(part.len)).sum();
        Self { len, offload, checksum_at, parts, buffers }
    }

    /// Where the packet's bytes are, in order; at least one part.
    pub fn parts(&self) -> &[ReceivedPart] {
        &self.parts
    }

    /// Reads the packet's bytes from byte `from` on. The result is how many there were, at most `out.len()`.
    pub fn read(&self, from: usize, out: &mut [u8]) -> usize {
        let mut done = 0;
        self.each(from, out.len(), |buffer, offset, len| {
            self.buffers.read(buffer, offset, &mut out[done..done + len]);
            done += len;
        });
        done
    }

    /// Writes over the packet's bytes from byte `from` on. The result is how many there were, at most `bytes.len()`.
    pub fn write(&self, from: usize, bytes: &[u8]) -> usize {
        let mut done = 0;
        self.each(from, bytes.len(), |buffer, offset, len| {
            self.buffers.write(buffer, offset, &bytes[done..done + len]);
            done += len;
        });
        done
    }

    /// Calls `access` for each run of the `len` bytes from `from` on, with its buffer, offset and length.
    fn each(&self, mut from: usize, mut len: usize, mut access: impl FnMut(u16, usize, usize)) {
        for part in &self.parts {
            let part_len = usize::from(part.len);
            if from < part_len && len > 0 {
                let here = len.min(part_len - from);
                access(part.buffer, usize::from(part.offset) + from, here);
                len -= here;
                from = 0;
            } else {
                from = from.saturating_sub(part_len);
            }
        }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.buffers.give_back(&self.parts);
    }
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use alloc::vec;

    use ring_abi::types::PAGE_SIZE;
    use spin::Mutex;

    use super::*;

    /// Three pages, and the numbers of the buffers that came back.
    struct Pages(Mutex<Vec<u8>>, Mutex<Vec<u16>>);

    impl ReceiveBuffers for Pages {
        fn read(&self, buffer: u16, offset: usize, out: &mut [u8]) {
            let at = usize::from(buffer) * PAGE_SIZE + offset;
            out.copy_from_slice(&self.0.lock()[at..at + out.len()]);
        }
        fn write(&self, buffer: u16, offset: usize, bytes: &[u8]) {
            let at = usize::from(buffer) * PAGE_SIZE + offset;
            self.0.lock()[at..at + bytes.len()].copy_from_slice(bytes);
        }
        fn give_back(&self, parts: &[ReceivedPart]) {
            self.1.lock().extend(parts.iter().map(|part| part.buffer));
        }
    }

    #[test]
    fn bytes_are_read_and_written_over_the_ends_of_parts() {
        let bytes: Vec<u8> = (0..3 * PAGE_SIZE).map(|at| (at % 251) as u8).collect();
        let pages = Arc::new(Pages(Mutex::new(bytes.clone()), Mutex::new(Vec::new())));
        let part = |buffer, offset, len| ReceivedPart { frame: Mfn::new(7), buffer, offset, len };
        let parts: ReceivedParts = [part(2, 12, 100), part(0, 0, 1), part(1, 4000, 96)].into_iter().collect();
        let received = Received::new(Offload::default(), None, parts, pages.clone());
        assert_eq!(received.len, 197);
        let page = |page: usize, from: usize, len: usize| &bytes[page * PAGE_SIZE + from..][..len];
        let whole = [page(2, 12, 100), page(0, 0, 1), page(1, 4000, 96)].concat();
        for from in [0, 1, 99, 100, 101, 102, 196, 197, 198, 5000] {
            for len in [0, 1, 2, 98, 300] {
                let mut out = vec![0; len];
                let there = received.read(from, &mut out);
                let expected: Vec<u8> = whole.iter().copied().skip(from).take(len).collect();
                assert_eq!(out[..there], expected, "{len} from {from}");
                let ones = vec![1; len];
                assert_eq!(received.write(from, &ones), there);
                assert_eq!(received.write(from, &expected), there);
            }
        }
        assert_eq!(*pages.0.lock(), bytes, "nothing else was written");
        drop(received);
        assert_eq!(*pages.1.lock(), [2, 0, 1]);
    }
}
