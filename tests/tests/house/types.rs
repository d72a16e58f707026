//! Types: what has a newtype is no bare integer, and what is owed cannot be dropped unseen.

use std::collections::BTreeSet;

use crate::Finding;
use crate::code::{Crate, Module, closing, is_name};

/// Names of things that have a type, alone or behind `_` (`old_mfn`); the integers that are meant, if a name has another
/// sense too (a port of 16 bits is the processor's, an `entry: usize` an index); and the type.
const NEWTYPES: &[(&str, &[&str], &str)] = &[
    ("cpu", &[], "CpuId"),
    ("dom_id", &[], "DomId"),
    ("domid", &[], "DomId"),
    ("entry", &["u64"], "Pte"),
    ("gfn", &[], "Gfn"),
    ("grant_ref", &[], "GrantRef"),
    ("gref", &[], "GrantRef"),
    ("handle", &["u32"], "GrantHandle"),
    ("irq", &[], "Irq"),
    ("maddr", &[], "Maddr"),
    ("mfn", &[], "Mfn"),
    ("pfn", &[], "Pfn"),
    ("pirq", &[], "Pirq"),
    ("port", &["u32", "u64", "usize"], "Port"),
    ("pte", &[], "Pte"),
    ("va", &[], "GuestVa"),
    ("vcpu_id", &[], "VcpuId"),
    ("vector", &[], "Vector"),
];

const INTEGERS: [&str; 12] =
    ["u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128", "isize"];

/// Parameters, fields, variables and results whose name has a type and whose type is a bare integer, also a borrowed or optional
/// one, or many; known by file, function or type, and name. `hypercall` decodes what guests say: bare integers end there.
/// A newtype's own maker calls its parameter `raw`.
pub(crate) fn integers(all: &Crate) -> Vec<Finding> {
    let mut found = Vec::new();
    for module in all.outside("hypercall") {
        let words = &module.code.words;
        let mut around = "";
        for at in 0..words.len() {
            let (name, ty) = match words[at..] {
                ["fn", name, ..] if is_name(name) => {
                    around = name;
                    (name, result(&words[at + 2..]))
                }
                ["struct" | "enum" | "trait", name, ..] => {
                    around = name;
                    continue;
                }
                [name, ":", ..] => (name, &words[at + 2..]),
                _ => continue,
            };
            if let Some(integer) = integer(ty)
                && let Some(newtype) = newtype(name, integer)
            {
                let subject = format!("{} {around} {name}", module.file);
                let advice = format!("it is a `{newtype}`, not a `{integer}`: `hypercall` decodes it");
                found.push(Finding::new("integer", subject, (&module.file, module.code.lines[at].0), advice));
            }
        }
    }
    found
}

/// What follows `->`, if a function has a result; its name is ahead of `words`.
fn result<'a>(words: &'a [&'static str]) -> &'a [&'static str] {
    let mut angles = 0;
    for (at, word) in words.iter().enumerate() {
        match *word {
            "<" => angles += 1,
            ">" => angles -= 1,
            "(" if angles == 0 => {
                let after = &words[closing(words, at) + 1..];
                return after.strip_prefix(&["->"]).unwrap_or(&[]);
            }
            _ => {}
        }
    }
    &[]
}

/// The type that `name` should have instead of `integer`.
fn newtype(name: &str, integer: &str) -> Option<&'static str> {
    let is_meant = |(thing, meant, _): &&(&str, &[&str], &str)| {
        let is_called =
            name.strip_suffix(thing).is_some_and(|before| before.is_empty() || before.ends_with('_'));
        is_called && (meant.is_empty() || meant.contains(&integer))
    };
    NEWTYPES.iter().find(is_meant).map(|(_, _, newtype)| *newtype)
}

