//! Code as lists of words, a crate as modules of them. Macros are words like all other code; comments are none.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use proc_macro2::{Delimiter, Spacing, Span, TokenStream, TokenTree};
use xtask::paths::root;

/// Words and where they stand. A word is a name, a literal, a mark or a bracket; `::`, `->` and `=>` are one.
#[derive(Default)]
pub(crate) struct Code {
    pub(crate) words: Vec<&'static str>,
    /// First and last line of each word.
    pub(crate) lines: Vec<(usize, usize)>,
}

impl Code {
    /// All code of a file.
    pub(crate) fn of(file: &str, text: &str) -> Self {
        let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut code = Self::default();
        code.add_tokens(tokens, text.to_owned().leak()); // words live as long as the process: it is a test's
        code
    }

    fn add_tokens(&mut self, tokens: TokenStream, text: &'static str) {
        let mut joined = None;
        for tree in tokens {
            let place = tree.span().byte_range();
            let word = &text[place.clone()];
            if word.starts_with("//") || word.starts_with("/*") {
                continue; // documentation, which the parser makes an attribute
            }
            let start = joined.take();
            match tree {
                TokenTree::Group(group) if group.delimiter() == Delimiter::None => {
                    self.add_tokens(group.stream(), text);
                }
                TokenTree::Group(group) => {
                    self.add(&word[..1], group.span_open());
                    self.add_tokens(group.stream(), text);
                    self.add(&word[word.len() - 1..], group.span_close());
                }
                TokenTree::Punct(mark) => {
                    let pair = start.map(|start| &text[start..place.end]);
                    if let Some(pair) = pair.filter(|pair| ["::", "->", "=>"].contains(pair)) {
                        *self.words.last_mut().expect("the first of two marks") = pair;
                    } else {
                        self.add(word, mark.span());
                        joined = (mark.spacing() == Spacing::Joint).then_some(place.start);
                    }
                }
                other => self.add(word, other.span()),
            }
        }
    }

    fn add(&mut self, word: &'static str, span: Span) {
        self.words.push(word);
        self.lines.push((span.start().line, span.end().line));
    }

    fn copy(&mut self, from: &Self, range: Range<usize>) {
        self.words.extend(&from.words[range.clone()]);
        self.lines.extend(&from.lines[range]);
    }

    fn part(&self, range: Range<usize>) -> Self {
        let mut part = Self::default();
        part.copy(self, range);
        part
    }

    /// The code without what has `#[cfg(test)]` or is there for tests of other crates.
    fn product(&self) -> Self {
        let mut product = Self::default();
        let mut at = 0;
        while at < self.words.len() {
            let mut end = at + 1;
            if self.words[at..].starts_with(&["#", "["]) {
                end = closing(&self.words, end) + 1;
                let attribute = self.words[at..end].concat();
                if attribute.starts_with("#[cfg(test") || attribute == "#[cfg(any(test,feature=\"testing\"))]"
                {
                    at = item_end(&self.words, end);
                    continue;
                }
            }
            product.copy(self, at..end);
            at = end;
        }
        product
    }
}

