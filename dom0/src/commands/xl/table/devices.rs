//! Commands for virtual devices.

use super::{Command, MANY, command, flag, with};

const NO_CD: &str = "only an HVM domain has a CD drive; `xl block-attach` gives a PV domain a disk";
const NO_BACKEND: &str =
    "there is no backend for such devices: disks, network interfaces and consoles alone are served";
const NO_PCI: &str = "no PCI device is given to a domain: dom0 keeps them";
const NO_USB: &str = "there is no USB controller and no backend for one";

pub(super) const DISKS: &[Command] = &[
    command(
        "block-attach",
        "DOMAIN DISK...",
        (2, MANY),
        "gives a domain another disk, written as in disk=[...]",
    )
    .dry(),
    command("block-list", "DOMAIN...", (1, MANY), "lists the disks of domains"),
    command("block-detach", "DOMAIN DEVICE", (2, 2), "takes a disk from a domain").options(&[flag(
        'f',
        "force",
        "without asking the domain",
    )]),
    command("cd-insert", "DOMAIN DEVICE PATH", (3, 3), "puts a CD into a drive").dry().refused(NO_CD),
    command("cd-eject", "DOMAIN DEVICE", (2, 2), "takes a CD out of a drive").dry().refused(NO_CD),
];

pub(super) const NETWORK: &[Command] = &[
    command(
        "network-attach",
        "DOMAIN [KEY=VALUE...]",
        (1, MANY),
        "gives a domain another network interface, written as in vif=[...]",
    )
    .dry(),
    command("network-list", "DOMAIN...", (1, MANY), "lists the network interfaces of domains"),
    command(
        "network-detach",
        "DOMAIN DEVICE|MAC",
        (2, 2),
        "takes a network interface from a domain, in ten seconds whatever the domain does",
    ),
];

pub(super) const OTHERS: &[Command] = &[
    command("channel-list", "DOMAIN...", (1, MANY), "lists channels").refused(NO_BACKEND),
    command("vtpm-attach", "DOMAIN [KEY=VALUE...]", (1, MANY), "gives a domain a TPM")
        .dry()
        .refused(NO_BACKEND),
    command("vtpm-list", "DOMAIN...", (1, MANY), "lists TPMs").refused(NO_BACKEND),
    command("vtpm-detach", "DOMAIN DEVICE|UUID", (2, 2), "takes a TPM away").refused(NO_BACKEND),
    command("vkb-attach", "DOMAIN KEYBOARD...", (2, MANY), "gives a domain a keyboard")
        .dry()
        .refused(NO_BACKEND),
    command("vkb-list", "DOMAIN...", (1, MANY), "lists keyboards").refused(NO_BACKEND),
    command("vkb-detach", "DOMAIN DEVICE", (2, 2), "takes a keyboard away").refused(NO_BACKEND),
    command("vdispl-attach", "DOMAIN [KEY=VALUE...]", (1, MANY), "gives a domain a display")
        .dry()
        .refused(NO_BACKEND),
    command("vdispl-list", "DOMAIN...", (1, MANY), "lists displays").refused(NO_BACKEND),
    command("vdispl-detach", "DOMAIN DEVICE", (2, 2), "takes a display away").refused(NO_BACKEND),
    command("vsnd-attach", "DOMAIN SOUND...", (2, MANY), "gives a domain a sound device")
        .dry()
        .refused(NO_BACKEND),
    command("vsnd-list", "DOMAIN...", (1, MANY), "lists sound devices").refused(NO_BACKEND),
    command("vsnd-detach", "DOMAIN DEVICE", (2, 2), "takes a sound device away").refused(NO_BACKEND),
];

pub(super) const PCI: &[Command] = &[
    command("pci-attach", "DOMAIN BDF", (2, 2), "gives a domain a PCI device").refused(NO_PCI),
    command("pci-detach", "DOMAIN BDF", (2, 2), "takes it away")
        .options(&[flag('f', "", "without asking the domain")])
        .refused(NO_PCI),
    command("pci-list", "DOMAIN", (1, 1), "lists a domain's PCI devices").refused(NO_PCI),
    command("pci-assignable-add", "BDF", (1, 1), "takes a PCI device from dom0")
        .options(&[with('n', "name", "NAME", "its name")])
        .refused(NO_PCI),
    command("pci-assignable-remove", "BDF|NAME", (1, 1), "gives it back")
        .options(&[flag('r', "", "and to its driver")])
        .refused(NO_PCI),
    command("pci-assignable-list", "", (0, 0), "lists PCI devices that can be given to a domain")
        .options(&[flag('n', "show-names", "with their names")])
        .refused(NO_PCI),
];

pub(super) const USB: &[Command] = &[
    command("usbctrl-attach", "DOMAIN [KEY=VALUE...]", (1, MANY), "gives a domain a USB controller")
        .refused(NO_USB),
    command("usbctrl-detach", "DOMAIN DEVICE", (2, 2), "takes it away").refused(NO_USB),
    command("usbdev-attach", "DOMAIN KEY=VALUE...", (2, MANY), "gives a domain a USB device").refused(NO_USB),
    command("usbdev-detach", "DOMAIN CONTROLLER PORT", (3, 3), "takes it away").refused(NO_USB),
    command("usb-list", "DOMAIN", (1, 1), "lists a domain's USB devices").refused(NO_USB),
];
