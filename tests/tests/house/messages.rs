//! What an administrator reads: no structures as `Debug` prints them, no names of modules, no bare numbers of devices.

use crate::Finding;
use crate::code::Crate;

/// Macros whose text is for who writes the program: they end it.
const ENDS: [&str; 8] = [
    "panic",
    "unreachable",
    "assert",
    "assert_eq",
    "assert_ne",
    "debug_assert",
    "debug_assert_eq",
    "debug_assert_ne",
];

/// Words that name a place in the sources.
const PLACES: [&str; 3] = ["module_path", "type_name", "type_name_of_val"];

/// Placeholders that stand for a device's number where a sentence has them.
const NUMBERS: [&str; 4] = ["device", "devid", "vdev_number", "id.device"];

/// Texts of a crate that are not in the reader's words; known by files.
pub(crate) fn findings(all: &Crate) -> Vec<Finding> {
    let mut found = Vec::new();
    for module in &all.modules {
        let words = &module.code.words;
        for (at, word) in words.iter().enumerate() {
            let advice = match word {
                text if text.starts_with('"') && shows_debug(text) && !is_for_programs(words, at) => {
                    "`{:?}` shows a structure: give the type a `Display` in the reader's words"
                }
                text if text.starts_with('"') && has_device_number(text) => {
                    "name the device as its configuration does, such as xvda"
                }
                name if PLACES.contains(name) => "the reader does not know our modules",
                _ => continue,
            };
            let place = (module.file.as_str(), module.code.lines[at].0);
            found.push(Finding::new("message", module.file.clone(), place, advice.into()));
        }
    }
    found
}

/// Whether a text has a placeholder such as `{:?}`, `{error:#?}` or `{:02x?}`.
fn shows_debug(text: &str) -> bool {
    placeholders(text).any(|(_, inner)| inner.split_once(':').is_some_and(|(_, how)| how.ends_with('?')))
}

/// Whether a sentence, unlike a path, has a device's number in it.
fn has_device_number(text: &str) -> bool {
    placeholders(text).any(|(before, inner)| {
        let name = inner.split(':').next().unwrap_or_default();
        NUMBERS.contains(&name) && before.ends_with([' ', '('])
    })
}

/// The placeholders of a text, each with what stands before it.
fn placeholders(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.match_indices('{').filter_map(move |(at, _)| {
        let inner = &text[at + 1..];
        Some((&text[..at], &inner[..inner.find('}')?]))
    })
}

/// Whether the text at `at` ends the program when it is shown, or is `Debug`'s own.
fn is_for_programs(words: &[&str], at: usize) -> bool {
    let open = words[..at].iter().rposition(|word| *word == ";" || *word == "{" || *word == "}");
    let statement = &words[open.map_or(0, |open| open + 1)..at];
    if statement.windows(2).any(|pair| ENDS.contains(&pair[0]) && pair[1] == "!") {
        return true;
    }
    let Some(item) = words[..at].iter().rposition(|word| *word == "impl") else { return false };
    let head = words[item..].iter().take_while(|word| **word != "for" && **word != "{");
    head.into_iter().any(|word| *word == "Debug")
}

mod planted {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        findings(&Crate::made_up(&[("lib.rs", text)])).into_iter().map(|finding| finding.at).collect()
    }

    #[test]
    fn what_is_not_in_the_readers_words_is_found() {
        for text in [
            "fn f() { log::warn!(\"d1: {error:?}\"); }",
            "fn f() { assert!(x, \"fine {x:?}\"); println!(\"{:#?}\", x) }",
            "impl fmt::Display for E { fn fmt() { write!(f, \"{:02x?}\", self.0) } }",
            "fn f() { log::error!(\"vbd {device} is gone\"); }",
            "fn f() { format!(\"disk ({devid})\") }",
            "fn f() { println!(\"{}\", core::any::type_name::<T>()) }",
            "fn f() { log::info!(module_path!()) }",
        ] {
            assert_eq!(lines(text), ["lib.rs:1"], "{text}");
        }
    }

    #[test]
    fn what_ends_the_program_or_is_debugs_own_is_not() {
        for text in [
            "fn f() { panic!(\"{x:?}\"); unreachable!(\"{:?}\", y) }",
            "fn f() { debug_assert_eq!(a, b, \"{x:?}\"); }",
            "impl fmt::Debug for E { fn fmt() { write!(f, \"E({:?})\", self.0) } }",
            "fn f() { format!(\"{ROOT}/{domain}/{device}\") }",
            "fn f() { println!(\"what? {text} {:>8} {{\", 1) }",
            "#[cfg(test)] mod tests { fn f() { println!(\"{x:?}\") } }",
        ] {
            assert_eq!(lines(text), [""; 0], "{text}");
        }
    }
}
