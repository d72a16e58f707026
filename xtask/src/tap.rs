//! A tap interface of the host's, for a machine whose network card shall do checksums and segments: QEMU's user network does
//! neither.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// A tap interface with an address. Drop takes the interface away.
pub struct Tap {
    /// The interface's name, for `--net tap=NAME`.
    pub name: String,
}

impl Tap {
    /// Makes an interface with this IPv4 address and prefix (`10.97.0.1/24`), and with this Ethernet address or one of the
    /// host's choice.
    ///
    /// # Errors
    /// The host does not let this user make one, or has no `ip`.
    pub fn make(address: &str, mac: Option<&str>) -> Result<Self> {
        let name = format!("mhv{}", std::process::id());
        ip(&["tuntap", "add", "dev", &name, "mode", "tap"])?;
        let tap = Self { name };
        if let Some(mac) = mac {
            ip(&["link", "set", "dev", &tap.name, "address", mac])?;
        }
        ip(&["address", "add", address, "dev", &tap.name])?;
        ip(&["link", "set", "dev", &tap.name, "up"])?;
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Err(error) = ip(&["link", "delete", "dev", &self.name]) {
            eprintln!("{}: {error:#}", self.name);
        }
    }
}

fn ip(words: &[&str]) -> Result<()> {
    let said = Command::new("ip").args(words).output().context("cannot run ip")?;
    if !said.status.success() {
        bail!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&said.stderr).trim_end());
    }
    Ok(())
}
