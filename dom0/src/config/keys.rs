//! Every key of `xl.cfg(5)`, and whether it is done, ignored or refused.
//!
//! The reader of configurations uses this table, and `docs/XL.md` is made from it.
//!
//! Format: `xl.cfg(5)` of Xen 4.17, and keys that files for older tools have.

/// How the toolstack treats a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The key has its effect.
    Done,
    /// The key is ignored, with a warning.
    Ignored,
    /// The key is refused: no domain is made.
    Refused,
}

/// A key of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// As a file has it.
    pub name: &'static str,
    /// How the toolstack treats the key.
    pub fate: Fate,
    /// Why the key is ignored or refused; for a key that is done, a remark.
    pub why: &'static str,
}

const fn done(name: &'static str, why: &'static str) -> Key {
    Key { name, fate: Fate::Done, why }
}

const fn ignored(name: &'static str, why: &'static str) -> Key {
    Key { name, fate: Fate::Ignored, why }
}

const fn refused(name: &'static str, why: &'static str) -> Key {
    Key { name, fate: Fate::Refused, why }
}

/// The row of a key; `None`: the key is unknown.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.binary_search_by(|key| key.name.cmp(name)).ok().map(|at| &KEYS[at])
}

const HVM: &str = "a PV guest has no emulated hardware";
const FIRMWARE: &str = "a PV guest has no firmware";
const SCREEN: &str = "there is no framebuffer: use `xl console`";
const PASS: &str = "no hardware is passed through to guests";
const DM: &str = "there is no device model";
const ARM: &str = "for ARM alone";
const PVH: &str = "for PVH guests alone";
const DEVICE: &str = "there is no such virtual device";
const SCHED: &str = "the scheduler has weights and caps alone";
const NUMA: &str = "the machine's memory is one node";
const LABEL: &str = "there are no security labels";
const COLO: &str = "no domain is copied to a second machine";
const XM: &str = "of an older tool";

