//! `docs/XL.md`, made of the tables.

use alloc::format;
use alloc::string::String;

use super::table::{Command, GLOBAL, Opt, PARTS, Status};
use crate::config::keys::{DISK_WORDS, Fate, KEYS, Key, VIF_WORDS};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/XL.md");

const HEAD: &str = "\
# `xl` and `xl.cfg` here and in Xen 4.17

Every command and option of Xen's `xl` 4.17, every key of `xl.cfg(5)`, and what becomes of each. \"done\": as Xen's does;
\"no effect\": taken without a word, as nothing here depends on that; \"ignored\": with a warning that names it; \"refused\":
with one line that says why. `xl help COMMAND` shows the same.

This file is made of the tables that `xl` itself goes by, `dom0/src/commands/xl/table/` and `dom0/src/config/keys.rs`:
`cargo test -p dom0 --lib write_the_document -- --ignored` writes it anew, and a test compares.

As with Xen's, a command and a long option may be cut short while only one begins so, short options cluster (`-aw`), a
value stands behind its option or in the next word (`-d1`, `-d 1`, `--domain=1`, `--domain 1`), and `--` ends the options.
Beyond Xen's: `dirty-rate` (as QEMU's `calc-dirty-rate`), `create --paused`, `top -d SECONDS -i ROUNDS` (in place of a curses screen), several domains for
`shutdown` and `reboot`, and an error for operands that are too many.
";

fn row(name: &str, becomes: &str, text: &str) -> String {
    format!("| `{}` | {becomes} | {} |\n", name.replace('|', "\\|"), text.replace('|', "\\|"))
}

fn becomes(status: Status, text: &str) -> (&'static str, String) {
    match status {
        Status::Done => ("done", text.into()),
        Status::Idle(why) => ("no effect", format!("{text}: {why}")),
        Status::Warned(why) => ("ignored", format!("{text}: {why}")),
        Status::Refused(why) => ("refused", format!("{text}: {why}")),
    }
}

fn option(option: &Opt, command: Status) -> String {
    // The options of a refused command are refused with the command.
    let (word, text) = match command {
        Status::Refused(_) => ("refused", option.text.into()),
        _ => becomes(option.status, option.text),
    };
    row(&option.forms(), word, &text)
}

fn command(command: &Command) -> String {
    let name = format!("xl {} {}", command.name, command.operands);
    let (word, mut text) = becomes(command.status, command.text);
    if command.dry_run && command.status == Status::Done {
        text += "; with `-N` it shows what it would do";
    }
    let options = command.options.iter().map(|other| option(other, command.status));
    row(name.trim_end(), word, &text) + &options.collect::<String>()
}

fn document() -> String {
    const COLUMNS: &str = "| what | becomes | |\n| --- | --- | --- |\n";
    let mut text = format!("{HEAD}\n## In front of every command\n\n{COLUMNS}");
    GLOBAL.iter().for_each(|global| text += &option(global, Status::Done));
    for (heading, commands) in PARTS {
        text += &format!("\n## {heading}\n\n{COLUMNS}");
        commands.iter().for_each(|each| text += &command(each));
    }
    text + &keys("Keys of `xl.cfg`", KEYS)
        + &keys("Words of an entry of `disk`", DISK_WORDS)
        + &keys("Words of an entry of `vif`", VIF_WORDS)
}

fn keys(heading: &str, keys: &[Key]) -> String {
    let rows = keys.iter().map(|key| {
        let word = match key.fate {
            Fate::Done => "done",
            Fate::Ignored => "ignored",
            Fate::Refused => "refused",
        };
        row(key.name, word, key.why)
    });
    format!("\n## {heading}\n\n| word | becomes | |\n| --- | --- | --- |\n") + &rows.collect::<String>()
}

#[test]
fn the_document_says_what_the_tables_say() {
    let written = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(
        written == document(),
        "docs/XL.md is not what the tables give: `cargo test -p dom0 --lib write_the_document -- --ignored`"
    );
}

#[test]
#[ignore = "writes docs/XL.md"]
fn write_the_document() {
    std::fs::write(PATH, document()).unwrap();
}
