//! Words that belong to one place: locks, error numbers; and words that no sentence begins with.

use crate::Finding;
use crate::code::Crate;

/// A lock of the crate `spin` knows no rank (I18): `sync` wraps it in one that does. Known by files.
pub(crate) fn locks(all: &Crate) -> Vec<Finding> {
    let is_wrong = |words: &[&str]| matches!(words, ["spin", "::", ..]);
    search(all, "sync", is_wrong, "lock", "take a ranked lock from `sync`")
}

/// Only `hypercall` knows how a refusal looks to a guest: `HypercallError`, `errno`, or a number like `-22 as u64`. Known
/// by files.
pub(crate) fn errno(all: &Crate) -> Vec<Finding> {
    let is_wrong = |words: &[&str]| match words {
        ["(" | "{" | "=" | "," | "=>" | "return", "-", number, "as", ..] => {
            number.starts_with(char::is_numeric)
        }
        [word, ..] => ["errno", "HypercallError"].contains(word),
        [] => false,
    };
    let advice = "give an error of the module's own, and let `hypercall` turn it into errno";
    search(all, "hypercall", is_wrong, "errno", advice)
}

/// Where words begin, outside of the room `home`, that are wrong.
fn search(
    all: &Crate,
    home: &str,
    is_wrong: fn(&[&str]) -> bool,
    rule: &'static str,
    advice: &str,
) -> Vec<Finding> {
    let mut found = Vec::new();
    for module in all.outside(home) {
        for at in 0..module.code.words.len() {
            if is_wrong(&module.code.words[at..]) {
                let place = (module.file.as_str(), module.code.lines[at].0);
                found.push(Finding::new(rule, module.file.clone(), place, advice.into()));
            }
        }
    }
    found
}

/// What a sentence of a comment must not begin with: the noun is then elsewhere, or nowhere.
const NO_SUBJECTS: [&str; 8] = ["It", "Its", "They", "Their", "Them", "Who", "Whoever", "That one"];

/// Words that open a sentence before its subject, so that a pronoun right after such a word has no noun before it.
const OPENERS: [&str; 12] =
    ["After", "Before", "How", "If", "Once", "Since", "Until", "What", "When", "Where", "Whether", "While"];
const PRONOUNS: [&str; 4] = ["it", "its", "they", "their"];

/// What stands before the text that explains a name, such as a variant of an error.
const NAMED: [&str; 2] = ["`: ", "]: "];

/// A comment's sentences. The text behind a name is a sentence of its own, so that `it` has no noun there.
fn sentences(comment: &str) -> Vec<String> {
    let mut text = comment.to_string();
    for pronoun in PRONOUNS {
        let capital = format!("{}{}", pronoun[..1].to_uppercase(), &pronoun[1..]);
        for name in NAMED {
            text = text.replace(&format!("{name}{pronoun} "), &format!("{name}{capital} "));
        }
    }
    text.split(['.', ';', ':', '?']).map(|sentence| sentence.trim().to_string()).collect()
}

/// Whether a sentence begins without the noun that it is about.
fn names_no_subject(sentence: &str) -> bool {
    let starts = |start: &str| sentence.strip_prefix(start).is_some_and(|rest| rest.starts_with([' ', '\'']));
    let mut words = sentence.split([' ', '\'']);
    let opens = words.next().is_some_and(|word| OPENERS.contains(&word));
    NO_SUBJECTS.into_iter().any(starts) || opens && words.next().is_some_and(|word| PRONOUNS.contains(&word))
}

/// Sentences of comments that do not name their subject; known by their first words.
pub(crate) fn english(file: &str, text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut comment = String::new();
    for (number, line) in text.lines().chain([""]).enumerate() {
        if let Some(words) = line.trim_start().strip_prefix("//") {
            comment += words.trim_start_matches(['/', '!']);
            continue;
        }
        for sentence in sentences(&comment) {
            if names_no_subject(&sentence) {
                let words: Vec<&str> = sentence.split_whitespace().take(5).collect();
                let subject = format!("{file}: {}", words.join(" "));
                let advice = "name the actor or thing: the comment ends on this line".into();
                found.push(Finding::new("english", subject, (file, number), advice));
            }
        }
        comment.clear();
    }
    found
}

mod planted {
    use super::*;

    fn subjects(rule: fn(&Crate) -> Vec<Finding>, text: &str) -> Vec<String> {
        let root = "mod sync; mod hypercall; mod elsewhere;";
        let files = [("lib.rs", root), ("sync.rs", text), ("hypercall.rs", text), ("elsewhere.rs", text)];
        rule(&Crate::made_up(&files)).into_iter().map(|finding| finding.at).collect()
    }

    #[test]
    fn locks_without_rank_are_found() {
        let found =
            subjects(locks, "\nuse spin::{Mutex};\nfn f() -> spin::RwLock<u8> { vec![spin::Once::new()] }");
        let both = |file: &str| [2, 3, 3].map(|line| format!("{file}.rs:{line}"));
        assert_eq!(found, [both("hypercall"), both("elsewhere")].concat());
        assert_eq!(subjects(locks, "fn spin() { spin(); core::hint::spin_loop() }"), [""; 0]);
    }

    #[test]
    fn error_numbers_are_found() {
        for text in
            ["use ring_abi::errno as e;", "fn f() -> HypercallError {}", "fn f() { g!(a, -22 as u64) }"]
        {
            assert_eq!(subjects(errno, text), ["sync.rs:1", "elsewhere.rs:1"], "{text}");
        }
        assert_eq!(subjects(errno, "fn f() -> u64 { (x - y) as u64 + x - 1 as u64 }"), [""; 0]);
    }

    #[test]
    fn sentences_without_subject_are_found() {
        let text = "/// A queue. It runs\n/// dry; who waits is told: whoever asks. Whoever\n// asks.\nfn f() {} // It is\n";
        let found: Vec<String> = english("a.rs", text).into_iter().map(|finding| finding.subject).collect();
        assert_eq!(found, ["a.rs: It runs dry", "a.rs: Whoever asks"]);
        assert!(english("a.rs", "/// Items: what who does. `It` is a type.\nlet It = 1;").is_empty());
        let text = "/// - `Busy`: it runs. [`Gone`]: their end.\n/// - `Bad`: item.\n";
        let found: Vec<String> = english("a.rs", text).into_iter().map(|finding| finding.subject).collect();
        assert_eq!(found, ["a.rs: It runs", "a.rs: Their end"]);
        for sentence in
            ["Its end", "They wait", "Their owner", "Whether it runs", "If its owner asks", "What they hold"]
        {
            assert!(names_no_subject(sentence), "{sentence}");
        }
        for sentence in ["Item by item", "Theirs", "Whether a vCPU runs, and where it waits", "What is left"]
        {
            assert!(!names_no_subject(sentence), "{sentence}");
        }
    }
}
