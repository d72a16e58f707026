//! The register groups of a device in memory: an access of any width comes down to one read or one write.

use alloc::boxed::Box;

use crate::hw::{Region, Registers};
use crate::virtio::transport::{Regions, Transport};

/// The group of the common registers.
pub(super) const COMMON: u64 = 0;
/// The doorbells.
pub(super) const NOTIFY: u64 = 1;
/// The device's own registers.
pub(super) const CONFIG: u64 = 2;

/// A device with register groups.
pub(super) trait Groups: Clone + Send + Sync + 'static {
    /// Bytes from one doorbell to the next.
    const NOTIFY_MULTIPLIER: u32;

    /// Reads `len` bytes of group `which`.
    fn read(&self, which: u64, offset: usize, len: usize) -> u64;

    /// Writes the first `len` bytes of `value` to group `which`.
    fn write(&self, which: u64, offset: usize, len: usize, value: u64);
}

/// The way to a device.
pub(super) fn transport<D: Groups>(device: &D) -> Transport {
    let region = |base| Region { base, len: 64 };
    let regions = Regions {
        common: region(COMMON),
        notify: region(NOTIFY),
        notify_multiplier: D::NOTIFY_MULTIPLIER,
        device: region(CONFIG),
    };
    let group = |region: &Region| {
        let registers: Box<dyn Registers> = Box::new(Group { device: device.clone(), which: region.base });
        Ok::<_, ()>(registers)
    };
    Transport::new(&regions, group).unwrap()
}

struct Group<D> {
    device: D,
    which: u64,
}

impl<D: Groups> Registers for Group<D> {
    fn read8(&self, offset: usize) -> u8 {
        self.device.read(self.which, offset, 1) as u8
    }
    fn read16(&self, offset: usize) -> u16 {
        self.device.read(self.which, offset, 2) as u16
    }
    fn read32(&self, offset: usize) -> u32 {
        self.device.read(self.which, offset, 4) as u32
    }
    fn write8(&self, offset: usize, value: u8) {
        self.device.write(self.which, offset, 1, value.into());
    }
    fn write16(&self, offset: usize, value: u16) {
        self.device.write(self.which, offset, 2, value.into());
    }
    fn write32(&self, offset: usize, value: u32) {
        self.device.write(self.which, offset, 4, value.into());
    }
}
