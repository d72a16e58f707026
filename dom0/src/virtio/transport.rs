//! The PCI transport of virtio 1.x: where the register groups are, and the steps of initialisation.
//!
//! Source: VIRTIO 1.2, sections 3.1 and 4.1.

use alloc::boxed::Box;
use core::fmt;

use crate::hw::{Region, Registers};
use crate::pci::{Address, Bar, ConfigSpace, capabilities};

/// "No MSI-X vector."
pub const NO_VECTOR: u16 = 0xffff;

/// `VIRTIO_F_VERSION_1`.
pub(super) const F_VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_INDIRECT_DESC`.
pub(super) const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
pub(super) const F_EVENT_IDX: u64 = 1 << 29;

const STATUS_ACKNOWLEDGE: u8 = 1;
const STATUS_DRIVER: u8 = 2;
const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
const STATUS_NEEDS_RESET: u8 = 64;
const STATUS_FAILED: u8 = 128;

const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_DEVICE: u8 = 4;

/// Bytes of the common register group.
const COMMON_LENGTH: u32 = 56;
/// Reads of the status register before a reset counts as failed; the device is emulated or fast.
const RESET_POLLS: usize = 1_000_000;
/// Times that the device's registers are read until they hold still.
const CONFIG_READS: usize = 100;

/// Offsets in the common register group.
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0;
    pub(super) const DEVICE_FEATURE: usize = 4;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 8;
    pub(super) const DRIVER_FEATURE: usize = 12;
    pub(super) const CONFIG_MSIX_VECTOR: usize = 16;
    pub(super) const NUM_QUEUES: usize = 18;
    pub(super) const DEVICE_STATUS: usize = 20;
    pub(super) const CONFIG_GENERATION: usize = 21;
    pub(super) const QUEUE_SELECT: usize = 22;
    pub(super) const QUEUE_SIZE: usize = 24;
    pub(super) const QUEUE_MSIX_VECTOR: usize = 26;
    pub(super) const QUEUE_ENABLE: usize = 28;
    pub(super) const QUEUE_NOTIFY_OFF: usize = 30;
    pub(super) const QUEUE_DESC: usize = 32;
    pub(super) const QUEUE_DRIVER: usize = 40;
    pub(super) const QUEUE_DEVICE: usize = 48;
}

/// The register groups of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regions {
    /// Features, status, queue set-up.
    pub common: Region,
    /// Doorbells.
    pub notify: Region,
    /// Bytes between the doorbells of consecutive queue offsets.
    pub notify_multiplier: u32,
    /// The device type's own registers.
    pub device: Region,
}

/// Why a device cannot be driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportError {
    /// The device has no usable capability of this kind: the device is not a virtio 1.x device, or its capabilities are
    /// damaged.
    NoCapability(&'static str),
    /// The device does not leave reset.
    ResetTimeout,
    /// The device is not a virtio 1.x one.
    Legacy,
    /// The device does not work with the features that the driver knows.
    FeaturesRefused,
    /// The device has no such queue, or the queue has no size.
    NoQueue(u16),
    /// The device has no room for another interrupt vector.
    VectorRefused,
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCapability(kind) => write!(f, "no usable virtio capability for its {kind} registers"),
            Self::ResetTimeout => write!(f, "the device does not leave reset"),
            Self::Legacy => write!(f, "not a virtio 1.x device"),
            Self::FeaturesRefused => write!(f, "the device insists on features that this driver lacks"),
            Self::NoQueue(queue) => write!(f, "the device has no queue {queue}"),
            Self::VectorRefused => write!(f, "the device refuses an MSI-X vector"),
        }
    }
}

/// Finds the register groups of the function at `address` with its ranges `bars`.
///
/// # Errors
/// [`TransportError::NoCapability`]: a group is missing or does not lie within a memory BAR.
pub fn find_regions(
    config: &dyn ConfigSpace,
    address: Address,
    bars: &[Option<Bar>; 6],
) -> Result<Regions, TransportError> {
    let (mut common, mut notify, mut device) = (None, None, None);
    for capability in capabilities(config, address).filter(|c| c.id == crate::pci::VENDOR_CAPABILITY) {
        let Some(last) = capability.offset.checked_add(16) else { continue };
        let kind = config.read8(address, capability.offset + 3);
        let bar = config.read8(address, capability.offset + 4);
        let offset = config.read32(address, capability.offset + 8);
        let len = config.read32(address, capability.offset + 12);
        let Some(&Some(Bar::Memory { base, size, .. })) = bars.get(usize::from(bar)) else { continue };
        if base == 0 || len == 0 || u64::from(offset) + u64::from(len) > size {
            continue;
        }
        let region = Region { base: base + u64::from(offset), len };
        // Of several usable capabilities of one kind, the device prefers the first.
        match kind {
            CAP_COMMON if len >= COMMON_LENGTH => common = common.or(Some(region)),
            CAP_NOTIFY => notify = notify.or(Some((region, config.read32(address, last)))),
            CAP_DEVICE => device = device.or(Some(region)),
            _ => {}
        }
    }
    let common = common.ok_or(TransportError::NoCapability("common"))?;
    let (notify, notify_multiplier) = notify.ok_or(TransportError::NoCapability("notification"))?;
    let device = device.ok_or(TransportError::NoCapability("device"))?;
    Ok(Regions { common, notify, notify_multiplier, device })
}

/// A device's registers, mapped.
pub struct Transport {
    common: Box<dyn Registers>,
    notify: Box<dyn Registers>,
    notify_len: u32,
    notify_multiplier: u32,
    device: Box<dyn Registers>,
    device_len: u32,
}

impl Transport {
    /// Maps each of `regions` by `map`.
    ///
    /// # Errors
    /// The error of `map`, for the first region that `map` refuses.
    pub fn new<E>(
        regions: &Regions,
        mut map: impl FnMut(&Region) -> Result<Box<dyn Registers>, E>,
    ) -> Result<Self, E> {
        Ok(Self {
            common: map(&regions.common)?,
            notify: map(&regions.notify)?,
            notify_len: regions.notify.len,
            notify_multiplier: regions.notify_multiplier,
            device: map(&regions.device)?,
            device_len: regions.device.len,
        })
    }

    /// Stops the device: when this function returns `Ok`, the device touches no memory any more.
    ///
    /// # Errors
    /// [`TransportError::ResetTimeout`]: the device did not confirm the reset, and may still use memory.
    pub fn reset(&self) -> Result<(), TransportError> {
        self.common.write8(common::DEVICE_STATUS, 0);
        for _ in 0..RESET_POLLS {
            if self.common.read8(common::DEVICE_STATUS) == 0 {
                return Ok(());
            }
            core::hint::spin_loop();
        }
        Err(TransportError::ResetTimeout)
    }

    /// Resets the device and agrees with the device on features: those of `wanted` that the device offers. The result
    /// is the agreed features.
    ///
    /// # Errors
    /// - [`TransportError::ResetTimeout`]: the device did not confirm the reset.
    /// - [`TransportError::Legacy`]: the device speaks no virtio 1.x.
    /// - [`TransportError::FeaturesRefused`]: the device does not work with the agreed features.
    ///
    /// After the last two the device knows that this driver has given the device up.
    pub fn negotiate(&self, wanted: u64) -> Result<u64, TransportError> {
        self.negotiate_by(|offered| offered & wanted)
    }

    /// Like [`Self::negotiate`], but `choose` says what the driver takes of the features that the device offers.
    ///
    /// # Errors
    /// As [`Self::negotiate`].
    pub fn negotiate_by(&self, choose: impl FnOnce(u64) -> u64) -> Result<u64, TransportError> {
        self.reset()?;
        self.add_status(STATUS_ACKNOWLEDGE);
        self.add_status(STATUS_DRIVER);
        let offered = (0..2).fold(0, |bits, half| {
            self.common.write32(common::DEVICE_FEATURE_SELECT, half);
            bits | u64::from(self.common.read32(common::DEVICE_FEATURE)) << (32 * half)
        });
        if offered & F_VERSION_1 == 0 {
            self.fail();
            return Err(TransportError::Legacy);
        }
        let agreed = offered & (choose(offered) | F_VERSION_1);
        for half in 0..2 {
            self.common.write32(common::DRIVER_FEATURE_SELECT, half);
            self.common.write32(common::DRIVER_FEATURE, (agreed >> (32 * half)) as u32);
        }
        self.add_status(STATUS_FEATURES_OK);
        if self.common.read8(common::DEVICE_STATUS) & STATUS_FEATURES_OK == 0 {
            self.fail();
            return Err(TransportError::FeaturesRefused);
        }
        Ok(agreed)
    }

    /// Largest size of queue `queue`.
    ///
    /// # Errors
    /// [`TransportError::NoQueue`]: the device has no such queue, or the queue has no size.
    pub fn queue_size(&self, queue: u16) -> Result<u16, TransportError> {
        if queue >= self.common.read16(common::NUM_QUEUES) {
            return Err(TransportError::NoQueue(queue));
        }
        self.common.write16(common::QUEUE_SELECT, queue);
        match self.common.read16(common::QUEUE_SIZE) {
            0 => Err(TransportError::NoQueue(queue)),
            size => Ok(size),
        }
    }

    /// Sets up queue `queue` with interrupt vector `vector`, enables the queue, and returns the queue's
    /// doorbell.
    ///
    /// # Errors
    /// - [`TransportError::VectorRefused`]: the device has no room for the interrupt vector.
    /// - [`TransportError::NoCapability`]: the doorbell lies outside of the device's notification registers.
    pub fn enable_queue(
        &self,
        queue: u16,
        size: u16,
        addresses: [u64; 3],
        vector: u16,
    ) -> Result<Doorbell, TransportError> {
        let doorbell = self.doorbell(queue)?;
        self.common.write16(common::CONFIG_MSIX_VECTOR, NO_VECTOR);
        self.common.write16(common::QUEUE_SELECT, queue);
        self.common.write16(common::QUEUE_SIZE, size);
        self.common.write16(common::QUEUE_MSIX_VECTOR, vector);
        if self.common.read16(common::QUEUE_MSIX_VECTOR) != vector {
            return Err(TransportError::VectorRefused);
        }
        let registers = [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE];
        for (register, address) in registers.into_iter().zip(addresses) {
            self.common.write32(register, address as u32);
            self.common.write32(register + 4, (address >> 32) as u32);
        }
        self.common.write16(common::QUEUE_ENABLE, 1);
        Ok(doorbell)
    }

    /// Where the doorbell of queue `queue` is.
    ///
    /// # Errors
    /// [`TransportError::NoCapability`]: the doorbell lies outside of the device's notification registers.
    pub fn doorbell(&self, queue: u16) -> Result<Doorbell, TransportError> {
        self.common.write16(common::QUEUE_SELECT, queue);
        let offset = self.common.read16(common::QUEUE_NOTIFY_OFF);
        let offset = u64::from(offset) * u64::from(self.notify_multiplier);
        if offset + 2 > u64::from(self.notify_len) {
            return Err(TransportError::NoCapability("notification"));
        }
        Ok(Doorbell { offset: offset as usize, queue })
    }

    /// Has the device tell of changes of its registers by interrupt vector `vector`.
    ///
    /// # Errors
    /// [`TransportError::VectorRefused`]: the device has no room for the interrupt vector.
    pub fn config_vector(&self, vector: u16) -> Result<(), TransportError> {
        self.common.write16(common::CONFIG_MSIX_VECTOR, vector);
        if self.common.read16(common::CONFIG_MSIX_VECTOR) != vector {
            return Err(TransportError::VectorRefused);
        }
        Ok(())
    }

    /// Starts the device.
    pub fn start(&self) {
        self.add_status(STATUS_DRIVER_OK);
    }

    /// Gives the device up.
    pub fn fail(&self) {
        self.add_status(STATUS_FAILED);
    }

    /// Whether the device has found an error that only a reset ends.
    pub fn needs_reset(&self) -> bool {
        self.common.read8(common::DEVICE_STATUS) & STATUS_NEEDS_RESET != 0
    }

    /// Tells the device of a queue's new entries.
    pub fn notify(&self, doorbell: &Doorbell) {
        self.notify.write16(doorbell.offset, doorbell.queue);
    }

    /// Reads from the device type's registers by `read`. If the registers changed meanwhile, `read` is called again, but
    /// not for ever: of a device whose registers never hold still, the last reading counts.
    pub fn read_device<T>(&self, read: impl Fn(&DeviceRegisters<'_>) -> T) -> T {
        let mut reads = 1;
        loop {
            let before = self.common.read8(common::CONFIG_GENERATION);
            let value = read(&DeviceRegisters { registers: &*self.device, len: self.device_len });
            if self.common.read8(common::CONFIG_GENERATION) == before || reads == CONFIG_READS {
                return value;
            }
            reads += 1;
        }
    }

    fn add_status(&self, bits: u8) {
        let status = self.common.read8(common::DEVICE_STATUS);
        self.common.write8(common::DEVICE_STATUS, status | bits);
    }
}

/// Where a queue's doorbell is.
#[derive(Clone, Copy, Debug)]
pub struct Doorbell {
    offset: usize,
    queue: u16,
}

/// The device type's registers. A register past the end reads as 0.
pub struct DeviceRegisters<'a> {
    registers: &'a dyn Registers,
    len: u32,
}

impl DeviceRegisters<'_> {
    /// Reads one byte.
    pub fn read8(&self, offset: usize) -> u8 {
        if offset < self.len as usize { self.registers.read8(offset) } else { 0 }
    }

    /// Reads two bytes.
    pub fn read16(&self, offset: usize) -> u16 {
        if offset + 2 <= self.len as usize { self.registers.read16(offset) } else { 0 }
    }

    /// Reads four bytes.
    pub fn read32(&self, offset: usize) -> u32 {
        if offset + 4 <= self.len as usize { self.registers.read32(offset) } else { 0 }
    }

    /// Reads eight bytes, as two halves.
    pub fn read64(&self, offset: usize) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::fake::FakeConfig;
    use crate::pci::{COMMAND_MEMORY, VENDOR_CAPABILITY};

    const AT: Address = Address::new(0, 4, 0);

    /// Writes a vendor capability at `offset`: kind, BAR, offset in the BAR, and length.
    fn add(config: &FakeConfig, offset: u8, next: u8, kind: u8, bar: u8, at: u32, len: u32) {
        config.set16(AT, offset, u16::from(VENDOR_CAPABILITY) | u16::from(next) << 8);
        config.set8(AT, offset + 3, kind);
        config.set8(AT, offset + 4, bar);
        config.write32(AT, offset + 8, at);
        config.write32(AT, offset + 12, len);
    }

    fn device() -> (FakeConfig, [Option<Bar>; 6]) {
        let config = FakeConfig::default();
        config.add(AT, 0x1af4, 0x1042, 0x01_00_00);
        config.set16(AT, 4, COMMAND_MEMORY);
        config.set16(AT, 6, 1 << 4);
        config.set8(AT, 0x34, 0x40);
        add(&config, 0x40, 0x50, CAP_COMMON, 4, 0, 0x1000);
        add(&config, 0x50, 0x70, CAP_NOTIFY, 4, 0x3000, 0x1000);
        config.write32(AT, 0x60, 4);
        add(&config, 0x70, 0, CAP_DEVICE, 4, 0x2000, 0x1000);
        let mut bars = [None; 6];
        bars[4] = Some(Bar::Memory { base: 0x1_fe00_0000, size: 0x4000, prefetchable: true });
        (config, bars)
    }

    #[test]
    fn groups_of_a_usual_device() {
        let (config, bars) = device();
        let regions = find_regions(&config, AT, &bars).unwrap();
        assert_eq!(regions.common, Region { base: 0x1_fe00_0000, len: 0x1000 });
        assert_eq!(regions.notify, Region { base: 0x1_fe00_3000, len: 0x1000 });
        assert_eq!(regions.device, Region { base: 0x1_fe00_2000, len: 0x1000 });
        assert_eq!(regions.notify_multiplier, 4);
    }

    #[test]
    fn groups_outside_their_bar_do_not_count() {
        for (bar, at, len) in [
            (6, 0, 0x1000),
            (255, 0, 0x1000),
            (0, 0, 0x1000),
            (4, 0x3001, 0x1000),
            (4, u32::MAX, u32::MAX),
            (4, 0, 0),
        ] {
            let (config, bars) = device();
            add(&config, 0x70, 0, CAP_DEVICE, bar, at, len);
            let result = find_regions(&config, AT, &bars);
            assert_eq!(result, Err(TransportError::NoCapability("device")), "{bar} {at:#x} {len:#x}");
        }
        let (config, bars) = device();
        add(&config, 0x40, 0x50, CAP_COMMON, 4, 0, COMMON_LENGTH - 1);
        assert_eq!(find_regions(&config, AT, &bars), Err(TransportError::NoCapability("common")));
        let (config, mut bars) = device();
        bars[4] = Some(Bar::Memory { base: 0, size: 0x4000, prefetchable: false });
        assert!(find_regions(&config, AT, &bars).is_err(), "a BAR that the firmware did not place");
    }
}
