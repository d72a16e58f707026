//! A domain's configuration: the keys that `xl create` uses, checked.

mod reader;
#[cfg(test)]
mod records;
#[cfg(test)]
mod tests;

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::cpuid::CpuidPolicy;
use super::cpus::CpuSet;
use super::disk::DiskConfig;
use super::value::{Config, Diagnostic, Value, ValueKind};
use super::vif::VifConfig;
use crate::blkback::MAX_VBDS;
use crate::netback::MAX_VIFS;
use reader::{Reader, wrong};

/// Longest name of a domain, in bytes.
const NAME_MAX: usize = 255;
/// The weight of a domain whose configuration names none.
pub const USUAL_WEIGHT: u16 = 256;
/// vCPUs that a PV guest may have. ABI: `XEN_LEGACY_MAX_VCPUS` bounds `shared_info`; further vCPUs register
/// their `vcpu_info`.
const VCPUS_MAX: u64 = 128;
/// Most memory that a domain may be given, in MiB: 16 TiB.
pub const MEMORY_MAX_MIB: u64 = 16 << 20;

/// What to do with a domain that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `destroy`, and `coredump-destroy`, as there is nowhere to dump to.
    Destroy,
    /// `restart`, and `coredump-restart`.
    Restart,
    /// `rename-restart`: keep it under another name and start again.
    RenameRestart,
    /// `preserve`: keep it to look at.
    Preserve,
    /// `soft-reset`
    SoftReset,
}

/// How the guest's `rdtsc` behaves. ABI: `XEN_CPUID_TSC_MODE_*`, `XEN_DOMCTL_settscinfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TscMode {
    /// 0: native if the machine's TSC is reliable.
    Default,
    /// 1
    AlwaysEmulate,
    /// 2
    Native,
    /// 3, which Xen 4.17 takes for 0.
    NativeParavirt,
}

/// A domain to be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainConfig {
    /// The domain's name, at most 255 bytes, without `/` and control characters.
    pub name: String,
    /// The domain's UUID; `None`: to be chosen.
    pub uuid: Option<[u8; 16]>,
    /// The kernel's path in dom0.
    pub kernel: String,
    /// The ramdisk's path in dom0.
    pub ramdisk: Option<String>,
    /// The kernel's command line: bytes, as the configuration has them.
    pub cmdline: Vec<u8>,
    /// Memory at start, in MiB, at least 1.
    pub memory_mib: u64,
    /// The most memory that the domain may grow to, in MiB; at least `memory_mib`.
    pub maxmem_mib: u64,
    /// vCPUs that are up at start.
    pub vcpus: u32,
    /// The domain's number of vCPUs; at least `vcpus`.
    pub maxvcpus: u32,
    /// CPUs for each vCPU, in order; the last is for those after it too. Empty: any.
    pub cpus: Vec<CpuSet>,
    /// CPUs on which each vCPU had better run, likewise.
    pub cpus_soft: Vec<CpuSet>,
    /// Share of the CPUs, relative to others'; 256 is usual.
    pub cpu_weight: u16,
    /// The most that the domain uses, in percent of a CPU; 0: no bound.
    pub cap: u16,
    /// The CPU pool in which the domain begins, by name or number; `None`: pool 0.
    pub pool: Option<String>,
    /// What the guest sees of the CPU.
    pub cpuid: CpuidPolicy,
    /// Disks, in order.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, in order.
    pub vifs: Vec<VifConfig>,
    /// What to do after a power-off.
    pub on_poweroff: Action,
    /// What to do after a reboot.
    pub on_reboot: Action,
    /// What to do after a crash.
    pub on_crash: Action,
    /// What to do after a watchdog has fired.
    pub on_watchdog: Action,
    /// What to do after a soft reset.
    pub on_soft_reset: Action,
    /// How `rdtsc` behaves.
    pub tsc_mode: TscMode,
    /// Does its clock begin with local time, not UTC?
    pub localtime: bool,
    /// Seconds that its clock is ahead of the machine's.
    pub rtc_timeoffset: i32,
    /// Frames of its grant table; `None`: the hypervisor's default.
    pub max_grant_frames: Option<u32>,
    /// Highest version of its grant table.
    pub max_grant_version: Option<u32>,
    /// Frames of its map-track table; `None`: the hypervisor's default.
    pub max_maptrack_frames: Option<u32>,
    /// Highest event channel that it may have.
    pub max_event_channels: u32,
}