/// All keys, in the order of their names.
pub const KEYS: &[Key] = &[
    ignored("acpi", HVM),
    ignored("acpi_firmware", FIRMWARE),
    ignored("acpi_laptop_slate", HVM),
    ignored("acpi_s3", HVM),
    ignored("acpi_s4", HVM),
    ignored("altp2m", HVM),
    ignored("altp2mhvm", HVM),
    ignored("apic", HVM),
    ignored("audio", XM),
    ignored("bios", FIRMWARE),
    ignored("bios_path_override", FIRMWARE),
    ignored("boot", HVM),
    ignored("bootloader", "dom0 runs no boot loader: name a `kernel`, PV GRUB's for one"),
    ignored("bootloader_args", "dom0 runs no boot loader"),
    done("builder", "`generic` alone, which `linux` means too"),
    done("cap", "in percent of a CPU, at most 100 for each vCPU"),
    ignored("channel", DEVICE),
    ignored("claim_mode", XM),
    done("cmdline", ""),
    done("cpu_weight", "1 to 65535"),
    done("cpuid", "hides features, by name or by leaf; a guest's user mode can still ask the CPU itself"),
    done(
        "cpus",
        "`0-3,^2`, `all`, `node:0`; of a list, each vCPU has its entry, and those behind have the last",
    ),
    done("cpus_soft", "as `cpus`"),
    ignored("device_model", DM),
    ignored("device_model_args", DM),
    ignored("device_model_args_hvm", DM),
    ignored("device_model_args_pv", DM),
    ignored("device_model_override", DM),
    ignored("device_model_stubdomain_override", DM),
    ignored("device_model_stubdomain_seclabel", DM),
    ignored("device_model_user", DM),
    ignored("device_model_version", DM),
    ignored("device_tree", ARM),
    done("disk", "block devices and raw images: no scripts, and nothing copied to a second machine"),
    ignored("display", SCREEN),
    ignored("dm_restrict", DM),
    done("driver_domain", "every domain may serve others"),
    ignored("dtdev", PASS),
    ignored("e820_host", PASS),
    done("extra", ""),
    ignored("extratime", SCHED),
    refused("firmware", "there is no PV GRUB beside the tools: name its file as `kernel`"),
    ignored("firmware_override", FIRMWARE),
    ignored("gfx_passthru", PASS),
    ignored("gic_version", ARM),
    ignored("hap", HVM),
    ignored("hdtype", HVM),
    ignored("hpet", HVM),
    ignored("init_seclabel", LABEL),
    ignored("iomem", PASS),
    ignored("ioports", PASS),
    ignored("irqs", PASS),
    done("kernel", "an ELF file or a bzImage, plain or compressed"),
    ignored("keymap", SCREEN),
    ignored("latency", SCHED),
    done("localtime", ""),
    done("max_event_channels", ""),
    done("max_grant_frames", ""),
    done("max_grant_version", "1 or 2"),
    done("max_maptrack_frames", ""),
    done("maxmem", ""),
    done("maxvcpus", "at most 128"),
    ignored("mca_caps", HVM),
    done("memory", ""),
    ignored("mmio_hole", HVM),
    ignored("ms_vm_genid", HVM),
    ignored("msr_relaxed", "no register that is missing reads as zero"),
    done("name", "at most 255 bytes, without `/`, and no number"),
    ignored("nestedhvm", HVM),
    ignored("nics", XM),
    ignored("nographic", SCREEN),
    done("nomigrate", "no domain is migrated"),
    ignored("numa_placement", XM),
    ignored("nx", HVM),
    done("on_crash", "of the `coredump-` ones the dump is left out"),
    done("on_poweroff", "of the `coredump-` ones the dump is left out"),
    done("on_reboot", "of the `coredump-` ones the dump is left out"),
    done("on_soft_reset", "of the `coredump-` ones the dump is left out"),
    done("on_watchdog", "of the `coredump-` ones the dump is left out"),
    ignored("oos", HVM),
    ignored("opengl", SCREEN),
    ignored("p9", DEVICE),
    ignored("pae", HVM),
    ignored("passthrough", PASS),
    ignored("pci", PASS),
    ignored("pci_msitranslate", PASS),
    ignored("pci_permissive", PASS),
    ignored("pci_power_mgmt", PASS),
    ignored("pci_seize", PASS),
    ignored("period", SCHED),
    done("pool", "by name or number"),
    ignored("pvcalls", DEVICE),
    ignored("pvshim", PVH),
    ignored("pvshim_cmdline", PVH),
    ignored("pvshim_extra", PVH),
    ignored("pvshim_path", PVH),
    done("ramdisk", ""),
    ignored("rdm", PASS),
    ignored("rdm_mem_boundary", PASS),
    done("root", ""),
    done("rtc_timeoffset", ""),
    ignored("sdl", SCREEN),
    ignored("seclabel", LABEL),
    ignored("serial", HVM),
    ignored("shadow_memory", HVM),
    ignored("slice", SCHED),
    ignored("smbios_firmware", FIRMWARE),
    ignored("soundhw", HVM),
    ignored("spice", SCREEN),
    ignored("spice_clipboard_sharing", SCREEN),
    ignored("spice_image_compression", SCREEN),
    ignored("spice_streaming_video", SCREEN),
    ignored("spiceagent_mouse", SCREEN),
    ignored("spicedisable_ticketing", SCREEN),
    ignored("spicehost", SCREEN),
    ignored("spicepasswd", SCREEN),
    ignored("spiceport", SCREEN),
    ignored("spicetls_port", SCREEN),
    ignored("spiceusbredirection", SCREEN),
    ignored("spicevdagent", SCREEN),
    ignored("stdvga", SCREEN),
    ignored("stubdomain_cmdline", DM),
    ignored("stubdomain_kernel", DM),
    ignored("stubdomain_memory", DM),
    ignored("stubdomain_ramdisk", DM),
    ignored("suppress_spurious_page_faults", XM),
    ignored("tee", ARM),
    refused("timer_mode", HVM),
    done("tsc_mode", "by name or number"),
    done("type", "`pv` alone: there are no HVM and no PVH guests"),
    ignored("usb", HVM),
    ignored("usbctrl", DEVICE),
    ignored("usbdev", PASS),
    ignored("usbdevice", HVM),
    ignored("usbversion", HVM),
    done("uuid", ""),
    done("vcpus", "at most 128"),
    ignored("vdispl", DEVICE),
    ignored("vendor_device", HVM),
    ignored("vfb", SCREEN),
    ignored("vga", SCREEN),
    ignored("videoram", SCREEN),
    done("vif", "at most 16"),
    ignored("vif2", XM),
    ignored("vif_default_bridge", XM),
    ignored("viridian", HVM),
    ignored("vkb", DEVICE),
    ignored("vkb_device", HVM),
    ignored("vmtrace_buf_kb", "no trace of the processor is kept"),
    ignored("vnc", SCREEN),
    ignored("vncconsole", XM),
    ignored("vncdisplay", SCREEN),
    ignored("vnclisten", SCREEN),
    ignored("vncpasswd", SCREEN),
    ignored("vncunused", SCREEN),
    ignored("vncviewer", SCREEN),
    ignored("vnuma", NUMA),
    ignored("vpmu", "there are no performance counters for guests"),
    ignored("vpt_align", HVM),
    ignored("vscsi", XM),
    ignored("vsnd", DEVICE),
    ignored("vtpm", DEVICE),
    ignored("vuart", ARM),
    ignored("xauthority", SCREEN),
    ignored("xen_platform_pci", HVM),
    ignored("xend_suspend_evtchn_compat", "no domain is saved"),
];

