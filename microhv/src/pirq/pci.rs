//! PCI configuration space: read and written by ports 0xcf8 and 0xcfc on behalf of the hardware domain.
//!
//! A domain that could write interrupt messages could raise any vector of the machine. So the MSI and MSI-X capabilities
//! are the hypervisor's: domains may read them, and what a domain writes to them is dropped.
//! Source: PCI Local Bus Specification 3.0, sections 3.2.2.3 (configuration mechanism) and 6.8 (MSI, MSI-X).

use core::sync::atomic::Ordering;

use ring_abi::types::Maddr;

use super::Irqs;
use crate::Hypervisor;
use crate::platform::Platform;

/// The address port.
pub const ADDRESS_PORT: u16 = 0xcf8;
/// First of the four data ports.
pub const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

const STATUS: u8 = 0x06;
const STATUS_CAPABILITIES: u32 = 1 << 4;
const CAPABILITIES: u8 = 0x34;
const FIRST_BAR: u8 = 0x10;
/// Bytes of configuration space that the ports reach.
const CONFIG_BYTES: u16 = 256;
/// Bytes of the header, which holds no capability.
const HEADER_BYTES: u16 = 0x40;
/// Bits of a machine address.
const ADDRESS_BITS: u32 = 52;
const CAP_MSI: u8 = 0x05;
const CAP_MSIX: u8 = 0x11;
/// Capabilities lie from 0x40 on, at least 4 bytes each: a longer list is a loop.
const MAX_CAPABILITIES: usize = 48;

/// A PCI function: bus, and device and function as PCI packs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciFunction {
    /// Bus.
    pub bus: u8,
    /// Device in bits 3-7, function in bits 0-2.
    pub devfn: u8,
}

/// A function's MSI capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiCapability {
    /// Offset in configuration space.
    pub at: u8,
    /// The message address has 64 bits.
    pub wide: bool,
    /// The capability has mask and pending words.
    pub maskable: bool,
}

impl MsiCapability {
    /// Bytes of the capability.
    const fn len(self) -> u8 {
        10 + if self.wide { 4 } else { 0 } + if self.maskable { 10 } else { 0 }
    }
}

/// A function's MSI-X capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixCapability {
    /// Offset in configuration space.
    pub at: u8,
    /// Entries of the table: 1 to 2,048.
    pub entries: u16,
    /// The table.
    pub table: Maddr,
    /// The pending bits.
    pub pending: Maddr,
}

/// Configuration accesses of one machine. The caller holds the lock that keeps the two ports' accesses together.
pub struct Config<'a, P: Platform>(pub &'a P);

