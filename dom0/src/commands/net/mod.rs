//! `net`: the networks that dom0 carries, shown and changed.
//!
//! What is changed here holds until the machine's end; what is changed at a guest's interface, until the interface goes. What
//! shall hold each time a domain starts stands in the domain's configuration.

mod capture;
mod ping;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::println;

pub use self::capture::CaptureFile;
use super::Outcome;
use crate::netback::Network;
use crate::shell::print::Printer;

/// The forms of the command. A port is named as `net` shows it, or by its domain, if that has one interface.
const FORMS: &[(&str, &str)] = &[
    ("net [bridges]", "bridges and their ports, what went through and what was dropped"),
    ("net bridge add|remove NAME", "makes a bridge, or takes away one that has no ports"),
    ("net stations [BRIDGE]", "Ethernet addresses, and behind which ports they are"),
    ("net vlan PORT [untagged|.N|.N:N...|:N...]", "shows or sets a port's VLANs: without tags, with tags"),
    ("net rules [PORT]", "the rules of ports; the first that fits decides, and what none fits passes"),
    ("net rule add PORT [PLACE] RULE", "adds a rule, behind the others or at a place"),
    ("net rule remove PORT PLACE|all", "takes rules away"),
    ("", "RULE: in|out accept|drop [tcp|udp|icmp|N] [from PREFIX] [to PREFIX] [port N[-N]]"),
    ("", "`in` is to the guest. Answers to what passed pass; after a change all has to pass anew"),
    ("net capture [start [PORT...]|stop]", "packets to the file of `cargo xtask run --capture FILE`"),
    ("net gateway", "dom0's addresses, and what the router did and dropped"),
    ("net uplink ADDRESS/BITS [GATEWAY]", "gives the way to the world an address; else a DHCP server does"),
    ("net leases", "addresses given by DHCP"),
    ("net flows", "connections that are translated"),
    ("net connections", "TCP of dom0's own"),
    ("net forwards", "ports at which the world reaches guests"),
    ("net forward PORT:GUEST:PORT", "opens such a port, below 32768"),
    ("net unforward PORT", "closes the port, and ends connections by the port"),
    ("net ping ADDRESS|GUEST", "asks four times; fails if nobody answers"),
    ("net help", "shows this"),
];

/// A form of the command, for an error.
fn usage(begin: &str) -> String {
    let form = FORMS.iter().find(|(form, _)| form.starts_with(begin)).map_or(begin, |(form, _)| *form);
    format!("usage: {form}")
}

/// Runs a line that begins with `net`.
pub(super) async fn run(network: &Arc<Network>, file: &Arc<CaptureFile>, arguments: &[&str]) -> Outcome {
    let lines = match arguments {
        [] | ["bridges"] => network.show_bridges(),
        ["stations"] => network.show_stations(None)?,
        ["stations", bridge] => network.show_stations(Some(bridge))?,
        ["rules"] => network.show_rules(None)?,
        ["rules", port] => network.show_rules(Some(port))?,
        ["vlan", port] => network.show_vlans(port)?,
        ["gateway"] => network.show_gateway(),
        ["leases"] => network.show_leases(),
        ["flows"] => network.show_flows(),
        ["connections"] => network.show_connections(),
        ["forwards"] => network.show_forwards(),
        ["help"] => {
            FORMS.iter().for_each(|(form, text)| println!("{form:<42} {text}"));
            return Ok(());
        }
        ["ping", address] => return ping::run(network, address).await,
        ["capture", arguments @ ..] => return capture::run(network, file, arguments).await,
        _ => return change(network, arguments),
    };
    show(lines).await;
    Ok(())
}

/// What changes something, and says nothing else; or what is none of the forms.
fn change(network: &Network, arguments: &[&str]) -> Outcome {
    match arguments {
        ["bridge", "add", name] => network.add_bridge(name),
        ["bridge", "remove", name] => network.remove_bridge(name),
        ["bridge", ..] => Err(usage("net bridge ")),
        ["vlan", port, vlans] => network.set_vlans(port, vlans),
        ["rule", "add", port, place, rule @ ..] if let Ok(place) = place.parse::<usize>() => {
            network.add_rule(port, Some(place), &rule.join(" "))
        }
        ["rule", "add", port, rule @ ..] if !rule.is_empty() => network.add_rule(port, None, &rule.join(" ")),
        ["rule", "add", ..] => Err(usage("net rule add")),
        ["rule", "remove", port, "all"] => network.remove_rule(port, None),
        ["rule", "remove", port, place] => {
            let place = place.parse().map_err(|_| format!("`{place}`: expected a rule's place, or `all`"))?;
            network.remove_rule(port, Some(place))
        }
        ["rule", "remove", ..] => Err(usage("net rule remove")),
        ["rule", ..] => Err("net rule: expected `add` or `remove`; `net rules` shows them".into()),
        ["uplink", address] => network.set_uplink(address, None),
        ["uplink", address, gateway] => network.set_uplink(address, Some(gateway)),
        ["forward", text] => network.forward(text),
        ["unforward", port] => {
            let port =
                port.parse().map_err(|_| format!("`{port}`: expected a port's number, such as 8080"))?;
            network.unforward(port)
        }
        [word @ ("ping" | "uplink" | "vlan" | "forward" | "unforward" | "stations" | "rules"), ..] => {
            Err(usage(&format!("net {word} ")))
        }
        [
            word @ ("bridges" | "gateway" | "leases" | "flows" | "connections" | "forwards" | "help"),
            more,
            ..,
        ] => Err(format!("net {word}: `{more}`: nothing is expected here")),
        [word, ..] => Err(format!("net: no `{word}`: `net help` has all")),
        [] => Ok(()),
    }
}

