//! A driver's memory, registers and interrupts as a PV kernel has them, and a device's way from PCI to its driver.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::task::{Context, Poll};

use pvrt::event::Port;
use pvrt::hypercall::physdev;
use pvrt::mem::{ForeignMap, Pages, map_mmio};
use pvrt::pio;
use ring_abi::errno::Errno;
use ring_abi::types::{Maddr, PAGE_SIZE};
use zerocopy::IntoBytes;

use super::{Dma, DmaSource, Interrupt, Region, Registers};
use crate::pci::{
    Address, Bar, COMMAND_INTX_DISABLE, COMMAND_MASTER, COMMAND_MEMORY, ConfigSpace, Function,
    MSI_CAPABILITY, Mechanism1, MsixCapability, Ports, bars, capabilities, update_command,
};

/// The kernel's own I/O ports.
pub struct PciPorts;

impl Ports for PciPorts {
    fn out32(&self, port: u16, value: u32) {
        pio::write_u32(port, value);
    }
    fn in32(&self, port: u16) -> u32 {
        pio::read_u32(port)
    }
    fn out16(&self, port: u16, value: u16) {
        pio::write_u16(port, value);
    }
}

/// The machine's configuration space.
pub fn config_space() -> Mechanism1<PciPorts> {
    Mechanism1::new(PciPorts)
}

/// A device that answers, and that may use memory by itself.
pub struct PciDevice<'a> {
    config: &'a dyn ConfigSpace,
    address: Address,
    bars: [Option<Bar>; 6],
    messages: Messages,
}

/// How a device sends its interrupts.
enum Messages {
    /// By a table of messages.
    Msix(MsixCapability),
    /// By one message.
    Msi,
}

impl<'a> PciDevice<'a> {
    /// Looks at the device, makes the device known to the hypervisor and lets the device work.
    ///
    /// # Errors
    /// What the device lacks, or why the hypervisor does not accept the device.
    pub fn open(config: &'a dyn ConfigSpace, function: &Function) -> Result<Self, String> {
        let address = function.address;
        let bars = bars(config, address);
        let pci = physdev::PciFunction { seg: 0, bus: address.bus(), devfn: address.devfn() };
        physdev::pci_device_add(pci).map_err(|errno| format!("not accepted by the hypervisor: {errno}"))?;
        update_command(config, address, COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE, 0);
        let has_msi = || capabilities(config, address).any(|capability| capability.id == MSI_CAPABILITY);
        let messages = match MsixCapability::find(config, address) {
            Some(msix) => Messages::Msix(msix),
            None if has_msi() => Messages::Msi,
            None => return Err("no MSI-X or MSI capability".into()),
        };
        Ok(Self { config, address, bars, messages })
    }

    /// Number of interrupt vectors that the device has.
    pub fn vectors(&self) -> u16 {
        match &self.messages {
            Messages::Msix(msix) => msix.entries,
            Messages::Msi => 1,
        }
    }

    /// Binds the device's interrupt vector `vector`.
    ///
    /// # Errors
    /// The hypervisor's reason.
    pub fn interrupt(&self, vector: u16) -> Result<Message, String> {
        match &self.messages {
            Messages::Msix(msix) => Message::bind_msix(self.config, self.address, msix, &self.bars, vector)
                .map_err(|errno| format!("no MSI-X interrupt: {errno}")),
            Messages::Msi => {
                Message::bind_msi(self.address).map_err(|errno| format!("no MSI interrupt: {errno}"))
            }
        }
    }

    /// The device's place.
    pub fn address(&self) -> Address {
        self.address
    }

    /// The device's configuration space, with that of all others.
    pub fn config(&self) -> &'a dyn ConfigSpace {
        self.config
    }

    /// The device's ranges.
    pub fn bars(&self) -> &[Option<Bar>; 6] {
        &self.bars
    }
}

/// Pages of this kernel. A device reaches the pages by the machine addresses behind them.
pub struct KernelPages(Pages);

impl Dma for KernelPages {
    fn maddr(&self, offset: usize) -> u64 {
        self.0.mfn(offset / PAGE_SIZE).maddr().raw() + (offset % PAGE_SIZE) as u64
    }
    fn load16(&self, offset: usize) -> u16 {
        self.0.bytes().load_u16(offset)
    }
    fn store16(&self, offset: usize, value: u16) {
        self.0.bytes().store_u16(offset, value);
    }
    fn load8(&self, offset: usize) -> u8 {
        self.0.bytes().load_u8(offset)
    }
    fn store8(&self, offset: usize, value: u8) {
        self.0.bytes().store_u8(offset, value);
    }
    fn load32(&self, offset: usize) -> u32 {
        self.0.bytes().load_u32(offset)
    }
    fn store32(&self, offset: usize, value: u32) {
        self.0.bytes().store_u32(offset, value);
    }
    fn store64(&self, offset: usize, value: u64) {
        self.0.bytes().store_u64(offset, value);
    }
    fn write(&self, offset: usize, words: &[u64]) {
        self.0.bytes().write(offset, words.as_bytes());
    }
    fn read_bytes(&self, offset: usize, out: &mut [u8]) {
        self.0.bytes().read(offset, out);
    }
    fn write_bytes(&self, offset: usize, bytes: &[u8]) {
        self.0.bytes().write(offset, bytes);
    }
}

