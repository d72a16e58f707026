//! One entry of `disk=[...]`.
//!
//! Format: `xl-disk-configuration(5)` of Xen 4.17, the deprecated prefixes included.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;

use super::vdev::vdev_number;

/// How the target is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendType {
    /// A block device of dom0.
    Phy,
    /// A file, or a block device if the target is one.
    Any,
}

/// A virtual disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The target's name in the backend's domain; empty only for a CD drive without a medium.
    pub target: String,
    /// The domain, by name or number, whose backend serves it; `None`: dom0's.
    pub backend_domain: Option<String>,
    /// How to open it.
    pub backend: BackendType,
    /// The name in the guest, such as `xvda`.
    pub vdev: String,
    /// The number of that name: the device's in xenstore.
    pub devid: u32,
    /// May the guest write?
    pub writable: bool,
    /// Is it a CD drive?
    pub cdrom: bool,
    /// Are discards passed on?
    pub discard: bool,
    /// May the guest trust the backend?
    pub trusted: bool,
}

/// Formats that the manual knows; `empty` is a CD drive without a medium.
const FORMATS: [&str; 6] = ["raw", "qcow", "qcow2", "vhd", "qed", "empty"];

/// Prefixes of the target in older files, and the format or script that each means. Some mean nothing any more.
const PREFIXES: [(&str, Means); 15] = [
    ("raw", Means::Format("raw")),
    ("qcow", Means::Format("qcow")),
    ("qcow2", Means::Format("qcow2")),
    ("vhd", Means::Format("vhd")),
    ("iscsi", Means::Script),
    ("nbd", Means::Script),
    ("enbd", Means::Script),
    ("drbd", Means::Script),
    ("tapdisk", Means::Nothing),
    ("tap", Means::Nothing),
    ("tap2", Means::Nothing),
    ("aio", Means::Nothing),
    ("ioemu", Means::Nothing),
    ("file", Means::Nothing),
    ("phy", Means::Block),
];
const NO_SCRIPTS: &str = "dom0 runs no scripts";

