//! The configuration that stands in a saved domain, `libxl_domain_config` as JSON, read back.
//!
//! The members become lines of a configuration file, so that one reader checks all configurations.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde_json::{Map, Value};

use crate::config::{Config, DomainConfig};

type Members = Map<String, Value>;

/// Lines of a configuration file.
#[derive(Default)]
struct Lines(String);

/// A text as a configuration file has it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '\\' | '"' => quoted.extend(['\\', c]),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

impl Lines {
    fn add(&mut self, key: &str, value: impl core::fmt::Display) {
        self.0.push_str(&format!("{key}={value}\n"));
    }

    fn text(&mut self, key: &str, value: Option<&Value>) -> Result<(), String> {
        if let Some(text) = value.and_then(Value::as_str).filter(|text| !text.is_empty()) {
            self.add(key, quoted(text));
        }
        Ok(())
    }

    fn number(&mut self, key: &str, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_i64) {
            self.add(key, number);
        }
    }

    fn list(&mut self, key: &str, entries: &[String]) -> Result<(), String> {
        if !entries.is_empty() {
            let entries: Vec<String> = entries.iter().map(|entry| quoted(entry)).collect();
            self.add(key, format!("[{}]", entries.join(",")));
        }
        Ok(())
    }
}

fn members<'a>(of: &'a Members, name: &str) -> Result<&'a Members, String> {
    of.get(name).and_then(Value::as_object).ok_or_else(|| format!("the saved configuration has no `{name}`"))
}

fn elements<'a>(of: &'a Members, name: &str) -> &'a [Value] {
    of.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is_true(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(is_true)) => *is_true,
        Some(Value::String(text)) => text == "True",
        Some(Value::Number(number)) => number.as_i64() != Some(0),
        _ => false,
    }
}

/// `KEY=VALUE` for each of these members that is there.
fn words(of: &Members, names: &[(&str, &str)]) -> Vec<String> {
    let word = |(member, key): &(&str, &str)| match of.get(*member)? {
        Value::String(text) if !text.is_empty() => Some(format!("{key}={text}")),
        Value::Number(number) => Some(format!("{key}={number}")),
        _ => None,
    };
    names.iter().filter_map(word).collect()
}

fn disk(disk: &Value) -> Option<String> {
    let disk = disk.as_object()?;
    let mut all = words(disk, &[("format", "format"), ("vdev", "vdev"), ("backend_domname", "backend")]);
    if disk.get("backend").and_then(Value::as_str) == Some("phy") {
        all.push("backendtype=phy".to_string());
    }
    let is_writable = disk.get("readwrite").is_some_and(|value| is_true(Some(value)));
    all.push(format!("access={}", if is_writable { "rw" } else { "ro" }));
    if is_true(disk.get("is_cdrom")) {
        all.push("devtype=cdrom".to_string());
    }
    if is_writable && !is_true(disk.get("discard_enable")) {
        all.push("no-discard".to_string());
    }
    if disk.get("trusted").is_some_and(|value| !is_true(Some(value))) {
        all.push("untrusted".to_string());
    }
    // The target comes last, since it takes the rest of the entry.
    if let Some(path) = disk.get("pdev_path").and_then(Value::as_str).filter(|path| !path.is_empty()) {
        all.push(format!("target={path}"));
    }
    Some(all.join(","))
}

fn vif(vif: &Value) -> Option<String> {
    let vif = vif.as_object()?;
    let mut all = words(
        vif,
        &[
            ("mac", "mac"),
            ("bridge", "bridge"),
            ("vlan", "vlan"),
            ("gatewaydev", "gatewaydev"),
            ("ifname", "vifname"),
            ("backend_domname", "backend"),
            ("ip", "ip"),
            ("mtu", "mtu"),
            ("script", "script"),
        ],
    );
    let number = |name| vif.get(name).and_then(Value::as_u64).filter(|number| *number > 0);
    if let (Some(bytes), Some(interval)) = (number("rate_bytes_per_interval"), number("rate_interval_usecs"))
    {
        let per_second = u128::from(bytes) * 1_000_000 / u128::from(interval);
        all.push(format!("rate={per_second}B/s@{interval}us"));
    }
    if vif.get("trusted").is_some_and(|value| !is_true(Some(value))) {
        all.push("untrusted".to_string());
    }
    let rules = elements(vif, "rules").iter().filter_map(Value::as_str);
    all.extend(rules.map(|rule| format!("rule={rule}")));
    Some(all.join(","))
}

/// CPUs of each vCPU; an empty set is all.
fn affinity(sets: &[Value]) -> Vec<String> {
    let text = |set: &Value| {
        let cpus: Vec<String> =
            set.as_array().map_or(&[][..], Vec::as_slice).iter().map(ToString::to_string).collect();
        if cpus.is_empty() { "all".to_string() } else { cpus.join(",") }
    };
    sets.iter().map(text).collect()
}

