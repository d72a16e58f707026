//! Physical devices: interrupts as PIRQs, I/O privilege, PCI functions.
//!
//! ABI: `xen/include/public/physdev.h`.

use core::sync::atomic::Ordering;

use ring_abi::physdev::{self as op, *};
use ring_abi::types::{DOMID_SELF, GuestVa, Pirq};
use zerocopy::{FromBytes, IntoBytes};

use super::{Answer, Args, Current, HypercallError, HypercallResult, Outcome};
use crate::pirq::pci::PciFunction;
use crate::platform::Platform;

/// `physdev_op(cmd, arg)`.
///
/// # Errors
/// - `Fault`: `arg` cannot be read or written.
/// - `NotPermitted`: the operation is the hardware domain's alone, or the PIRQ is not the caller's.
/// - `Invalid`, `NoDevice`, `NoSpace`, `Busy`, `Exists`: see the operations.
/// - `NoSys`: no such operation.
pub fn physdev_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let arg = GuestVa::new(args[1]);
    match u32::try_from(args[0]).map_err(|_| HypercallError::NoSys)? {
        op::PHYSDEVOP_SET_IOPL => set_iopl(cur, arg),
        op::PHYSDEVOP_SET_IOBITMAP => set_iobitmap(cur, arg),
        op::PHYSDEVOP_EOI => {
            let eoi: PhysdevEoi = cur.copy_in(arg)?;
            cur.hv.pirq_eoi(cur.domain, Pirq::new(eoi.irq)).map_err(HypercallError::from)
        }
        op::PHYSDEVOP_IRQ_STATUS_QUERY => irq_status_query(cur, arg),
        op::PHYSDEVOP_MAP_PIRQ => map_pirq(cur, arg),
        op::PHYSDEVOP_UNMAP_PIRQ => unmap_pirq(cur, arg),
        op::PHYSDEVOP_GET_FREE_PIRQ => get_free_pirq(cur, arg),
        op::PHYSDEVOP_SETUP_GSI => setup_gsi(cur, arg),
        op::PHYSDEVOP_APIC_READ => apic_read(cur, arg),
        // The I/O APIC is the hypervisor's: lines are routed when they are bound.
        op::PHYSDEVOP_APIC_WRITE => hardware(cur, arg).map(|_: PhysdevApic| ()),
        op::PHYSDEVOP_ALLOC_IRQ_VECTOR => alloc_irq_vector(cur, arg),
        op::PHYSDEVOP_MANAGE_PCI_ADD
        | op::PHYSDEVOP_MANAGE_PCI_REMOVE
        | op::PHYSDEVOP_RESTORE_MSI
        | op::PHYSDEVOP_MANAGE_PCI_ADD_EXT => hardware(cur, arg).map(|_: PhysdevManagePci| ()),
        // Nothing is kept about a function: its capabilities are read when a message is mapped.
        op::PHYSDEVOP_PCI_DEVICE_ADD => hardware(cur, arg)
            .and_then(|add: PhysdevPciDeviceAdd| HypercallError::NoDevice.when(add.seg != 0)),
        op::PHYSDEVOP_PCI_DEVICE_REMOVE
        | op::PHYSDEVOP_RESTORE_MSI_EXT
        | op::PHYSDEVOP_PREPARE_MSIX
        | op::PHYSDEVOP_RELEASE_MSIX => {
            hardware(cur, arg).and_then(|of: PhysdevPciDevice| HypercallError::NoDevice.when(of.seg != 0))
        }
        _ => Err(HypercallError::NoSys),
    }?;
    Ok(Outcome::OK)
}

/// The argument of an operation that is the hardware domain's alone.
fn hardware<P: Platform, T: FromBytes + IntoBytes>(cur: &Current<'_, P>, arg: GuestVa) -> Answer<T> {
    if cur.domain.privileged { Ok(cur.copy_in(arg)?) } else { Err(HypercallError::NotPermitted) }
}

/// Sets the I/O privilege level that the vCPU's instructions see: 0 to 3.
fn set_iopl<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    let set: PhysdevSetIopl = cur.copy_in(arg)?;
    HypercallError::Invalid.when(set.iopl > 3)?;
    cur.vcpu.iopl.store(u64::from(set.iopl) << 12, Ordering::Relaxed);
    Ok(())
}

/// Sets the bitmap of ports that the vCPU's user mode may use: at most 65,536 ports.
fn set_iobitmap<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    let set: PhysdevSetIobitmap = cur.copy_in(arg)?;
    HypercallError::Invalid.when(set.nr_ports > 65_536)?;
    let mut cpu = cur.vcpu.cpu.lock();
    cpu.io_bitmap = (set.bitmap != 0).then_some(set.bitmap);
    cpu.io_bitmap_ports = set.nr_ports;
    Ok(())
}

