//! The card's registers, by their names in the datasheet.
//!
//! Source: Intel 82574 GbE Controller Family Datasheet, chapter 10.

pub(super) const CTRL: usize = 0x0;
pub(super) const CTRL_SLU: u32 = 1 << 6;
pub(super) const CTRL_RST: u32 = 1 << 26;

pub(super) const STATUS: usize = 0x8;
pub(super) const STATUS_LU: u32 = 1 << 1;

/// Interrupts: causes that the card may tell of, and those that it may not.
pub(super) const IMS: usize = 0xd0;
pub(super) const IMC: usize = 0xd8;
/// Causes that are over when their message is sent.
pub(super) const EIAC: usize = 0xdc;
/// Which vector tells of which cause.
pub(super) const IVAR: usize = 0xe4;

pub(super) const CAUSE_LSC: u32 = 1 << 2;
pub(super) const CAUSE_RXQ0: u32 = 1 << 20;
pub(super) const CAUSE_TXQ0: u32 = 1 << 22;
pub(super) const CAUSE_OTHER: u32 = 1 << 24;

/// Where the vectors of the receive queue, the transmit queue and all else are in `IVAR`, and the bit that makes each
/// count.
pub(super) const IVAR_SHIFTS: [u32; 3] = [0, 8, 16];
pub(super) const IVAR_VALID: u32 = 1 << 3;

pub(super) const RCTL: usize = 0x100;
pub(super) const RCTL_EN: u32 = 1 << 1;
/// All addresses of stations, and of groups: guests behind the card have addresses of their own.
pub(super) const RCTL_UPE: u32 = 1 << 3;
pub(super) const RCTL_MPE: u32 = 1 << 4;
pub(super) const RCTL_BAM: u32 = 1 << 15;
/// Buffers of 4096 bytes.
pub(super) const RCTL_BSIZE_4096: u32 = 3 << 16 | 1 << 25;
/// No checksum of the frame behind the packet.
pub(super) const RCTL_SECRC: u32 = 1 << 26;

pub(super) const TCTL: usize = 0x400;
pub(super) const TCTL_EN: u32 = 1 << 1;
/// Short packets are filled up.
pub(super) const TCTL_PSP: u32 = 1 << 3;
/// The datasheet's values for full duplex: collision threshold and distance.
pub(super) const TCTL_COLLISION: u32 = 0xf << 4 | 0x3f << 12;

/// A ring's registers, from the first on: of receive descriptors, of transmit descriptors.
pub(super) const RECEIVE_RING: usize = 0x2800;
pub(super) const TRANSMIT_RING: usize = 0x3800;
pub(super) const RING_BASE: usize = 0x0;
pub(super) const RING_BYTES: usize = 0x8;
pub(super) const RING_HEAD: usize = 0x10;
pub(super) const RING_TAIL: usize = 0x18;

pub(super) const TXDCTL: usize = 0x3828;
/// Each descriptor is written back at once; bit 22 is set as the datasheet asks.
pub(super) const TXDCTL_VALUE: u32 = 1 << 24 | 1 << 22 | 1 << 16;

/// What the card looks for in packets that come in: the checksums of TCP and UDP.
pub(super) const RXCSUM: usize = 0x5000;
pub(super) const RXCSUM_TUOFLD: u32 = 1 << 9;

/// The table of groups, which is not used.
pub(super) const MTA: usize = 0x5200;
pub(super) const MTA_WORDS: usize = 128;

/// The card's address.
pub(super) const RAL0: usize = 0x5400;
pub(super) const RAH0: usize = 0x5404;

/// Bytes of the registers up to the last that is used.
pub(super) const LENGTH: usize = 0x5408;
