//! `help`, and the lists that completion uses.

use alloc::format;

use pvrt::println;

use super::Outcome;

/// Commands, their arguments, and what they do.
pub(super) const COMMANDS: &[(&str, &str, &str)] = &[
    ("xl", "COMMAND ...", "manages domains: `help xl`"),
    ("wait", "DOMAIN...|--all", "waits until the domains are gone"),
    ("sleep", "SECONDS", "waits"),
    ("repeat", "N LINE", "runs a line N times"),
    ("try", "LINE", "runs a line that may fail"),
    ("xenstore-ls", "[-p] [PATH]", "shows nodes, with -p their permissions"),
    ("xenstore-read", "PATH...", "shows the values of nodes"),
    ("xenstore-write", "PATH VALUE ...", "writes nodes"),
    ("xenstore-rm", "PATH...", "removes nodes and all below them"),
    ("xenstore-watch", "[-n COUNT] PATH...", "shows paths as they change, until ^C"),
    ("accounts", "", "shows what dom0 keeps for each domain, of what budget, in bytes"),
    ("ls", "[PATH]", "lists /boot or the disks in /dev"),
    ("cat", "FILE...", "shows files"),
    ("poweroff", "", "ends everything"),
    ("reboot", "", "starts the machine again"),
    ("help", "[xl]", "shows this"),
];

/// Sub-commands of `xl`.
pub(super) const XL: &[(&str, &str, &str)] = &[
    (
        "create",
        "[-c] [-p] FILE [KEY=VALUE...]",
        "builds a domain and starts it; -c: with console, until it is gone",
    ),
    ("list", "[DOMAIN...]", "lists domains"),
    ("console", "DOMAIN", "attaches to a domain's console; ^] leaves it"),
    ("shutdown", "[-w] [-F] DOMAIN|-a", "asks a domain to shut down; -w: waits until it has"),
    ("reboot", "[-w] [-F] DOMAIN|-a", "asks a domain to reboot; -w: waits until it has"),
    ("sysrq", "DOMAIN KEY", "sends a magic SysRq key to a domain's kernel"),
    ("trigger", "DOMAIN nmi [VCPU]", "sends a vCPU an NMI"),
    ("mem-set", "DOMAIN MIB", "asks a domain to use that much memory"),
    ("mem-max", "DOMAIN MIB", "sets the most memory a domain may be given"),
    ("vcpu-set", "DOMAIN COUNT", "asks a domain to use its first vCPUs"),
    ("rename", "DOMAIN NAME", "gives a domain another name"),
    ("destroy", "DOMAIN", "ends a domain at once"),
    ("pause", "DOMAIN", "stops a domain's vCPUs"),
    ("unpause", "DOMAIN", "lets them run again"),
    ("info", "", "describes the machine and what is in use"),
    ("dmesg", "[-c]", "shows the hypervisor's messages; -c: and forgets them"),
    ("top", "[-d SECONDS] [-i ROUNDS]", "shows what domains use, until ^C"),
    ("debug-keys", "KEYS", "presses the hypervisor's debug keys"),
    ("block-attach", "DOMAIN DISK", "gives a domain another disk, written as in disk=[...]"),
    ("block-detach", "DOMAIN DEVICE [--force]", "takes a disk from a domain; --force: without asking it"),
    ("block-list", "DOMAIN...", "lists the disks of domains"),
    ("domid", "NAME", "shows a domain's number"),
    ("domname", "DOMID", "shows a domain's name"),
    ("uptime", "[DOMAIN...]", "shows how long domains have run"),
    ("vcpu-list", "[DOMAIN...]", "lists vCPUs"),
];

/// `help [xl]`.
pub(super) fn run(arguments: &[&str]) -> Outcome {
    match arguments {
        [] => show("", COMMANDS),
        ["xl"] => show("xl ", XL),
        [other, ..] => {
            let named = |list: &'static [(&str, &str, &str)]| list.iter().find(|command| command.0 == *other);
            let (prefix, found) = match named(COMMANDS) {
                Some(found) => ("", found),
                None => ("xl ", named(XL).ok_or_else(|| format!("{other}: no such command"))?),
            };
            show(prefix, &[*found]);
        }
    }
    Ok(())
}

fn show(prefix: &str, commands: &[(&str, &str, &str)]) {
    for (name, arguments, text) in commands {
        let usage = format!("{prefix}{name} {arguments}");
        println!("{usage:<42} {text}");
    }
}
