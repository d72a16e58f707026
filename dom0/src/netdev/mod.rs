//! The control domain's network cards: `eth0`, `eth1`, ... in the order of the PCI addresses.
#![forbid(unsafe_code)]

mod probe;

pub use probe::probe;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use spin::Mutex;

use crate::net::wire::{Wire, WireFeatures};

/// A network card that tasks share.
pub type SharedWire = Arc<dyn Wire>;

/// All network cards. The lock guards the list only and is held for a look-up.
#[derive(Default)]
pub struct Cards(Mutex<Vec<SharedWire>>);

impl Cards {
    /// No cards yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a card.
    pub fn add(&self, card: SharedWire) {
        self.0.lock().push(card);
    }

    /// All cards, in order.
    pub fn list(&self) -> Vec<SharedWire> {
        self.0.lock().clone()
    }

    /// The card with the name `name`.
    pub fn find(&self, name: &str) -> Option<SharedWire> {
        self.0.lock().iter().find(|card| card.name() == name).cloned()
    }
}

/// A card in a line of the log: its address, its MTU, what the card does for senders, its link.
struct Summary<'a>(&'a dyn Wire);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WireFeatures { mac: [first, rest @ ..], mtu, checksum, tso4, tso6, .. } = self.0.features();
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))?;
        write!(f, ", MTU {mtu}")?;
        for (there, what) in [(checksum, "checksums"), (tso4, "TSO"), (tso6, "TSO for IPv6")] {
            if there {
                write!(f, ", {what}")?;
            }
        }
        write!(f, ", link {}", if self.0.link_up() { "up" } else { "down" })
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use core::task::{Context, Poll};

    use super::*;
    use crate::net::wire::{Outgoing, Received, TransmitError, Transmitted};

    struct Card(&'static str, WireFeatures, bool);

    impl Wire for Card {
        fn name(&self) -> &str {
            self.0
        }
        fn features(&self) -> WireFeatures {
            self.1
        }
        fn link_up(&self) -> bool {
            self.2
        }
        fn transmit(&self, _: u32, _: Outgoing<'_>) -> Result<(), TransmitError> {
            Err(TransmitError::Broken)
        }
        fn kick(&self) {}
        fn transmitted(&self, _: &mut Vec<Transmitted>) {}
        fn receive(&self) -> Option<Received> {
            None
        }
        fn malformed(&self) -> u64 {
            0
        }
        fn poll_ready(&self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Pending
        }
    }

    #[test]
    fn cards_are_found_by_name_and_summed_up_in_a_line() {
        let plain = WireFeatures {
            mac: [0x52, 0x54, 0, 0x12, 0xff, 1],
            mtu: 1500,
            checksum: false,
            tso4: false,
            tso6: false,
            max_spans: 30,
            slots: 256,
        };
        let able = WireFeatures { mtu: 9000, checksum: true, tso4: true, tso6: true, ..plain };
        let cards = Cards::new();
        cards.add(Arc::new(Card("eth0", plain, true)));
        cards.add(Arc::new(Card("eth2", able, false)));
        let text = |name| cards.find(name).map(|card| Summary(&*card).to_string());
        assert_eq!(text("eth0").as_deref(), Some("52:54:00:12:ff:01, MTU 1500, link up"));
        let able = "52:54:00:12:ff:01, MTU 9000, checksums, TSO, TSO for IPv6, link down";
        assert_eq!(text("eth2").as_deref(), Some(able));
        assert_eq!((text("eth1"), text("eth"), cards.list().len()), (None, None, 2));
    }
}