fn irq_status_query<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    let mut query: PhysdevIrqStatusQuery = cur.copy_in(arg)?;
    let needs_eoi = cur.hv.pirq_needs_eoi(cur.domain, Pirq::new(query.irq))?;
    query.flags = if needs_eoi { op::XENIRQSTAT_NEEDS_EOI } else { 0 };
    Ok(cur.copy_out(arg, &query)?)
}

fn map_pirq<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    let mut map: PhysdevMapPirq = hardware(cur, arg)?;
    if map.domid != DOMID_SELF && map.domid != cur.domain.id.raw() {
        return Err(HypercallError::NotSupported); // devices belong to the hardware domain
    }
    let wanted = u32::try_from(map.pirq).ok().map(Pirq::new);
    let pirq = match map.r#type {
        op::MAP_PIRQ_TYPE_GSI => {
            let line = u32::try_from(map.index).map(Pirq::new).map_err(|_| HypercallError::Invalid)?;
            HypercallError::Invalid.when(wanted.is_some_and(|wanted| wanted != line))?;
            cur.hv.map_line(cur.domain, line)?;
            line
        }
        op::MAP_PIRQ_TYPE_MSI | op::MAP_PIRQ_TYPE_MSI_SEG => {
            let segment = if map.r#type == op::MAP_PIRQ_TYPE_MSI_SEG { map.bus >> 16 } else { 0 };
            let bus = u8::try_from(map.bus & 0xffff).map_err(|_| HypercallError::NoDevice)?;
            let devfn = u8::try_from(map.devfn).map_err(|_| HypercallError::NoDevice)?;
            HypercallError::NoDevice.when(segment != 0)?;
            let entry = match map.table_base {
                0 => None,
                _ => Some(u16::try_from(map.entry_nr).map_err(|_| HypercallError::Invalid)?),
            };
            cur.hv.map_message(cur.domain, PciFunction { bus, devfn }, entry, wanted)?
        }
        // Only one message for each function is supported; a caller falls back to that.
        op::MAP_PIRQ_TYPE_MULTI_MSI => return Err(HypercallError::NotSupported),
        _ => return Err(HypercallError::Invalid),
    };
    map.pirq = pirq.raw() as i32;
    if let Err(fault) = cur.copy_out(arg, &map) {
        if pirq.raw() >= crate::pirq::NR_LINES {
            // The caller cannot learn the PIRQ's number, so the PIRQ is unmapped again.
            cur.hv.unmap_pirq(cur.domain, pirq)?;
        }
        return Err(fault.into());
    }
    Ok(())
}

fn unmap_pirq<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    let unmap: PhysdevUnmapPirq = hardware(cur, arg)?;
    HypercallError::NoSuchDomain.when(unmap.domid != DOMID_SELF && unmap.domid != cur.domain.id.raw())?;
    let pirq = u32::try_from(unmap.pirq).map(Pirq::new).map_err(|_| HypercallError::Invalid)?;
    Ok(cur.hv.unmap_pirq(cur.domain, pirq)?)
}

fn get_free_pirq<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    let mut get: PhysdevGetFreePirq = hardware(cur, arg)?;
    get.pirq = cur.hv.free_pirq()?.raw();
    Ok(cur.copy_out(arg, &get)?)
}

/// The trigger and polarity of a line: the MADT has said it already.
fn setup_gsi<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    let setup: PhysdevSetupGsi = hardware(cur, arg)?;
    match u32::try_from(setup.gsi) {
        Ok(gsi) if gsi < crate::pirq::NR_LINES => Err(HypercallError::Exists),
        _ => Err(HypercallError::Invalid),
    }
}

/// The I/O APIC as a kernel sees it: no redirection entry is its own, so all read as masked.
fn apic_read<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    const VERSION: u32 = 1;
    const FIRST_REDIRECTION: u32 = 0x10;
    let mut apic: PhysdevApic = hardware(cur, arg)?;
    apic.value = match apic.reg {
        VERSION => 0x0017_0020, // 24 entries, version 0x20
        reg if reg >= FIRST_REDIRECTION && reg & 1 == 0 => 1 << 16,
        _ => 0,
    };
    Ok(cur.copy_out(arg, &apic)?)
}

/// Vectors are picked when a PIRQ is bound; the number that old kernels ask for has no use.
fn alloc_irq_vector<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    let mut irq: PhysdevIrq = hardware(cur, arg)?;
    HypercallError::Invalid.when(irq.irq >= crate::pirq::NR_LINES)?;
    irq.vector = u32::from(crate::pirq::FIRST_VECTOR) + irq.irq;
    Ok(cur.copy_out(arg, &irq)?)
}
