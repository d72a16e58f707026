//! Compares the tables with Xen's `xl` 4.17: with its help and its tables of options.

use alloc::collections::BTreeSet;

use super::*;

/// Each command of Xen's `xl` 4.17, and its options but for `-h` and `--help`.
const OF_XEN: &[(&str, &str)] = &[
    (
        "create",
        "-c -d -e -F -f --defconfig -n --dryrun -p -q --quiet -V --vncviewer -A --vncviewer-autopass -i \
         --ignore-global-affinity-masks",
    ),
    ("config-update", "-f --defconfig -d"),
    ("list", "-l --long -v --verbose -Z --context -c --cpupool -n --numa"),
    ("destroy", "-f"),
    ("shutdown", "-a --all -F -w --wait"),
    ("reboot", "-a --all -F -w --wait"),
    ("pci-attach", ""),
    ("pci-detach", "-f"),
    ("pci-list", ""),
    ("pci-assignable-add", "-n --name"),
    ("pci-assignable-remove", "-r"),
    ("pci-assignable-list", "-n --show-names"),
    ("pause", ""),
    ("unpause", ""),
    ("console", "-t -n"),
    ("vncviewer", "--autopass --vncviewer-autopass"),
    ("save", "-c -p -D"),
    ("migrate", "-C -s -e --debug --live -p -D"),
    ("restore", "-p -e -d -V --vncviewer -A --vncviewer-autopass"),
    ("migrate-receive", ""),
    ("dump-core", ""),
    ("cd-insert", ""),
    ("cd-eject", ""),
    ("mem-max", ""),
    ("mem-set", ""),
    ("button-press", ""),
    ("vcpu-list", ""),
    ("vcpu-pin", "-f --force -i --ignore-global-affinity-masks"),
    ("vcpu-set", "-i --ignore-host"),
    ("vm-list", ""),
    ("info", "-n --numa"),
    ("sharing", ""),
    (
        "sched-credit",
        "-d --domain -w --weight -c --cap -s --schedparam -t --tslice_ms -r --ratelimit_us -m \
         --migration_delay_us -p --cpupool",
    ),
    ("sched-credit2", "-d --domain -w --weight -c --cap -s --schedparam -r --ratelimit_us -p --cpupool"),
    ("sched-rtds", "-d --domain -v --vcpuid -p --period -b --budget -e --extratime -c --cpupool"),
    ("domid", ""),
    ("domname", ""),
    ("rename", ""),
    ("trigger", ""),
    ("sysrq", ""),
    ("debug-keys", ""),
    ("set-parameters", ""),
    ("dmesg", "-c --clear"),
    ("top", ""),
    ("network-attach", ""),
    ("network-list", ""),
    ("network-detach", ""),
    ("channel-list", ""),
    ("block-attach", ""),
    ("block-list", ""),
    ("block-detach", "-f --force"),
    ("vtpm-attach", ""),
    ("vtpm-list", ""),
    ("vtpm-detach", ""),
    ("vkb-attach", ""),
    ("vkb-list", ""),
    ("vkb-detach", ""),
    ("vdispl-attach", ""),
    ("vdispl-list", ""),
    ("vdispl-detach", ""),
    ("vsnd-attach", ""),
    ("vsnd-list", ""),
    ("vsnd-detach", ""),
    ("uptime", "-s"),
    ("claims", ""),
    ("cpupool-create", "-f --defconfig -n --dryrun"),
    ("cpupool-list", "-c --cpus"),
    ("cpupool-destroy", ""),
    ("cpupool-rename", ""),
    ("cpupool-cpu-add", ""),
    ("cpupool-cpu-remove", ""),
    ("cpupool-migrate", ""),
    ("cpupool-numa-split", ""),
    ("getenforce", ""),
    ("setenforce", ""),
    ("loadpolicy", ""),
    ("remus", "-i -u -s -e -N -F -b -n -d -c -p --colo --coloft-script"),
    ("devd", "-F -p --pidfile"),
    ("psr-hwinfo", "-m --cmt -a --cat -b --mba"),
    ("psr-cmt-attach", ""),
    ("psr-cmt-detach", ""),
    ("psr-cmt-show", ""),
    ("psr-cat-set", "-s --socket -l --level -c --code -d --data"),
    ("psr-cat-show", "-l --level"),
    ("psr-mba-set", "-s --socket"),
    ("psr-mba-show", ""),
    ("usbctrl-attach", ""),
    ("usbctrl-detach", ""),
    ("usbdev-attach", ""),
    ("usbdev-detach", ""),
    ("usb-list", ""),
    ("qemu-monitor-command", ""),
    ("help", "--long"),
];

/// Commands and options beyond Xen's.
const OURS: &[(&str, &str)] = &[
    ("cpu-offline", ""),
    ("cpu-online", ""),
    ("dirty-rate", ""),
    ("resume", ""),
    ("migrate", "-t"),
    ("migrate", "--downtime"),
    ("migrate", "-r"),
    ("migrate", "--rounds"),
    ("migrate-receive", "-p"),
    ("migrate-receive", "-P"),
    ("create", "--paused"),
    ("console", "--log"),
    ("top", "-d"),
    ("top", "--delay"),
    ("top", "-i"),
    ("top", "--iterations"),
];

fn forms(command: &Command) -> BTreeSet<String> {
    let short = command.options.iter().filter_map(|option| option.short.map(|letter| format!("-{letter}")));
    let long = command.options.iter().filter(|option| !option.long.is_empty());
    short.chain(long.map(|option| format!("--{}", option.long))).collect()
}

#[test]
fn every_command_and_option_of_xen_is_there_and_no_other() {
    for (name, options) in OF_XEN {
        let command = all().find(|command| command.name == *name).unwrap_or_else(|| panic!("xl {name}"));
        let ours = OURS.iter().filter(|(command, _)| command == name).map(|(_, option)| *option);
        let expected: BTreeSet<String> = options.split_whitespace().chain(ours).map(String::from).collect();
        assert_eq!(forms(command), expected, "xl {name}");
    }
    let ours = all().filter(|command| OURS.contains(&(command.name, ""))).count();
    assert_eq!(all().count(), OF_XEN.len() + ours);
}

#[test]
fn what_can_be_tried_is_what_can_be_with_xen() {
    let of_xen = "create config-update cd-insert cd-eject vcpu-pin network-attach block-attach vtpm-attach \
                  vkb-attach vdispl-attach vsnd-attach cpupool-create";
    let expected: BTreeSet<&str> = of_xen.split_whitespace().collect();
    let found: BTreeSet<&str> = all().filter(|command| command.dry_run).map(|command| command.name).collect();
    assert_eq!(found, expected);
}
