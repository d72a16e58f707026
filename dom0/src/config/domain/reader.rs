//! Keys of a configuration by type: each is taken once, and those that nobody takes become warnings.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::config::value::{Config, Diagnostic, Setting, Value, ValueKind};

/// Warnings that are told each; of more, only the number is.
const WARNINGS_MAX: usize = 32;

/// Keys that are fine in an `xl.cfg` and mean nothing to a PV guest here.
const IGNORED: &[&str] = &[
    "acpi",
    "apic",
    "altp2m",
    "audio",
    "boot",
    "claim_mode",
    "cpuid",
    "device_model_override",
    "driver_domain",
    "hap",
    "hpet",
    "nestedhvm",
    "nographic",
    "pae",
    "pool",
    "sdl",
    "seclabel",
    "serial",
    "shadow_memory",
    "spice",
    "stdvga",
    "timer_mode",
    "usb",
    "usbdevice",
    "vga",
    "videoram",
    "viridian",
    "vnc",
    "vncconsole",
    "vnclisten",
    "vncpasswd",
    "vncunused",
    "xen_platform_pci",
    "vif_default_bridge",
    "nomigrate",
    "suppress_spurious_page_faults",
];

/// Keys that ask for something that is not there: the guest would miss it.
const UNSUPPORTED: &[&str] = &[
    "bootloader",
    "bootloader_args",
    "channel",
    "device_tree",
    "dtdev",
    "firmware",
    "ioports",
    "iomem",
    "irqs",
    "nics",
    "numa_placement",
    "p9",
    "pci",
    "pvcalls",
    "rdm",
    "usbctrl",
    "usbdev",
    "vfb",
    "vkb",
    "vnuma",
    "vscsi",
    "vtpm",
    "e820_host",
    "cpus_soft",
];

/// Takes keys out of a configuration and remembers which.
pub(super) struct Reader<'a> {
    pub(super) config: &'a Config,
    taken: Vec<&'static str>,
}

pub(super) fn wrong(setting: &Setting, value: &Value, text: impl Into<String>) -> Diagnostic {
    Diagnostic { position: Some(value.position.clone()), key: Some(setting.key.clone()), text: text.into() }
}

impl<'a> Reader<'a> {
    pub(super) fn new(config: &'a Config) -> Self {
        Self { config, taken: Vec::new() }
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<&'a Setting> {
        self.taken.push(key);
        self.config.get(key)
    }

    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<(&'a Setting, &'a str)>, Diagnostic> {
        let Some(setting) = self.take(key) else { return Ok(None) };
        let text = setting.value.text().ok_or_else(|| wrong(setting, &setting.value, "expected a string"))?;
        Ok(Some((setting, text)))
    }

    pub(super) fn string(&mut self, key: &'static str) -> Result<Option<String>, Diagnostic> {
        Ok(self.text(key)?.map(|(_, text)| text.to_owned()))
    }

    pub(super) fn number(
        &mut self,
        key: &'static str,
        min: u64,
        max: u64,
    ) -> Result<Option<u64>, Diagnostic> {
        let Some(setting) = self.take(key) else { return Ok(None) };
        let number = match &setting.value.kind {
            ValueKind::Number(number, _) => Some(*number),
            // Many files put numbers in quotes.
            ValueKind::Text(text) => text.trim().parse().ok(),
            ValueKind::List(_) => None,
        };
        let number = number.ok_or_else(|| wrong(setting, &setting.value, "expected a number"))?;
        if !(min..=max).contains(&number) {
            let text = format!("{number} is out of range: {min} to {max}");
            return Err(wrong(setting, &setting.value, text));
        }
        Ok(Some(number))
    }

    pub(super) fn small(&mut self, key: &'static str, min: u32, max: u32) -> Result<Option<u32>, Diagnostic> {
        // Within the bounds, so it fits.
        Ok(self.number(key, min.into(), max.into())?.map(|number| number as u32))
    }

    pub(super) fn list(
        &mut self,
        key: &'static str,
    ) -> Result<Option<(&'a Setting, &'a [Value])>, Diagnostic> {
        let Some(setting) = self.take(key) else { return Ok(None) };
        match &setting.value.kind {
            ValueKind::List(list) => Ok(Some((setting, list))),
            _ => Err(wrong(setting, &setting.value, "expected a list")),
        }
    }

    pub(super) fn entries<T>(
        &mut self,
        key: &'static str,
        parse: fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, Diagnostic> {
        let Some((setting, list)) = self.list(key)? else { return Ok(Vec::new()) };
        let entry = |value: &Value| {
            let text = value.text().ok_or_else(|| wrong(setting, value, "expected a string"))?;
            parse(text).map_err(|error| wrong(setting, value, error))
        };
        list.iter().map(entry).collect()
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
        default: T,
    ) -> Result<T, Diagnostic> {
        let Some((setting, text)) = self.text(key)? else { return Ok(default) };
        let found = choices.iter().find(|(name, _)| *name == text);
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("`{name}`")).collect();
            wrong(setting, &setting.value, format!("`{text}`: expected one of {}", names.join(", ")))
        })
    }

    pub(super) fn missing(&self, key: &str) -> Diagnostic {
        let text = format!("{}: no `{key}` is given", self.config.name);
        Diagnostic { position: None, key: None, text }
    }

    pub(super) fn warnings(&self) -> Vec<Diagnostic> {
        // By a tree: there may be as many keys as values.
        let taken: BTreeSet<&str> = self.taken.iter().copied().collect();
        let ignored: BTreeSet<&str> = IGNORED.iter().copied().collect();
        let has_cmdline = self.config.get("cmdline").is_some();
        let warn = |setting: &'a Setting| {
            let key = setting.key.as_str();
            let text = if taken.contains(key) {
                let overridden = matches!(key, "root" | "extra") && has_cmdline;
                if !overridden {
                    return None;
                }
                "ignored, as `cmdline` is given"
            } else if ignored.contains(key) {
                return None;
            } else if UNSUPPORTED.contains(&key) {
                "not supported, ignored"
            } else {
                "unknown key, ignored"
            };
            Some((setting, text))
        };
        let mut all = self.config.settings().iter().filter_map(warn);
        let told = all.by_ref().take(WARNINGS_MAX).map(|(setting, text)| Diagnostic {
            position: Some(setting.position.clone()),
            key: Some(setting.key.clone()),
            text: text.to_owned(),
        });
        let mut warnings: Vec<Diagnostic> = told.collect();
        let more = all.count();
        if more > 0 {
            let text = format!("{}: and {more} keys more that are ignored", self.config.name);
            warnings.push(Diagnostic { position: None, key: None, text });
        }
        warnings
    }
}
