//! Which features the driver agrees to, and what the card's registers say.

use super::NetError;
use crate::virtio::transport::{F_EVENT_IDX, F_INDIRECT_DESC, Transport};

pub(super) const F_CSUM: u64 = 1 << 0;
pub(super) const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
pub(super) const F_GUEST_TSO4: u64 = 1 << 7;
pub(super) const F_GUEST_TSO6: u64 = 1 << 8;
pub(super) const F_HOST_TSO4: u64 = 1 << 11;
pub(super) const F_HOST_TSO6: u64 = 1 << 12;
pub(super) const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
pub(super) const F_MQ: u64 = 1 << 22;

const KNOWN: u64 = F_CSUM
    | F_GUEST_CSUM
    | F_MTU
    | F_MAC
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_HOST_TSO4
    | F_HOST_TSO6
    | F_MRG_RXBUF
    | F_STATUS
    | F_CTRL_VQ
    | F_MQ
    | F_INDIRECT_DESC
    | F_EVENT_IDX;

/// Offsets in the card's registers.
mod config {
    pub(super) const MAC: usize = 0;
    pub(super) const STATUS: usize = 6;
    pub(super) const MAX_VIRTQUEUE_PAIRS: usize = 8;
    pub(super) const MTU: usize = 10;
}

const STATUS_LINK_UP: u16 = 1;

/// MTU of Ethernet, for a card that says nothing else.
const ETHERNET_MTU: u16 = 1500;
/// Smallest MTU that a card may have.
const MIN_MTU: u16 = 68;
/// Most pairs of queues that a card may have.
const MAX_QUEUE_PAIRS: u16 = 0x8000;

/// The features that the driver takes of those offered.
pub(super) fn choose(offered: u64) -> u64 {
    let mut chosen = offered & KNOWN;
    // A packet that the card joined from several needs several buffers, and its checksum is not complete.
    if chosen & F_MRG_RXBUF == 0 || chosen & F_GUEST_CSUM == 0 {
        chosen &= !(F_GUEST_TSO4 | F_GUEST_TSO6);
    }
    if chosen & F_CSUM == 0 {
        chosen &= !(F_HOST_TSO4 | F_HOST_TSO6);
    }
    // The control queue serves to ask for more pairs of queues, and for nothing else.
    if chosen & F_CTRL_VQ == 0 || chosen & F_MQ == 0 {
        chosen &= !(F_CTRL_VQ | F_MQ);
    }
    chosen
}

/// What the card's registers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    /// The address, if the card has one.
    pub(super) mac: Option<[u8; 6]>,
    pub(super) mtu: u16,
    /// Pairs of queues that the card has.
    pub(super) pairs: u16,
}

/// Reads what the card is like. `most` is the longest packet that the driver's buffers take, behind its Ethernet header.
///
/// # Errors
/// [`NetError::BadRegisters`]: a register has a value that no card has.
pub(super) fn read(transport: &Transport, features: u64, most: u16) -> Result<Registers, NetError> {
    let has = |feature: u64| features & feature != 0;
    transport.read_device(|device| {
        let mac = has(F_MAC).then(|| core::array::from_fn(|at| device.read8(config::MAC + at)));
        if mac.is_some_and(|mac| mac[0] & 1 != 0 || mac == [0; 6]) {
            return Err(NetError::BadRegisters("Ethernet address"));
        }
        let mtu = if has(F_MTU) { device.read16(config::MTU) } else { ETHERNET_MTU };
        if mtu < MIN_MTU {
            return Err(NetError::BadRegisters("MTU"));
        }
        let pairs = if has(F_MQ) { device.read16(config::MAX_VIRTQUEUE_PAIRS) } else { 1 };
        if !(1..=MAX_QUEUE_PAIRS).contains(&pairs) {
            return Err(NetError::BadRegisters("number of queue pairs"));
        }
        Ok(Registers { mac, mtu: mtu.min(most), pairs })
    })
}

/// Whether the card has a link. A card that cannot tell has one.
pub(super) fn link_up(transport: &Transport, features: u64) -> bool {
    features & F_STATUS == 0
        || transport.read_device(|device| device.read16(config::STATUS)) & STATUS_LINK_UP != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_another_feature_is_not_taken_alone() {
        assert_eq!(choose(u64::MAX), KNOWN);
        for (missing, gone) in [
            (F_MRG_RXBUF, F_GUEST_TSO4 | F_GUEST_TSO6),
            (F_GUEST_CSUM, F_GUEST_TSO4 | F_GUEST_TSO6),
            (F_CSUM, F_HOST_TSO4 | F_HOST_TSO6),
            (F_CTRL_VQ, F_MQ),
            (F_MQ, F_CTRL_VQ),
        ] {
            assert_eq!(choose(!missing), KNOWN & !missing & !gone, "without {missing:#x}");
        }
    }
}
