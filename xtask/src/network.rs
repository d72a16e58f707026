//! The machine's network card: what is at its other end, and which ports of the host lead to guests.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::str::FromStr;

use anyhow::Result;

use crate::machine::Machine;
use crate::{qemu, usage};

/// Most bytes of an interface's name, in Linux.
const MAX_INTERFACE_BYTES: usize = 15;
/// Most bytes of a domain's name.
const MAX_DOMAIN_BYTES: usize = 255;

/// From this port on dom0's card has the ports of connections that guests begin.
const TRANSLATED: u16 = 32_768;

/// The port where dom0 writes captured packets: the third serial line's, which the machine does not have.
pub const CAPTURE_PORT: u16 = 0x3e8;

/// dom0's network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Net {
    /// QEMU's user-mode NAT.
    User,
    /// No card.
    None,
    /// QEMU's socket back end: what stands behind `socket:`.
    Socket(String),
    /// A tap interface of the host's, which is there already.
    Tap(String),
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("tap=") {
            let plain = |byte: u8| byte.is_ascii_graphic() && !b"/,:".contains(&byte);
            let sound = (1..=MAX_INTERFACE_BYTES).contains(&name.len()) && name.bytes().all(plain);
            // Both are directories, where interfaces are looked for.
            if !sound || name == "." || name == ".." {
                return Err(format!(
                    "an interface's name is 1 to {MAX_INTERFACE_BYTES} characters without spaces, `/`, `,` and `:`"
                ));
            }
            return Ok(Self::Tap(name.to_string()));
        }
        match text.split_once(':') {
            _ if text == "user" => Ok(Self::User),
            _ if text == "none" => Ok(Self::None),
            Some(("socket", options)) if !options.is_empty() => Ok(Self::Socket(options.to_string())),
            _ => Err("user, none, tap=INTERFACE or socket:OPTIONS".into()),
        }
    }
}

/// The kind of dom0's network card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Card {
    /// Modern virtio.
    #[default]
    Virtio,
    /// Intel's 82574L.
    E1000e,
}

impl Card {
    /// QEMU's device of this kind at `net0`. The card needs no option ROM, since the machine does not boot from the network.
    pub fn device(self) -> &'static str {
        match self {
            Self::Virtio => "virtio-net-pci,netdev=net0,disable-legacy=on,romfile=",
            Self::E1000e => "e1000e,netdev=net0,romfile=",
        }
    }
}

/// A TCP port of 127.0.0.1 on the host that leads to a port of a guest: QEMU leads to dom0's, and dom0 to the guest's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The host's port, and dom0's.
    pub host: u16,
    /// The guest's name.
    pub guest: String,
    /// The guest's port.
    pub port: u16,
}

impl FromStr for Forward {
    type Err = String;

    /// `HOST:GUEST:PORT`.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let [host, guest, port] = parts[..] else {
            return Err("HOST:GUEST:PORT is expected: a port, a domain's name and its port".into());
        };
        let number = |what: &str, text: &str| match text.parse() {
            Ok(port @ 1..) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
            _ => Err(format!("{what} port `{text}`: a number from 1 to 65535 is expected")),
        };
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
        if !(1..=MAX_DOMAIN_BYTES).contains(&guest.len()) || !guest.bytes().all(plain) {
            return Err(format!(
                "guest `{guest}`: a domain's name of up to {MAX_DOMAIN_BYTES} characters without spaces and `/` is expected"
            ));
        }
        let host = number("the host's", host)?;
        if host >= TRANSLATED {
            return Err(format!(
                "port {host}: ports from {TRANSLATED} on are for the guests' own connections"
            ));
        }
        Ok(Self { host, guest: guest.into(), port: number("the guest's", port)? })
    }
}

impl Forward {
    /// The word of dom0's command line.
    pub fn word(&self) -> String {
        format!("forward={}:{}:{}", self.host, self.guest, self.port)
    }
}

