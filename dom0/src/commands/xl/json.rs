//! Configurations of domains as JSON, in the shape in which Xen's `xl` 4.17 prints them: members with their default
//! value are left out, true is the string `True`, and an enumeration is a string.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pvrt::println;
use ring_abi::domctl::XenDomctlGetdomaininfo;
use ring_abi::types::DomId;
use serde::Serialize;

use pvrt::hypercall::sysctl;

use crate::commands::{Outcome, Shell};
use crate::config::{
    Action, BackendType, CpuSet, DiskConfig, DomainConfig, TscMode, USUAL_WEIGHT, VifConfig,
};
use crate::shell::print;
use crate::toolstack::uuid_text;

/// KiB of a page.
const PAGE_KIB: u64 = 4;
/// The default highest event channel.
const USUAL_CHANNELS: u32 = 1023;

/// A member that is always empty for a PV domain on x86.
#[derive(Serialize)]
struct Empty {}

/// An existing domain.
#[derive(Serialize)]
struct Listed {
    domid: u16,
    config: DomainJson,
}

/// `libxl_domain_config`
#[derive(Serialize)]
pub(super) struct DomainJson {
    c_info: CreateInfo,
    b_info: BuildInfo,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    disks: Vec<DiskJson>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nics: Vec<NicJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_poweroff: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_reboot: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_watchdog: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_crash: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_soft_reset: Option<&'static str>,
}

/// `libxl_domain_create_info`
#[derive(Serialize)]
struct CreateInfo {
    #[serde(rename = "type")]
    kind: &'static str,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool_name: Option<String>,
}

/// `libxl_domain_build_info`
#[derive(Serialize)]
struct BuildInfo {
    max_vcpus: u32,
    avail_vcpus: Vec<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vcpu_hard_affinity: Vec<Vec<u32>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vcpu_soft_affinity: Vec<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tsc_mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_memkb: Option<u64>,
    target_memkb: u64,
    #[serde(skip_serializing_if = "is_usual")]
    rtc_timeoffset: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    localtime: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_grant_frames: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_maptrack_frames: Option<u32>,
    sched_params: SchedParams,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_channels: Option<u32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    kernel: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    cmdline: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ramdisk: Option<String>,
    #[serde(rename = "type.pv")]
    pv: Empty,
    arch_arm: Empty,
    arch_x86: Empty,
}

/// `libxl_domain_sched_params`
#[derive(Default, Serialize)]
struct SchedParams {
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cap: Option<u16>,
}

/// `libxl_device_disk`
#[derive(Serialize)]
pub(super) struct DiskJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_domname: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pdev_path: String,
    vdev: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<&'static str>,
    format: &'static str,
    #[serde(skip_serializing_if = "is_usual")]
    removable: u8,
    #[serde(skip_serializing_if = "is_usual")]
    readwrite: u8,
    #[serde(skip_serializing_if = "is_usual")]
    is_cdrom: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    discard_enable: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trusted: Option<&'static str>,
}

/// `libxl_device_nic`
#[derive(Serialize)]
pub(super) struct NicJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_domname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    devid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bridge: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ifname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    script: Option<String>,
    #[serde(skip_serializing_if = "is_usual")]
    rate_bytes_per_interval: u64,
    #[serde(skip_serializing_if = "is_usual")]
    rate_interval_usecs: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    gatewaydev: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trusted: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan: Option<String>,
    /// Ours alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<String>,
}

fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn truth(is_true: bool) -> Option<&'static str> {
    is_true.then_some("True")
}

/// Destroying the domain is the default.
fn action(action: Action) -> Option<&'static str> {
    match action {
        Action::Destroy => None,
        Action::Restart => Some("restart"),
        Action::RenameRestart => Some("restart_rename"),
        Action::Preserve => Some("preserve"),
        Action::SoftReset => Some("soft_reset"),
    }
}

/// A disk.
pub(super) fn disk(disk: &DiskConfig) -> DiskJson {
    DiskJson {
        backend_domname: disk.backend_domain.clone(),
        pdev_path: disk.target.clone(),
        vdev: disk.vdev.clone(),
        backend: (disk.backend == BackendType::Phy).then_some("phy"),
        format: "raw",
        removable: disk.cdrom.into(),
        readwrite: disk.writable.into(),
        is_cdrom: disk.cdrom.into(),
        discard_enable: truth(disk.discard && disk.writable),
        trusted: (!disk.trusted).then_some("False"),
    }
}

/// A network interface.
pub(super) fn vif(vif: &VifConfig) -> NicJson {
    NicJson {
        backend_domname: vif.backend_domain.clone(),
        devid: vif.devid,
        mtu: vif.mtu,
        mac: vif.mac.map(|mac| format!("{mac}")),
        ip: vif.ip.clone(),
        bridge: vif.bridge.clone(),
        ifname: vif.vifname.clone(),
        script: vif.script.clone(),
        rate_bytes_per_interval: vif.rate.map_or(0, |rate| rate.bytes),
        rate_interval_usecs: vif.rate.map_or(0, |rate| rate.interval_us),
        gatewaydev: vif.gatewaydev.clone(),
        trusted: (!vif.trusted).then_some("False"),
        vlan: vif.vlan.clone(),
        rules: vif.rules.iter().map(|rule| format!("{rule}")).collect(),
    }
}

