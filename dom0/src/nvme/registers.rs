//! Registers of a controller. Source: NVM Express Base Specification 2.0, section 3.1.

use crate::hw::Registers;

/// Bytes of the registers that the driver maps at most. What lies behind may be the table of messages, which the hypervisor
/// lets nobody write.
pub(super) const MOST_REGISTER_BYTES: u32 = 8 << 10;
/// Bytes of the registers that every controller has.
pub(super) const LEAST_REGISTER_BYTES: u32 = 0x1000 + 4 * 4;

const CAP: usize = 0x00;
const VS: usize = 0x08;
pub(super) const CC: usize = 0x14;
pub(super) const CSTS: usize = 0x1c;
pub(super) const AQA: usize = 0x24;
pub(super) const ASQ: usize = 0x28;
pub(super) const ACQ: usize = 0x30;
const DOORBELLS: usize = 0x1000;

pub(super) const CC_ENABLE: u32 = 1;
/// NVM command set, pages of 4 KiB, round robin, entries of 64 and 16 bytes.
pub(super) const CC_VALUE: u32 = 6 << 16 | 4 << 20;

pub(super) const CSTS_READY: u32 = 1;
pub(super) const CSTS_FATAL: u32 = 1 << 1;

/// The unit of the time that a controller may take to become ready.
const TIMEOUT_UNIT_NS: u64 = 500_000_000;

/// What a controller says of itself before it is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Most entries of a queue.
    pub(super) entries: u32,
    /// Longest time to become ready, or to stop.
    pub(super) ready_ns: u64,
    /// Bytes from one doorbell to the next.
    pub(super) stride: usize,
    /// The controller has the NVM command set.
    pub(super) nvm: bool,
    /// The controller takes pages of 4 KiB.
    pub(super) small_pages: bool,
}

impl Capabilities {
    /// Reads the registers. `None`: nothing answers there.
    pub(super) fn read(registers: &dyn Registers) -> Option<Self> {
        let (low, high) = (registers.read32(CAP), registers.read32(CAP + 4));
        if registers.read32(VS) == u32::MAX || (low, high) == (u32::MAX, u32::MAX) {
            return None;
        }
        Some(Self {
            entries: (low & 0xffff) + 1,
            // Some controllers say 0 and mean "at once".
            ready_ns: u64::from(low >> 24).max(1) * TIMEOUT_UNIT_NS,
            stride: 4 << (high & 0xf),
            nvm: high & 1 << 5 != 0,
            small_pages: high >> 16 & 0xf == 0,
        })
    }

    /// Where the doorbells of queue pair `queue` are: of its submissions, and of its completions.
    pub(super) fn doorbells(&self, queue: u16) -> [usize; 2] {
        [0, 1].map(|which| DOORBELLS + (2 * usize::from(queue) + which) * self.stride)
    }
}

/// Writes a register of 64 bits, whose halves may be written one after the other.
pub(super) fn write64(registers: &dyn Registers, offset: usize, value: u64) {
    registers.write32(offset, value as u32);
    registers.write32(offset + 4, (value >> 32) as u32);
}