/// Puts a machine on a wire with one other: machine 0 listens at a port of the host's and is started first, machine 1 connects there. Each has
/// an Ethernet address of its own.
pub fn wire(machine: &mut Machine, index: usize, port: u16) {
    let way = if index == 0 { "listen" } else { "connect" };
    machine.net = Net::Socket(format!("{way}=127.0.0.1:{port}"));
    let address = format!("virtio-net-pci.mac=02:00:00:00:00:0{}", index + 1);
    machine.qemu_arguments.extend(["-global".into(), address]);
}

/// Looks at the network card and at the ports that lead to guests.
///
/// # Errors
/// Wrong usage: a tap interface that is not there; ports without QEMU's own network; a port of the host that is named
/// twice or that another program has; a file for captures that cannot be written.
pub fn check(machine: &Machine) -> Result<()> {
    if let Net::Tap(name) = &machine.net
        && !Path::new("/sys/class/net").join(name).exists()
    {
        return Err(usage(format!("--net tap={name}: the host has no such network interface")));
    }
    if let Some(path) = &machine.capture {
        let name = path.display();
        if !machine.has_own_dom0() {
            return Err(usage(format!("--capture {name}: a kernel in dom0's place captures nothing")));
        }
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        file.map_err(|error| usage(format!("--capture {name}: the file cannot be written: {error}")))?;
    }
    let Some(first) = machine.forwards.first() else { return Ok(()) };
    if machine.net != Net::User {
        return Err(usage("--forward needs --net user, QEMU's own network"));
    }
    if !machine.has_own_dom0() {
        return Err(usage(format!("--forward {}: a kernel in dom0's place does not lead on", first.host)));
    }
    let mut taken = BTreeSet::new();
    for Forward { host, .. } in &machine.forwards {
        if !taken.insert(host) {
            return Err(usage(format!("--forward {host}: the port is named twice")));
        }
        if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, *host)) {
            return Err(usage(format!("--forward {host}: the host's port cannot be had: {error}")));
        }
    }
    Ok(())
}

/// QEMU's arguments for the file of captured packets. Each byte that dom0 writes to the port is in the file at once.
pub fn capture(machine: &Machine) -> Vec<OsString> {
    let Some(path) = &machine.capture else { return Vec::new() };
    let mut file = OsString::from("file,id=capture,path=");
    file.push(qemu::doubled(path));
    let port = format!("isa-debugcon,chardev=capture,iobase={CAPTURE_PORT:#x}");
    vec!["-chardev".into(), file, "-device".into(), port.into()]
}

