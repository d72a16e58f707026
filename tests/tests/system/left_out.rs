//! Tests that `--disks` leaves out, since they are about what machines then do not have.

use xtask::machine::Way;

/// Tests about virtio devices: the name, and why.
const ABOUT_VIRTIO: [(&str, &str); 3] = [
    ("disks::a_guest_reads_and_writes_each_kind_of_disk", "one of the kinds is virtio"),
    ("network::cards_are_found_and_named", "it is about two cards of virtio's beside another"),
    ("linux_blkfront::blkfront_knows_what_its_disks_are", "two of its disks are virtio devices by hand"),
];
/// Tests of what QEMU's SATA disks are not.
const NOT_SATA: [(&str, &str); 1] = [(
    "conformance::every_case_passes_as_a_guest",
    "QEMU has no SATA disk that cannot be written or has sectors of 4 KiB",
)];

/// Why the test `name` is left out where disks are reached by `way`.
pub(crate) fn reason(name: &str, way: Way) -> Option<&'static str> {
    let of = |list: &[(&str, &'static str)]| list.iter().find(|(test, _)| *test == name).map(|(_, why)| *why);
    match way {
        Way::Virtio => None,
        Way::Nvme => of(&ABOUT_VIRTIO),
        Way::Ahci => of(&ABOUT_VIRTIO).or_else(|| of(&NOT_SATA)),
    }
}
