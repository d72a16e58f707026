//! `physdev_op`: interrupts and I/O rights. ABI: `xen/include/public/physdev.h`.

use super::{Result, op};
use ring_abi::hypercall::__HYPERVISOR_PHYSDEV_OP as NR;
use ring_abi::physdev::*;
use ring_abi::types::DomId;

/// A PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciFunction {
    /// PCI segment group.
    pub seg: u16,
    /// Bus number.
    pub bus: u8,
    /// Device in bits 3-7, function in bits 0-2.
    pub devfn: u8,
}

/// Raises the kernel's I/O privilege, so that the kernel may execute `cli` and use the ports to which the domain has a
/// right.
///
/// # Errors
/// `EINVAL`: `iopl` is not 0 to 3.
pub fn set_iopl(iopl: u32) -> Result<()> {
    let mut arg = PhysdevSetIopl { iopl };
    // SAFETY: plain data in.
    unsafe { op(NR, PHYSDEVOP_SET_IOPL, &mut arg) }.map(|_| ())
}

/// Tells the hypervisor of a PCI function.
///
/// # Errors
/// `EPERM`: the domain is not privileged. `ENOSYS`: the hypervisor does not know the call.
pub fn pci_device_add(function: PciFunction) -> Result<()> {
    let mut arg = PhysdevPciDeviceAdd {
        seg: function.seg,
        bus: function.bus,
        devfn: function.devfn,
        ..Default::default()
    };
    // SAFETY: plain data in.
    unsafe { op(NR, PHYSDEVOP_PCI_DEVICE_ADD, &mut arg) }.map(|_| ())
}

/// Tells the hypervisor that a PCI function is gone.
///
/// # Errors
/// `EPERM`: the domain is not privileged. `ENODEV`: there is no such function.
pub fn pci_device_remove(function: PciFunction) -> Result<()> {
    let mut arg = PhysdevPciDevice { seg: function.seg, bus: function.bus, devfn: function.devfn };
    // SAFETY: plain data in.
    unsafe { op(NR, PHYSDEVOP_PCI_DEVICE_REMOVE, &mut arg) }.map(|_| ())
}

/// Maps a message of `function` to a new PIRQ: entry `entry` of the MSI-X table in the BAR at machine address
/// `table_base`; with `table_base` 0, the function's MSI message.
///
/// # Errors
/// - `EPERM`: the domain is not privileged.
/// - `ENODEV`: there is no such function.
/// - `EINVAL`: the function has no such message.
/// - `ENOSPC`: no PIRQ or vector is free.
pub fn map_pirq_msi(function: PciFunction, entry: u16, table_base: u64) -> Result<u32> {
    let mut arg = PhysdevMapPirq {
        domid: DomId::SELF.raw(),
        r#type: MAP_PIRQ_TYPE_MSI_SEG,
        index: -1,
        pirq: -1,
        bus: i32::from(function.bus) | i32::from(function.seg) << 16,
        devfn: i32::from(function.devfn),
        entry_nr: i32::from(entry),
        table_base,
        ..Default::default()
    };
    // SAFETY: plain data in and out.
    unsafe { op(NR, PHYSDEVOP_MAP_PIRQ, &mut arg) }?;
    Ok(arg.pirq as u32)
}

/// Ends a mapping that [`map_pirq_msi`] made.
///
/// # Errors
/// `EINVAL`: there is no such PIRQ.
pub fn unmap_pirq(pirq: u32) -> Result<()> {
    let mut arg = PhysdevUnmapPirq { domid: DomId::SELF.raw(), pirq: pirq as i32, ..Default::default() };
    // SAFETY: plain data in.
    unsafe { op(NR, PHYSDEVOP_UNMAP_PIRQ, &mut arg) }.map(|_| ())
}

/// Whether this kernel must acknowledge the interrupt by [`eoi`] after each event.
///
/// # Errors
/// `EINVAL`: there is no such PIRQ.
pub fn needs_eoi(pirq: u32) -> Result<bool> {
    let mut arg = PhysdevIrqStatusQuery { irq: pirq, flags: 0 };
    // SAFETY: plain data in and out.
    unsafe { op(NR, PHYSDEVOP_IRQ_STATUS_QUERY, &mut arg) }?;
    Ok(arg.flags & XENIRQSTAT_NEEDS_EOI != 0)
}

/// Acknowledges an interrupt.
///
/// # Errors
/// `EINVAL`: there is no such PIRQ.
pub fn eoi(pirq: u32) -> Result<()> {
    let mut arg = PhysdevEoi { irq: pirq };
    // SAFETY: plain data in.
    unsafe { op(NR, PHYSDEVOP_EOI, &mut arg) }.map(|_| ())
}
