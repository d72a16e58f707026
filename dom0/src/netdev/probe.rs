//! Finds the machine's network cards and brings them up.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;

use pvrt::time;

use super::{Cards, SharedWire, Summary};
use crate::hw::{KernelMemory, PciDevice, config_space};
use crate::pci::{ConfigSpace, Function, enumerate};
use crate::virtio::{NETWORK_DEVICES, VENDOR, VirtioNet, transport};

/// Finds every virtio network card, brings the card up, and adds the card to `cards`. A card that cannot be used is named
/// in the log, and takes a name all the same, so that the cards behind it keep their names.
pub fn probe(cards: &Cards) {
    let config = config_space();
    let functions = enumerate(&config);
    let found = functions.iter().filter(|f| f.vendor == VENDOR && NETWORK_DEVICES.contains(&f.device));
    for (index, function) in found.enumerate() {
        let name = format!("eth{index}");
        match start(&config, function, &name) {
            Ok(card) => {
                log::info!("{name}: PCI {}: {}", function.address, Summary(&*card));
                cards.add(card);
            }
            Err(error) => log::error!("{name}: PCI {}: {error}", function.address),
        }
    }
}

fn start(config: &dyn ConfigSpace, function: &Function, name: &str) -> Result<SharedWire, String> {
    let pci = PciDevice::open(config, function)?;
    let mut refused = None;
    let bind = |vector| {
        if vector >= pci.vectors() {
            return None;
        }
        pci.interrupt(vector).map_err(|error| refused = Some(error)).ok()
    };
    let card = VirtioNet::new(name.into(), transport(&pci)?, &KernelMemory, local_address(), bind);
    if let Some(error) = refused {
        log::warn!("{name}: its queues share interrupts: {error}");
    }
    Ok(Arc::new(card.map_err(|error| error.to_string())?))
}

/// An address for a card that has none: a local one, as its second bit says, that the time of the start chose.
fn local_address() -> [u8; 6] {
    let [.., a, b, c, d, e] = time::tsc().wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    [2, a, b, c, d, e]
}