/// Whether `name` can be a domain's.
///
/// # Errors
/// What a valid name is, in words.
pub fn check_name(name: &str) -> Result<(), String> {
    let fits = !name.is_empty() && name.len() <= NAME_MAX;
    if !fits || name.contains('/') || name.contains(char::is_control) {
        return Err(format!("expected 1 to {NAME_MAX} bytes without `/` and control characters"));
    }
    // Such a name would be taken for a domain's number.
    if name.bytes().all(|b| b.is_ascii_digit()) {
        return Err("a name must not be a number".into());
    }
    Ok(())
}

impl DomainConfig {
    /// Makes a checked `DomainConfig` of a configuration. Keys without effect become warnings.
    ///
    /// # Errors
    /// The first key that is missing, of the wrong type or out of range.
    pub fn from_config(config: &Config) -> Result<(DomainConfig, Vec<Diagnostic>), Diagnostic> {
        let (domain, warnings) = Self::read(config);
        Ok((domain?, warnings))
    }

    /// Does the same, but returns the warnings in any case: a key that was ignored may be the reason for an
    /// error.
    pub fn read(config: &Config) -> (Result<DomainConfig, Diagnostic>, Vec<Diagnostic>) {
        let mut reader = Reader::new(config);
        let domain = reader.refused().and_then(|()| reader.domain());
        (domain, reader.warnings())
    }
}

