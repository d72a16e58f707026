//! One entry of `vif=[...]`.
//!
//! Format: `xl-network-configuration(5)` of Xen 4.17.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::net::MacAddr;
use crate::net::switch::{Rule, Vlans, firewall::MAX_RULES};

/// The bridge of an interface whose entry names none, as Xen's `xl` has it.
pub const DEFAULT_BRIDGE: &str = "xenbr0";
/// The largest packet of an interface whose entry names none, in bytes, as Xen's `xl` has it.
pub const DEFAULT_MTU: u16 = 1500;

/// A virtual network interface. All properties are optional.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VifConfig {
    /// The interface's address; `None`: to be chosen.
    pub mac: Option<MacAddr>,
    /// The bridge that it is on, and the VLANs there if they stand behind the bridge's name.
    pub bridge: Option<String>,
    /// The VLANs that it is in, if they stand in a word of their own. Another domain's backend may not know the word.
    pub vlan: Option<String>,
    /// Which packets pass, the first first. Only dom0's own backend keeps to rules: with another there are none.
    pub rules: Vec<Rule>,
    /// The interface of dom0 by which packets are routed, not switched.
    pub gatewaydev: Option<String>,
    /// The interface's name in dom0.
    pub vifname: Option<String>,
    /// The domain, by name or number, whose backend serves it; `None`: dom0's.
    pub backend_domain: Option<String>,
    /// An IP address for dom0's side.
    pub ip: Option<String>,
    /// Largest packet, in bytes.
    pub mtu: Option<u16>,
    /// Number of the device; `None`: the first that is free. An entry of a configuration has its place in the list.
    pub devid: Option<u32>,
    /// The largest rate at which it may send.
    pub rate: Option<Rate>,
    /// May the guest trust the backend?
    pub trusted: bool,
    /// A hotplug script, which dom0 does not run; kept for messages.
    pub script: Option<String>,
}

impl Default for VifConfig {
    fn default() -> Self {
        Self {
            mac: None,
            bridge: None,
            vlan: None,
            rules: Vec::new(),
            gatewaydev: None,
            vifname: None,
            backend_domain: None,
            ip: None,
            mtu: None,
            devid: None,
            rate: None,
            trusted: true,
            script: None,
        }
    }
}

impl VifConfig {
    /// The bridge that it is on, with what stands behind the bridge's name.
    pub fn bridge(&self) -> &str {
        self.bridge.as_deref().unwrap_or(DEFAULT_BRIDGE)
    }

    /// Largest packet, in bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu.unwrap_or(DEFAULT_MTU)
    }
}

/// Words of an entry that are told each to mean nothing; of more, only that there are more.
const NOTES_MAX: usize = 8;
const UNKNOWN: &str = "no such word of a network interface";

impl VifConfig {
    /// Reads one entry: `key=value` words and flags with commas between; an empty entry is an interface too. Also
    /// returns warnings about words that are unknown or ignored.
    ///
    /// # Errors
    /// What is wrong with a value, in words.
    pub fn parse(text: &str) -> Result<(VifConfig, Vec<String>), String> {
        Self::read(text, |_| Ok(()))
    }

    /// The same for an interface that a running domain gets, where the reference toolstack takes no unknown word.
    ///
    /// # Errors
    /// What is wrong with a value, or the unknown word.
    pub fn parse_strictly(text: &str) -> Result<(VifConfig, Vec<String>), String> {
        Self::read(text, |word| Err(format!("`{word}`: {UNKNOWN}")))
    }

    fn read(
        text: &str,
        on_unknown: impl Fn(&str) -> Result<(), String>,
    ) -> Result<(VifConfig, Vec<String>), String> {
        let mut vif = VifConfig::default();
        let mut notes = Vec::new();
        for word in text.split(',').map(str::trim_ascii).filter(|word| !word.is_empty()) {
            let note = match word.split_once('=') {
                Some((key, value)) => vif.named(key.trim_ascii_end(), value.trim_ascii_start())?,
                None => vif.flag(word),
            };
            if note == Some(UNKNOWN) {
                on_unknown(word)?;
            }
            match (note, notes.len()) {
                (None, _) | (_, NOTES_MAX..) => {}
                (Some(_), at) if at + 1 == NOTES_MAX => notes.push("and more words that mean nothing".into()),
                (Some(note), _) => notes.push(format!("`{word}`: {note}, ignored")),
            }
        }
        notes.extend(vif.check_backend()?);
        Ok((vif, notes))
    }

