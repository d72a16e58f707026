//! The capability list of a function.

use super::{Address, CAPABILITY_POINTER, ConfigSpace, STATUS};

const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Most entries that fit configuration space: a longer chain is a circle.
const MAX_ENTRIES: u8 = 48;

/// Capability id of MSI-X.
pub(super) const MSIX: u8 = 0x11;
/// Capability id of MSI.
pub const MSI: u8 = 0x05;
/// Capability id of a vendor's own.
pub const VENDOR: u8 = 0x09;

/// MSI-X message control: deliver messages.
pub(super) const MSIX_ENABLE: u16 = 1 << 15;
/// MSI-X message control: hold all messages back.
pub(super) const MSIX_MASK_ALL: u16 = 1 << 14;

/// One entry of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The capability's id: [`VENDOR`] or another.
    pub id: u8,
    /// The offset at which the capability's registers begin.
    pub offset: u8,
}

/// Walks a function's list; ends at a circle or a pointer into the header.
pub struct Capabilities<'a> {
    config: &'a dyn ConfigSpace,
    address: Address,
    next: u8,
    left: u8,
}

/// The capabilities of the function at `address`.
pub fn capabilities(config: &dyn ConfigSpace, address: Address) -> Capabilities<'_> {
    let has = config.read16(address, STATUS) & STATUS_CAPABILITIES != 0;
    let next = if has { config.read8(address, CAPABILITY_POINTER) & !3 } else { 0 };
    Capabilities { config, address, next, left: MAX_ENTRIES }
}

impl Iterator for Capabilities<'_> {
    type Item = Capability;

    fn next(&mut self) -> Option<Capability> {
        if self.next < 0x40 || self.left == 0 {
            return None;
        }
        self.left -= 1;
        let offset = self.next;
        let head = self.config.read16(self.address, offset);
        self.next = (head >> 8) as u8 & !3;
        Some(Capability { id: head as u8, offset })
    }
}

/// Where a function's MSI-X registers and tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixCapability {
    /// Of the capability in configuration space.
    pub offset: u8,
    /// Number of entries, 1 to 2048.
    pub entries: u16,
    /// The number of the BAR that holds the table.
    pub table_bar: u8,
    /// Offset of the table in the BAR, bytes.
    pub table_offset: u32,
}

impl MsixCapability {
    /// Finds the capability of the function at `address`.
    pub fn find(config: &dyn ConfigSpace, address: Address) -> Option<Self> {
        let offset = capabilities(config, address).find(|c| c.id == MSIX)?.offset;
        let entries = (config.read16(address, offset + 2) & 0x7ff) + 1;
        let table = config.read32(address, offset.checked_add(4)?);
        Some(Self { offset, entries, table_bar: (table & 7) as u8, table_offset: table & !7 })
    }

    /// Writes the message control word's two writable bits.
    pub fn control(&self, config: &dyn ConfigSpace, address: Address, enable: bool, mask_all: bool) {
        let old = config.read16(address, self.offset + 2) & !(MSIX_ENABLE | MSIX_MASK_ALL);
        let set = if enable { MSIX_ENABLE } else { 0 } | if mask_all { MSIX_MASK_ALL } else { 0 };
        config.write16(address, self.offset + 2, old | set);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeConfig;
    use super::*;
    use alloc::vec::Vec;

    const AT: Address = Address::new(0, 3, 0);

    fn ids(config: &FakeConfig) -> Vec<u8> {
        capabilities(config, AT).map(|c| c.id).collect()
    }

    #[test]
    fn none_without_the_status_bit() {
        let config = FakeConfig::default();
        config.add(AT, 1, 1, 0);
        config.set8(AT, CAPABILITY_POINTER, 0x40);
        config.set16(AT, 0x40, 0x0011);
        assert!(ids(&config).is_empty());
    }

    #[test]
    fn chains_circles_and_bad_pointers() {
        let config = FakeConfig::default();
        config.add(AT, 1, 1, 0);
        config.set16(AT, STATUS, STATUS_CAPABILITIES);
        config.set8(AT, CAPABILITY_POINTER, 0x43);
        config.set16(AT, 0x40, 0x5011);
        config.set16(AT, 0x50, 0x3009);
        assert_eq!(ids(&config), [MSIX, VENDOR]);
        config.set16(AT, 0x50, 0x4009);
        assert_eq!(ids(&config).len(), usize::from(MAX_ENTRIES));
    }

    #[test]
    fn msix_fields() {
        let config = FakeConfig::default();
        config.add(AT, 1, 1, 0);
        assert_eq!(MsixCapability::find(&config, AT), None);
        config.set16(AT, STATUS, STATUS_CAPABILITIES);
        config.set8(AT, CAPABILITY_POINTER, 0x98);
        config.set16(AT, 0x98, 0x0011);
        config.set16(AT, 0x9a, 0x07ff);
        config.write32(AT, 0x9c, 0x1001);
        let msix = MsixCapability::find(&config, AT).unwrap();
        let expected = MsixCapability { offset: 0x98, entries: 2048, table_bar: 1, table_offset: 0x1000 };
        assert_eq!(msix, expected);
        msix.control(&config, AT, true, false);
        assert_eq!(config.read16(AT, 0x9a), 0x87ff);
    }
}