pub(crate) fn is_name(word: &str) -> bool {
    word.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Where the bracket closes that opens at `open`.
pub(crate) fn closing(words: &[&str], open: usize) -> usize {
    let mut depth = 0;
    for (at, word) in words.iter().enumerate().skip(open) {
        match *word {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" if depth == 1 => return at,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
    }
    words.len()
}

/// Where an item, field or statement ends that begins at `at`: behind `;`, braces, or a comma outside of `<...>`.
fn item_end(words: &[&str], mut at: usize) -> usize {
    let mut angles = 0;
    while at < words.len() {
        match words[at] {
            ";" => return at + 1,
            "," if angles == 0 => return at + 1,
            "}" | ")" => return at,
            "{" => {
                let end = closing(words, at) + 1;
                return if words.get(end) == Some(&";") { end + 1 } else { end };
            }
            "(" | "[" => at = closing(words, at),
            "<" => angles += 1,
            ">" => angles -= 1,
            _ => {}
        }
        at += 1;
    }
    at
}

/// A module: its path in the crate (the root's is empty), the file that holds it, and its code without that of the
/// modules in it.
pub(crate) struct Module {
    pub(crate) path: Vec<String>,
    pub(crate) file: String,
    pub(crate) code: Code,
}

/// A crate's modules, without tests and what is for tests alone.
#[derive(Default)]
pub(crate) struct Crate {
    pub(crate) modules: Vec<Module>,
    paths: BTreeSet<Vec<String>>,
}

/// How a file's text is had: from the repository, or from a test's list.
type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Crate {
    /// The crate whose root is `file`, a path from the root of the repository.
    pub(crate) fn of(file: &str) -> Self {
        Self::read(file, &|file| std::fs::read_to_string(root().join(file)).ok())
    }

    /// A crate made up by a test, as (file, text); the first file is the root.
    pub(crate) fn made_up(files: &[(&str, &str)]) -> Self {
        Self::read(files[0].0, &|wanted| {
            files.iter().find(|(file, _)| *file == wanted).map(|(_, text)| text.to_string())
        })
    }

    fn read(file: &str, read: Read<'_>) -> Self {
        let mut all = Self::default();
        all.add_file(Vec::new(), file, Path::new(file).parent().expect("a directory"), read);
        all
    }

    fn add_file(&mut self, path: Vec<String>, file: &str, directory: &Path, read: Read<'_>) {
        let text = read(file).unwrap_or_else(|| panic!("no file {file}"));
        self.add(path, file, directory, &Code::of(file, &text).product(), read);
    }

    /// Adds a module and those that it declares, whose files lie in `directory`.
    fn add(&mut self, path: Vec<String>, file: &str, directory: &Path, code: &Code, read: Read<'_>) {
        let mut own = Code::default();
        let mut at = 0;
        while at < code.words.len() {
            let mut end = at + 1;
            if let ["mod", name, body @ (";" | "{"), ..] = code.words[at..] {
                let path = [path.as_slice(), &[name.to_owned()]].concat();
                let below = directory.join(name);
                end = at + 3;
                if body == "{" {
                    let close = closing(&code.words, at + 2);
                    self.add(path, file, &below, &code.part(end..close), read);
                    own.copy(code, at..end);
                    (at, end) = (close, close + 1);
                } else {
                    let places = [below.with_extension("rs"), below.join("mod.rs")];
                    let mut places = places.iter().filter_map(|place| place.to_str());
                    let file = places.find(|place| read(place).is_some());
                    let file = file.unwrap_or_else(|| panic!("no file for the module {}", path.join("::")));
                    self.add_file(path, file, &below, read);
                }
            }
            own.copy(code, at..end);
            at = end;
        }
        self.paths.insert(path.clone());
        self.modules.push(Module { path, file: file.to_owned(), code: own });
    }

    /// The modules that are not in the room `room`.
    pub(crate) fn outside(&self, room: &str) -> impl Iterator<Item = &Module> {
        self.modules.iter().filter(move |module| module.path.first().is_none_or(|first| first != room))
    }

    pub(crate) fn has(&self, path: &[String]) -> bool {
        self.paths.contains(path)
    }
}

/// The files whose names end with `ending` below `directory`, a path from the root of the repository; what is built is not
/// among them.
pub(crate) fn files(directory: &str, ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join(directory)).expect("a directory of the repository") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = Path::new(directory).join(&name).to_string_lossy().into_owned();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if name != "target" && !name.starts_with('.') {
                found.extend(files(&path, ending));
            }
        } else if name.ends_with(ending) {
            let text =
                std::fs::read_to_string(entry.path()).unwrap_or_else(|error| panic!("{path}: {error}"));
            found.push((path, text));
        }
    }
    found.sort();
    found
}

#[test]
fn tests_are_no_product_code() {
    let made_up = Crate::made_up(&[
        (
            "src/lib.rs",
            "//! Head.\n#![no_std]\nmod a;\n#[cfg(test)]\nmod tests;\n#[cfg(any(test, feature = \"testing\"))]\n\
             mod testing;\nmod b { mod c; #[cfg(not(test))] fn kept() {} }",
        ),
        (
            "src/a.rs",
            "/// Doc.\npub struct S {\n  #[cfg(test)]\n  count: Map<u8, u8>,\n  kept: u8,\n}\nimpl S {\n  \
             #[cfg(test)]\n  #[inline]\n  fn f() -> Result<u8, u8> { dropped() }\n}\n#[cfg(test)] use x::{y, z};\n\
             /* no */ fn kept() -> a::B {} // why",
        ),
        ("src/b/c/mod.rs", ""),
    ]);
    let modules: Vec<(String, String)> =
        made_up.modules.iter().map(|module| (module.path.join("::"), module.code.words.join(" "))).collect();
    let expected = [
        ("a", "pub struct S { kept : u8 , } impl S { } fn kept ( ) -> a :: B { }"),
        ("b::c", ""),
        ("b", "mod c ; # [ cfg ( not ( test ) ) ] fn kept ( ) { }"),
        ("", "# ! [ no_std ] mod a ; mod b { }"),
    ];
    assert_eq!(modules, expected.map(|(path, words)| (path.to_owned(), words.to_owned())));
}