/// QEMU's network back end; `None`: there is no card.
pub fn backend(machine: &Machine) -> Option<String> {
    let mut backend = match &machine.net {
        Net::None => return None,
        Net::User => "user,id=net0".to_string(),
        Net::Socket(options) => format!("socket,id=net0,{options}"),
        Net::Tap(name) => format!("tap,id=net0,ifname={name},script=no,downscript=no"),
    };
    for Forward { host, .. } in &machine.forwards {
        backend += &format!(",hostfwd=tcp:127.0.0.1:{host}-:{host}");
    }
    Some(backend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_is_one_of_four() {
        assert_eq!("user".parse(), Ok(Net::User));
        assert_eq!("none".parse(), Ok(Net::None));
        assert_eq!("socket:listen=:1".parse(), Ok(Net::Socket("listen=:1".into())));
        assert_eq!("tap=tap0".parse(), Ok(Net::Tap("tap0".into())));
        let longest = format!("tap={}", "x".repeat(15));
        assert!(longest.parse::<Net>().is_ok());
        let too_long = longest + "x";
        for bad in
            ["socket:", "tap", "tap=", "tap=a b", "tap=a,b", "tap=../x", "tap=..", "User", "", &too_long]
        {
            assert!(bad.parse::<Net>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_forward_is_a_port_a_guest_and_a_port() {
        let good = Forward { host: 8080, guest: "web".into(), port: 80 };
        assert_eq!("8080:web:80".parse(), Ok(good.clone()));
        assert_eq!(good.word(), "forward=8080:web:80");
        let odd = Forward { host: 32_767, guest: "a-b_c.d=1".into(), port: 65_535 };
        assert_eq!("32767:a-b_c.d=1:65535".parse(), Ok(odd));
        let too_high = "32768:web:80".parse::<Forward>();
        assert_eq!(
            too_high,
            Err("port 32768: ports from 32768 on are for the guests' own connections".into())
        );
        for bad in [
            "",
            "8080",
            "8080:web",
            "8080:web:80:1",
            ":web:80",
            "8080::80",
            "8080:web:",
            "0:web:80",
            "8080:web:0",
            "65536:web:80",
            "8080:web:65536",
            "+80:web:80",
            "80:web:+80",
            "-1:web:80",
            "80:a b:80",
            "80:a/b:80",
            "x:web:80",
        ] {
            assert!(bad.parse::<Forward>().is_err(), "{bad}");
        }
        assert!(format!("1:{}:1", "x".repeat(256)).parse::<Forward>().is_err());
    }

    #[test]
    fn forwards_are_part_of_the_network() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let busy = listener.local_addr().expect("bound").port();
        // The host gives ports away that a person cannot name.
        let forwards = |hosts: &[u16]| {
            hosts
                .iter()
                .map(|host| Forward { host: *host, guest: "web".into(), port: 80 })
                .collect::<Vec<_>>()
        };
        // The port is free as soon as its listener is gone.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|port| port.local_addr())
            .expect("bound")
            .port();
        let machine = Machine { forwards: forwards(&[free]), ..Machine::default() };
        check(&machine).expect("sound");
        let expected = format!("user,id=net0,hostfwd=tcp:127.0.0.1:{free}-:{free}");
        assert_eq!(backend(&machine), Some(expected));
        assert_eq!(machine.dom0_line(), format!("debug-exit=0xf4 forward={free}:web:80"));
        for (machine, word) in [
            (Machine { net: Net::None, ..machine.clone() }, "--net user"),
            (Machine { net: Net::Tap("lo".into()), ..machine.clone() }, "--net user"),
            (Machine { dom0: "x".into(), ..machine.clone() }, "dom0's place"),
            (Machine { forwards: forwards(&[free, free]), ..machine.clone() }, "twice"),
            (Machine { forwards: forwards(&[busy]), ..machine.clone() }, "cannot be had"),
            (
                Machine { net: Net::Tap("no-such-tap".into()), forwards: Vec::new(), ..machine.clone() },
                "no such network",
            ),
        ] {
            let error = check(&machine).expect_err(word);
            assert!(error.is::<crate::Usage>() && error.to_string().contains(word), "{error}");
        }
        assert!(check(&Machine { net: Net::Tap("lo".into()), ..Machine::default() }).is_ok());
        drop(listener);
    }

    #[test]
    fn a_capture_is_a_file_that_can_be_written() {
        let machine = Machine { capture: Some("/no/such/directory/x,y".into()), ..Machine::default() };
        let error = check(&machine).expect_err("no directory");
        assert!(error.is::<crate::Usage>() && error.to_string().starts_with("--capture /no/such"), "{error}");
        let shown = capture(&machine);
        assert_eq!(
            shown,
            [
                "-chardev",
                "file,id=capture,path=/no/such/directory/x,,y",
                "-device",
                "isa-debugcon,chardev=capture,iobase=0x3e8"
            ]
        );
        assert!(capture(&Machine::default()).is_empty());
        assert!(check(&Machine { capture: Some("/dev/null".into()), ..Machine::default() }).is_ok());
        let other = Machine { capture: Some("/dev/null".into()), dom0: "x".into(), ..Machine::default() };
        assert!(check(&other).is_err());
    }
}
