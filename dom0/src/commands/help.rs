//! `help`, and the list that completion uses.

use alloc::format;

use pvrt::println;

use super::{Outcome, xl};

/// The commands, their arguments, and what they do.
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
    ("xenstore-control", "COMMAND ...", "asks the store's daemon: `xenstore-control help`"),
    ("net", "[COMMAND ...]", "shows and changes the networks: `net help`"),
    ("accounts", "", "shows what dom0 keeps for each domain, of what budget, in bytes"),
    ("ls", "[PATH]", "lists /boot or the disks in /dev"),
    ("cat", "FILE...", "shows files"),
    ("echo", "[WORD...]", "prints the words"),
    ("date", "", "shows the date and the time, in UTC"),
    ("clear", "", "clears the screen"),
    ("poweroff", "", "ends everything"),
    ("reboot", "", "starts the machine again"),
    ("halt", "", "the same as poweroff"),
    ("help", "[COMMAND]", "shows this, or a command's line; `COMMAND -h` shows the same"),
];

/// `help [COMMAND]`.
pub(super) async fn run(arguments: &[&str]) -> Outcome {
    match arguments {
        [] => show(COMMANDS),
        ["xl"] => return xl::help::list(false).await,
        [other, ..] => match COMMANDS.iter().find(|command| command.0 == *other) {
            Some(found) => show(&[*found]),
            None => {
                let command = xl::table::find(other).map_err(|_| format!("{other}: no such command"))?;
                return xl::help::one(command).await;
            }
        },
    }
    Ok(())
}

fn show(commands: &[(&str, &str, &str)]) {
    for (name, arguments, text) in commands {
        let usage = format!("{name} {arguments}");
        println!("{usage:<42} {text}");
    }
}
