//! PCI as far as drivers need PCI: finding functions, their BARs and their capabilities.
//!
//! Drivers reach configuration space by the two ports of mechanism 1, which the hypervisor lets the control domain use.
//! All code that reads configuration space stands on [`ConfigSpace`] and runs over an array in tests.
//!
//! Source: PCI Local Bus Specification 3.0, chapter 6.

mod bar;
mod capability;
mod cf8;
mod enumerate;
#[cfg(test)]
pub(crate) mod fake;

pub use bar::{Bar, bars};
pub use capability::{
    Capabilities, Capability, MSI as MSI_CAPABILITY, MsixCapability, VENDOR as VENDOR_CAPABILITY,
    capabilities,
};
pub use cf8::{Mechanism1, Ports};
pub use enumerate::{Function, enumerate};

use core::fmt;

/// Command register: respond to port accesses.
pub const COMMAND_IO: u16 = 1;
/// Command register: respond to memory accesses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register: may access memory by itself.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Command register: no INTx.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;

pub(crate) const COMMAND: u8 = 0x04;
pub(crate) const STATUS: u8 = 0x06;
pub(crate) const HEADER_TYPE: u8 = 0x0e;
pub(crate) const BAR0: u8 = 0x10;
pub(crate) const CAPABILITY_POINTER: u8 = 0x34;

/// Where a function sits: bus, device (0-31), function (0-7) of segment 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    bus: u8,
    devfn: u8,
}

impl Address {
    /// The function of `bus`, `device` (5 bits count) and `function` (3 bits count).
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self { bus, devfn: ((device & 0x1f) << 3) | (function & 7) }
    }

    /// The bus number.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// Device in bits 3-7, function in bits 0-2: the form that hypercalls take.
    pub const fn devfn(self) -> u8 {
        self.devfn
    }

    /// The device number, 0 to 31.
    pub const fn device(self) -> u8 {
        self.devfn >> 3
    }

    /// The function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.devfn & 7
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device(), self.function())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Access to configuration space. Offsets are below 256. A function that is not there reads as all ones.
pub trait ConfigSpace {
    /// The aligned double word that holds `offset`.
    fn read32(&self, address: Address, offset: u8) -> u32;

    /// Writes the aligned double word that holds `offset`.
    fn write32(&self, address: Address, offset: u8, value: u32);

    /// The aligned word that holds `offset`.
    fn read16(&self, address: Address, offset: u8) -> u16 {
        (self.read32(address, offset) >> (u32::from(offset & 2) * 8)) as u16
    }

    /// The byte at `offset`.
    fn read8(&self, address: Address, offset: u8) -> u8 {
        (self.read32(address, offset) >> (u32::from(offset & 3) * 8)) as u8
    }

    /// Writes the aligned word that holds `offset`, and no other byte: some registers clear bits when written, and such
    /// a register may be the neighbour.
    fn write16(&self, address: Address, offset: u8, value: u16);
}

/// Sets `set` in the command register and clears `clear`.
pub fn update_command(config: &dyn ConfigSpace, address: Address, set: u16, clear: u16) {
    let old = config.read16(address, COMMAND);
    let new = (old & !clear) | set;
    if new != old {
        config.write16(address, COMMAND, new);
    }
}