    /// What the backend of another domain is asked for and dom0 cannot see to. A rule is a promise that nobody but dom0's own
    /// backend keeps; `vlan` is Xen's word, which a driver domain's scripts may know. Returns a warning.
    fn check_backend(&self) -> Result<Option<String>, String> {
        let Some(server) = &self.backend_domain else { return Ok(None) };
        if let Some(rule) = self.rules.first() {
            return Err(format!(
                "rule `{rule}`: only dom0's own backend keeps to rules, and `backend={server}` names another"
            ));
        }
        let note = |vlan| {
            format!("`vlan={vlan}`: whether the backend of `{server}` keeps to VLANs is its own affair")
        };
        Ok(self.vlan.as_ref().map(note))
    }

    fn flag(&mut self, word: &str) -> Option<&'static str> {
        match word {
            "trusted" => self.trusted = true,
            "untrusted" => self.trusted = false,
            _ => return Some(UNKNOWN),
        }
        None
    }

    /// Takes one `key=value`; returns a warning for a key that is ignored.
    fn named(&mut self, key: &str, value: &str) -> Result<Option<&'static str>, String> {
        let text = || Some(value.to_owned());
        match key {
            "mac" => {
                let mac = MacAddr::parse(value);
                self.mac = Some(mac.ok_or_else(|| format!("mac `{value}`: no address of a station"))?);
            }
            "bridge" => self.bridge = text(),
            "vlan" => {
                let vlans = Vlans::parse_word(value);
                vlans.map_err(|wrong| {
                    format!("vlan `{value}`: `{wrong}`: expected such as `10` or `10p/20/30-40`")
                })?;
                self.vlan = text();
            }
            "rule" if self.rules.len() == MAX_RULES => {
                return Err(format!("rule `{value}`: an interface has at most {MAX_RULES}"));
            }
            "rule" => {
                self.rules.push(Rule::parse(value).map_err(|error| format!("rule `{value}`: {error}"))?);
            }
            // `netdev` is the older name.
            "gatewaydev" | "netdev" => self.gatewaydev = text(),
            "vifname" => self.vifname = text(),
            "ip" => self.ip = text(),
            "script" => self.script = text(),
            "mtu" => {
                let mtu = value.parse().ok().filter(|mtu| (68..=65535).contains(mtu));
                self.mtu = Some(mtu.ok_or_else(|| format!("mtu `{value}`: expected 68 to 65535"))?);
            }
            "devid" => {
                let devid = value.parse().ok();
                self.devid = Some(devid.ok_or_else(|| format!("devid `{value}`: expected a number"))?);
            }
            "rate" => self.rate = Some(Rate::parse(value)?),
            "type" if matches!(value, "vif" | "netfront") => {}
            "type" => return Err(format!("type `{value}`: a PV guest's is `vif`")),
            "backend" if value.is_empty() => return Err("backend: no domain".into()),
            "backend" if matches!(value, "0" | "Domain-0") => self.backend_domain = None,
            "backend" => self.backend_domain = text(),
            "model" => return Ok(Some("a PV guest has no emulated hardware")),
            "accel" => return Ok(Some("there is no such thing any more")),
            _ if key == "forwarddev" || key.starts_with("colo_") => {
                return Ok(Some("no domain is copied to a second machine"));
            }
            _ => return Ok(Some(UNKNOWN)),
        }
        Ok(None)
    }
}

/// The rate limit of an interface: bytes in each interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes; may be 0 if the interval is short.
    pub bytes: u64,
    /// The interval.
    pub interval_us: u32,
}

/// The default interval.
const INTERVAL_US: u32 = 50_000;

