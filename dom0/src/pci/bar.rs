//! Base address registers.

use super::{Address, BAR0, COMMAND_IO, COMMAND_MEMORY, ConfigSpace, update_command};

/// Registers of an ordinary function; bridges, which have two, are not asked.
const BARS: usize = 6;

/// A decoded range of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// Machine memory addresses.
    Memory {
        /// First machine address; 0 when the firmware placed none.
        base: u64,
        /// Length in bytes, a power of two.
        size: u64,
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// I/O ports.
    Io {
        /// First port.
        base: u32,
        /// Number of ports.
        size: u32,
    },
}

/// The ranges of a function by register number. The entry of the register that is the upper half of a 64-bit range is
/// `None`.
///
/// This function writes ones to find the sizes, and turns off the function's decoders meanwhile: no driver may use the
/// PCI function yet.
pub fn bars(config: &dyn ConfigSpace, address: Address) -> [Option<Bar>; BARS] {
    let mut out = [None; BARS];
    let command = config.read16(address, super::COMMAND);
    update_command(config, address, 0, COMMAND_IO | COMMAND_MEMORY);
    let mut index = 0;
    while index < BARS {
        let offset = BAR0 + 4 * index as u8;
        let low = config.read32(address, offset);
        let low_mask = size_mask(config, address, offset, low);
        if low & 1 != 0 {
            let mask = low_mask & !3;
            if mask != 0 {
                // Functions may leave the upper half of a port range out.
                let size = (!(mask | 0xffff_0000)).wrapping_add(1);
                out[index] = Some(Bar::Io { base: low & !3, size: size & 0xffff });
            }
            index += 1;
            continue;
        }
        let prefetchable = low & 8 != 0;
        let wide = low & 6 == 4 && index + 1 < BARS;
        let mut base = u64::from(low & !0xf);
        let mut mask = u64::from(low_mask & !0xf) | !0 << 32;
        if wide {
            let high = config.read32(address, offset + 4);
            base |= u64::from(high) << 32;
            let high_mask = size_mask(config, address, offset + 4, high);
            mask = u64::from(low_mask & !0xf) | u64::from(high_mask) << 32;
        }
        let size = (!mask).wrapping_add(1);
        if mask as u32 != 0 || (wide && mask != 0) {
            out[index] = Some(Bar::Memory { base, size, prefetchable });
        }
        index += if wide { 2 } else { 1 };
    }
    config.write16(address, super::COMMAND, command);
    out
}

fn size_mask(config: &dyn ConfigSpace, address: Address, offset: u8, value: u32) -> u32 {
    config.write32(address, offset, u32::MAX);
    let mask = config.read32(address, offset);
    config.write32(address, offset, value);
    mask
}

#[cfg(test)]
mod tests {
    use super::super::COMMAND;
    use super::super::fake::FakeConfig;
    use super::*;

    #[test]
    fn all_kinds_are_sized_and_put_back() {
        let config = FakeConfig::default();
        let address = Address::new(0, 3, 0);
        config.add(address, 0x1af4, 0x1001, 0x01_00_00);
        config.set16(address, COMMAND, COMMAND_IO | COMMAND_MEMORY);
        config.bar(address, 0, 0xc001, 0xffff_ff80 | 1);
        config.bar(address, 1, 0xfebd_1000, 0xffff_f000);
        config.bar(address, 4, 0xfe00_000c, 0xffff_c00c);
        config.bar(address, 5, 0x0000_0001, 0xffff_ffff);
        let bars = bars(&config, address);
        assert_eq!(bars[0], Some(Bar::Io { base: 0xc000, size: 128 }));
        assert_eq!(bars[1], Some(Bar::Memory { base: 0xfebd_1000, size: 4096, prefetchable: false }));
        assert_eq!(bars[2], None);
        assert_eq!(bars[4], Some(Bar::Memory { base: 0x1_fe00_0000, size: 0x4000, prefetchable: true }));
        assert_eq!(bars[5], None);
        assert_eq!(config.read16(address, COMMAND), COMMAND_IO | COMMAND_MEMORY);
        assert_eq!(config.read32(address, BAR0), 0xc001);
        assert_eq!(config.read32(address, BAR0 + 20), 1);
    }
}
