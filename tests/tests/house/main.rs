//! The rules of the house: what the sources must look like, whatever they do. Each rule has a test here, and beside the
//! rule are violations made up to see that it finds them.
//!
//! What broke a rule when the rule came is listed in `known.txt`. The list only shrinks: a test fails for what breaks its
//! rule and is not listed, and for a line of the list that stands for nothing any more.
//!
//! | rule | where |
//! | --- | --- |
//! | a module names only what the order in `docs/ARCHITECTURE.md` puts below it | `order.rs` |
//! | locks come from `sync`; errno is for `hypercall`; a sentence names its subject | `words.rs` |
//! | what has a type is no bare integer; work owed is `#[must_use]` | `types.rs` |
//! | messages are in their reader's words | `messages.rs` |
//! | an index that a guest may choose is clamped | `indices.rs` |
//! | functions, files and the hypervisor are small | `sizes.rs` |

mod code;
mod indices;
mod messages;
mod order;
mod sizes;
mod types;
mod words;

use std::collections::BTreeSet;

use code::Crate;
use xtask::paths::root;

/// What breaks a rule.
pub(crate) struct Finding {
    pub(crate) rule: &'static str,
    /// What it is listed by: it stays the same when lines move.
    pub(crate) subject: String,
    /// File and line.
    pub(crate) at: String,
    pub(crate) advice: String,
}

impl Finding {
    pub(crate) fn new(
        rule: &'static str,
        subject: String,
        (file, line): (&str, usize),
        advice: String,
    ) -> Self {
        Self { rule, subject, at: format!("{file}:{line}"), advice }
    }

    pub(crate) fn key(&self) -> String {
        format!("{}: {}", self.rule, self.subject)
    }
}

/// What breaks a rule in the sources as they are.
fn findings(rule: &str) -> Vec<Finding> {
    match rule {
        "direction" => {
            order::declared(&read("docs/ARCHITECTURE.md")).iter().flat_map(order::Order::findings).collect()
        }
        "lock" => in_both(words::locks),
        "errno" => in_both(words::errno),
        "english" => PLAIN.into_iter().flat_map(|directory| in_files(directory, words::english)).collect(),
        "integer" => types::integers(&library()),
        "must_use" => in_both(types::owed),
        "message" => PRINTERS.iter().flat_map(|root| messages::findings(&Crate::of(root))).collect(),
        "size" => in_files("", sizes::findings),
        _ => unreachable!("no such rule"),
    }
}

/// Directories whose comments name the subject of each sentence.
const PLAIN: [&str; 9] = [
    "microhv/src",
    "ring-abi/src",
    "pvrt/src",
    "frontends/src",
    "backends/src",
    "dom0/src",
    "conformance/src",
    "xtask/src",
    "guests",
];

const RULES: [&str; 8] = ["direction", "lock", "errno", "english", "integer", "must_use", "message", "size"];

/// The crates whose messages dom0's console shows. The hypervisor's debug keys are for who writes it.
const PRINTERS: [&str; 4] =
    ["dom0/src/lib.rs", "backends/src/lib.rs", "pvrt/src/lib.rs", "frontends/src/lib.rs"];

fn library() -> Crate {
    Crate::of("microhv/src/lib.rs")
}

fn image() -> Crate {
    Crate::of("microhv/src/main.rs")
}

/// What `rule` finds in the hypervisor's library and in its image.
fn in_both(rule: fn(&Crate) -> Vec<Finding>) -> Vec<Finding> {
    [library(), image()].iter().flat_map(rule).collect()
}

/// What `rule` finds in the sources below `directory`.
fn in_files(directory: &str, rule: fn(&str, &str) -> Vec<Finding>) -> Vec<Finding> {
    code::files(directory, ".rs").iter().flat_map(|(file, text)| rule(file, text)).collect()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The list of what broke a rule before the rule came.
const KNOWN: &str = "tests/tests/house/known.txt";

fn of_rule<'a>(rule: &str, known: &'a str) -> BTreeSet<&'a str> {
    known.lines().filter(|line| line.split_once(": ").is_some_and(|(of, _)| of == rule)).collect()
}

