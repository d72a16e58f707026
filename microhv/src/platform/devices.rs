//! The serial console, ports, device memory, interrupt lines, power.

use ring_abi::types::Maddr;

/// What the machine is to do when everything is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerAction {
    /// Turn the power off (ACPI S5).
    Off,
    /// Start again.
    Reboot,
    /// Stop as broken: dom0 crashed.
    Crash,
}

/// An interrupt vector of the machine: any byte is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector(pub u8);

/// The serial console, and the hypervisor's own messages on it.
pub trait SerialConsole {
    /// Writes for a domain what there is room for, and returns how many bytes that is. The call does not wait
    /// for the line.
    fn console_write(&self, bytes: &[u8]) -> usize;
    /// Whether so much waits for the serial line that a domain should print no more than it must.
    fn console_is_busy(&self) -> bool;
    /// Reads the hypervisor's messages from byte `from` of all that were ever written; returns where the copy starts
    /// (later than `from` when the message there is gone) and its length.
    fn console_log(&self, from: u64, to: &mut [u8]) -> (u64, usize);
    /// Forgets the hypervisor's messages.
    fn clear_console_log(&self);
}

/// Devices as the processor reaches them, and the power switch.
pub trait Devices {
    /// Reads a port: `size` 1, 2 or 4 bytes.
    fn port_in(&self, port: u16, size: u8) -> u32;
    /// Writes a port: `size` 1, 2 or 4 bytes.
    fn port_out(&self, port: u16, size: u8, value: u32);
    /// Writes an aligned u32 of a device's memory.
    fn mmio_write(&self, at: Maddr, value: u32);
    /// Address and data of the message that raises `vector` on the boot CPU.
    fn msi_message(&self, vector: Vector) -> (u64, u32);
    /// Lets a legacy interrupt line (0-15) raise `vector`, or nothing.
    fn route_line(&self, line: u8, vector: Option<Vector>);
    /// Masks or unmasks a legacy interrupt line (0-15).
    fn mask_line(&self, line: u8, masked: bool);
    /// Turns the machine off or restarts it. Returns only on the host.
    fn power(&self, action: PowerAction);
}
