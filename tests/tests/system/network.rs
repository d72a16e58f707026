//! dom0's network cards.

use anyhow::Result;
use tests::Machine;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![network: cards_are_found_and_named])
}

/// The standard card, and three more: one for long packets, one whose address is no station's, and one of another make.
fn cards_are_found_and_named() -> Result<()> {
    let more = [
        "-netdev",
        "user,id=net1",
        "-device",
        "virtio-net-pci,netdev=net1,disable-legacy=on,romfile=,mac=02:00:00:00:00:01,host_mtu=9000",
        "-netdev",
        "user,id=net2",
        "-device",
        "virtio-net-pci,netdev=net2,disable-legacy=on,romfile=,mac=01:00:00:00:00:02",
        "-netdev",
        "user,id=net3",
        "-device",
        "e1000e,netdev=net3,romfile=,mac=02:00:00:00:00:03",
    ];
    Machine::new("network-cards")
        .network()
        .with(|machine| machine.qemu_arguments.extend(more.map(str::to_string)))
        .line("xl info")
        .run()?
        .succeeded()?
        .says("eth0: PCI 00:02.0: 52:54:00:12:34:56, MTU 1500, link up")?
        .says("eth1: PCI 00:03.0: 02:00:00:00:00:01, MTU 9000, link up")?
        .says("error: eth2: PCI 00:04.0: its registers give a bad Ethernet address")?
        .says("eth3: PCI 00:05.0: 02:00:00:00:00:03, MTU 1500, checksums, link up")?;
    Ok(())
}
