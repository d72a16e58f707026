//! Finds the machine's disks and starts their drivers.

use alloc::string::{String, ToString};
use alloc::sync::Arc;

use super::{Disk, Disks, disk_name};
use crate::hw::{KernelMemory, PciDevice, config_space};
use crate::pci::{ConfigSpace, Function, enumerate};
use crate::virtio::{BLOCK_DEVICES, VENDOR, VirtioBlk, transport};

/// Finds every virtio disk, starts the disk, and adds the disk to `disks`. A disk that cannot be used is named in the
/// log, and takes a name all the same, so that the disks behind it keep their names.
pub async fn probe(disks: &Disks) {
    let config = config_space();
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
    let pci = PciDevice::open(config, function)?;
    let (interrupt, transport) = (pci.interrupt(0)?, transport(&pci)?);
    let device =
        VirtioBlk::new(name.into(), transport, KernelMemory, 0).map_err(|error| error.to_string())?;
    let device = Arc::new(device);
    let driver = device.clone();
    pvrt::spawn(async move {
        driver.serve(interrupt).await;
    });
    Ok(device)
}
