//! Finds the machine's disks and starts their drivers.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;

use super::{Disk, Disks, SharedDevice, disk_name, id_name};
use crate::ahci::{self, Adapter};
use crate::hw::{KernelMemory, Message, PciDevice, Region, Registers, config_space, map_registers};
use crate::nvme::{self, Nvme};
use crate::pci::{Bar, ConfigSpace, Function, enumerate};
use crate::virtio::{self, BLOCK_DEVICES, VirtioBlk, transport};

/// The drivers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Driver {
    Virtio,
    Nvme,
    Ahci,
}

/// The driver of a function, if the function is a disk that there is a driver for.
fn driver(function: &Function) -> Option<Driver> {
    match (function.vendor, function.device, function.class) {
        (virtio::VENDOR, device, _) if BLOCK_DEVICES.contains(&device) => Some(Driver::Virtio),
        (.., nvme::CLASS) => Some(Driver::Nvme),
        (.., ahci::CLASS) => Some(Driver::Ahci),
        _ => None,
    }
}

/// Finds every disk that there is a driver for, starts the disk, and adds the disk to `disks`. A disk that cannot be
/// used is named in the log, and takes a name all the same, so that the disks behind it keep their names.
pub async fn probe(disks: &Disks) {
    let config = config_space();
    let functions = enumerate(&config);
    let (mut virtio, mut nvme, mut ahci) = (0.., 0u32.., 0..);
    for function in &functions {
        let Some(driver) = driver(function) else { continue };
        let (name, started) = match driver {
            Driver::Virtio => {
                let name = disk_name("vd", virtio.next().unwrap_or_default());
                let opened = open_virtio(&config, function, &name);
                (name, start_virtio(opened).await)
            }
            Driver::Nvme => {
                let name = format!("nvme{}n1", nvme.next().unwrap_or_default());
                let opened = open_registers(&config, function, 0, nvme::REGISTER_BYTES);
                let started = start_nvme(opened, &name).await;
                (name, started)
            }
            Driver::Ahci => {
                let opened = open_registers(&config, function, ahci::REGISTER_RANGE, ahci::REGISTER_BYTES);
                let name = || disk_name("sd", ahci.next().unwrap_or_default());
                let place = format!("PCI {}", function.address);
                if let Err(error) = start_ahci(opened, disks, &place, name).await {
                    log::error!("{place}: AHCI adapter: {error}");
                }
                continue;
            }
        };
        match started {
            Ok((device, id)) => disks.add(Disk { name, id, device }),
            Err(error) => log::error!("{name}: PCI {}: {error}", function.address),
        }
    }
}

/// A disk, and its name by what it is.
type Started = Result<(SharedDevice, Option<String>), String>;

fn open_virtio(
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

async fn start_virtio(opened: Result<Arc<VirtioBlk<KernelMemory>>, String>) -> Started {
    let device = opened?;
    let serial = device.serial().await;
    Ok((device, serial.map(|serial| id_name("virtio", "", &serial))))
}

async fn start_nvme(opened: Result<Opened, String>, name: &str) -> Started {
    let Opened { registers, bytes, interrupt } = opened?;
    let (device, service) =
        Nvme::open(name.into(), registers, bytes, &KernelMemory).await.map_err(|error| error.to_string())?;
    pvrt::spawn(async move {
        service.run(interrupt).await;
    });
    let (model, serial) = device.names();
    let id = (!serial.is_empty()).then(|| id_name("nvme", model, serial));
    Ok((device, id))
}

/// Opens the disks of an adapter and adds them to `disks`, with the names that `name` gives.
async fn start_ahci(
    opened: Result<Opened, String>,
    disks: &Disks,
    place: &str,
    name: impl FnMut() -> String,
) -> Result<(), String> {
    let Opened { registers, bytes, interrupt } = opened?;
    let mut adapter =
        Adapter::open(registers, bytes, &KernelMemory).await.map_err(|error| error.to_string())?;
    for (name, device, service) in adapter.disks(place, name, &KernelMemory).await {
        pvrt::spawn(async move {
            service.run().await;
        });
        let (model, serial) = device.names();
        let id = (!serial.is_empty()).then(|| id_name("ata", model, serial));
        disks.add(Disk { name, id, device });
    }
    pvrt::spawn(adapter.run(interrupt));
    Ok(())
}

/// A function's registers, how many bytes of them there are, and its first interrupt.
struct Opened {
    registers: Box<dyn Registers>,
    bytes: u32,
    interrupt: Message,
}

/// Opens a function whose registers lie in its range `index`: `least` bytes are needed, and `most` wanted.
fn open_registers(
    config: &dyn ConfigSpace,
    function: &Function,
    index: usize,
    [least, most]: [u32; 2],
) -> Result<Opened, String> {
    let pci = PciDevice::open(config, function)?;
    let interrupt = pci.interrupt(0)?;
    let region = match pci.bars()[index] {
        Some(Bar::Memory { base, size, .. }) if base != 0 && size >= u64::from(least) => {
            Region { base, len: size.min(u64::from(most)) as u32 }
        }
        _ => return Err("its registers are not in memory".into()),
    };
    let registers =
        map_registers(&region).map_err(|errno| format!("its registers cannot be mapped: {errno}"))?;
    Ok(Opened { registers, bytes: region.len, interrupt })
}
