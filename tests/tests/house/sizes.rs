//! Sizes: of functions, of files, and of the hypervisor.

use std::collections::{BTreeMap, BTreeSet};

use crate::Finding;
use crate::code::{Code, Crate, closing, is_name};

/// Lines of a function between its braces, comments too. A longer one says why in a comment above or
/// within: `// Long: a table of all registers.`
const FUNCTION: usize = 80;

/// Lines of a file, all of them.
const FILE: usize = 450;

/// Most lines of hypervisor; it goes down with them.
///
/// A line counts if a word of code stands on it, or a part of one (a string over three lines makes three). Comments,
/// documentation and blank lines have none. What is for tests alone does not count, nor does `testing`; both the library
/// and the image do, and of the assembly each line that is not blank or a comment.
pub(crate) const HYPERVISOR: usize = 24_550;

/// What is too long in a file; known by the file, and by the function.
pub(crate) fn findings(file: &str, text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    if lines.len() > FILE {
        let advice =
            format!("{} lines, where {FILE} are allowed: a second idea is hiding in it", lines.len());
        found.push(Finding::new("size", format!("file {file}"), (file, lines.len()), advice));
    }
    let code = Code::of(file, text);
    for at in 0..code.words.len() {
        let ["fn", name, ..] = code.words[at..] else { continue };
        let Some(open) = body(&code.words, at).filter(|_| is_name(name)) else { continue };
        let (first, last) = (code.lines[open].0, code.lines[closing(&code.words, open)].0);
        let length = (last - first).saturating_sub(1);
        let above =
            lines[..code.lines[at].0 - 1].iter().rev().take_while(|line| line.starts_with(['/', '#']));
        let mut comments = above.chain(&lines[first..last]).map(|line| line.trim_start_matches('/'));
        if length > FUNCTION && !comments.any(|line| line.starts_with(" Long: ")) {
            let advice =
                format!("{length} lines, where {FUNCTION} are allowed: split it, or say why: `// Long: `");
            found.push(Finding::new("size", format!("function {file} {name}"), (file, first), advice));
        }
    }
    found
}

/// Where the body opens of a function whose words begin at `at`, if it has one.
fn body(words: &[&str], mut at: usize) -> Option<usize> {
    loop {
        match *words.get(at)? {
            "{" => return Some(at),
            ";" => return None,
            "(" | "[" => at = closing(words, at),
            _ => {}
        }
        at += 1;
    }
}

/// How many lines of hypervisor there are, and where: by directories of its sources.
pub(crate) fn hypervisor(crates: &[Crate], assembly: &[(String, String)]) -> BTreeMap<String, usize> {
    let mut lines = BTreeSet::new();
    for module in crates.iter().flat_map(|all| &all.modules) {
        for &(first, last) in &module.code.lines {
            lines.extend((first..=last).map(|line| (module.file.as_str(), line)));
        }
    }
    let mut counts = BTreeMap::new();
    let assembly = assembly.iter().map(|(file, text)| (file.as_str(), lines_of_assembly(text)));
    for (file, count) in lines.iter().map(|(file, _)| (*file, 1)).chain(assembly) {
        let place = file.split('/').nth(2).unwrap_or(file);
        *counts.entry(place.to_owned()).or_default() += count;
    }
    counts
}

/// The lines of an assembly file without blank lines and comments.
fn lines_of_assembly(text: &str) -> usize {
    let mut code = String::new();
    for (at, part) in text.split("/*").enumerate() {
        code += if at == 0 { part } else { part.split_once("*/").map_or("", |(_, after)| after) };
    }
    let is_code = |line: &&str| !line.is_empty() && !line.starts_with("//") && !line.starts_with('#');
    code.lines().map(str::trim).filter(is_code).count()
}

mod planted {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        findings("a.rs", text).into_iter().map(|finding| finding.key()).collect()
    }

    #[test]
    fn long_files_and_functions_are_found() {
        let body = |lines: usize| format!("{{\n{}}}\n", "    // why\n".repeat(lines));
        for head in ["fn f() ", "impl S { fn f() -> u8 ", "trait T { fn f() "] {
            let end = if head.starts_with("fn f") { "" } else { "}" };
            assert_eq!(found(&format!("{head}{}{end}", body(80))), [""; 0]);
            let long = format!("{head}{}{end}", body(81));
            assert!(found(&long).contains(&"size: function a.rs f".to_owned()), "{long}");
            assert_eq!(found(&long.replacen("// why", "// Long: a table.", 1)), [""; 0]);
        }
        let documented = format!("/// Does.\n///\n/// Long: a table.\n#[inline]\nfn f() {}", body(81));
        assert_eq!(found(&documented), [""; 0]);
        assert_eq!(
            found(&format!("// Long: no reason.\nfn g() {{}}\nfn f() {}", body(81))),
            ["size: function a.rs f"]
        );
        assert_eq!(found(&"\n".repeat(450)), [""; 0]);
        assert_eq!(found(&"\n".repeat(451)), ["size: file a.rs"]);
    }

    #[test]
    fn lines_that_do_something_are_counted() {
        let text = "//! Head.\n\nuse a::{\n    b, // why\n};\n\n/// Doc.\nconst C: &str = \"1\n\n3\";\n/* x\n */ mod m {\n}\n\
                    #[cfg(test)]\nmod tests {\n    fn f() {}\n}\n#[inline]\nfn f() {}\n";
        let made_up = Crate::made_up(&[("microhv/src/lib.rs", text)]);
        let assembly =
            "/* Head,\n   more. */\nlabel: /* why */\n\n    # remark\n    ret // back\n    // end\n";
        let counts = hypervisor(&[made_up], &[("microhv/src/arch/a.S".into(), assembly.into())]);
        assert_eq!(counts, BTreeMap::from([("arch".into(), 2), ("lib.rs".into(), 3 + 3 + 2 + 2)]));
    }
}
