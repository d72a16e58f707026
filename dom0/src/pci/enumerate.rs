//! Walks the PCI buses and lists the functions.

use alloc::vec::Vec;

use super::{Address, ConfigSpace, HEADER_TYPE};

const CLASS: u8 = 0x08;
const SECONDARY_BUS: u8 = 0x18;
const SUBSYSTEM: u8 = 0x2c;

const MULTI_FUNCTION: u8 = 0x80;
const HEADER_BRIDGE: u8 = 1;
const CLASS_BRIDGE_PCI: u32 = 0x0604;

/// A function that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where.
    pub address: Address,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, sub-class and interface in bits 16-23, 8-15 and 0-7.
    pub class: u32,
    /// Subsystem vendor (low half) and device; 0 for bridges.
    pub subsystem: u32,
}

/// Every function that can be reached from bus 0, in the order of their addresses: so cards and disks are numbered as other
/// systems number them.
///
/// The firmware gave the buses their numbers. A bridge that leads back to a bus already seen is not followed, so a bad
/// bridge cannot make the walk endless.
pub fn enumerate(config: &dyn ConfigSpace) -> Vec<Function> {
    let mut found = Vec::new();
    let mut seen = [false; 256];
    let mut buses = alloc::vec![0u8];
    while let Some(bus) = buses.pop() {
        if core::mem::replace(&mut seen[usize::from(bus)], true) {
            continue;
        }
        for device in 0..32 {
            scan_device(config, bus, device, &mut found, &mut buses);
        }
    }
    found.sort_by_key(|function| function.address);
    found
}

fn scan_device(
    config: &dyn ConfigSpace,
    bus: u8,
    device: u8,
    found: &mut Vec<Function>,
    buses: &mut Vec<u8>,
) {
    let mut functions = 1;
    let mut function = 0;
    while function < functions {
        let address = Address::new(bus, device, function);
        function += 1;
        let id = config.read32(address, 0);
        if id as u16 == 0xffff {
            if address.function() == 0 {
                return;
            }
            continue;
        }
        let header = config.read8(address, HEADER_TYPE);
        if address.function() == 0 && header & MULTI_FUNCTION != 0 {
            functions = 8;
        }
        let class = config.read32(address, CLASS) >> 8;
        let bridge = header & !MULTI_FUNCTION == HEADER_BRIDGE;
        if bridge && class >> 8 == CLASS_BRIDGE_PCI {
            buses.push(config.read8(address, SECONDARY_BUS + 1));
        }
        let subsystem = if bridge { 0 } else { config.read32(address, SUBSYSTEM) };
        let (vendor, device) = (id as u16, (id >> 16) as u16);
        found.push(Function { address, vendor, device, class, subsystem });
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeConfig;
    use super::*;

    #[test]
    fn empty_machine() {
        assert!(enumerate(&FakeConfig::default()).is_empty());
    }

    #[test]
    fn functions_bridges_and_a_bridge_in_a_circle() {
        let config = FakeConfig::default();
        let host = Address::new(0, 0, 0);
        config.add(host, 0x8086, 0x1237, 0x06_00_00);
        let multi = Address::new(0, 31, 0);
        config.add(multi, 0x8086, 0x7000, 0x06_01_00);
        config.set8(multi, HEADER_TYPE, MULTI_FUNCTION);
        config.add(Address::new(0, 31, 7), 0x8086, 0x7010, 0x01_01_80);
        // The device has one function, so what answers as function 3 is not to be listed.
        config.add(Address::new(0, 0, 3), 1, 1, 0);
        let bridge = Address::new(0, 4, 0);
        config.add(bridge, 0x1b36, 1, 0x06_04_00);
        config.set8(bridge, HEADER_TYPE, HEADER_BRIDGE);
        config.set8(bridge, SECONDARY_BUS + 1, 5);
        let other = Address::new(0, 6, 0);
        config.add(other, 0x1b36, 1, 0x06_04_00);
        config.set8(other, HEADER_TYPE, HEADER_BRIDGE);
        config.set8(other, SECONDARY_BUS + 1, 6);
        let last = Address::new(6, 0, 0);
        config.add(last, 0x8086, 0x10d3, 0x02_00_00);
        config.add(Address::new(5, 0, 0), 0x1af4, 0x1042, 0x01_00_00);
        let back = Address::new(5, 1, 0);
        config.add(back, 0x1b36, 1, 0x06_04_00);
        config.set8(back, HEADER_TYPE, HEADER_BRIDGE);
        config.set8(back, SECONDARY_BUS + 1, 0);
        let found: Vec<_> = enumerate(&config).iter().map(|f| f.address).collect();
        let expected =
            [host, bridge, other, multi, Address::new(0, 31, 7), Address::new(5, 0, 0), back, last];
        assert_eq!(found, expected);
    }
}
