//! `xl help`: prints the tables.

use alloc::format;

use super::Line;
use super::table::{self, Command, Opt, PARTS, Status};
use crate::commands::Outcome;
use crate::shell::print::Printer;

/// The text of `xl` alone.
pub(super) const USAGE: &str = "usage: xl [-vfNtT] COMMAND ...; `xl help` lists the commands";

/// `xl help [--long] [COMMAND]`.
pub(super) async fn command(line: &Line<'_>) -> Outcome {
    match line.operands.first() {
        Some(name) => one(table::find(name)?).await,
        None => list(line.has("long")).await,
    }
}

/// Prints the commands in parts; refused commands only with `all`.
pub(in crate::commands) async fn list(all: bool) -> Outcome {
    let mut printer = Printer::default();
    for (heading, commands) in PARTS {
        let is_shown = |command: &&Command| all || command.status == Status::Done;
        if !commands.iter().any(|command| is_shown(&command)) {
            continue;
        }
        printer.line(&format!("{heading}:")).await;
        for command in commands.iter().filter(is_shown) {
            let usage = command.usage();
            let usage = usage.strip_prefix("usage: ").unwrap_or(&usage);
            let note = if command.status == Status::Done { "" } else { " (not here)" };
            printer.line(&format!("{usage:<48} {}{note}", command.text)).await;
        }
    }
    let more = if all { "" } else { "; `xl help --long` also lists those that are not here" };
    printer.line(&format!("`xl help COMMAND` shows its options{more}.")).await;
    printer.end().await;
    Ok(())
}

/// Prints a command and its options, and which of them are ignored or refused.
pub(in crate::commands) async fn one(command: &Command) -> Outcome {
    let mut printer = Printer::default();
    printer.line(&command.usage()).await;
    printer.line(command.text).await;
    if let Some(why) = reason(command.status) {
        printer.line(&why).await;
    }
    for option in command.options.iter().chain(table::HELP) {
        printer.line(&option_line(option)).await;
    }
    printer.end().await;
    Ok(())
}

fn option_line(option: &Opt) -> alloc::string::String {
    let why = reason(option.status).map_or(alloc::string::String::new(), |why| format!(" [{why}]"));
    format!("  {:<32} {}{why}", option.forms(), option.text)
}

/// Why the item has no effect, unless it is done.
fn reason(status: Status) -> Option<alloc::string::String> {
    match status {
        Status::Done => None,
        Status::Idle(why) => Some(format!("changes nothing here: {why}")),
        Status::Warned(why) => Some(format!("ignored with a warning: {why}")),
        Status::Refused(why) => Some(format!("not here: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::tests::{failure, run};

    #[test]
    fn help_shows_a_command_and_what_becomes_of_its_options() {
        let (outcome, output) = run("xl help create");
        assert_eq!(outcome, Ok(()));
        assert!(output.starts_with("usage: xl create [-c] [-p] [-F] [-f FILE]"), "{output}");
        assert!(output.contains("  -p, --paused "), "{output}");
        assert!(output.contains("-V, --vncviewer "), "{output}");
        assert!(output.contains("[ignored with a warning: domains have no display]"), "{output}");
        assert_eq!(run("xl create -h").1, output);
        assert_eq!(run("xl create --help /boot/absent").1, output);
        assert_eq!(run("xl -h create").1, output);
        assert!(run("xl help remus").1.contains("not here: no copy of a domain is kept"));
        assert!(failure("xl help frob").contains("frob: no such command"));
    }

    #[test]
    fn the_long_list_has_what_is_refused_too() {
        let (short, long) = (run("xl help").1, run("xl help --long").1);
        assert!(short.contains("xl sysrq DOMAIN KEY") && !short.contains("xl remus"), "{short}");
        assert!(long.contains("xl remus") && long.contains("(not here)"), "{long}");
        assert_eq!(run("help xl").1, short);
    }
}