impl<P: Platform> Config<'_, P> {
    fn select(&self, function: PciFunction, at: u8) {
        let address =
            ENABLE | u32::from(function.bus) << 16 | u32::from(function.devfn) << 8 | u32::from(at & 0xfc);
        self.0.port_out(ADDRESS_PORT, 4, address);
    }

    /// Reads `size` (1, 2 or 4) bytes at `at`, which do not cross a word of 4.
    pub fn read(&self, function: PciFunction, at: u8, size: u8) -> u32 {
        self.select(function, at);
        self.0.port_in(DATA_PORT + u16::from(at & 3), size)
    }

    /// Writes `size` (1, 2 or 4) bytes at `at`, which do not cross a word of 4.
    pub fn write(&self, function: PciFunction, at: u8, size: u8, value: u32) {
        self.select(function, at);
        self.0.port_out(DATA_PORT + u16::from(at & 3), size, value);
    }

    /// Clears and sets bits of the two bytes at `at`.
    pub fn change(&self, function: PciFunction, at: u8, cleared: u32, set: u32) {
        let value = self.read(function, at, 2) & !cleared | set;
        self.write(function, at, 2, value);
    }

    /// Where the capability `id` is.
    fn find(&self, function: PciFunction, id: u8) -> Option<u8> {
        if self.read(function, STATUS, 2) & STATUS_CAPABILITIES == 0 {
            return None;
        }
        let mut at = self.read(function, CAPABILITIES, 1) as u8 & 0xfc;
        for _ in 0..MAX_CAPABILITIES {
            if at < 0x40 {
                return None;
            }
            let head = self.read(function, at, 2);
            if head as u8 == id {
                return Some(at);
            }
            at = (head >> 8) as u8 & 0xfc;
        }
        None
    }

    /// The MSI capability, if it lies within configuration space.
    pub fn msi(&self, function: PciFunction) -> Option<MsiCapability> {
        let at = self.find(function, CAP_MSI)?;
        let control = self.read(function, at + 2, 2);
        let found = MsiCapability { at, wide: control & 1 << 7 != 0, maskable: control & 1 << 8 != 0 };
        (u16::from(at) + u16::from(found.len()) <= CONFIG_BYTES).then_some(found)
    }

    /// The MSI-X capability, if its table and pending bits lie in memory that the function has.
    pub fn msix(&self, function: PciFunction) -> Option<MsixCapability> {
        let at = self.find(function, CAP_MSIX).filter(|&at| at <= 0xf4)?;
        let entries = (self.read(function, at + 2, 2) as u16 & 0x7ff) + 1;
        let table = self.in_bar(function, self.read(function, at + 4, 4))?;
        let pending = self.in_bar(function, self.read(function, at + 8, 4))?;
        Some(MsixCapability { at, entries, table, pending })
    }

    /// The machine address that an MSI-X register gives: base address register in bits 0-2, offset in the others.
    fn in_bar(&self, function: PciFunction, register: u32) -> Option<Maddr> {
        let bar = (register & 7) as u8;
        let base_register = |bar: u8| (bar < 6).then(|| self.read(function, FIRST_BAR + 4 * bar, 4));
        let low = base_register(bar)?;
        // Bit 0: I/O space. Bits 1-2: 2 for 64 bits, whose upper half is the next register.
        let high = match low & 7 {
            4 => base_register(bar + 1)?,
            0 | 2 | 6 => 0,
            _ => return None,
        };
        let base = u64::from(high) << 32 | u64::from(low & !0xf);
        let at = base.checked_add(u64::from(register & !7))?;
        (base != 0 && at >> ADDRESS_BITS == 0).then_some(Maddr::new(at))
    }

    /// Whether a domain's write of `size` bytes at `at` touches registers of the hypervisor's: all of MSI but its id
    /// and link, and the control word of MSI-X.
    pub fn write_is_ours(&self, function: PciFunction, at: u8, size: u8) -> bool {
        let overlaps =
            |first: u16, len: u16| u16::from(at) < first + len && first < u16::from(at) + u16::from(size);
        if u16::from(at) + u16::from(size) <= HEADER_BYTES {
            return false;
        }
        if let Some(msi) = self.msi(function)
            && overlaps(u16::from(msi.at) + 2, u16::from(msi.len()) - 2)
        {
            return true;
        }
        self.find(function, CAP_MSIX).is_some_and(|msix| overlaps(u16::from(msix) + 2, 2))
    }
}

impl Irqs {
    /// The function and register that an access of `size` bytes at the data port `port` reaches, by what the address port
    /// says.
    fn addressed(&self, port: u16, size: u8) -> Option<(PciFunction, u8)> {
        let address = self.address.load(Ordering::Relaxed);
        let offset = port.checked_sub(DATA_PORT)? as u8;
        let function = PciFunction { bus: (address >> 16) as u8, devfn: (address >> 8) as u8 };
        (address & ENABLE != 0 && offset + size <= 4).then_some((function, (address as u8 & 0xfc) + offset))
    }
}

impl<P: Platform> Hypervisor<P> {
    /// The hardware domain reads a PCI configuration port (0xcf8-0xcff).
    pub fn pci_port_in(&self, port: u16, size: u8) -> u32 {
        if (port, size) == (ADDRESS_PORT, 4) {
            return self.irqs.address.load(Ordering::Relaxed);
        }
        let Some((function, at)) = self.irqs.addressed(port, size) else { return u32::MAX };
        let _ports = self.irqs.config.lock();
        Config(&self.platform).read(function, at, size)
    }

    /// The hardware domain writes a PCI configuration port (0xcf8-0xcff).
    pub fn pci_port_out(&self, port: u16, size: u8, value: u32) {
        if (port, size) == (ADDRESS_PORT, 4) {
            return self.irqs.address.store(value, Ordering::Relaxed);
        }
        let Some((function, at)) = self.irqs.addressed(port, size) else { return };
        let _ports = self.irqs.config.lock();
        let config = Config(&self.platform);
        if !config.write_is_ours(function, at, size) {
            config.write(function, at, size, value);
        }
    }
}