/// The integer that a type is whose words are at the front.
fn integer(ty: &[&'static str]) -> Option<&'static str> {
    match ty {
        ["&" | "mut" | "[" | "Option" | "Result" | "<", rest @ ..] | ["'", _, rest @ ..] => integer(rest),
        [_, "::", ..] => None,
        [word, ..] => INTEGERS.contains(word).then_some(word),
        [] => None,
    }
}

/// How the name of a type ends that carries work owed. One with a `Drop` does so whatever its name.
const OWED: [&str; 4] = ["Batch", "Guard", "Notify", "Owed"];

/// Types whose `Drop` only frees memory.
const MEMORY: [&str; 1] = ["Cells"];

/// Types that carry work owed without `#[must_use]`; known by file and name.
pub(crate) fn owed(all: &Crate) -> Vec<Finding> {
    let mut dropped = BTreeSet::new();
    let mut unmarked = Vec::new();
    for module in &all.modules {
        let words = &module.code.words;
        for at in 0..words.len() {
            match words[at..] {
                ["Drop", "for", name, ..] => drop(dropped.insert(name)),
                ["struct" | "enum", name, ..] => {
                    let mut before =
                        words[..at].iter().rev().take_while(|word| ![";", "{", "}"].contains(*word));
                    if !before.any(|word| *word == "must_use") {
                        unmarked.push((module, name, module.code.lines[at].0));
                    }
                }
                _ => {}
            }
        }
    }
    let is_owed = |name: &str| OWED.iter().any(|end| name.ends_with(end)) || dropped.contains(name);
    unmarked.retain(|(_, name, _)| is_owed(name) && !MEMORY.contains(name));
    let finding = |(module, name, line): (&Module, &str, usize)| {
        let advice = "it carries work owed: put `#[must_use = \"why\"]` on the type".into();
        Finding::new("must_use", format!("{} {name}", module.file), (&module.file, line), advice)
    };
    unmarked.into_iter().map(finding).collect()
}

mod planted {
    use super::*;

    fn subjects(rule: fn(&Crate) -> Vec<Finding>, text: &str) -> Vec<String> {
        let found = rule(&Crate::made_up(&[
            ("lib.rs", "mod hypercall; mod m;"),
            ("hypercall.rs", text),
            ("m.rs", text),
        ]));
        found.into_iter().filter(|finding| finding.at == "m.rs:1").map(|finding| finding.subject).collect()
    }

    #[test]
    fn bare_integers_are_found() {
        for (text, subject) in [
            ("fn f(mfn: u64) {}", "m.rs f mfn"),
            ("impl S { fn f(&self, mfn: &'a mut u64) {} }", "m.rs f mfn"),
            ("impl S { fn old_port(&self) -> Option<u32> { 0 } }", "m.rs old_port old_port"),
            ("trait T { fn f(ports: &[u32], guest_va: &mut u64) -> u8; }", "m.rs f guest_va"),
            ("pub struct S { pub grant_ref: [u32; 4], count: u32 }", "m.rs S grant_ref"),
            ("enum E { A { handle: u32 }, B(u64) }", "m.rs E handle"),
            ("fn f(entry: u64) {}", "m.rs f entry"),
        ] {
            assert_eq!(subjects(integers, text), [subject], "{text}");
        }
        for text in [
            "fn f(mfn: Mfn, report: u32, cpus: usize, entry: usize) -> u64 {}",
            "fn f(port: u16, handle: [u8; 16], va: Map<u64>) { S { mfn: u64::MAX, f: |_| -> u64 { 0 } } }",
            "fn port(f: impl Fn() -> u32) -> Port {}",
            "#[cfg(test)] fn f(mfn: u64) {}",
        ] {
            assert_eq!(subjects(integers, text), [""; 0], "{text}");
        }
        let decoder = [("lib.rs", "mod hypercall;"), ("hypercall.rs", "fn f(mfn: u64) {}")];
        assert!(integers(&Crate::made_up(&decoder)).is_empty());
    }

    #[test]
    fn work_owed_that_may_be_dropped_is_found() {
        let dropped = "#[derive(Debug)] pub(crate) struct R; impl<P> Drop for R<P> { fn drop(&mut self) {} }";
        for text in ["struct FlushBatch;", "#[must_use] fn f() {} enum Notify { A }", dropped] {
            assert_eq!(subjects(owed, text).len(), 1, "{text}");
        }
        let marked =
            format!("#[must_use = \"a frame\"] {dropped} #[must_use] #[allow(x)] struct FlushBatch {{}}");
        assert_eq!(subjects(owed, &marked), [""; 0]);
        assert_eq!(
            subjects(owed, "struct Batches; impl Clone for R {} impl Drop for Cells {} struct Cells;"),
            [""; 0]
        );
    }
}