/// The CPUs of a set that the machine has.
fn affinity(cpus: &CpuSet, nr_cpus: u32) -> Vec<u32> {
    let CpuSet::Some(mask) = cpus else { return Vec::new() };
    let bytes = mask.bytes();
    (0..nr_cpus.min(bytes.len() as u32 * 8))
        .filter(|cpu| bytes[*cpu as usize / 8] >> (cpu % 8) & 1 != 0)
        .collect()
}

/// A configuration, with the UUID that its domain has.
pub(super) fn domain(config: &DomainConfig, uuid: Option<&[u8; 16]>) -> DomainJson {
    let nr_cpus = sysctl::physinfo().map_or(u32::MAX, |machine| machine.max_cpu_id + 1);
    DomainJson {
        c_info: CreateInfo {
            kind: "pv",
            name: config.name.clone(),
            uuid: uuid.map(uuid_text),
            pool_name: config.pool.clone(),
        },
        b_info: BuildInfo {
            max_vcpus: config.maxvcpus,
            avail_vcpus: (0..config.vcpus).collect(),
            vcpu_hard_affinity: config.cpus.iter().map(|set| affinity(set, nr_cpus)).collect(),
            vcpu_soft_affinity: config.cpus_soft.iter().map(|set| affinity(set, nr_cpus)).collect(),
            tsc_mode: match config.tsc_mode {
                TscMode::Default => None,
                TscMode::AlwaysEmulate => Some("always_emulate"),
                TscMode::Native => Some("native"),
                TscMode::NativeParavirt => Some("native_paravirt"),
            },
            max_memkb: Some(config.maxmem_mib << 10),
            target_memkb: config.memory_mib << 10,
            rtc_timeoffset: config.rtc_timeoffset,
            localtime: truth(config.localtime),
            max_grant_frames: config.max_grant_frames,
            max_maptrack_frames: config.max_maptrack_frames,
            sched_params: SchedParams {
                weight: Some(config.cpu_weight).filter(|&weight| weight != USUAL_WEIGHT),
                cap: Some(config.cap).filter(|&cap| cap != 0),
            },
            event_channels: Some(config.max_event_channels).filter(|&count| count != USUAL_CHANNELS),
            kernel: config.kernel.clone(),
            cmdline: String::from_utf8_lossy(AsRef::<[u8]>::as_ref(&config.cmdline)).into_owned(),
            ramdisk: config.ramdisk.clone(),
            pv: Empty {},
            arch_arm: Empty {},
            arch_x86: Empty {},
        },
        disks: config.disks.iter().map(disk).collect(),
        nics: config.vifs.iter().map(vif).collect(),
        on_poweroff: action(config.on_poweroff),
        on_reboot: action(config.on_reboot),
        on_watchdog: action(config.on_watchdog),
        on_crash: action(config.on_crash),
        on_soft_reset: action(config.on_soft_reset),
    }
}

/// A domain without a configuration: dom0, or one that is still being made.
fn bare(name: String, info: &XenDomctlGetdomaininfo) -> DomainJson {
    DomainJson {
        c_info: CreateInfo { kind: "pv", name, uuid: Some(uuid_text(&info.handle)), pool_name: None },
        b_info: BuildInfo {
            max_vcpus: info.max_vcpu_id.saturating_add(1),
            avail_vcpus: (0..info.nr_online_vcpus).collect(),
            vcpu_hard_affinity: Vec::new(),
            vcpu_soft_affinity: Vec::new(),
            tsc_mode: None,
            max_memkb: info.max_pages.checked_mul(PAGE_KIB).filter(|_| info.domain != 0),
            target_memkb: info.tot_pages * PAGE_KIB,
            rtc_timeoffset: 0,
            localtime: None,
            max_grant_frames: None,
            max_maptrack_frames: None,
            sched_params: SchedParams::default(),
            event_channels: None,
            kernel: String::new(),
            cmdline: String::new(),
            ramdisk: None,
            pv: Empty {},
            arch_arm: Empty {},
            arch_x86: Empty {},
        },
        disks: Vec::new(),
        nics: Vec::new(),
        on_poweroff: None,
        on_reboot: None,
        on_watchdog: None,
        on_crash: None,
        on_soft_reset: None,
    }
}

/// JSON indented by four blanks, as Xen's library writes it; each line begins with `margin`.
fn text(value: &impl Serialize, margin: &str) -> Result<String, String> {
    let text = serde_json::to_string_pretty(value).map_err(|error| format!("JSON: {error}"))?;
    // The serializer indents by two blanks, and never breaks a line within a string.
    let line = |line: &str| {
        let rest = line.trim_start_matches(' ');
        let step = 2 * (line.len() - rest.len());
        format!("{margin}{:step$}{rest}", "")
    };
    let lines: Vec<String> = text.lines().map(line).collect();
    Ok(lines.join("\n"))
}

