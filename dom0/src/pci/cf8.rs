//! Configuration mechanism 1: an address port and a data port.

use spin::Mutex;

use super::{Address, ConfigSpace};

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// Accesses to ports, behind a trait so that tests run the mechanism over a list.
pub trait Ports {
    /// `out dx, eax`.
    fn out32(&self, port: u16, value: u32);
    /// `in eax, dx`.
    fn in32(&self, port: u16) -> u32;
    /// `out dx, ax`.
    fn out16(&self, port: u16, value: u16);
}

/// Configuration space by ports 0xcf8 and 0xcfc.
///
/// The lock keeps the two port accesses of one operation together; no other lock is taken meanwhile.
pub struct Mechanism1<P> {
    ports: Mutex<P>,
}

impl<P: Ports> Mechanism1<P> {
    /// Uses `ports`.
    pub const fn new(ports: P) -> Self {
        Self { ports: Mutex::new(ports) }
    }

    fn select(ports: &P, address: Address, offset: u8) {
        let value = ENABLE
            | u32::from(address.bus()) << 16
            | u32::from(address.devfn()) << 8
            | u32::from(offset & !3);
        ports.out32(ADDRESS_PORT, value);
    }
}

impl<P: Ports> ConfigSpace for Mechanism1<P> {
    fn read32(&self, address: Address, offset: u8) -> u32 {
        let ports = self.ports.lock();
        Self::select(&ports, address, offset);
        ports.in32(DATA_PORT)
    }

    fn write32(&self, address: Address, offset: u8, value: u32) {
        let ports = self.ports.lock();
        Self::select(&ports, address, offset);
        ports.out32(DATA_PORT, value);
    }

    fn write16(&self, address: Address, offset: u8, value: u16) {
        let ports = self.ports.lock();
        Self::select(&ports, address, offset);
        ports.out16(DATA_PORT + u16::from(offset & 2), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use core::cell::RefCell;

    #[derive(Default)]
    struct Log(RefCell<Vec<(u16, u32)>>);

    impl Ports for Log {
        fn out32(&self, port: u16, value: u32) {
            self.0.borrow_mut().push((port, value));
        }
        fn in32(&self, _port: u16) -> u32 {
            0x1234_5678
        }
        fn out16(&self, port: u16, value: u16) {
            self.0.borrow_mut().push((port, value.into()));
        }
    }

    #[test]
    fn addresses_and_lanes() {
        let config = Mechanism1::new(Log::default());
        let last = Address::new(255, 31, 7);
        assert_eq!(config.read16(last, 0xfe), 0x1234);
        assert_eq!(config.read8(Address::new(0, 0, 0), 1), 0x56);
        config.write16(Address::new(1, 2, 3), 0x06, 7);
        config.write32(Address::new(0, 1, 0), 0x10, u32::MAX);
        let expected = [
            (0xcf8, 0x80ff_fffc),
            (0xcf8, 0x8000_0000),
            (0xcf8, 0x8001_1304),
            (0xcfe, 7),
            (0xcf8, 0x8000_0810),
            (0xcfc, u32::MAX),
        ];
        assert_eq!(*config.ports.lock().0.borrow(), expected);
    }
}
