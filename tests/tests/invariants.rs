//! `docs/INVARIANTS.md` against the code: each rule that code cites is there, each rule is cited, and what the document
//! names exists: files, what they define, tests, planted defects. `docs/SOUNDNESS.md` and `docs/TOUR.md` are held to the
//! same, and so are the files in the tables of `docs/ARCHITECTURE.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use xtask::paths::root;

/// What a name may follow where it is defined; `function` is a macro of the assembly.
const KEYWORDS: [&str; 9] = ["fn", "struct", "enum", "const", "static", "trait", "type", "mod", "function"];

fn document() -> String {
    ["INVARIANTS.md", "SOUNDNESS.md", "TOUR.md"].map(page).join("\n\n")
}

/// A page of the documentation.
fn page(name: &str) -> String {
    read(&root().join("docs").join(name))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The source files below `directory`, but for what is built.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory of the repository") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                sources(&path, found);
            }
        } else if name.ends_with(".rs") || name.ends_with(".S") {
            found.push(path);
        }
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn is_number(word: &str) -> bool {
    word.strip_prefix('I')
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The rules: the numbers at paragraphs' beginnings.
fn rules(document: &str) -> BTreeSet<String> {
    let heads = document.lines().filter_map(|line| line.strip_prefix("**")?.split('.').next());
    let numbers: Vec<String> = heads.filter(|head| is_number(head)).map(str::to_owned).collect();
    let rules: BTreeSet<String> = numbers.iter().cloned().collect();
    assert_eq!(numbers.len(), rules.len(), "a number is given twice");
    rules
}

/// The names in backticks, by paragraphs and rows of tables. What has a space is no name.
fn names(document: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = document.split("\n\n").flat_map(|paragraph| {
        if paragraph.starts_with('|') { paragraph.lines().collect() } else { vec![paragraph] }
    });
    rows.map(|text| text.split('`').skip(1).step_by(2).filter(|name| !name.contains(' ')).collect())
}

/// The file that a path names, from the root or from the hypervisor's sources.
fn file(name: &str) -> Option<PathBuf> {
    let places = [root().join(name), root().join("microhv/src").join(name)];
    places.into_iter().find(|path| path.is_file())
}

/// Whether `text` defines `name`: an item, a field, or an entry of assembly.
fn defines(text: &str, name: &str) -> bool {
    text.lines().any(|line| {
        let line: Vec<&str> = words(line.split("//").next().unwrap_or_default()).collect();
        let is_item = line.windows(2).any(|pair| KEYWORDS.contains(&pair[0]) && pair[1] == name);
        is_item || line.iter().find(|word| !["pub", "crate", "super"].contains(word)) == Some(&name)
    })
}

/// The function that a path of modules names: `package::module::name`, the hypervisor's without the package.
fn is_function(path: &str) -> bool {
    let mut modules: Vec<&str> = path.split("::").collect();
    let name = modules.pop().unwrap_or_default();
    let package = modules[0].replace('_', "-");
    let mut source = root().join("microhv/src");
    let homes = [root().join(&package).join("src"), root().join("guests").join(&package).join("src")];
    if let Some(home) = homes.into_iter().find(|home| home.is_dir()) {
        source = home;
        modules.remove(0);
    }
    // The last module may stand within the file of the one around it.
    let ways = [modules.len(), modules.len().saturating_sub(1)];
    let files = ways.into_iter().flat_map(|depth| {
        let module = source.join(modules[..depth].join("/"));
        [module.with_extension("rs"), module.join("mod.rs")]
    });
    let mut there = files.filter(|file| file.is_file());
    there.any(|file| words(&read(&file)).zip(words(&read(&file)).skip(1)).any(|pair| pair == ("fn", name)))
}

/// What is wrong with the names of the document.
fn unknown(document: &str) -> Vec<String> {
    static EVERYWHERE: OnceLock<BTreeSet<String>> = OnceLock::new();
    let known = EVERYWHERE.get_or_init(|| {
        let mut files = Vec::new();
        sources(&root(), &mut files);
        files.iter().flat_map(|path| words(&read(path)).map(str::to_owned).collect::<Vec<_>>()).collect()
    });
    let mut wrong = Vec::new();
    for names in names(document) {
        let mut place: Option<(&str, String)> = None;
        for name in names {
            let segments: Vec<&str> = name.split("::").collect();
            let is_path = segments.len() > 1 && segments[0].starts_with(char::is_lowercase);
            if name.contains('/') || name.ends_with(".rs") {
                match file(name) {
                    Some(path) => place = Some((name, read(&path))),
                    None if root().join(name).is_dir() => {}
                    None => wrong.push(format!("no file {name}")),
                }
            } else if is_path {
                if !is_function(name) {
                    wrong.push(format!("no function {name}"));
                }
                place = None;
            } else if name.contains('-') {
                if !root().join(format!("tests/defects/{name}.patch")).is_file() {
                    wrong.push(format!("no planted defect {name}"));
                }
                place = None;
            } else if let Some((file, text)) = &place {
                let last = segments.last().unwrap_or(&name);
                if !defines(text, last) && !words(text).any(|word| word == *last && segments.len() > 1) {
                    wrong.push(format!("{file} has no {name}"));
                }
            } else if let Some(word) = words(name).find(|word| !is_number(word) && !known.contains(*word)) {
                wrong.push(format!("nothing has the name {word}"));
            }
        }
    }
    wrong
}

#[test]
fn what_the_document_names_exists() {
    let wrong = unknown(&document());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The paths in the rows of tables that say where behaviour lives: of the hypervisor, of dom0, or from the root.
fn lost_paths(document: &str) -> Vec<String> {
    let rows = document.lines().filter(|line| line.starts_with("| "));
    let names = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let paths = names.filter(|name| name.contains('/') || name.ends_with(".rs"));
    let places = ["", "microhv/src", "dom0/src"].map(|place| root().join(place));
    paths.filter(|path| !places.iter().any(|place| place.join(path).exists())).map(str::to_owned).collect()
}

#[test]
fn where_behaviour_lives_exists() {
    let architecture = page("ARCHITECTURE.md");
    let part = architecture.split("\n## ").find(|part| part.starts_with("Where behaviour lives"));
    let part = part.expect("the chapter of the tables");
    assert!(part.lines().filter(|line| line.starts_with("| ")).count() > 30, "the tables are read");
    assert_eq!(lost_paths(part), Vec::<String>::new());
    assert_eq!(lost_paths("| x | `mem/`, `commands/xl/list.rs`, `mem/frames.rs` |"), ["mem/frames.rs"]);
}

/// The names are really looked up: each kind of a wrong one is found.
#[test]
fn wrong_names_are_found() {
    for wrong in [
        "`mem/frames.rs`",
        "`frames/info.rs` `get_typ`",
        "`mem::tests::random::no_sequence_breaks_it`",
        "`dom0::toolstack::disk::tests::one_writer_has_a_disk`",
        "`hv-mem-nothing-wrong`",
    ] {
        assert_eq!(unknown(wrong).len(), 1, "{wrong}");
    }
    assert!(!is_there("dom0 lib toolstack::disks::tests::one_writer_has_no_disk"));
    let right = "`frames/info.rs` `get_type`, `dom0::toolstack::disks::tests::one_writer_has_a_disk`, `hv-mem-table-in-itself`";
    assert_eq!(unknown(right), Vec::<String>::new());
}

#[test]
fn code_and_document_have_the_same_rules() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    let mut cited: BTreeMap<String, PathBuf> = BTreeMap::new();
    for path in files.into_iter().filter(|path| !path.ends_with(file!())) {
        for line in read(&path).lines() {
            let Some((_, comment)) = line.split_once("//") else { continue };
            let numbers = words(comment).filter(|word| is_number(word));
            cited.extend(numbers.map(|number| (number.to_owned(), path.clone())));
        }
    }
    let document = document();
    let rules = rules(&document);
    let stray: Vec<_> = words(&document).filter(|word| is_number(word) && !rules.contains(*word)).collect();
    assert!(stray.is_empty(), "the pages cite rules that are not there: {stray:?}");
    let unknown: Vec<_> = cited.iter().filter(|(number, _)| !rules.contains(*number)).collect();
    assert!(unknown.is_empty(), "cited, and not in the document: {unknown:?}");
    let unused: Vec<_> = rules.iter().filter(|rule| !cited.contains_key(*rule)).collect();
    assert!(unused.is_empty(), "in the document, and cited nowhere: {unused:?}");
}

/// Defects are planted in long runs alone: a test that has gone, which a defect names, is missed here.
#[test]
fn planted_defects_name_tests_that_exist() {
    let mut missing = Vec::new();
    for entry in std::fs::read_dir(root().join("tests/defects")).expect("a directory of the repository") {
        let path = entry.expect("an entry").path();
        let text = read(&path);
        let lines = text.lines().filter_map(|line| line.strip_prefix("Caught-by: "));
        missing
            .extend(lines.filter(|line| !is_there(line)).map(|line| format!("{}: {line}", path.display())));
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Whether a defect's test is there: a package, a target, which is looked into if it is `lib`, and a name.
fn is_there(test: &str) -> bool {
    match test.split(' ').collect::<Vec<_>>()[..] {
        [package, "lib", name] => is_function(&format!("{}::{name}", package.replace('-', "_"))),
        _ => true,
    }
}
