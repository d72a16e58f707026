//! Registers of a host bus adapter. Source: Serial ATA AHCI Specification 1.3.1, section 3.

use alloc::sync::Arc;

use crate::hw::Registers;

/// Ports that an adapter has at most.
pub(super) const PORTS: u8 = 32;
const FIRST_PORT: usize = 0x100;
pub(super) const PORT_BYTES: usize = 0x80;
/// Bytes of the registers that every adapter has: those of one port.
pub(super) const LEAST_REGISTER_BYTES: u32 = (FIRST_PORT + PORT_BYTES) as u32;
/// Bytes of the registers with those of all ports.
pub(super) const MOST_REGISTER_BYTES: u32 = (FIRST_PORT + PORTS as usize * PORT_BYTES) as u32;

pub(super) const CAP: usize = 0x00;
pub(super) const CAP_STAGGERED: u32 = 1 << 27;
pub(super) const CAP_NCQ: u32 = 1 << 30;
pub(super) const CAP_64_BITS: u32 = 1 << 31;

pub(super) const GHC: usize = 0x04;
pub(super) const GHC_RESET: u32 = 1;
pub(super) const GHC_INTERRUPTS: u32 = 1 << 1;
pub(super) const GHC_AHCI: u32 = 1 << 31;

pub(super) const IS: usize = 0x08;
pub(super) const PI: usize = 0x0c;
pub(super) const CAP2: usize = 0x24;
pub(super) const CAP2_HANDOFF: u32 = 1;
pub(super) const BOHC: usize = 0x28;
pub(super) const BOHC_BIOS_OWNS: u32 = 1;
pub(super) const BOHC_OS_OWNS: u32 = 1 << 1;

pub(super) const PX_CLB: usize = 0x00;
pub(super) const PX_FB: usize = 0x08;
pub(super) const PX_IS: usize = 0x10;
pub(super) const PX_IE: usize = 0x14;
pub(super) const PX_CMD: usize = 0x18;
pub(super) const PX_TFD: usize = 0x20;
pub(super) const PX_SIG: usize = 0x24;
pub(super) const PX_SSTS: usize = 0x28;
pub(super) const PX_SCTL: usize = 0x2c;
pub(super) const PX_SERR: usize = 0x30;
pub(super) const PX_SACT: usize = 0x34;
pub(super) const PX_CI: usize = 0x38;

pub(super) const IS_REGISTER_FIS: u32 = 1;
pub(super) const IS_PIO_SETUP: u32 = 1 << 1;
pub(super) const IS_DEVICE_BITS: u32 = 1 << 3;
/// Something was plugged in, or the link came or went: the device may be another one.
pub(super) const IS_LINK: u32 = 1 << 6 | 1 << 22;
/// The link, and interface fatal, host bus data, host bus fatal: the port must be restarted, and nothing says which command it
/// was.
pub(super) const IS_FATAL: u32 = IS_LINK | 1 << 27 | 1 << 28 | 1 << 29;
pub(super) const IS_TASK_FILE: u32 = 1 << 30;
/// Causes of which the port tells.
pub(super) const CAUSES: u32 = IS_REGISTER_FIS | IS_PIO_SETUP | IS_DEVICE_BITS | IS_FATAL | IS_TASK_FILE;

pub(super) const CMD_START: u32 = 1;
pub(super) const CMD_SPIN_UP: u32 = 1 << 1;
pub(super) const CMD_POWER_ON: u32 = 1 << 2;
pub(super) const CMD_RECEIVE: u32 = 1 << 4;
pub(super) const CMD_RECEIVES: u32 = 1 << 14;
pub(super) const CMD_RUNS: u32 = 1 << 15;
const CMD_POWER_STATE: u32 = 0xf << 28;
pub(super) const CMD_ACTIVE: u32 = 1 << 28;

pub(super) const TFD_ERROR: u32 = 1;
pub(super) const TFD_BUSY: u32 = 1 << 7 | 1 << 3;

/// The device is there, and the link works.
pub(super) const SSTS_CONNECTED: u32 = 3;
pub(super) const SCTL_RESET: u32 = 1;
/// The link does not save power.
pub(super) const SCTL_AWAKE: u32 = 3 << 8;

pub(super) const SIGNATURE_DISK: u32 = 0x0000_0101;
pub(super) const SIGNATURE_ATAPI: u32 = 0xeb14_0101;

/// Registers of one port.
#[derive(Clone)]
pub(super) struct PortRegisters {
    registers: Arc<dyn Registers>,
    first: usize,
    /// The port's bit in the adapter's registers.
    bit: u32,
}

impl PortRegisters {
    pub(super) fn new(registers: &Arc<dyn Registers>, port: u8) -> Self {
        let first = FIRST_PORT + usize::from(port) * PORT_BYTES;
        Self { registers: registers.clone(), first, bit: 1 << port }
    }

    pub(super) fn read(&self, register: usize) -> u32 {
        self.registers.read32(self.first + register)
    }

    pub(super) fn write(&self, register: usize, value: u32) {
        self.registers.write32(self.first + register, value);
    }

    /// Takes the causes of interrupts that the port has, so that a further cause interrupts again.
    pub(super) fn acknowledge(&self) -> u32 {
        let causes = self.read(PX_IS);
        if causes != 0 {
            self.write(PX_IS, causes);
            self.registers.write32(IS, self.bit);
        }
        causes
    }

    /// Sets and clears bits of the port's command register.
    pub(super) fn command(&self, set: u32, clear: u32) {
        // What is written to the state of the link's power is an order, and no state.
        let value = self.read(PX_CMD) & !CMD_POWER_STATE;
        self.write(PX_CMD, value & !clear | set);
    }

    /// Whether the adapter has noticed a device.
    pub(super) fn is_noticed(&self) -> bool {
        self.read(PX_SSTS) & 0xf != 0
    }

    /// Whether the link works.
    pub(super) fn is_connected(&self) -> bool {
        self.read(PX_SSTS) & 0xf == SSTS_CONNECTED
    }
}