/// The text of a configuration, for a stream.
pub(super) fn of_domain(config: &DomainConfig, name: &str, uuid: &[u8; 16]) -> Result<String, String> {
    let config = DomainConfig { name: name.into(), ..config.clone() };
    text(&domain(&config, Some(uuid)), "")
}

/// Prints a value.
pub(super) async fn print(value: &impl Serialize) -> Outcome {
    let text = text(value, "")?;
    print::bytes(text.as_bytes()).await;
    println!();
    Ok(())
}

impl Shell {
    /// `xl list -l [DOMAIN...]`. One domain at a time is turned into text, with yields between.
    pub(super) async fn list_as_json(&self, names: &[&str]) -> Outcome {
        let list = self.selected(names)?;
        println!("[");
        let last = list.len().saturating_sub(1);
        for (at, info) in list.iter().enumerate() {
            let id = DomId::new(info.domain);
            let config = match self.toolstack.domain(id) {
                Some(made) => {
                    let mut json = domain(&made.config, Some(&made.uuid));
                    json.c_info.name = made.name;
                    json
                }
                None => bare(self.toolstack.name(id), info),
            };
            let text = text(&Listed { domid: info.domain, config }, "    ")?;
            print::bytes(text.as_bytes()).await;
            println!("{}", if at < last { "," } else { "" });
        }
        println!("]");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::tests::run;
    use crate::config::Config;

    /// The output of `xl create -n` of Xen 4.17 for such a file, without the members for features that microhv lacks:
    /// hotplug scripts, claims and NUMA.
    #[test]
    fn a_configuration_has_the_shape_of_xens() {
        let file = b"name='t'\nuuid='967d4fbe-53be-4b93-93a3-31df2ae86c93'\nkernel='/k'\nramdisk='/r'\n\
            memory=64\nmaxmem=128\nvcpus=1\nmaxvcpus=2\nextra='a \"b\"'\ncpus=['0','1-2']\ncpu_weight=512\npool='rt'\n\
            cap=0\nlocaltime=1\nrtc_timeoffset=7\ntsc_mode='native'\nmax_grant_frames=8\n\
            max_event_channels=100\non_poweroff='preserve'\non_reboot='rename-restart'\n\
            on_soft_reset='destroy'\nvif=['mac=0:16:3e:0:0:1,rate=1MB/s@20ms','bridge=b,mtu=9000,untrusted']\ndisk=['/dev/vda,raw,xvda,w','/dev/vdb,,xvdb,r,backend=dd']\n";
        let config = Config::parse("t.cfg", file).unwrap();
        let (config, _) = DomainConfig::from_config(&config).unwrap();
        let printed: serde_json::Value =
            serde_json::from_str(&text(&domain(&config, config.uuid.as_ref()), "").unwrap()).unwrap();
        let expected = serde_json::json!({
            "c_info": { "type": "pv", "name": "t", "uuid": "967d4fbe-53be-4b93-93a3-31df2ae86c93", "pool_name": "rt" },
            "b_info": {
                "max_vcpus": 2,
                "avail_vcpus": [0],
                "vcpu_hard_affinity": [[0], [1, 2]],
                "tsc_mode": "native",
                "max_memkb": 131_072,
                "target_memkb": 65_536,
                "rtc_timeoffset": 7,
                "localtime": "True",
                "max_grant_frames": 8,
                "sched_params": { "weight": 512 },
                "event_channels": 100,
                "kernel": "/k",
                "cmdline": "a \"b\"",
                "ramdisk": "/r",
                "type.pv": {},
                "arch_arm": {},
                "arch_x86": {},
            },
            "disks": [
                {
                    "pdev_path": "/dev/vda",
                    "vdev": "xvda",
                    "format": "raw",
                    "readwrite": 1,
                    "discard_enable": "True",
                },
                { "backend_domname": "dd", "pdev_path": "/dev/vdb", "vdev": "xvdb", "format": "raw" },
            ],
            "nics": [
                {
                    "devid": 0,
                    "mac": "00:16:3e:00:00:01",
                    "rate_bytes_per_interval": 20_000,
                    "rate_interval_usecs": 20_000,
                },
                { "devid": 1, "mtu": 9000, "bridge": "b", "trusted": "False" },
            ],
            "on_poweroff": "preserve",
            "on_reboot": "restart_rename",
        });
        assert_eq!(printed, expected);
    }

    #[test]
    fn a_dry_run_prints_json_and_makes_nothing() {
        for line in ["xl create -n", "xl -N create", "xl create --dryrun -q", "xl create -nd"] {
            let (outcome, output) = run(&format!("{line} name='x' kernel='/boot/absent' memory=8"));
            assert_eq!(outcome, Ok(()), "{line}");
            let json: serde_json::Value = serde_json::from_str(&output).expect(&output);
            assert_eq!(json["c_info"]["name"], "x");
            assert_eq!(json["b_info"]["target_memkb"], 8 << 10);
            assert!(output.starts_with("{\n    \"c_info\": {\n        \"type\": \"pv\","), "{output}");
        }
    }
}
