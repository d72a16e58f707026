//! Entries of tables: an index that a guest chooses is clamped by `microhv/src/nospec.rs`, which no check can replace.
//!
//! The rule takes every index for a guest's, unless it is a constant, or a CPU's number. So it finds `table[index]`, and the
//! methods that lead to an entry. What is no guest's, or no index, is listed with the reason in `indices.txt`.
//!
//! A range is no index: what is read there goes to the guest as bytes, and no address is made of it.

use crate::Finding;
use crate::code::{Crate, closing, is_name};

/// Words ahead of a bracket that begins a list, a pattern or a type.
const NO_TABLES: [&str; 16] = [
    "as", "break", "const", "dyn", "else", "for", "if", "impl", "in", "let", "match", "move", "mut", "ref",
    "return", "where",
];

/// Methods that lead to an entry by its index.
const METHODS: [&str; 6] = ["get", "get_mut", "nth", "skip", "split_at", "swap_remove"];

/// Such methods where code may be `unsafe`; elsewhere methods of these names do something else.
const UNSAFE_METHODS: [&str; 8] = [
    "get_unchecked",
    "get_unchecked_mut",
    "add",
    "byte_add",
    "offset",
    "byte_offset",
    "wrapping_byte_add",
    "wrapping_offset",
];

/// Names within a constant that are no constants.
const IN_CONSTANTS: [&str; 8] = ["as", "usize", "u8", "u16", "u32", "u64", "size_of", "from"];

/// Indices that are not clamped; known by the file and the expression.
pub(crate) fn findings(all: &Crate) -> Vec<Finding> {
    let mut found = Vec::new();
    for module in &all.modules {
        let words = &module.code.words;
        let unsafe_methods = if words.contains(&"unsafe") { &UNSAFE_METHODS[..] } else { &[] };
        let methods = [&METHODS[..], unsafe_methods].concat();
        for open in 1..words.len() {
            let Some(start) = start(words, open, &methods) else { continue };
            let close = closing(words, open);
            if is_harmless(&words[open + 1..close]) {
                continue;
            }
            let expression = words[start..=close].concat();
            let place = (module.file.as_str(), module.code.lines[open].0);
            let advice = "an index that a guest may choose takes `at` or `wrapped` of microhv/src/nospec.rs";
            let subject = format!("{}: {expression}", module.file);
            found.push(Finding::new("index", subject, place, advice.into()));
        }
    }
    found
}

/// Where an expression begins that leads to an entry, and whose index or argument the bracket at `open` encloses.
fn start(words: &[&str], open: usize, methods: &[&str]) -> Option<usize> {
    let before = words[open - 1];
    let is_lifetime = open >= 2 && words[open - 2] == "'";
    match words[open] {
        "[" if [")", "]", "?"].contains(&before) => Some(open - 1),
        "[" if is_name(before) && !NO_TABLES.contains(&before) && !is_lifetime => Some(open - 1),
        "(" if open >= 3 && words[open - 2] == "." && methods.contains(&before) => Some(open - 3),
        _ => None,
    }
}

/// Whether what is in the brackets is nothing, a constant, a range, or a CPU's number.
fn is_harmless(index: &[&str]) -> bool {
    let mut depth = 0;
    for at in 0..index.len() {
        match index[at] {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            "." if depth == 0 && index.get(at + 1) == Some(&".") => return true,
            _ => {}
        }
    }
    let is_constant =
        |word: &&str| !is_name(word) || word.starts_with(char::is_uppercase) || IN_CONSTANTS.contains(word);
    index.iter().all(is_constant) || index.ends_with(&[".", "index", "(", ")"])
}

/// What is against `list`, which has a line for each exception: a file and an expression, a whole file, or a directory; and the
/// reason.
pub(crate) fn complaints(found: &[Finding], list: &str) -> Vec<String> {
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    let listed: Vec<(&str, &str)> = lines.filter_map(|line| line.rsplit_once(": ")).collect();
    let covers = |place: &str, finding: &Finding| {
        let is_part = place.ends_with('/') || place.ends_with(".rs");
        finding.subject == place || is_part && finding.subject.starts_with(place)
    };
    let new = found.iter().filter(|finding| !listed.iter().any(|(place, _)| covers(place, finding)));
    let new = new.map(|finding| format!("{}: {}: {}", finding.at, finding.key(), finding.advice));
    let gone = listed.iter().filter(|(place, _)| !found.iter().any(|finding| covers(place, finding)));
    let gone = gone.map(|(place, _)| format!("indices.txt: there is no such index any more: {place}"));
    new.chain(gone).collect()
}

mod planted {
    use super::*;

    fn expressions(text: &str) -> Vec<String> {
        let found = findings(&Crate::made_up(&[("lib.rs", text)])).into_iter();
        found.map(|finding| finding.subject.strip_prefix("lib.rs: ").expect("the file").to_owned()).collect()
    }

    #[test]
    fn indices_are_found() {
        for (text, expression) in [
            ("fn f() { self.ports[port as usize] }", "ports[portasusize]"),
            ("fn f() { &mut self.chunks()[handle] }", ")[handle]"),
            ("fn f() { table[a][1] }", "table[a]"),
            ("fn f() { self.table()?[slot % 512] }", "?[slot%512]"),
            ("fn f() { words[N + n] }", "words[N+n]"),
            ("fn f() { log!(\"{}\", table[n]) }", "table[n]"),
            ("fn f() { self.frames.get(mfn.raw() as usize) }", "frames.get(mfn.raw()asusize)"),
            ("fn f() { frames.get_mut(n) }", "frames.get_mut(n)"),
            ("fn f() { unsafe { x.get_unchecked(n) } }", "x.get_unchecked(n)"),
            ("fn f() { unsafe { at.add(n).read() } }", "at.add(n)"),
            ("fn f() { list.iter().nth(n) }", ").nth(n)"),
        ] {
            assert_eq!(expressions(text), [expression], "{text}");
        }
    }

    #[test]
    fn clamped_indices_and_what_is_no_index_are_not() {
        for text in [
            "fn f() { table.at(n); table.wrapped_mut(n); cell.get(); x[0]; x[TOP]; x[A / 8 + 1]; x[Kind::B as usize] }",
            "fn f(a: &[u8; 4], b: &'static [u8], c: &mut [T]) -> [u8; N] { let [x, y] = a; for [x] in [y] {} vec![n; 2] }",
            "#[derive(A)] impl A for [T] { fn f() { bytes[..len]; bytes[a.b..][..n]; cpus[cpu.index()]; bytes.get(n..); set.add(n) } }",
            "#[cfg(test)] mod tests { fn f() { x[n]; x.get(n); } }",
        ] {
            assert_eq!(expressions(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn what_is_listed_is_there_and_what_is_there_is_listed() {
        let made_up = Crate::made_up(&[
            ("src/lib.rs", "mod a; mod b; mod c;"),
            ("src/a.rs", "fn f() { x[n]; y[n]; }"),
            ("src/b/mod.rs", "fn f() { x[n]; y[n]; }"),
            ("src/c.rs", ""),
        ]);
        let list = "# remark\nsrc/a.rs: x[n]: own\nsrc/b/: before guests\n";
        let found = findings(&made_up);
        let new = complaints(&found, list);
        assert!(new.len() == 1 && new[0].starts_with("src/a.rs:1: index: src/a.rs: y[n]: "), "{new:?}");
        let gone = complaints(&found, &format!("{list}src/a.rs: y[n]: own\nsrc/c.rs: x[n]: own\n"));
        assert!(gone.len() == 1 && gone[0].ends_with("src/c.rs: x[n]"), "{gone:?}");
    }
}
