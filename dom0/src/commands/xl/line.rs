//! A line of `xl`, read by the table of its command.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::getopt::{self, Order};
use super::table::{Command, GLOBAL, HELP, Opt, Status};

/// The options in front of a command.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Global {
    /// `-N`: the command changes nothing.
    pub(super) dry_run: bool,
    /// `-h`
    pub(super) help: bool,
    /// `--version`
    pub(super) version: bool,
}

/// Reads the options in front of a command; the rest begins with the command.
///
/// # Errors
/// There is no such option.
pub(super) fn global<'a>(words: &[&'a str]) -> Result<(Global, Vec<&'a str>), String> {
    let read = getopt::read([GLOBAL, &[]], words, Order::InFront)
        .map_err(|error| format!("xl: {error}; usage: xl [-vfNtT] COMMAND ...; `xl help` lists them"))?;
    let has = |name| read.options.iter().any(|(option, _)| option.is(name));
    let global = Global { dry_run: has("N"), help: has("h"), version: has("version") };
    Ok((global, read.operands))
}

/// A line that was read.
#[derive(Debug)]
pub(super) struct Line<'a> {
    /// The line's command.
    pub(super) command: &'static Command,
    /// Whether the command must change nothing.
    pub(super) dry_run: bool,
    /// The words that are no options.
    pub(super) operands: Vec<&'a str>,
    options: Vec<(&'static Opt, &'a str)>,
}

