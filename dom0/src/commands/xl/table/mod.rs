//! The commands of Xen's `xl` 4.17 and their options, and which of them dom0 carries out, ignores or refuses.
//!
//! The parser of lines uses these tables, `xl help` shows them, and `docs/XL.md` is made from them.

mod devices;
mod domains;
mod host;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// How dom0 treats a command or option of Xen's `xl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) enum Status {
    /// dom0 carries it out.
    Done,
    /// Accepted without a warning, since it changes nothing here: the reason.
    Idle(&'static str),
    /// Ignored with a warning: the reason.
    Warned(&'static str),
    /// Refused: the reason.
    Refused(&'static str),
}

/// An option.
#[derive(Clone, Copy, Debug)]
pub(in crate::commands) struct Opt {
    /// The option's letter.
    pub(in crate::commands) short: Option<char>,
    /// The option's long name, or empty.
    pub(in crate::commands) long: &'static str,
    /// The name of the option's value in the usage, or empty.
    pub(in crate::commands) value: &'static str,
    /// The text in `xl help`.
    pub(in crate::commands) text: &'static str,
    /// Whether dom0 carries this out, ignores or refuses it.
    pub(in crate::commands) status: Status,
}

/// A command.
#[derive(Clone, Copy, Debug)]
pub(in crate::commands) struct Command {
    /// The command's name.
    pub(in crate::commands) name: &'static str,
    /// The command's operands, as the usage shows them.
    pub(in crate::commands) operands: &'static str,
    /// The least and the greatest number of operands.
    pub(in crate::commands) count: (usize, usize),
    /// The text in `xl help`.
    pub(in crate::commands) text: &'static str,
    /// The command's options.
    pub(in crate::commands) options: &'static [Opt],
    /// Whether the command accepts `-N`.
    pub(in crate::commands) dry_run: bool,
    /// Whether dom0 carries this out, ignores or refuses it.
    pub(in crate::commands) status: Status,
}

/// Any number of operands.
const MANY: usize = usize::MAX;

/// An option without a value; `'\0'` is no letter.
pub(super) const fn flag(short: char, long: &'static str, text: &'static str) -> Opt {
    with(short, long, "", text)
}

/// An option with a value.
pub(super) const fn with(short: char, long: &'static str, value: &'static str, text: &'static str) -> Opt {
    let short = if short == '\0' { None } else { Some(short) };
    Opt { short, long, value, text, status: Status::Done }
}

/// A command without options.
const fn command(
    name: &'static str,
    operands: &'static str,
    count: (usize, usize),
    text: &'static str,
) -> Command {
    Command { name, operands, count, text, options: &[], dry_run: false, status: Status::Done }
}

impl Opt {
    pub(super) fn takes_value(&self) -> bool {
        !self.value.is_empty()
    }

    const fn idle(self, why: &'static str) -> Self {
        Self { status: Status::Idle(why), ..self }
    }

    const fn warned(self, why: &'static str) -> Self {
        Self { status: Status::Warned(why), ..self }
    }

    const fn refused(self, why: &'static str) -> Self {
        Self { status: Status::Refused(why), ..self }
    }

    /// `-f FILE, --defconfig=FILE`.
    pub(in crate::commands) fn forms(&self) -> String {
        let (blank, equals) = if self.takes_value() { (" ", "=") } else { ("", "") };
        let short = self.short.map(|letter| format!("-{letter}{blank}{}", self.value));
        let long = (!self.long.is_empty()).then(|| format!("--{}{equals}{}", self.long, self.value));
        let forms: Vec<String> = short.into_iter().chain(long).collect();
        forms.join(", ")
    }

    /// Whether the option has this letter or long name.
    pub(super) fn is(&self, name: &str) -> bool {
        let mut letters = name.chars();
        let letter = letters.next().filter(|_| letters.next().is_none());
        letter.map_or(self.long == name, |letter| self.short == Some(letter))
    }
}

impl Command {
    const fn options(self, options: &'static [Opt]) -> Self {
        Self { options, ..self }
    }

    const fn dry(self) -> Self {
        Self { dry_run: true, ..self }
    }

    const fn refused(self, why: &'static str) -> Self {
        Self { status: Status::Refused(why), ..self }
    }

    /// `usage: xl destroy [-f] DOMAIN`.
    pub(in crate::commands) fn usage(&self) -> String {
        let mut usage = format!("usage: xl {}", self.name);
        for option in self.options.iter().filter(|option| !matches!(option.status, Status::Refused(_))) {
            let name =
                option.short.map_or_else(|| format!("--{}", option.long), |letter| format!("-{letter}"));
            let blank = if option.takes_value() { " " } else { "" };
            usage += &format!(" [{name}{blank}{}]", option.value);
        }
        if !self.operands.is_empty() {
            usage += &format!(" {}", self.operands);
        }
        usage
    }
}

/// A part of `xl`: the heading, and the commands.
pub(in crate::commands) type Part = (&'static str, &'static [Command]);

/// All commands.
pub(in crate::commands) const PARTS: &[Part] = &[
    ("Domains", domains::DOMAINS),
    ("Save, restore and migrate", domains::SAVE),
    ("The machine", host::MACHINE),
    ("Schedulers", host::SCHEDULERS),
    ("CPU pools", host::POOLS),
    ("FLASK, caches and bandwidth", host::FLASK_AND_PSR),
    ("Disks", devices::DISKS),
    ("Network interfaces", devices::NETWORK),
    ("Other devices", devices::OTHERS),
    ("PCI", devices::PCI),
    ("USB", devices::USB),
];

/// Options in front of a command.
pub(in crate::commands) const GLOBAL: &[Opt] = &[
    flag('v', "", "says more").idle("what dom0 and the hypervisor do is in their logs"),
    flag('f', "", "runs beside `xend`").idle("there is no `xend`"),
    flag('N', "", "checks and shows, and changes nothing"),
    flag('t', "", "writes progress over itself").idle("nothing is shown that goes on"),
    flag('T', "", "shows times and the process with messages").idle("there are no processes"),
    flag('h', "help", "shows the commands"),
    flag('\0', "version", "shows the version"),
];

/// The option that every command has.
pub(in crate::commands) const HELP: &[Opt] = &[flag('h', "help", "shows the command's help")];

/// All commands, in order.
pub(in crate::commands) fn all() -> impl Iterator<Item = &'static Command> {
    PARTS.iter().flat_map(|(_, commands)| *commands)
}

/// The command `name`, or the only command that begins with `name`, as with Xen's `xl`.
///
/// # Errors
/// No command, or several, begin so.
pub(in crate::commands) fn find(name: &str) -> Result<&'static Command, String> {
    // `ls` is an alias of ours; older tools of Xen had it too.
    let name = if name == "ls" { "list" } else { name };
    if let Some(command) = all().find(|command| command.name == name) {
        return Ok(command);
    }
    let found: Vec<&Command> =
        all().filter(|command| !name.is_empty() && command.name.starts_with(name)).collect();
    match found[..] {
        [] => Err(format!("xl {name}: no such command; `xl help` lists them")),
        [command] => Ok(command),
        _ => {
            let names: Vec<&str> = found.iter().map(|command| command.name).collect();
            Err(format!("xl {name}: this may mean {}", names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests;