/// What a prefix means.
#[derive(Clone, Copy)]
enum Means {
    Nothing,
    /// A block device.
    Block,
    Format(&'static str),
    /// `block-` and the prefix.
    Script,
}

/// What the words of an entry have said so far.
#[derive(Default)]
struct Spec {
    target: Option<String>,
    format: Option<&'static str>,
    vdev: Option<String>,
    writable: Option<bool>,
    /// The access was given by its position.
    access_placed: bool,
    backend: Option<BackendType>,
    backend_domain: Option<String>,
    cdrom: bool,
    no_discard: bool,
    untrusted: bool,
    /// A prefix says the format too, so that the word after the target is the vdev.
    prefixed: bool,
}

impl DiskConfig {
    /// Reads one entry.
    ///
    /// # Errors
    /// What is wrong with the entry, in words.
    pub fn parse(text: &str) -> Result<DiskConfig, String> {
        let mut spec = Spec::default();
        let mut rest = text;
        loop {
            rest = rest.trim_ascii_start();
            // `target=` takes the rest of the entry, commas included.
            if let Some(target) = rest.strip_prefix("target=") {
                let target = target.strip_suffix(',').unwrap_or(target);
                set("target", &mut spec.target, target)?;
                break;
            }
            if let Some(after) = spec.prefix(rest)? {
                rest = after;
                continue;
            }
            if rest.is_empty() {
                break;
            }
            let (word, after) = rest.split_once(',').unwrap_or((rest, ""));
            rest = after;
            let word = word.trim_ascii_end();
            match word.split_once('=') {
                Some((key, value)) => spec.named(key, value)?,
                None if spec.flag(word)? => {}
                None => spec.positional(word)?,
            }
        }
        spec.finish()
    }
}

/// Sets a property, which must not have been set before.
fn set(what: &str, place: &mut Option<String>, value: &str) -> Result<(), String> {
    match place {
        Some(old) if !old.is_empty() => Err(format!("the {what} is given twice")),
        _ => {
            *place = Some(value.to_owned());
            Ok(())
        }
    }
}

impl Spec {
    /// Takes a prefix off `rest` and returns the text behind it; `None`: there is no prefix.
    fn prefix<'a>(&mut self, rest: &'a str) -> Result<Option<&'a str>, String> {
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let Some((prefix, after)) = rest.split_once(':').filter(|(prefix, _)| prefix.chars().all(word))
        else {
            return Ok(None);
        };
        match PREFIXES.iter().find(|(known, _)| *known == prefix).map(|(_, means)| *means) {
            Some(Means::Nothing) => {}
            Some(Means::Block) => _ = self.backend.get_or_insert(BackendType::Phy),
            Some(Means::Format(format)) => self.format(format)?,
            Some(Means::Script) => {
                return Err(format!("`{prefix}:` means `script=block-{prefix}`: {NO_SCRIPTS}"));
            }
            // A target, or a vdev with its type.
            None if !prefix.starts_with(|c: char| c.is_ascii_lowercase()) || after.starts_with(word) => {
                return Ok(None);
            }
            None => return Err(format!("`{prefix}:`: no such prefix of a disk")),
        }
        self.prefixed = true;
        Ok(Some(after))
    }

    fn positional(&mut self, word: &str) -> Result<(), String> {
        let Some(target) = &self.target else { return set("target", &mut self.target, word) };
        if !self.prefixed && self.format.is_none() {
            // xm wrote an empty CD drive so: `,hdc:cdrom,r`.
            if target.is_empty() && word.contains(':') {
                self.format = Some("empty");
                return self.vdev_and_type(word);
            }
            return match format_named(word) {
                Some(format) => self.format(format),
                None => {
                    Err(format!("`{word}` stands where the format does: {}, or nothing", FORMATS.join(", ")))
                }
            };
        }
        if self.vdev.is_none() {
            return self.vdev_and_type(word);
        }
        if !self.access_placed {
            self.access_placed = true;
            return self.access(word);
        }
        Err(format!("`{word}`: too many words"))
    }

    /// Reads a vdev given by its position, with a type behind it or without.
    fn vdev_and_type(&mut self, word: &str) -> Result<(), String> {
        match word.rsplit_once(':') {
            Some((vdev, kind)) => {
                self.devtype(kind)?;
                set("vdev", &mut self.vdev, vdev)
            }
            None => set("vdev", &mut self.vdev, word),
        }
    }

    fn flag(&mut self, word: &str) -> Result<bool, String> {
        match word {
            "cdrom" => self.cdrom = true,
            "discard" => self.no_discard = false,
            "no-discard" => self.no_discard = true,
            "trusted" => self.untrusted = false,
            "untrusted" => self.untrusted = true,
            // Both words change nothing: dom0 has no disk cache, and disks are never replicated to a second
            // machine (COLO).
            "direct-io-safe" | "no-colo" => {}
            "colo" => return Err("colo: dom0 copies no domain to a second machine".to_owned()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn named(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "format" => match format_named(value) {
                Some(format) => self.format(format),
                None => Err(format!("format `{value}`: expected one of {}", FORMATS.join(", "))),
            },
            "vdev" => set("vdev", &mut self.vdev, value),
            "access" => self.access(value),
            "devtype" => self.devtype(value),
            "backendtype" => self.backendtype(value),
            "specification" => match value {
                "xen" => Ok(()),
                "virtio" => Err("specification `virtio`: dom0 serves `xen` disks only".to_owned()),
                _ => Err(format!("specification `{value}`: expected `xen`")),
            },
            "backend" => match value {
                "" => Err("backend: no domain".to_owned()),
                "0" | "Domain-0" => Ok(()),
                _ => set("backend", &mut self.backend_domain, value),
            },
            "script" => Err(format!("script `{value}`: {NO_SCRIPTS}")),
            // These words are details of the word `colo`.
            "colo-host" | "colo-export" | "active-disk" | "hidden-disk" => Ok(()),
            "colo-port" if value.parse().is_ok_and(|port: u16| port != 0) => Ok(()),
            "colo-port" => Err(format!("colo-port `{value}`: expected a port")),
            _ => Err(format!(
                "`{key}`: no such parameter of a disk (a target with `=` in it is given as `target=`)"
            )),
        }
    }

    fn format(&mut self, format: &'static str) -> Result<(), String> {
        match self.format {
            Some(old) if old != format => Err(format!("format `{format}`: it is `{old}` already")),
            _ => {
                self.format = Some(format);
                Ok(())
            }
        }
    }

    fn access(&mut self, value: &str) -> Result<(), String> {
        self.writable = Some(match value {
            "rw" | "w" | "" => true,
            "ro" | "r" => false,
            _ => return Err(format!("access `{value}`: expected `rw`, `w`, `ro` or `r`")),
        });
        Ok(())
    }

    fn backendtype(&mut self, value: &str) -> Result<(), String> {
        let backend = match value {
            "phy" => BackendType::Phy,
            "tap" | "qdisk" => BackendType::Any,
            "standalone" => return Err("backendtype `standalone`: it has no `xen` disks".to_owned()),
            _ => return Err(format!("backendtype `{value}`: expected `phy`, `tap` or `qdisk`")),
        };
        self.backend = Some(backend);
        Ok(())
    }

    fn devtype(&mut self, kind: &str) -> Result<(), String> {
        self.cdrom = match kind {
            "cdrom" => true,
            "disk" => false,
            _ => return Err(format!("devtype `{kind}`: expected `disk` or `cdrom`")),
        };
        Ok(())
    }

    fn finish(self) -> Result<DiskConfig, String> {
        let target = self.target.unwrap_or_default();
        if target.is_empty() && !self.cdrom {
            return Err("no target".to_owned());
        }
        match self.format {
            None | Some("raw") => {}
            Some("empty") if target.is_empty() => {}
            Some("empty") => return Err(format!("format `empty`: there is a target, `{target}`")),
            Some(format) => return Err(format!("format `{format}`: dom0 reads `raw` disks only")),
        }
        let vdev = self.vdev.filter(|vdev| !vdev.is_empty()).ok_or("no vdev, such as `xvda`")?;
        let devid = vdev_number(&vdev).ok_or_else(|| format!("vdev `{vdev}`: no such device name"))?;
        Ok(DiskConfig {
            target,
            backend_domain: self.backend_domain,
            backend: self.backend.unwrap_or(BackendType::Any),
            vdev,
            devid,
            writable: self.writable.unwrap_or(true) && !self.cdrom,
            cdrom: self.cdrom,
            discard: !self.no_discard,
            trusted: !self.untrusted,
        })
    }
}

/// The format of this name; an empty name is `raw`.
fn format_named(word: &str) -> Option<&'static str> {
    let word = if word.is_empty() { "raw" } else { word };
    FORMATS.into_iter().find(|format| *format == word)
}

#[cfg(test)]
mod tests;