/// What there is to say about the findings of a rule, given the list.
fn complaints(rule: &str, findings: &[Finding], known: &str) -> Vec<String> {
    let known = of_rule(rule, known);
    let keys: BTreeSet<String> = findings.iter().map(Finding::key).collect();
    let new = findings.iter().filter(|finding| !known.contains(finding.key().as_str()));
    let new = new.map(|finding| format!("{}: {}: {}", finding.at, finding.key(), finding.advice));
    let gone = known.iter().filter(|line| !keys.contains(**line));
    let gone = gone.map(|line| format!("{KNOWN}: nothing breaks this any more, take it out: {line}"));
    new.chain(gone).collect()
}

fn hold(rule: &str) {
    let complaints = complaints(rule, &findings(rule), &read(KNOWN));
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn modules_name_only_what_is_below_them() {
    let orders = order::declared(&read("docs/ARCHITECTURE.md"));
    assert!(
        orders.iter().any(|order| order.root == "microhv/src/lib.rs"),
        "the hypervisor's order is missing"
    );
    hold("direction");
}

#[test]
fn locks_are_ranked() {
    hold("lock");
}

#[test]
fn error_numbers_are_for_hypercalls() {
    hold("errno");
}

#[test]
fn sentences_name_their_subject() {
    hold("english");
}

#[test]
fn what_has_a_type_is_no_bare_integer() {
    hold("integer");
}

#[test]
fn work_owed_must_be_used() {
    hold("must_use");
}

#[test]
fn messages_are_in_their_readers_words() {
    hold("message");
}

#[test]
fn indices_of_guests_are_clamped() {
    let listed = read("tests/tests/house/indices.txt");
    let complaints = indices::complaints(&in_both(indices::findings), &listed);
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn functions_and_files_are_short() {
    hold("size");
}

/// Says how many lines there are: `cargo test -p tests --test house lines -- --nocapture`.
#[test]
fn lines_of_the_hypervisor_do_not_grow() {
    let counts = sizes::hypervisor(&[library(), image()], &code::files("microhv/src", ".S"));
    let total: usize = counts.values().sum();
    for (place, count) in counts {
        println!("{count:6} {place}");
    }
    println!("{total:6} lines, {} allowed", sizes::HYPERVISOR);
    assert!(total <= sizes::HYPERVISOR, "{total} lines of hypervisor, {} are allowed", sizes::HYPERVISOR);
}

/// What is new fails, and what is listed in vain.
#[test]
fn the_list_only_shrinks() {
    let finding = |file: &str| Finding::new("lock", file.into(), (file, 1), "do".into());
    let known = "# remark\nlock: a.rs\nlock: b.rs\nsize: c.rs\n";
    assert_eq!(complaints("lock", &[finding("a.rs"), finding("b.rs"), finding("b.rs")], known), [""; 0]);
    let found = complaints("lock", &[finding("a.rs"), finding("c.rs")], known);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0], "c.rs:1: lock: c.rs: do");
    assert!(found[1].ends_with("take it out: lock: b.rs"));
}

/// Writes the list as the sources are, for instance after files were moved; no rule may have more lines than before:
/// `cargo test -p tests --test house write_the_list -- --ignored`.
#[test]
#[ignore = "changes the sources"]
fn write_the_list() {
    let known = read(KNOWN);
    let mut text: String =
        known.lines().filter(|line| line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    for rule in RULES {
        let keys: BTreeSet<String> = findings(rule).iter().map(Finding::key).collect();
        let before = of_rule(rule, &known).len();
        assert!(keys.len() <= before, "{rule}: {} break it, {before} did", keys.len());
        text.extend(keys.iter().map(|key| format!("{key}\n")));
    }
    std::fs::write(root().join(KNOWN), text).expect("the list");
}
