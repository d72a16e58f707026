//! Tests that `--disks` and `--on` leave out, since they are about what machines then do not have.

use xtask::machine::{Emulator, Way};

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

/// Tests whose machines Bochs can be: their scripts need no disk, no network, nobody who types, and none of QEMU's arguments or CPU
/// models.
const ON_BOCHS: [&str; 17] = [
    "bad_input::a_name_already_taken",
    "bad_input::an_unknown_command_fails",
    "console::a_broken_dom0_is_refused_in_one_line",
    "console::another_kernel_in_dom0s_place_has_its_own_end",
    "conformance::every_case_passes_as_dom0",
    "cpus::as_many_cpus_are_used_as_there_are_and_as_is_asked",
    "hostile::free_memory_without_two_frames_in_a_row_ends_in_refusals",
    "kernels::kernels_with_older_notes_run_as_domains",
    "kernels::kernels_with_older_notes_run_in_dom0s_place",
    "misuse::a_domain_is_called_by_its_name_and_its_console_is_kept",
    "misuse::the_hypervisors_messages_are_its_own",
    "misuse::what_the_hypervisor_cannot_read_is_named",
    "shell::a_destroyed_domain_is_gone",
    "shell::every_verb_of_a_domains_life",
    "spine::a_failing_line_ends_the_script",
    "spine::another_kernel_stands_in_dom0s_place",
    "spine::the_runtime_passes_its_self_test",
];

/// Why the test `name` is left out where disks are reached by `way`, on `emulator`.
pub(crate) fn reason(name: &str, way: Way, emulator: Emulator) -> Option<&'static str> {
    if emulator == Emulator::Bochs && !ON_BOCHS.contains(&name) && !name.starts_with("bochs::") {
        return Some(
            "its machine has what Bochs has not: a disk, a network, keys, a choice of QEMU's, or the time for it",
        );
    }
    let of = |list: &[(&str, &'static str)]| list.iter().find(|(test, _)| *test == name).map(|(_, why)| *why);
    match way {
        Way::Virtio => None,
        Way::Nvme => of(&ABOUT_VIRTIO),
        Way::Ahci => of(&ABOUT_VIRTIO).or_else(|| of(&NOT_SATA)),
    }
}
