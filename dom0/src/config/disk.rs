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
    /// A file, or whatever the target turns out to be.
    Any,
}

/// A virtual disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// What is behind it, as the backend's domain calls it; empty only for a CD drive without a medium.
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
}

/// What has been said so far.
#[derive(Default)]
struct Spec {
    target: Option<String>,
    format: Option<String>,
    vdev: Option<String>,
    access: Option<bool>,
    backend: Option<BackendType>,
    backend_domain: Option<String>,
    cdrom: bool,
    no_discard: bool,
    /// A prefix like `phy:` says the format too, so that the next word is the vdev.
    prefixed: bool,
}

/// Prefixes that older files put before the target: what they say of format and backend.
const PREFIXES: [(&str, BackendType); 5] = [
    ("phy:", BackendType::Phy),
    ("file:", BackendType::Any),
    ("raw:", BackendType::Any),
    ("tap:aio:", BackendType::Any),
    ("aio:", BackendType::Any),
];

impl DiskConfig {
    /// Reads one entry.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<DiskConfig, String> {
        let mut spec = Spec::default();
        let mut rest = Some(text);
        while let Some(now) = rest {
            let word = now.trim_start();
            // A target that is named takes everything that follows, commas and all.
            if let Some(target) = word.strip_prefix("target=") {
                spec.set_target(target)?;
                break;
            }
            let (word, after) = match word.split_once(',') {
                Some((word, after)) => (word, Some(after)),
                None => (word, None),
            };
            rest = after;
            let word = word.trim();
            match word.split_once('=') {
                Some((key, value)) if spec.is_key(key) => spec.named(key, value)?,
                _ if spec.flag(word) => {}
                // A comma at the end says nothing.
                _ if word.is_empty() && rest.is_none() => {}
                _ => spec.positional(word)?,
            }
        }
        spec.finish()
    }
}

impl Spec {
    /// Is this the name of a parameter, and not the beginning of a target that has `=` in it?
    fn is_key(&self, key: &str) -> bool {
        key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
    }

    fn positional(&mut self, word: &str) -> Result<(), String> {
        if self.target.is_none() {
            let prefix = PREFIXES.iter().find(|(prefix, _)| word.starts_with(prefix));
            if let Some((prefix, backend)) = prefix {
                self.prefixed = true;
                self.backend = Some(*backend);
                return self.set_target(&word[prefix.len()..]);
            }
            return self.set_target(word);
        }
        if !self.prefixed && self.format.is_none() {
            self.format = Some(if word.is_empty() { "raw" } else { word }.to_owned());
            return Ok(());
        }
        if self.vdev.is_none() {
            return self.named("vdev", word);
        }
        if self.access.is_none() {
            return self.named("access", word);
        }
        Err(format!("`{word}`: too many words"))
    }

    fn flag(&mut self, word: &str) -> bool {
        match word {
            "cdrom" => self.cdrom = true,
            "discard" => self.no_discard = false,
            "no-discard" => self.no_discard = true,
            "direct-io-safe" => {}
            _ => return false,
        }
        true
    }