/// The words of an entry of `disk`, in the order of their names: parameters that have a value, and flags.
pub const DISK_WORDS: &[Key] = &[
    done("access", "`rw`, `w`, `ro` or `r`"),
    ignored("active-disk", COLO),
    done("backend", "a domain that serves the disk"),
    done(
        "backendtype",
        "`phy`, or `tap` and `qdisk`, which are one; not `standalone`, which has no `xen` disks",
    ),
    done("cdrom", "an empty drive too"),
    refused("colo", COLO),
    ignored("colo-export", COLO),
    ignored("colo-host", COLO),
    ignored("colo-port", COLO),
    done("devtype", "`disk` or `cdrom`"),
    done("direct-io-safe", "nothing is kept in a cache"),
    done("discard", ""),
    done("format", "`raw`, or `empty` of a CD drive; other images are not read"),
    ignored("hidden-disk", COLO),
    done("no-colo", ""),
    done("no-discard", ""),
    refused("script", "dom0 runs no scripts"),
    done("specification", "`xen` alone"),
    done("target", "takes the rest of the entry"),
    done("trusted", ""),
    done("untrusted", "the frontend is told so"),
    done("vdev", "`xvd`, `sd`, `hd` and `d` names, and numbers"),
];

/// The words of an entry of `vif`, likewise. dom0 runs no scripts: what only a script would look at is noted in xenstore.
pub const VIF_WORDS: &[Key] = &[
    ignored("accel", "there is no such thing any more"),
    done("backend", "a domain that serves the interface"),
    done(
        "bridge",
        "one that dom0 has, `xenbr0` if none is named; any name with `backend`. Behind the name may stand VLANs, as Xen's \
         Open vSwitch script takes them: `xenbr0.10` (the guest's frames have no tag), `xenbr0.10:20:30` (with tags in 20 and 30)",
    ),
    ignored("colo_checkpoint_host", COLO),
    done("devid", "the place in the list, if none is given"),
    ignored("forwarddev", COLO),
    done("gatewaydev", "noted in xenstore: packets are switched"),
    done("ip", ""),
    done("mac", "one station's; if none is given, one is chosen that stays over restarts"),
    ignored("model", HVM),
    done("mtu", "68 to 65535; 1500 if none is given"),
    done("netdev", "the older name of `gatewaydev`"),
    done("rate", "bits or bytes in a second, and the interval"),
    done(
        "rule",
        "not of Xen's: a rule of the interface's firewall, `in|out accept|drop [tcp|udp|icmp|NUMBER] [from PREFIX] [to PREFIX] \
         [port FIRST[-LAST]]`, several times; the first that fits decides, and what none fits passes. `net help` has more. An error beside `backend`: \
         only dom0's own backend keeps to rules",
    ),
    done("script", "noted in xenstore"),
    done("trusted", ""),
    done("type", "`vif`: a PV guest has no emulated hardware"),
    done("untrusted", "the frontend is told so"),
    done("vifname", "the name of the switch's port, as `net` shows ports"),
    done(
        "vlan",
        "not known to xl 4.17: `10` (the guest's frames have no tag), `10p/20/30-40` (with tags in 20 and \
         30 to 40). Beside `backend` a warning: the other domain's backend may not keep to the word",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DiskConfig, VifConfig};

    #[test]
    fn the_table_is_in_order_and_gives_reasons() {
        for table in [KEYS, DISK_WORDS, VIF_WORDS] {
            assert!(table.is_sorted_by(|one, other| one.name < other.name));
        }
        for key in KEYS {
            assert_eq!(find(key.name), Some(key));
            assert!(key.fate == Fate::Done || !key.why.is_empty(), "{}", key.name);
        }
        assert_eq!(find("memroy"), None);
    }

    /// A word with a valid value; flags have none.
    fn sample(name: &str) -> String {
        let value = match name {
            "access" | "cdrom" | "colo" | "discard" | "no-colo" | "no-discard" | "direct-io-safe"
            | "trusted" | "untrusted" => return name.replace("access", "access=w"),
            "backendtype" => "phy",
            "colo-port" | "devid" => "9",
            "devtype" => "disk",
            "format" => "raw",
            "mac" => "00:16:3e:00:00:01",
            "mtu" => "1500",
            "rate" => "1MB/s",
            "specification" => "xen",
            "rule" => "in drop",
            "type" => "vif",
            "vdev" => "xvda",
            "vlan" => "10",
            _ => "x",
        };
        format!("{name}={value}")
    }

    #[test]
    fn words_of_disks_and_networks_are_read_as_the_tables_say() {
        for key in DISK_WORDS {
            let rest = match key.name {
                "target" => "vdev=xvda",
                "vdev" => "/a",
                _ => "vdev=xvda,/a",
            };
            let text = format!("{rest},{}", sample(key.name));
            let read = DiskConfig::parse(&text);
            assert_eq!(read.is_ok(), key.fate != Fate::Refused, "{text}: {read:?}");
        }
        assert!(DiskConfig::parse("vdev=xvda,/a,colour=x").is_err());
        for key in VIF_WORDS {
            let (_, notes) = VifConfig::parse(&sample(key.name)).unwrap();
            let said = format!("`{}`: {}, ignored", sample(key.name), key.why);
            let want = if key.fate == Fate::Ignored { Vec::from([said]) } else { Vec::new() };
            assert_eq!(notes, want);
        }
    }
}
