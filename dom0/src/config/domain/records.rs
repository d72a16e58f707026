//! Compares the reader with Debian's `xl create -n`, for the configurations in `tests/configs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::*;

/// A file's results: what Xen's `xl` says, what this reader says, and why they differ.
struct Verdict {
    xl: bool,
    here: bool,
    why: String,
}

fn directory() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "configs"].iter().collect()
}

fn accepted(word: &str) -> bool {
    match word {
        "accepted" => true,
        "refused" => false,
        other => panic!("`{other}`: expected `accepted` or `refused`"),
    }
}

fn verdicts() -> BTreeMap<String, Verdict> {
    let text = fs::read_to_string(directory().join("verdicts.txt")).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let verdict = |line: &str| {
        let mut words = line.splitn(4, ' ');
        let mut next = || words.next().unwrap_or_default();
        let (name, xl, here, why) = (next(), next(), next(), next());
        (name.to_owned(), Verdict { xl: accepted(xl), here: accepted(here), why: why.to_owned() })
    };
    lines.map(verdict).collect()
}

#[test]
fn configurations_are_accepted_and_refused_as_by_xl_or_for_a_reason() {
    let mut verdicts = verdicts();
    let mut wrong = Vec::new();
    for file in fs::read_dir(directory()).unwrap() {
        let path = file.unwrap().path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".cfg")) else {
            continue;
        };
        let text = fs::read(&path).unwrap();
        let read = Config::parse(name, &text).and_then(|config| DomainConfig::from_config(&config));
        let said = read.as_ref().map_or_else(|error| format!("{error}"), |_| "accepted".to_owned());
        let Some(verdict) = verdicts.remove(name) else {
            wrong.push(format!("{name}: not in verdicts.txt; here: {said}"));
            continue;
        };
        if verdict.here != read.is_ok() {
            wrong.push(format!("{name}: {said}"));
        }
        if (verdict.here == verdict.xl) != verdict.why.is_empty() {
            wrong.push(format!("{name}: a difference has a reason, and nothing else"));
        }
    }
    wrong.extend(verdicts.keys().map(|name| format!("{name}: there is no such file")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
