//! Finds the machine's disks and starts their drivers.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;

use pvrt::hypercall::physdev;
use pvrt::pio;

use super::{Disk, Disks, disk_name};
use crate::pci::{
    COMMAND_INTX_DISABLE, COMMAND_MASTER, COMMAND_MEMORY, ConfigSpace, Function, Mechanism1, MsixCapability,
    Ports, bars, enumerate, update_command,
};
use crate::virtio::{
    BLOCK_DEVICES, KernelMemory, Msix, Transport, VENDOR, VirtioBlk, find_regions, map_registers,
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

/// Finds every virtio disk, starts the disk, and adds the disk to `disks`. A disk that cannot be used is named in the
/// log, and takes a name all the same, so that the disks behind it keep their names.
pub async fn probe(disks: &Disks) {
    let config = Mechanism1::new(PciPorts);
    let functions = enumerate(&config);
    let disk_functions = functions.iter().filter(|f| f.vendor == VENDOR && BLOCK_DEVICES.contains(&f.device));
    for (index, function) in disk_functions.enumerate() {
        let name = disk_name(index);
        match start(&config, function, &name) {
            Ok(device) => {
                let serial = device.serial().await;
                disks.add(Disk { name, serial, device });
            }
            Err(error) => log::error!("{name}: PCI {}: {error}", function.address),
        }
    }
}

fn start(
    config: &dyn ConfigSpace,
    function: &Function,
    name: &str,
) -> Result<Arc<VirtioBlk<KernelMemory>>, String> {
    let address = function.address;
    let bars = bars(config, address);
    let regions = find_regions(config, address, &bars).map_err(|error| error.to_string())?;
    let pci = physdev::PciFunction { seg: 0, bus: address.bus(), devfn: address.devfn() };
    physdev::pci_device_add(pci).map_err(|errno| format!("not accepted by the hypervisor: {errno}"))?;
    update_command(config, address, COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE, 0);
    let msix = MsixCapability::find(config, address).ok_or("no MSI-X capability")?;
    let interrupt = Msix::bind(config, address, &msix, &bars, 0)
        .map_err(|errno| format!("no MSI-X interrupt: {errno}"))?;
    let transport = Transport::new(&regions, map_registers)
        .map_err(|errno| format!("its registers cannot be mapped: {errno}"))?;
    let device =
        VirtioBlk::new(name.into(), transport, KernelMemory, 0).map_err(|error| error.to_string())?;
    let device = Arc::new(device);
    let driver = device.clone();
    pvrt::spawn(async move {
        driver.serve(interrupt).await;
    });
    Ok(device)
}