impl<'a> Line<'a> {
    /// Reads the words behind a command. A refused command is refused whatever the words are, except `-h`.
    ///
    /// # Errors
    /// The command or an option is refused, there is no such option, or there are too few operands or too many.
    pub(super) fn read(command: &'static Command, dry_run: bool, words: &[&'a str]) -> Result<Self, String> {
        let read = getopt::read([command.options, HELP], words, Order::Anywhere);
        if let Status::Refused(why) = command.status
            && !read.as_ref().is_ok_and(|read| read.options.iter().any(|(option, _)| option.is("h")))
        {
            return Err(format!("xl {}: not here: {why}", command.name));
        }
        let named = |error| format!("xl {}: {error}; {}", command.name, command.usage());
        let read = read.map_err(named)?;
        let line = Self { command, dry_run, operands: read.operands, options: read.options };
        if line.has("h") {
            return Ok(line);
        }
        let (least, most) = command.count;
        if !(least..=most).contains(&line.operands.len()) {
            return Err(command.usage());
        }
        for (option, _) in &line.options {
            if let Status::Refused(why) = option.status {
                return Err(format!("xl {}: {}: not here: {why}", command.name, option.forms()));
            }
        }
        if dry_run && !command.dry_run {
            return Err(format!("xl {}: -N: this command cannot be tried, and was not run", command.name));
        }
        Ok(line)
    }

    /// How often an option was given, by its letter or, if it has none, by its long name.
    pub(super) fn count(&self, name: &str) -> usize {
        debug_assert!(
            self.command.options.iter().chain(HELP).any(|option| option.is(name)),
            "{}: {name}",
            self.command.name
        );
        self.options.iter().filter(|(option, _)| option.is(name)).count()
    }

    /// Was an option given?
    pub(super) fn has(&self, name: &str) -> bool {
        self.count(name) > 0
    }

    /// The value of an option; the last value counts.
    pub(super) fn value(&self, name: &str) -> Option<&'a str> {
        self.options.iter().rev().find(|(option, _)| option.is(name)).map(|(_, value)| *value)
    }

    /// A warning line for each ignored option: what is ignored, and why.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> + '_ {
        self.options.iter().filter_map(|(option, _)| match option.status {
            Status::Warned(why) => {
                Some(format!("xl {}: {}: ignored: {why}", self.command.name, option.forms()))
            }
            _ => None,
        })
    }

    /// The only operand.
    ///
    /// # Errors
    /// The line has another number of operands.
    pub(super) fn one(&self) -> Result<&'a str, String> {
        match self.operands[..] {
            [operand] => Ok(operand),
            _ => Err(self.command.usage()),
        }
    }

    /// The two operands.
    ///
    /// # Errors
    /// The line has another number of operands.
    pub(super) fn two(&self) -> Result<(&'a str, &'a str), String> {
        match self.operands[..] {
            [first, second] => Ok((first, second)),
            _ => Err(self.command.usage()),
        }
    }

    /// The text of an error in this line: what is wrong, and the command's usage.
    pub(super) fn wrong(&self, text: &str) -> String {
        format!("xl {}: {text}; {}", self.command.name, self.command.usage())
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::{all, find};
    use super::*;

    fn read(words: &[&'static str]) -> Result<Line<'static>, String> {
        let (global, rest) = global(words)?;
        Line::read(find(rest[0])?, global.dry_run, &rest[1..])
    }

    #[test]
    fn options_in_front_are_xls_own() {
        for (words, dry_run, rest) in [
            (&["list", "-v"][..], false, &["list", "-v"][..]),
            (&["-vvv", "list"], false, &["list"]),
            (&["-v", "-f", "-N", "create", "-n"], true, &["create", "-n"]),
            (&["-fNtTv", "list"], true, &["list"]),
        ] {
            let (global, found) = global(words).unwrap();
            assert_eq!((global.dry_run, &found[..]), (dry_run, rest), "{words:?}");
        }
        assert!(global(&["-h"]).unwrap().0.help && global(&["--version"]).unwrap().0.version);
        let error = global(&["-x", "list"]).unwrap_err();
        assert!(error.starts_with("xl: `-x`: no such option; usage: xl [-vfNtT] COMMAND"), "{error}");
    }

    #[test]
    fn an_error_names_the_option_and_the_command() {
        for (words, error) in [
            (
                &["list", "-x"][..],
                "xl list: `-x`: no such option; usage: xl list [-l] [-v] [-Z] [-c] [-n] [DOMAIN...]",
            ),
            (&["destroy"], "usage: xl destroy [-f] DOMAIN"),
            (&["destroy", "a", "b"], "usage: xl destroy [-f] DOMAIN"),
            (&["console", "-n", "x"], "usage: xl console [-t TYPE] [-n NUMBER] [--log] DOMAIN"),
            (&["-N", "list"], "xl list: -N: this command cannot be tried, and was not run"),
            (
                &["remus"],
                "xl remus: not here: no copy of a domain is kept on another machine: `xl migrate` moves one",
            ),
            (
                &["remus", "--nope"],
                "xl remus: not here: no copy of a domain is kept on another machine: `xl migrate` moves one",
            ),
            (
                &["sched-credit2", "-s"],
                "xl sched-credit2: -s, --schedparam: not here: the scheduler has no parameters of its own",
            ),
        ] {
            assert_eq!(read(words).map(|_| ()), Err(error.into()), "{words:?}");
        }
        assert!(read(&["remus", "-h"]).unwrap().has("h"));
        let create = read(&["create", "-V", "x"]).unwrap();
        assert!(create.warnings().eq(["xl create: -V, --vncviewer: ignored: domains have no display"]));
    }

    #[test]
    fn a_command_may_be_cut_short_as_with_xen() {
        let name = |text| find(text).map(|command| command.name);
        for (text, full) in
            [("cre", "create"), ("list", "list"), ("li", "list"), ("dm", "dmesg"), ("ls", "list")]
        {
            assert_eq!(name(text), Ok(full), "{text}");
        }
        assert_eq!(name("vcpu-s"), Ok("vcpu-set"));
        // A whole name means that command, even if another command's name begins with it.
        assert_eq!(name("migrate"), Ok("migrate"));
        assert_eq!(name("pau"), Ok("pause"));
        assert_eq!(name("mem-"), Err("xl mem-: this may mean mem-max, mem-set".into()));
        assert_eq!(name("frob"), Err("xl frob: no such command; `xl help` lists them".into()));
        assert!(name("").is_err());
    }

    #[test]
    fn the_tables_are_whole() {
        let mut names: Vec<&str> = all().map(|command| command.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "a command is there twice");
        for command in all() {
            assert!(command.count.0 <= command.count.1, "{}", command.name);
            for (at, option) in command.options.iter().enumerate() {
                let is_same = |other: &Opt| {
                    (option.short.is_some() && option.short == other.short)
                        || (!option.long.is_empty() && option.long == other.long)
                };
                assert!(option.short.is_some() || !option.long.is_empty(), "{}", command.name);
                assert!(
                    !command.options[..at].iter().chain(HELP).any(is_same),
                    "{} {}",
                    command.name,
                    option.forms()
                );
            }
        }
    }
}
