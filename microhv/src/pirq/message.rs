//! Where PIRQs come from: lines, and the messages of functions, which the hypervisor writes, masks and keeps from domains.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.8 (MSI, MSI-X).

use ring_abi::types::{Maddr, Mfn};

use super::PirqError;
use super::pci::{Config, MsiCapability, MsixCapability, PciFunction};
use crate::platform::Platform;

/// Bytes of an MSI-X table entry: address, address high, data, control.
const MSIX_ENTRY_BYTES: u64 = 16;
const MSIX_CONTROL_ENABLE: u32 = 1 << 15;
const MSIX_CONTROL_MASK_ALL: u32 = 1 << 14;
const MSI_CONTROL_ENABLE: u32 = 1;
const MSI_CONTROL_COUNT: u32 = 7 << 4;

/// Where a PIRQ comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A legacy line.
    Line,
    /// The MSI message of a function.
    Msi { function: PciFunction, capability: MsiCapability },
    /// An entry of a function's MSI-X table.
    Msix { function: PciFunction, capability: MsixCapability, entry: u16 },
}

impl MsixCapability {
    /// Where word `word` of entry `entry` is.
    fn word(&self, entry: u16, word: u64) -> Maddr {
        self.table.add(u64::from(entry) * MSIX_ENTRY_BYTES + 4 * word)
    }

    /// First and last frame of the table and of the pending bits.
    fn frames(&self) -> [(Mfn, Mfn); 2] {
        let frames = |at: Maddr, bytes: u64| (at.mfn(), at.add(bytes - 1).mfn());
        [
            frames(self.table, u64::from(self.entries) * MSIX_ENTRY_BYTES),
            frames(self.pending, u64::from(self.entries).div_ceil(64) * 8),
        ]
    }
}

impl Source {
    /// The MSI message of `function`, or entry `entry` of its MSI-X table.
    pub(super) fn find<P: Platform>(
        config: &Config<'_, P>,
        function: PciFunction,
        entry: Option<u16>,
    ) -> Result<Self, PirqError> {
        let Some(entry) = entry else {
            let capability = config.msi(function).ok_or(PirqError::NoCapability)?;
            return Ok(Self::Msi { function, capability });
        };
        let capability = config.msix(function).ok_or(PirqError::NoCapability)?;
        if entry >= capability.entries {
            return Err(PirqError::NoSuchEntry);
        }
        Ok(Self::Msix { function, capability, entry })
    }

    /// What tells one message from all other messages.
    pub(super) const fn message(&self) -> Option<(PciFunction, Option<u16>)> {
        match *self {
            Self::Line => None,
            Self::Msi { function, .. } => Some((function, None)),
            Self::Msix { function, entry, .. } => Some((function, Some(entry))),
        }
    }

    pub(super) fn function(&self) -> Option<PciFunction> {
        self.message().map(|(function, _)| function)
    }

    /// Calls `act` with the first and last frame of each place where the function keeps a table of messages.
    pub(super) fn for_table(&self, act: impl Fn(Mfn, Mfn)) {
        if let Self::Msix { capability, .. } = self {
            capability.frames().iter().for_each(|&(first, last)| act(first, last));
        }
    }

    /// Masks the message or lets it come.
    pub(super) fn set_masked<P: Platform>(&self, config: &Config<'_, P>, masked: bool) {
        match self {
            Self::Line => {}
            Self::Msix { capability, entry, .. } => {
                config.0.mmio_write(capability.word(*entry, 3), u32::from(masked));
            }
            // Without mask bits the enable bit serves: a message while it is off is lost, as a masked edge would be.
            Self::Msi { function, capability } => {
                let cleared = MSI_CONTROL_COUNT | MSI_CONTROL_ENABLE;
                config.change(*function, capability.at + 2, cleared, u32::from(!masked));
            }
        }
    }

    /// Writes a message, masked, and enables the capability of MSI-X.
    pub(super) fn write<P: Platform>(&self, config: &Config<'_, P>, address: u64, data: u32) {
        let (low, high) = (address as u32, (address >> 32) as u32);
        match *self {
            Self::Line => {}
            Self::Msi { function, capability: msi } => {
                config.write(function, msi.at + 4, 4, low);
                if msi.wide {
                    config.write(function, msi.at + 8, 4, high);
                }
                config.write(function, msi.at + if msi.wide { 12 } else { 8 }, 2, data);
            }
            Self::Msix { function, capability: msix, entry } => {
                self.set_masked(config, true);
                for (word, value) in [(0, low), (1, high), (2, data)] {
                    config.0.mmio_write(msix.word(entry, word), value);
                }
                let control = config.read(function, msix.at + 2, 2);
                if control & (MSIX_CONTROL_ENABLE | MSIX_CONTROL_MASK_ALL) != MSIX_CONTROL_ENABLE {
                    // Entries without a PIRQ must not fire once the function may send messages.
                    for other in (0..msix.entries).filter(|&other| other != entry) {
                        config.0.mmio_write(msix.word(other, 3), 1);
                    }
                    config.change(function, msix.at + 2, MSIX_CONTROL_MASK_ALL, MSIX_CONTROL_ENABLE);
                }
            }
        }
    }

    /// Masks a message that is no longer mapped. With the last message of a function the capability is disabled, too.
    pub(super) fn silence<P: Platform>(&self, config: &Config<'_, P>, is_last: bool) {
        self.set_masked(config, true);
        if let (true, Self::Msix { function, capability, .. }) = (is_last, self) {
            config.change(*function, capability.at + 2, MSIX_CONTROL_ENABLE, 0);
        }
    }
}