fn lines(config: &Members) -> Result<String, String> {
    let (create, build) = (members(config, "c_info")?, members(config, "b_info")?);
    let kind = create.get("type").and_then(Value::as_str).unwrap_or("pv");
    if kind != "pv" {
        return Err(format!("the saved domain is of the type `{kind}`, and all domains here are PV"));
    }
    let mut out = Lines::default();
    for (key, value) in [
        ("name", create.get("name")),
        ("uuid", create.get("uuid")),
        ("pool", create.get("pool_name")),
        ("kernel", build.get("kernel")),
        ("ramdisk", build.get("ramdisk")),
        ("cmdline", build.get("cmdline")),
        ("tsc_mode", build.get("tsc_mode")),
    ] {
        out.text(key, value)?;
    }
    if build.get("kernel").is_none() {
        // A boot loader loaded it, where the domain was made. The domain needs no kernel until it reboots.
        out.add("kernel", "'(none)'");
    }
    let kib = |name: &str| build.get(name).and_then(Value::as_u64);
    for (key, name) in [("memory", "target_memkb"), ("maxmem", "max_memkb")] {
        if let Some(kib) = kib(name) {
            out.add(key, kib.div_ceil(1024));
        }
    }
    let vcpus = elements(build, "avail_vcpus").len();
    if vcpus > 0 {
        out.add("vcpus", vcpus);
    }
    for (key, name) in [
        ("maxvcpus", "max_vcpus"),
        ("rtc_timeoffset", "rtc_timeoffset"),
        ("max_grant_frames", "max_grant_frames"),
        ("max_maptrack_frames", "max_maptrack_frames"),
        ("max_event_channels", "event_channels"),
    ] {
        out.number(key, build.get(name));
    }
    if is_true(build.get("localtime")) {
        out.add("localtime", 1);
    }
    if let Some(params) = build.get("sched_params").and_then(Value::as_object) {
        out.number("cpu_weight", params.get("weight"));
        out.number("cap", params.get("cap"));
    }
    out.list("cpus", &affinity(elements(build, "vcpu_hard_affinity")))?;
    out.list("cpus_soft", &affinity(elements(build, "vcpu_soft_affinity")))?;
    let disks: Vec<String> = elements(config, "disks").iter().filter_map(disk).collect();
    out.list("disk", &disks)?;
    let vifs: Vec<String> = elements(config, "nics").iter().filter_map(vif).collect();
    out.list("vif", &vifs)?;
    for key in ["on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset"] {
        let action = config.get(key).and_then(Value::as_str).unwrap_or("destroy");
        out.add(key, quoted(&action.replace("restart_rename", "rename-restart").replace('_', "-")));
    }
    Ok(out.0)
}

/// Reads a saved configuration; gives what is ignored of it, too.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn read(json: &str) -> Result<(DomainConfig, Vec<String>), String> {
    let value: Value =
        serde_json::from_str(json).map_err(|error| format!("the saved configuration: {error}"))?;
    let config = value.as_object().ok_or("the saved configuration is no JSON object")?;
    let text = lines(config)?;
    let config = Config::parse("saved configuration", text.as_bytes()).map_err(|error| format!("{error}"))?;
    let (read, warnings) = DomainConfig::read(&config);
    let warnings = warnings.iter().map(|warning| format!("{warning}")).collect();
    read.map(|config| (config, warnings)).map_err(|error| format!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::super::json;
    use super::*;

    fn there_and_back(text: &str) {
        let config = Config::parse("t.cfg", text.as_bytes()).unwrap();
        let (config, _) = DomainConfig::from_config(&config).unwrap();
        let uuid = config.uuid.unwrap_or([7; 16]);
        let json = json::of_domain(&config, &config.name, &uuid).unwrap();
        let (again, warnings) = read(&json).unwrap();
        let expected = DomainConfig { uuid: Some(uuid), ..config };
        assert_eq!(again, expected, "{json}");
        assert_eq!(warnings, Vec::<String>::new());
    }

    #[test]
    fn what_is_written_is_read() {
        there_and_back("name='web'\nkernel='/boot/k'\nmemory=64\n");
        there_and_back(
            "name='t'\nuuid='967d4fbe-53be-4b93-93a3-31df2ae86c93'\nkernel='/k'\nramdisk='/r'\n\
             memory=64\nmaxmem=128\nvcpus=1\nmaxvcpus=2\nextra='a \"b\"'\ncpu_weight=512\ncap=30\n\
             localtime=1\nrtc_timeoffset=7\ntsc_mode='native'\nmax_grant_frames=8\nmax_event_channels=100\n\
             on_poweroff='preserve'\non_reboot='rename-restart'\non_crash='restart'\non_soft_reset='destroy'\n\
             vif=['mac=00:16:3e:00:00:01,rate=1MB/s@20ms','mac=00:16:3e:00:00:02,bridge=b,mtu=9000,untrusted']\n\
             disk=['/dev/vda,raw,xvda,w','/dev/vdb,,xvdb,r,backend=dd','/dev/vdc,raw,xvdc,w,no-discard']\n",
        );
    }

    #[test]
    fn no_text_of_a_configuration_is_lost() {
        there_and_back(
            "name='t'\nkernel='/k'\nmemory=64\nextra='a \\\\ \\' \\\" \\x09 b'\n\
             disk=['/dev/vda,raw,xvda,w,untrusted','/dev/vdb,raw,xvdb,r']\n",
        );
    }

    #[test]
    fn what_is_no_domain_of_ours_is_refused() {
        for (json, why) in [
            ("", "EOF"),
            ("[]", "no JSON object"),
            ("{}", "no `c_info`"),
            (r#"{"c_info":{"type":"hvm","name":"w"},"b_info":{}}"#, "all domains here are PV"),
            (r#"{"c_info":{"type":"pv","name":"a\nkernel='x'"},"b_info":{"target_memkb":65536}}"#, "name"),
            (r#"{"c_info":{"type":"pv"},"b_info":{"target_memkb":4096}}"#, "name"),
        ] {
            let told = read(json).unwrap_err();
            assert!(told.contains(why), "{json}: {told}");
        }
    }
}