impl Reader<'_> {
    fn action(&mut self, key: &'static str, default: Action) -> Result<Action, Diagnostic> {
        let choices = [
            ("destroy", Action::Destroy),
            ("restart", Action::Restart),
            ("rename-restart", Action::RenameRestart),
            ("preserve", Action::Preserve),
            ("coredump-destroy", Action::Destroy),
            ("coredump-restart", Action::Restart),
            ("soft-reset", Action::SoftReset),
        ];
        self.choice(key, &choices, default)
    }

    fn domain(&mut self) -> Result<DomainConfig, Diagnostic> {
        let name = self.name()?;
        self.guest_type()?;
        let kernel = self.text("kernel")?.filter(|(_, path)| !path.is_empty());
        let kernel = kernel.ok_or_else(|| self.missing("kernel"))?.1.into_owned();
        let memory_mib = self.number("memory", 1, MEMORY_MAX_MIB)?;
        let maxmem_mib = self.number("maxmem", 1, MEMORY_MAX_MIB)?;
        let memory_mib = memory_mib.or(maxmem_mib).unwrap_or(32);
        let maxmem_mib = self.at_least("maxmem", maxmem_mib, "memory", memory_mib)?;
        let vcpus = self.number("vcpus", 1, VCPUS_MAX)?;
        let maxvcpus = self.number("maxvcpus", 1, VCPUS_MAX)?;
        let vcpus = vcpus.unwrap_or(1);
        let maxvcpus = self.at_least("maxvcpus", maxvcpus, "vcpus", vcpus)?;
        let (mut cpus, mut cpus_soft) = (self.cpus("cpus")?, self.cpus("cpus_soft")?);
        cpus.truncate(maxvcpus as usize);
        cpus_soft.truncate(maxvcpus as usize);
        let tsc_modes = [
            ("default", TscMode::Default),
            ("always_emulate", TscMode::AlwaysEmulate),
            ("native", TscMode::Native),
            ("native_paravirt", TscMode::NativeParavirt),
            ("0", TscMode::Default),
            ("1", TscMode::AlwaysEmulate),
            ("2", TscMode::Native),
            ("3", TscMode::NativeParavirt),
        ];
        Ok(DomainConfig {
            name,
            uuid: self.uuid()?,
            kernel,
            ramdisk: self.string("ramdisk")?.filter(|path| !path.is_empty()),
            cmdline: self.cmdline()?,
            memory_mib,
            maxmem_mib,
            vcpus: vcpus as u32,
            maxvcpus: maxvcpus as u32,
            cpus,
            cpus_soft,
            cpu_weight: self.small("cpu_weight", 1, 65535)?.map_or(USUAL_WEIGHT, |weight| weight as u16),
            // As libxl has it: more than all vCPUs can use is a slip.
            cap: self.small("cap", 0, maxvcpus as u32 * 100)?.unwrap_or(0) as u16,
            pool: self.string("pool")?.filter(|pool| !pool.is_empty()),
            cpuid: self.cpuid()?,

            disks: self.disks()?,
            vifs: self.vifs()?,
            on_poweroff: self.action("on_poweroff", Action::Destroy)?,
            on_reboot: self.action("on_reboot", Action::Restart)?,
            on_crash: self.action("on_crash", Action::Destroy)?,
            on_watchdog: self.action("on_watchdog", Action::Destroy)?,
            on_soft_reset: self.action("on_soft_reset", Action::SoftReset)?,
            tsc_mode: self.choice("tsc_mode", &tsc_modes, TscMode::Default)?,
            localtime: self.small("localtime", 0, 1)? == Some(1),
            rtc_timeoffset: self.rtc_timeoffset()?,
            max_grant_frames: self.small("max_grant_frames", 1, 4096)?,
            max_grant_version: self.small("max_grant_version", 1, 2)?,
            max_maptrack_frames: self.small("max_maptrack_frames", 0, 65536)?,
            max_event_channels: self.small("max_event_channels", 1, 131_071)?.unwrap_or(1023),
        })
    }

    fn name(&mut self) -> Result<String, Diagnostic> {
        let (setting, name) = self.text("name")?.ok_or_else(|| self.missing("name"))?;
        check_name(&name).map_err(|text| wrong(setting, &setting.value, text))?;
        Ok(name.into_owned())
    }

    fn guest_type(&mut self) -> Result<(), Diagnostic> {
        if let Some((setting, kind)) = self.text("type")?
            && kind != "pv"
        {
            return Err(wrong(setting, &setting.value, format!("`{kind}`: only `pv` guests can be run")));
        }
        if let Some((setting, builder)) = self.text("builder")?
            && !matches!(&*builder, "generic" | "linux")
        {
            return Err(wrong(setting, &setting.value, format!("`{builder}`: only `generic` is supported")));
        }
        Ok(())
    }

    /// `larger`, which defaults to `smaller` and must not be less.
    fn at_least(&self, key: &str, larger: Option<u64>, other: &str, smaller: u64) -> Result<u64, Diagnostic> {
        let larger = larger.unwrap_or(smaller);
        if larger >= smaller {
            return Ok(larger);
        }
        let text = format!("{larger} is less than `{other}`, {smaller}");
        Err(match self.config.get(key) {
            Some(setting) => wrong(setting, &setting.value, text),
            None => Diagnostic { position: None, key: Some(key.to_owned()), text },
        })
    }

    /// The kernel's command line: `cmdline`, or `root` and `extra` joined.
    fn cmdline(&mut self) -> Result<Vec<u8>, Diagnostic> {
        let cmdline = self.bytes("cmdline")?;
        let root = self.bytes("root")?.map(|root| [b"root=", root].concat());
        let extra = self.bytes("extra")?;
        Ok(match (cmdline, root, extra) {
            (Some(cmdline), ..) => cmdline.to_owned(),
            (None, Some(root), Some(extra)) => [&root, &b" "[..], extra].concat(),
            (None, root, extra) => root.or(extra.map(<[u8]>::to_owned)).unwrap_or_default(),
        })
    }

    fn uuid(&mut self) -> Result<Option<[u8; 16]>, Diagnostic> {
        let Some((setting, text)) = self.text("uuid")? else { return Ok(None) };
        let uuid = parse_uuid(&text);
        let expected = "expected a UUID like 123e4567-e89b-12d3-a456-426614174000";
        uuid.map(Some).ok_or_else(|| wrong(setting, &setting.value, expected))
    }

    /// The sets of CPUs of the vCPUs.
    fn cpus(&mut self, key: &'static str) -> Result<Vec<CpuSet>, Diagnostic> {
        let Some(setting) = self.take(key) else { return Ok(Vec::new()) };
        let value = |value: &Value| {
            let text = value.text().ok_or_else(|| wrong(setting, value, "expected a string"))?;
            CpuSet::parse(&text).map_err(|error| wrong(setting, value, error))
        };
        match &setting.value.kind {
            ValueKind::List(list) => list.iter().map(value).collect(),
            _ => Ok(Vec::from([value(&setting.value)?])),
        }
    }

    fn cpuid(&mut self) -> Result<CpuidPolicy, Diagnostic> {
        let mut policy = CpuidPolicy::default();
        let Some(setting) = self.take("cpuid") else { return Ok(policy) };
        let (values, by_leaf) = match &setting.value.kind {
            ValueKind::List(list) => (&**list, true),
            _ => (core::slice::from_ref(&setting.value), false),
        };
        for value in values {
            let text = value.text().ok_or_else(|| wrong(setting, value, "expected a string"))?;
            let added = if by_leaf { policy.add_leaf(&text) } else { policy.add_names(&text) };
            added.map_err(|error| wrong(setting, value, error))?;
        }
        Ok(policy)
    }

    fn disks(&mut self) -> Result<Vec<DiskConfig>, Diagnostic> {
        let disks = self.entries("disk", |text| DiskConfig::parse(text).map(|disk| (disk, Vec::new())))?;
        let Some((setting, values)) = self.list("disk")? else { return Ok(disks) };
        if let Some(value) = values.get(MAX_VBDS) {
            return Err(wrong(setting, value, format!("a domain has at most {MAX_VBDS} disks")));
        }
        for (at, (disk, value)) in disks.iter().zip(values).enumerate() {
            if disks[..at].iter().any(|other| other.devid == disk.devid) {
                return Err(wrong(setting, value, format!("vdev `{}` is given twice", disk.vdev)));
            }
        }
        Ok(disks)
    }

    fn vifs(&mut self) -> Result<Vec<VifConfig>, Diagnostic> {
        let mut vifs = self.entries("vif", VifConfig::parse)?;
        let Some((setting, values)) = self.list("vif")? else { return Ok(vifs) };
        if let Some(value) = values.get(MAX_VIFS) {
            return Err(wrong(setting, value, format!("a domain has at most {MAX_VIFS} network interfaces")));
        }
        for (at, value) in values.iter().enumerate() {
            let number = vifs[at].devid.unwrap_or(at as u32);
            if vifs[..at].iter().any(|other| other.devid == Some(number)) {
                return Err(wrong(setting, value, format!("`devid={number}` is given twice")));
            }
            vifs[at].devid = Some(number);
        }
        Ok(vifs)
    }

    fn rtc_timeoffset(&mut self) -> Result<i32, Diagnostic> {
        let Some((setting, text)) = self.text("rtc_timeoffset")? else { return Ok(0) };
        let seconds = text.trim_ascii().parse();
        seconds.map_err(|_| wrong(setting, &setting.value, "expected a number of seconds, of 32 bits"))
    }
}

/// Reads a UUID: 32 hexadecimal digits, with or without hyphens after 8, 12, 16 and 20 of them.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let hyphens = [8, 13, 18, 23];
    let digits: Vec<u8> = match text.len() {
        32 => text.bytes().collect(),
        36 if hyphens.iter().all(|&at| text.as_bytes()[at] == b'-') => {
            text.bytes().enumerate().filter(|(at, _)| !hyphens.contains(at)).map(|(_, b)| b).collect()
        }
        _ => return None,
    };
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high << 4 | low) as u8;
    }
    Some(uuid)
}
