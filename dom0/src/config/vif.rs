//! One entry of `vif=[...]`.
//!
//! Format: `xl-network-configuration(5)` of Xen 4.17.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use core::fmt;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Reads `00:16:3e:01:02:03`; must be one station's and not all zero.
    pub fn parse(text: &str) -> Option<MacAddr> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next()?;
            if !matches!(part.len(), 1 | 2) || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        let usable = parts.next().is_none() && bytes[0] & 1 == 0 && bytes != [0; 6];
        usable.then_some(MacAddr(bytes))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A virtual network interface. Everything may be left to dom0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VifConfig {
    /// Its address; `None`: to be chosen.
    pub mac: Option<MacAddr>,
    /// The switch that it is on.
    pub bridge: Option<String>,
    /// Its name in dom0.
    pub vifname: Option<String>,
    /// An IP address to be told to dom0's side.
    pub ip: Option<String>,
    /// Largest packet, in bytes.
    pub mtu: Option<u16>,
    /// Number of the device; `None`: its place in the list.
    pub devid: Option<u32>,
    /// The most it may send, as it was written: `10Mb/s`.
    pub rate: Option<String>,
    /// Emulated hardware, which PV guests have none of; kept for messages.
    pub model: Option<String>,
    /// A script for hotplug, which dom0 does not run; kept for messages.
    pub script: Option<String>,
}

impl VifConfig {
    /// Reads one entry: `key=value` words with commas between; nothing is an interface too.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<VifConfig, String> {
        let mut vif = VifConfig::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let (key, value) =
                word.split_once('=').ok_or_else(|| format!("`{word}`: expected `key=value`"))?;
            let (key, value) = (key.trim(), value.trim());
            let text = || Some(value.to_owned());
            match key {
                "mac" => {
                    let mac = MacAddr::parse(value);
                    vif.mac = Some(mac.ok_or_else(|| format!("mac `{value}`: no address of a station"))?);
                }
                "bridge" => vif.bridge = text(),
                "vifname" => vif.vifname = text(),
                "ip" => vif.ip = text(),
                "mtu" => {
                    let mtu = value.parse().ok().filter(|mtu| (68..=65535).contains(mtu));
                    vif.mtu = Some(mtu.ok_or_else(|| format!("mtu `{value}`: expected 68 to 65535"))?);
                }
                "devid" => {
                    let devid = value.parse().ok();
                    vif.devid = Some(devid.ok_or_else(|| format!("devid `{value}`: expected a number"))?);
                }
                "rate" => vif.rate = text(),
                "model" => vif.model = text(),
                "script" => vif.script = text(),
                "type" if matches!(value, "vif" | "netfront") => {}
                "type" => return Err(format!("type `{value}`: a PV guest's is `vif`")),
                "backend" if matches!(value, "0" | "Domain-0") => {}
                "backend" => return Err(format!("backend `{value}`: networks are served by dom0 alone")),
                "gatewaydev" | "trusted" => {}
                _ => return Err(format!("`{key}`: no such parameter of a network interface")),
            }
        }
        Ok(vif)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries() {
        assert_eq!(VifConfig::parse(""), Ok(VifConfig::default()));
        let vif = VifConfig::parse(
            "mac=00:16:3e:0a:B:ff, bridge=br0,model=e1000,script=vif-bridge,mtu=9000,devid=2",
        )
        .unwrap();
        assert_eq!(vif.mac.unwrap().to_string(), "00:16:3e:0a:0b:ff");
        assert_eq!((vif.bridge.as_deref(), vif.mtu, vif.devid), (Some("br0"), Some(9000), Some(2)));
        for bad in [
            "x",
            "mac=00:16:3e:00:00",
            "mac=00:16:3e:00:00:00:00",
            "mac=01:16:3e:00:00:00",
            "mac=00:00:00:00:00:00",
            "mac=00:16:3e:00:00:100",
            "mac=00:16:3e:00:00:+1",
            "mtu=67",
            "mtu=65536",
            "devid=x",
            "type=ioemu",
            "backend=3",
            "colour=red",
        ] {
            assert!(VifConfig::parse(bad).is_err(), "{bad}");
        }
    }
}