impl Rate {
    /// Reads `10Mb/s` or `1MB/s@20ms`: bits or bytes in a second, and the interval.
    ///
    /// # Errors
    /// What is wrong with the text, in words.
    fn parse(text: &str) -> Result<Rate, String> {
        let (amount, interval) = match text.split_once('@') {
            Some((amount, interval)) => (amount, Some(interval)),
            None => (text, None),
        };
        let bytes = per_second(amount)
            .ok_or_else(|| format!("rate `{text}`: expected such as `10Mb/s` or `1MB/s`"))?;
        let interval_us = match interval {
            Some(interval) => interval_us(interval)
                .ok_or_else(|| format!("rate `{text}`: `{interval}`: expected such as `20ms`"))?,
            None => INTERVAL_US,
        };
        let bytes =
            bytes.checked_mul(interval_us.into()).ok_or_else(|| format!("rate `{text}`: it is too high"))?;
        Ok(Rate { bytes: bytes / 1_000_000, interval_us })
    }
}

/// A number of 32 bits, not zero, and what follows it.
fn leading(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u32 = text[..end].parse().ok()?;
    (number != 0).then_some((number.into(), &text[end..]))
}

/// Bytes in a second.
fn per_second(text: &str) -> Option<u64> {
    let (number, unit) = leading(text.strip_suffix("/s")?)?;
    let (factor, unit) = match unit.as_bytes() {
        [b'G', unit] => (1_000_000_000, unit),
        [b'M', unit] => (1_000_000, unit),
        [b'K', unit] => (1_000, unit),
        [unit] => (1, unit),
        _ => return None,
    };
    match unit {
        b'B' => Some(number * factor),
        b'b' => Some(number * factor / 8),
        _ => None,
    }
}

