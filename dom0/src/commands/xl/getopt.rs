//! Options of a line, read as `getopt_long` reads them.
//!
//! A short option may stand in a cluster (`-aw`), its value behind it (`-d1`) or in the next word (`-d 1`); a long
//! option has its value behind `=` or in the next word, and may be abbreviated as long as no other option begins so.
//! Options may come behind operands. `--` ends them, and a single `-` is an operand.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::table::Opt;

/// Options and operands of a line.
#[derive(Debug)]
pub(super) struct Words<'a> {
    /// Each option and its value, which is empty for one that has none.
    pub(super) options: Vec<(&'static Opt, &'a str)>,
    /// The words that are no options.
    pub(super) operands: Vec<&'a str>,
}

/// Where options may stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Anywhere: all other words are operands.
    Anywhere,
    /// In front: the first operand ends them.
    InFront,
}

/// Reads `words` by the options of `tables`.
///
/// # Errors
/// An option is in neither table or ambiguous, lacks its value, or has a value that it does not take.
pub(super) fn read<'a>(
    tables: [&'static [Opt]; 2],
    words: &[&'a str],
    order: Order,
) -> Result<Words<'a>, String> {
    let mut read = Words { options: Vec::new(), operands: Vec::new() };
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        } else if let Some(long) = word.strip_prefix("--") {
            let (name, value) =
                long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
            let option = find(tables, name)?;
            let value = match value {
                Some(_) if !option.takes_value() => {
                    return Err(format!("`--{}` takes no value", option.long));
                }
                Some(value) => value,
                None if option.takes_value() => words.next().ok_or_else(|| lacks(word, option))?,
                None => "",
            };
            read.options.push((option, value));
        } else if let Some(cluster) = word.strip_prefix('-').filter(|cluster| !cluster.is_empty()) {
            let mut letters = cluster.chars();
            while let Some(letter) = letters.next() {
                let option = tables.into_iter().flatten().find(|option| option.short == Some(letter));
                let option = option.ok_or_else(|| format!("`-{letter}`: no such option"))?;
                if !option.takes_value() {
                    read.options.push((option, ""));
                    continue;
                }
                let rest = core::mem::replace(&mut letters, "".chars()).as_str();
                let value = if rest.is_empty() { words.next() } else { Some(rest) };
                read.options.push((option, value.ok_or_else(|| lacks(&format!("-{letter}"), option))?));
            }
        } else {
            read.operands.push(word);
            if order == Order::InFront {
                break;
            }
        }
    }
    read.operands.extend(words);
    Ok(read)
}

fn lacks(option: &str, known: &Opt) -> String {
    format!("`{option}`: its value {} is missing", known.value)
}

/// The long option `name`, or the only option that begins with `name`.
fn find(tables: [&'static [Opt]; 2], name: &str) -> Result<&'static Opt, String> {
    let all = || tables.into_iter().flatten();
    if let Some(option) = all().find(|option| option.long == name) {
        return Ok(option);
    }
    let begins = |option: &&Opt| !name.is_empty() && option.long.starts_with(name);
    let found: Vec<&Opt> = all().filter(begins).collect();
    match found[..] {
        [] => Err(format!("`--{name}`: no such option")),
        [option] => Ok(option),
        _ => {
            let names: Vec<String> = found.iter().map(|option| format!("`--{}`", option.long)).collect();
            Err(format!("`--{name}` may mean {}", names.join(" or ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::{HELP, flag, with};
    use super::*;

    const TABLE: &[Opt] = &[
        flag('a', "all", ""),
        flag('w', "wait", ""),
        with('d', "domain", "DOMAIN", ""),
        with('\0', "depth", "N", ""),
        flag('\0', "dryrun", ""),
    ];

    /// The options as `name=value`, and the operands.
    fn parts(words: &[&str], order: Order) -> Result<(String, String), String> {
        let read = read([TABLE, HELP], words, order)?;
        let options: Vec<String> =
            read.options.iter().map(|(option, value)| format!("{}={value}", option.long)).collect();
        Ok((options.join(" "), read.operands.join(" ")))
    }

    #[test]
    fn options_as_getopt_reads_them() {
        for (words, options, operands) in [
            (&[][..], "", ""),
            (&["-a", "x"], "all=", "x"),
            (&["-aw", "x"], "all= wait=", "x"),
            (&["-wa"], "wait= all=", ""),
            (&["-aa"], "all= all=", ""),
            (&["-d1"], "domain=1", ""),
            (&["-d", "1"], "domain=1", ""),
            (&["-ad1"], "all= domain=1", ""),
            (&["-ad", "1", "2"], "all= domain=1", "2"),
            (&["-da"], "domain=a", ""),
            (&["-d", "-a"], "domain=-a", ""),
            (&["-d="], "domain==", ""),
            (&["--domain=1"], "domain=1", ""),
            (&["--domain="], "domain=", ""),
            (&["--domain", "1", "2"], "domain=1", "2"),
            (&["--domain", "--all"], "domain=--all", ""),
            (&["--dom=a=b"], "domain=a=b", ""),
            (&["--al", "--w"], "all= wait=", ""),
            (&["x", "-a", "y"], "all=", "x y"),
            (&["x", "--", "-a"], "", "x -a"),
            (&["--", "--"], "", "--"),
            (&["-a", "-", "-w"], "all= wait=", "-"),
            (&["-dé"], "domain=é", ""),
        ] {
            let expected = Ok((options.into(), operands.into()));
            assert_eq!(parts(words, Order::Anywhere), expected, "{words:?}");
        }
    }

    #[test]
    fn the_first_operand_ends_the_options_in_front() {
        let front = |words| parts(words, Order::InFront);
        assert_eq!(front(&["-a", "list", "-w"]), Ok(("all=".into(), "list -w".into())));
        assert_eq!(front(&["--", "-a"]), Ok(("".into(), "-a".into())));
        assert_eq!(front(&["-d", "list", "-a", "x"]), Ok(("domain=list all=".into(), "x".into())));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (words, error) in [
            (&["-x"][..], "`-x`: no such option"),
            (&["-ax"], "`-x`: no such option"),
            (&["-é"], "`-é`: no such option"),
            (&["--nope=1"], "`--nope`: no such option"),
            (&["--=1"], "`--`: no such option"),
            (&["---"], "`---`: no such option"),
            (&["--d"], "`--d` may mean `--domain` or `--depth` or `--dryrun`"),
            (&["--all=1"], "`--all` takes no value"),
            (&["-d"], "`-d`: its value DOMAIN is missing"),
            (&["-ad"], "`-d`: its value DOMAIN is missing"),
            (&["--depth"], "`--depth`: its value N is missing"),
        ] {
            assert_eq!(parts(words, Order::Anywhere), Err(error.into()), "{words:?}");
        }
    }
}
