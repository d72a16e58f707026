//! Finds the machine's network cards and brings them up.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;

use pvrt::time;

use super::{Cards, SharedWire, Summary};
use crate::e1000e::{self, E1000e};
use crate::hw::{KernelMemory, KernelPages, Message, PciDevice, Region, config_space, map_registers};
use crate::pci::{Bar, ConfigSpace, Function, enumerate};
use crate::virtio::{self, VirtioNet};

/// Finds every network card that there is a driver for, brings the card up, and adds the card to `cards`. A card that
/// cannot be used is named in the log, and takes a name all the same, so that the cards behind it keep their names.
pub fn probe(cards: &Cards) {
    let config = config_space();
    let functions = enumerate(&config);
    let found = functions.iter().filter_map(|function| Some((function, driver(function)?)));
    for (index, (function, driver)) in found.enumerate() {
        let name = format!("eth{index}");
        match start(&config, function, driver, &name) {
            Ok(card) => {
                log::info!("{name}: PCI {}: {}", function.address, Summary(&*card));
                cards.add(card);
            }
            Err(error) => log::error!("{name}: PCI {}: {error}", function.address),
        }
    }
}

/// The drivers.
#[derive(Clone, Copy)]
enum Driver {
    Virtio,
    E1000e,
}

/// The driver of a function, if the function is a card that there is a driver for.
fn driver(function: &Function) -> Option<Driver> {
    match (function.vendor, function.device) {
        (virtio::VENDOR, device) if virtio::NETWORK_DEVICES.contains(&device) => Some(Driver::Virtio),
        (e1000e::VENDOR, e1000e::DEVICE) => Some(Driver::E1000e),
        _ => None,
    }
}

fn start(
    config: &dyn ConfigSpace,
    function: &Function,
    driver: Driver,
    name: &str,
) -> Result<SharedWire, String> {
    let pci = PciDevice::open(config, function)?;
    let mut refused = None;
    let bind = |vector| {
        if vector >= pci.vectors() {
            return None;
        }
        pci.interrupt(vector).map_err(|error| refused = Some(error)).ok()
    };
    let card: SharedWire = match driver {
        Driver::Virtio => {
            let transport = virtio::transport(&pci)?;
            let card = VirtioNet::new(name.into(), transport, &KernelMemory, local_address(), bind);
            Arc::new(card.map_err(|error| error.to_string())?)
        }
        Driver::E1000e => Arc::new(start_e1000e(&pci, name, bind)?),
    };
    if let Some(error) = refused {
        log::warn!("{name}: its queues share interrupts: {error}");
    }
    Ok(card)
}

fn start_e1000e(
    pci: &PciDevice<'_>,
    name: &str,
    bind: impl FnMut(u16) -> Option<Message>,
) -> Result<E1000e<KernelPages, Message>, String> {
    let len = e1000e::REGISTER_BYTES as u32;
    let region = match pci.bars()[0] {
        Some(Bar::Memory { base, size, .. }) if base != 0 && size >= u64::from(len) => Region { base, len },
        _ => return Err("its registers are not in memory".into()),
    };
    let registers =
        map_registers(&region).map_err(|errno| format!("its registers cannot be mapped: {errno}"))?;
    E1000e::new(name.into(), registers, &KernelMemory, bind).map_err(|error| error.to_string())
}

/// An address for a card that has none: a local one, as its second bit says, that the time of the start chose.
fn local_address() -> [u8; 6] {
    let [.., a, b, c, d, e] = time::tsc().wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    [2, a, b, c, d, e]
}