/// Microseconds.
fn interval_us(text: &str) -> Option<u32> {
    let (number, unit) = leading(text)?;
    let factor = match unit {
        "us" | "u" => 1,
        "ms" | "m" => 1_000,
        "s" | "" => 1_000_000,
        _ => return None,
    };
    u32::try_from(number * factor).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> VifConfig {
        let (vif, notes) = VifConfig::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(notes.is_empty(), "{text}: {notes:?}");
        vif
    }

    #[test]
    fn entries() {
        assert_eq!(read(""), VifConfig::default());
        let vif = read("mac=00:16:3e:0a:B:ff, bridge=br0,script=vif-bridge,mtu=9000,devid=2,untrusted");
        assert_eq!(vif.mac.unwrap().to_string(), "00:16:3e:0a:0b:ff");
        assert_eq!((vif.bridge.as_deref(), vif.mtu, vif.devid), (Some("br0"), Some(9000), Some(2)));
        assert!(!vif.trusted && read("trusted").trusted && read("").trusted);
        assert_eq!(read("backend=netvm").backend_domain.as_deref(), Some("netvm"));
        assert_eq!(read("backend=Domain-0").backend_domain, None);
        for text in ["netdev=eth0", "gatewaydev=eth0"] {
            assert_eq!(read(text).gatewaydev.as_deref(), Some("eth0"), "{text}");
        }
    }

    #[test]
    fn wrong_values_are_named() {
        for (word, want) in [
            ("mac=00:16:3e:00:00", "mac `00:16:3e:00:00`: no address"),
            ("mac=00:16:3e:00:00:00:00", "mac `"),
            ("mac=01:16:3e:00:00:00", "mac `"),
            ("mac=00:00:00:00:00:00", "mac `"),
            ("mac=00:16:3e:00:00:100", "mac `"),
            ("mac=00:16:3e:00:00:+1", "mac `"),
            ("mtu=67", "mtu `67`: expected 68 to 65535"),
            ("mtu=65536", "mtu `65536`"),
            ("devid=x", "devid `x`: expected a number"),
            ("type=ioemu", "type `ioemu`: a PV guest's is `vif`"),
            ("backend=", "backend: no domain"),
            ("rate=10", "rate `10`: expected"),
            ("vlan=4095", "vlan `4095`: `4095`: expected such as `10`"),
            ("vlan=10p/x", "vlan `10p/x`: `x`: expected"),
            ("rule=in", "rule `in`: a rule begins with"),
            ("rule=in drop port 80", "rule `in drop port 80`: only tcp and udp have ports"),
        ] {
            let error = VifConfig::parse(&format!("bridge=br0,{word}")).unwrap_err();
            assert!(error.starts_with(want), "{word}: {error}");
        }
    }

    #[test]
    fn words_that_mean_nothing_end_no_domain() {
        let (vif, notes) =
            VifConfig::parse("accel=x,vlans=7,bridge=br0,model=e1000,colo_compare_out=a,up").unwrap();
        assert_eq!(vif.bridge.as_deref(), Some("br0"));
        let known = "no such word of a network interface, ignored";
        assert_eq!(
            notes[..2],
            ["`accel=x`: there is no such thing any more, ignored".to_owned(), format!("`vlans=7`: {known}")]
        );
        assert_eq!((notes.len(), notes[4].as_str()), (5, format!("`up`: {known}").as_str()));
        let (_, notes) = VifConfig::parse(&"a,".repeat(1000)).unwrap();
        assert_eq!((notes.len(), notes[7].as_str()), (8, "and more words that mean nothing"));
    }

    #[test]
    fn a_running_domain_gets_no_interface_of_unknown_words() {
        for (text, wrong) in [("nonsense", "nonsense"), ("bridge=b,up", "up"), ("vlans=7", "vlans=7")] {
            let want = format!("`{wrong}`: no such word of a network interface");
            assert_eq!(VifConfig::parse_strictly(text), Err(want), "{text}");
        }
        // What the reference toolstack knows, and nothing comes of, stays a warning.
        let (vif, notes) = VifConfig::parse_strictly("accel=x,model=e1000,forwarddev=a,mtu=9000").unwrap();
        assert_eq!((vif.mtu, notes.len()), (Some(9000), 3));
    }

    #[test]
    fn vlans_and_rules() {
        let vif = read("bridge=xenbr0.10:20,rule=in accept tcp port 80,rule = in drop");
        assert_eq!((vif.bridge(), vif.vlan.as_deref()), ("xenbr0.10:20", None));
        let rules: Vec<String> = vif.rules.iter().map(|rule| format!("{rule}")).collect();
        assert_eq!(rules, ["in accept tcp port 80", "in drop"]);
        assert_eq!(read("vlan=10p/20").vlan.as_deref(), Some("10p/20"));
        let many = VifConfig::parse(&"rule=in drop,".repeat(65)).unwrap_err();
        assert_eq!(many, "rule `in drop`: an interface has at most 64");
    }

    /// Another domain's backend knows no rule, and perhaps no VLAN: nobody shall believe that a guest is walled in.
    #[test]
    fn what_only_dom0_keeps_to_is_not_asked_of_others() {
        let refused =
            "rule `in drop`: only dom0's own backend keeps to rules, and `backend=netvm` names another";
        for text in ["rule=in drop,backend=netvm", "backend=netvm,vlan=10,rule=in drop"] {
            assert_eq!(VifConfig::parse(text), Err(refused.into()), "{text}");
            assert_eq!(VifConfig::parse_strictly(text), Err(refused.into()), "{text}");
        }
        let (vif, notes) = VifConfig::parse("vlan=10,backend=netvm").unwrap();
        assert_eq!(vif.vlan.as_deref(), Some("10"));
        assert_eq!(notes, ["`vlan=10`: whether the backend of `netvm` keeps to VLANs is its own affair"]);
        assert_eq!(read("rule=in drop,vlan=10,backend=0").rules.len(), 1);
    }

    #[test]
    fn rates() {
        let rate = |text: &str| Rate::parse(text).map(|rate| (rate.bytes, rate.interval_us));
        for (text, bytes, interval_us) in [
            ("10Mb/s", 62_500, 50_000),
            ("250KB/s", 12_500, 50_000),
            ("1MB/s@20ms", 20_000, 20_000),
            ("16000000b/s@50ms", 100_000, 50_000),
            ("80Mb/s@1s", 10_000_000, 1_000_000),
            ("1GB/s@7", 7_000_000_000, 7_000_000),
            ("4294967295GB/s@4us", 17_179_869_180_000, 4),
            ("1B/s@4294967295us", 4294, u32::MAX),
            ("1B/s@1us", 0, 1),
        ] {
            assert_eq!(rate(text), Ok((bytes, interval_us)), "{text}");
        }
        for bad in [
            "",
            "@",
            "foo",
            "10MB",
            "10MB/m",
            "10ZB/s",
            "10mb/s",
            "MB/s",
            "-1B/s",
            "0B/s",
            "4294967296b/s",
            "1B/s@0us",
            "1B/s@",
            "1B/s@10h",
            "1B/s@4294967296us",
            "1B/s@4294968ms",
            "1B/s@4295s",
            "4294967295GB/s@5us",
            "1é/s",
        ] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