    fn named(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "format" => self.format = Some(value.to_owned()),
            "vdev" => {
                let (vdev, kind) = value.split_once(':').unwrap_or((value, "disk"));
                self.devtype(kind)?;
                self.vdev = Some(vdev.to_owned());
            }
            "access" => {
                self.access = Some(match value {
                    "rw" | "w" | "" => true,
                    "ro" | "r" => false,
                    _ => return Err(format!("access `{value}`: expected `rw`, `w`, `ro` or `r`")),
                });
            }
            "devtype" => self.devtype(value)?,
            "backendtype" => {
                self.backend = Some(match value {
                    "phy" => BackendType::Phy,
                    "tap" | "qdisk" | "standalone" => BackendType::Any,
                    _ => return Err(format!("backendtype `{value}`: expected `phy`, `tap` or `qdisk`")),
                });
            }
            "backend" if matches!(value, "0" | "Domain-0") => {}
            "backend" if value.is_empty() => return Err("backend: no domain".to_owned()),
            "backend" => self.backend_domain = Some(value.to_owned()),
            "script" => return Err("script: dom0 runs no scripts".to_owned()),
            _ => return Err(format!("`{key}`: no such parameter of a disk")),
        }
        Ok(())
    }

    fn devtype(&mut self, kind: &str) -> Result<(), String> {
        match kind {
            "cdrom" => self.cdrom = true,
            "disk" => {}
            _ => return Err(format!("devtype `{kind}`: expected `disk` or `cdrom`")),
        }
        Ok(())
    }

    fn set_target(&mut self, target: &str) -> Result<(), String> {
        if self.target.is_some() {
            return Err("the target is given twice".to_owned());
        }
        self.target = Some(target.to_owned());
        Ok(())
    }

    fn finish(self) -> Result<DiskConfig, String> {
        let target = self.target.unwrap_or_default();
        if target.is_empty() && !self.cdrom {
            return Err("no target".to_owned());
        }
        if let Some(format) = self.format
            && format != "raw"
        {
            return Err(format!("format `{format}`: only `raw` is supported"));
        }
        let vdev = self.vdev.ok_or("no vdev, such as `xvda`")?;
        let devid = vdev_number(&vdev).ok_or_else(|| format!("vdev `{vdev}`: no such device name"))?;
        Ok(DiskConfig {
            target,
            backend_domain: self.backend_domain,
            backend: self.backend.unwrap_or(BackendType::Any),
            vdev,
            devid,
            writable: self.access.unwrap_or(true) && !self.cdrom,
            cdrom: self.cdrom,
            discard: !self.no_discard,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn disk(target: &str, backend: BackendType, vdev: &str, writable: bool) -> DiskConfig {
        let devid = vdev_number(vdev).unwrap();
        let vdev = vdev.to_owned();
        let target = target.to_owned();
        let backend_domain = None;
        DiskConfig { target, backend_domain, backend, vdev, devid, writable, cdrom: false, discard: true }
    }

    #[test]
    fn all_ways_to_say_the_same() {
        let want = disk("/dev/vda", BackendType::Any, "xvda", true);
        for text in [
            "/dev/vda,raw,xvda,rw",
            "/dev/vda,raw,xvda",
            "/dev/vda,,xvda",
            " /dev/vda , raw , xvda , w ",
            "/dev/vda,raw,xvda,",
            "format=raw, vdev=xvda, access=rw, target=/dev/vda",
            "vdev=xvda,target=/dev/vda",
            "raw:/dev/vda,xvda,w",
            "file:/dev/vda,xvda,w",
            "tap:aio:/dev/vda,xvda",
            "/dev/vda,vdev=xvda",
            "/dev/vda,raw,xvda,rw,direct-io-safe",
        ] {
            assert_eq!(DiskConfig::parse(text), Ok(want.clone()), "{text}");
        }
        let want = disk("/dev/vda", BackendType::Phy, "xvda", false);
        for text in [
            "phy:/dev/vda,xvda,r",
            "phy:/dev/vda,xvda,ro",
            "backendtype=phy,access=ro,vdev=xvda,target=/dev/vda",
        ] {
            assert_eq!(DiskConfig::parse(text), Ok(want.clone()), "{text}");
        }
    }

    #[test]
    fn a_named_target_takes_the_rest() {
        let got = DiskConfig::parse("vdev=xvda,target=/a,b=c,d").unwrap();
        assert_eq!(got.target, "/a,b=c,d");
    }

    #[test]
    fn a_driver_domain() {
        for (text, want) in [
            ("backend=d1,vdev=xvda,target=/dev/vda", Some("d1")),
            ("backend=0,vdev=xvda,target=/dev/vda", None),
            ("phy:/dev/vda,xvda,w,backend=Domain-0", None),
        ] {
            assert_eq!(DiskConfig::parse(text).unwrap().backend_domain.as_deref(), want, "{text}");
        }
    }

    #[test]
    fn cd_drives() {
        for text in [
            "/boot/cd.iso,raw,xvdc,cdrom",
            "/boot/cd.iso,,xvdc:cdrom",
            "devtype=cdrom,vdev=xvdc,target=/boot/cd.iso",
        ] {
            let got = DiskConfig::parse(text).unwrap();
            assert!(got.cdrom && !got.writable, "{text}");
        }
        assert_eq!(DiskConfig::parse(",,xvdc,cdrom").unwrap().target, "");
        assert!(!DiskConfig::parse("/dev/vda,raw,xvda,rw,no-discard").unwrap().discard);
    }

    #[test]
    fn wrong_entries() {
        for (text, want) in [
            ("", "no target"),
            ("/dev/vda", "no vdev"),
            ("/dev/vda,qcow2,xvda", "format `qcow2`"),
            ("/dev/vda,raw,vda", "vdev `vda`"),
            ("/dev/vda,raw,xvda,x", "access `x`"),
            ("/dev/vda,raw,xvda,rw,more", "`more`: too many"),
            ("/dev/vda,raw,xvda,flavour=x", "`flavour`: no such"),
            ("phy:/dev/vda,xvda,w,target=/dev/vdb", "target is given twice"),
            ("phy:/dev/vda,xvda:tape,w", "devtype `tape`"),
            ("backend=,vdev=xvda,target=/dev/vda", "backend: no domain"),
            ("script=x,vdev=xvda,target=/dev/vda", "script"),
            ("backendtype=x,vdev=xvda,target=/dev/vda", "backendtype `x`"),
            ("phy:,xvda,w", "no target"),
        ] {
            let error = DiskConfig::parse(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[a-z,=:/ ]{0,40}") {
            let _ = DiskConfig::parse(&text);
        }
    }
}