/// Takes this kernel's pages.
pub struct KernelMemory;

impl DmaSource for KernelMemory {
    type Memory = KernelPages;

    fn allocate(&self, pages: usize) -> Option<KernelPages> {
        Pages::zeroed(pages).ok().map(KernelPages)
    }
}

/// Registers mapped uncached.
struct MappedRegisters {
    map: ForeignMap,
    /// Of the first register in the map.
    offset: usize,
}

/// Maps a range of registers.
///
/// # Errors
/// The hypervisor's reason, or `ENOMEM`: the kernel's window has no room.
pub fn map_registers(region: &Region) -> Result<Box<dyn Registers>, Errno> {
    let first = Maddr::new(region.base);
    let offset = first.offset();
    let pages = (offset + region.len as usize).div_ceil(PAGE_SIZE);
    let map = map_mmio(first.mfn(), pages).map_err(|error| error.errno)?;
    Ok(Box::new(MappedRegisters { map, offset }))
}

impl Registers for MappedRegisters {
    fn read8(&self, offset: usize) -> u8 {
        self.map.bytes().load_u8(self.offset + offset)
    }
    fn read16(&self, offset: usize) -> u16 {
        self.map.bytes().load_u16(self.offset + offset)
    }
    fn read32(&self, offset: usize) -> u32 {
        self.map.bytes().load_u32(self.offset + offset)
    }
    fn write8(&self, offset: usize, value: u8) {
        self.map.bytes().store_u8(self.offset + offset, value);
    }
    fn write16(&self, offset: usize, value: u16) {
        self.map.bytes().store_u16(self.offset + offset, value);
    }
    fn write32(&self, offset: usize, value: u32) {
        self.map.bytes().store_u32(self.offset + offset, value);
    }
}

/// A message of a device, by MSI-X or MSI, bound to an event channel. Given back on drop.
pub struct Message {
    // The port's field comes first, so that drop closes the port before the PIRQ, which the port uses.
    port: Port,
    _pirq: Pirq,
}

struct Pirq(u32);

impl Drop for Pirq {
    fn drop(&mut self) {
        if let Err(errno) = physdev::unmap_pirq(self.0) {
            log::warn!("unmapping pirq {}: {errno}", self.0);
        }
    }
}

impl Message {
    /// Has the hypervisor route entry `entry` of the function at `address` to a new port. The function must decode
    /// memory: the hypervisor writes the function's table.
    ///
    /// # Errors
    /// - `EINVAL`: the capability names no memory BAR.
    /// - Else the hypervisor's reason to refuse the PIRQ or the port.
    pub fn bind_msix(
        config: &dyn ConfigSpace,
        address: Address,
        msix: &MsixCapability,
        bars: &[Option<Bar>; 6],
        entry: u16,
    ) -> Result<Self, Errno> {
        let Some(&Some(Bar::Memory { base, .. })) = bars.get(usize::from(msix.table_bar)) else {
            return Err(Errno::EINVAL);
        };
        let function = physdev::PciFunction { seg: 0, bus: address.bus(), devfn: address.devfn() };
        // This follows Linux: Xen leaves the enable bit to dom0. microhv sets the bit itself and ignores this write.
        msix.control(config, address, true, true);
        let pirq = Pirq(physdev::map_pirq_msi(function, entry, base)?);
        let port = Port::bind_pirq(pirq.0)?;
        msix.control(config, address, true, false);
        Ok(Self { port, _pirq: pirq })
    }

    /// Has the hypervisor route the one message of the function at `address` to a new port.
    ///
    /// # Errors
    /// The hypervisor's reason to refuse the PIRQ or the port.
    pub fn bind_msi(address: Address) -> Result<Self, Errno> {
        let function = physdev::PciFunction { seg: 0, bus: address.bus(), devfn: address.devfn() };
        // A table at address 0 stands for MSI.
        let pirq = Pirq(physdev::map_pirq_msi(function, 0, 0)?);
        let port = Port::bind_pirq(pirq.0)?;
        Ok(Self { port, _pirq: pirq })
    }
}

impl Interrupt for Message {
    fn poll_next(&self, context: &mut Context<'_>) -> Poll<()> {
        self.port.poll_event(context)
    }
}