async fn show(lines: Vec<String>) {
    let mut printer = Printer::default();
    for line in lines {
        printer.line(&line).await;
    }
    printer.end().await;
}

#[cfg(test)]
mod tests {
    use crate::commands::Shell;
    use crate::commands::tests::{failure, shell};
    use pvrt::executor::block_on_test;
    use pvrt::host::take_console_output;

    #[test]
    fn what_is_wrong_with_a_line_is_named() {
        for (line, want) in [
            ("net ping", "usage: net ping ADDRESS|GUEST"),
            ("net ping a b", "usage: net ping ADDRESS|GUEST"),
            ("net forward", "usage: net forward PORT:GUEST:PORT"),
            ("net forward 8080:web:80 more", "usage: net forward PORT:GUEST:PORT"),
            ("net unforward", "usage: net unforward PORT"),
            ("net unforward web", "`web`: expected a port's number, such as 8080"),
            ("net uplink", "usage: net uplink ADDRESS/BITS [GATEWAY]"),
            ("net uplink 192.0.2.2", "`192.0.2.2`: expected an address, such as 192.0.2.2/24"),
            ("net uplink 192.0.2.2/33", "`192.0.2.2/33`: expected an address, such as 192.0.2.2/24"),
            ("net uplink 192.0.2.2/24 x", "`x`: expected a station's address, such as 192.0.2.1"),
            ("net connections web", "net connections: `web`: nothing is expected here"),
            ("net leases web", "net leases: `web`: nothing is expected here"),
            ("net bridges xenbr0", "net bridges: `xenbr0`: nothing is expected here"),
            ("net lease", "net: no `lease`: `net help` has all"),
            ("net stations lan", "`lan`: no such bridge"),
            ("net bridge", "usage: net bridge add|remove NAME"),
            ("net bridge add xenbr0", "there is a `xenbr0` already"),
            ("net bridge remove lan", "`lan`: no such bridge"),
            ("net bridge remove xenbr0", "`xenbr0`: configurations that name no bridge mean this one"),
            ("net vlan", "usage: net vlan PORT [untagged|.N|.N:N...|:N...]"),
            ("net vlan web", "`web`: no port and no domain with an interface; `net` shows the ports"),
            ("net rule", "net rule: expected `add` or `remove`; `net rules` shows them"),
            ("net rule add web", "usage: net rule add PORT [PLACE] RULE"),
            ("net rule remove web", "usage: net rule remove PORT PLACE|all"),
            ("net rule remove web x", "`x`: expected a rule's place, or `all`"),
            ("net capture on", "usage: net capture [start [PORT...]|stop]"),
            ("net capture stop", "no capture goes on"),
        ] {
            assert_eq!(failure(line), want, "{line}");
        }
    }

    /// What a line prints in a shell that goes on.
    fn says(shell: &Shell, line: &str) -> String {
        take_console_output();
        let outcome = block_on_test(async { shell.run_line(line).await });
        let output = String::from_utf8(take_console_output()).unwrap();
        outcome.map_or_else(|error| error, |()| output)
    }

    #[test]
    fn bridges_are_made_and_taken_away() {
        let shell = shell();
        assert_eq!(says(&shell, "net bridge add lan"), "");
        assert_eq!(says(&shell, "net"), "xenbr0\nlan\n");
        assert_eq!(
            says(&shell, "net bridge add a/b"),
            "`a/b`: a name has 1 to 15 letters, digits, `-`, `_` and `.`"
        );
        assert_eq!(says(&shell, "net bridge remove lan"), "");
        assert_eq!(says(&shell, "net bridges"), "xenbr0\n");
        assert!(says(&shell, "net help").lines().count() > 15);
    }
}
