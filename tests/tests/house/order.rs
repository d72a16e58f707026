//! Direction: who may name whom. `docs/ARCHITECTURE.md` says so in blocks marked `rooms CRATE`, which are read here.
//!
//! A room is a module and all in it that is no room of its own (`evtchn::state` lies in `evtchn` and is another room).
//! A block has a line for each level, the outermost first. A room may name those on lines below its own; on one line,
//! `a -> b` lets `a` name `b`, and rooms are else independent of each other. `crate` stands for the root module: rooms
//! below its line may not name what is defined there. The root itself puts the rooms together and may name all.
//!
//! Paths that begin with `crate`, `self`, `super` or a module beside the code count, in `use`, in code and in macros. A
//! path is of the room that is written in it, though it may lead to a re-export. What a method call reaches is not seen:
//! its receiver's type had to be named somewhere.

use crate::Finding;
use crate::code::{Code, Crate, is_name};

/// A declared order.
pub(crate) struct Order {
    /// The crate's root file.
    pub(crate) root: String,
    rooms: Vec<Room>,
    /// `a -> b`, as indices into `rooms`.
    within_a_line: Vec<(usize, usize)>,
}

struct Room {
    name: String,
    path: Vec<String>,
    level: usize,
}

/// The orders that a document declares.
pub(crate) fn declared(document: &str) -> Vec<Order> {
    let blocks = document.split("\n```rooms ").skip(1);
    blocks.map(|block| Order::parse(block.split("\n```").next().unwrap_or_default())).collect()
}

impl Order {
    /// `text`: the crate's directory or root file, then the levels. `#` begins a remark.
    pub(crate) fn parse(text: &str) -> Self {
        let (place, levels) = text.split_once('\n').unwrap_or((text, ""));
        let place = place.trim();
        let root = if place.ends_with(".rs") { place.to_owned() } else { format!("{place}/src/lib.rs") };
        let mut order = Self { root, rooms: Vec::new(), within_a_line: Vec::new() };
        for (level, line) in levels.lines().enumerate() {
            for chain in line.split('#').next().unwrap_or_default().split(',') {
                let names = chain.split("->").map(str::trim).filter(|name| !name.is_empty());
                let chain: Vec<usize> = names.map(|name| order.room(name, level)).collect();
                for (at, &from) in chain.iter().enumerate() {
                    order.within_a_line.extend(chain[at + 1..].iter().map(|&to| (from, to)));
                }
            }
        }
        order
    }

    /// The room `name`, which is on the line `level`.
    fn room(&mut self, name: &str, level: usize) -> usize {
        if let Some(known) = self.rooms.iter().position(|room| room.name == name) {
            assert_eq!(self.rooms[known].level, level, "{name} is on two lines of the order");
            return known;
        }
        let path = if name == "crate" { Vec::new() } else { name.split("::").map(str::to_owned).collect() };
        self.rooms.push(Room { name: name.to_owned(), path, level });
        self.rooms.len() - 1
    }

    /// The room that a module is in: the one with the longest path.
    fn room_of(&self, module: &[String]) -> Option<usize> {
        let around =
            |room: &Room| module.starts_with(&room.path) && (!room.path.is_empty() || module.is_empty());
        let rooms = self.rooms.iter().enumerate().filter(|(_, room)| around(room));
        rooms.max_by_key(|(_, room)| room.path.len()).map(|(index, _)| index)
    }

    fn allows(&self, from: usize, to: usize) -> bool {
        from == to
            || self.rooms[from].level < self.rooms[to].level
            || self.within_a_line.contains(&(from, to))
    }

    /// What of the crate is against the order.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        self.findings_in(&Crate::of(&self.root))
    }

    fn findings_in(&self, all: &Crate) -> Vec<Finding> {
        let mut found = Vec::new();
        let name = self.root.split('/').next().unwrap_or_default();
        let mut add = |subject: String, at: (&str, usize), advice: &str| {
            let advice = format!("{advice}: the order is in docs/ARCHITECTURE.md");
            found.push(Finding::new("direction", format!("{name}: {subject}"), at, advice));
        };
        for room in self.rooms.iter().filter(|room| !all.has(&room.path)) {
            add(format!("{} is no module", room.name), (&self.root, 1), "take it out of the order");
        }
        for module in all.modules.iter().filter(|module| !module.path.is_empty()) {
            let file = module.file.as_str();
            let Some(from) = self.room_of(&module.path) else {
                add(format!("{} is in no room", module.path.join("::")), (file, 1), "give it a place");
                continue;
            };
            for path in paths(&module.code) {
                let Some(place) = path.module(&module.path, all) else { continue };
                let (name, text) = (&self.rooms[from].name, path.segments.join("::"));
                if place.is_empty() && path.is_whole() {
                    add(format!("{name} takes in all"), (file, path.line), "name single things of the root");
                } else if let Some(to) = self.room_of(&place)
                    && !self.allows(from, to)
                {
                    let advice = format!("move {text} below {name}, or let callers pass what is needed");
                    add(format!("{name} names {}", self.rooms[to].name), (file, path.line), &advice);
                }
            }
        }
        found
    }
}

/// A path that code names.
struct Named {
    segments: Vec<String>,
    line: usize,
}

impl Named {
    /// Whether it names a module as such, as in `crate::*`: what is used of the module is then not seen.
    fn is_whole(&self) -> bool {
        self.segments.iter().all(|segment| ["crate", "self", "super"].contains(&segment.as_str()))
    }

    /// The module that the path leads to, or into, when `module` names it. `None`: another crate, or no path of modules.
    fn module(&self, module: &[String], all: &Crate) -> Option<Vec<String>> {
        let mut place = module.to_vec();
        let (head, mut rest) = self.segments.split_first()?;
        match head.as_str() {
            "crate" => place.clear(),
            "self" => {}
            "super" => drop(place.pop()?),
            _ if all.has(&[module, std::slice::from_ref(head)].concat()) => rest = &self.segments,
            _ => return None,
        }
        for segment in rest {
            place.push(segment.clone());
            if segment == "super" {
                place.truncate(place.len().checked_sub(2)?);
            } else if !all.has(&place) {
                place.pop();
                break;
            }
        }
        Some(place)
    }
}

/// All paths of more than one segment; of a `use` with braces, each.
fn paths(code: &Code) -> Vec<Named> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < code.words.len() {
        let before = &code.words[..at];
        // `pub(in crate::room)` says who may come, and goes nowhere.
        let is_head = !before.ends_with(&["::"]) && !before.ends_with(&["(", "in"]);
        let is_path = is_name(code.words[at]) && code.words.get(at + 1) == Some(&"::");
        at = if is_head && is_path { follow(code, at, Vec::new(), &mut found) } else { at + 1 };
    }
    found
}

/// Adds what the path at `at` names, behind `segments`. Gives the place after it.
fn follow(code: &Code, mut at: usize, mut segments: Vec<String>, found: &mut Vec<Named>) -> usize {
    if code.words[at] == "{" {
        at += 1;
        while code.words[at] != "}" {
            at = follow(code, at, segments.clone(), found);
            at += code.words[at..].iter().take_while(|word| ![",", "}"].contains(*word)).count(); // `as name`
            at += usize::from(code.words[at] == ",");
        }
        return at + 1;
    }
    if is_name(code.words[at]) {
        segments.push(code.words[at].to_owned());
        if code.words.get(at + 1) == Some(&"::") {
            return follow(code, at + 2, segments, found);
        }
    }
    found.push(Named { segments, line: code.lines[at].0 });
    at + 1
}

mod planted {
    use super::*;

    const ORDER: &str =
        "made-up\ntop\nleft -> right, other\ncrate\ninner::state  # held by what is above\nbase";

    /// What is found when `text` stands in the file `name`.
    fn found(name: &str, text: &str) -> Vec<String> {
        let mut files = [
            (
                "made-up/src/lib.rs",
                "mod top; mod left; mod right; mod other; mod inner; mod base; struct Whole;",
            ),
            ("made-up/src/top.rs", ""),
            ("made-up/src/left.rs", "mod deep { }"),
            ("made-up/src/right.rs", ""),
            ("made-up/src/other.rs", ""),
            ("made-up/src/inner/mod.rs", "mod state;"),
            ("made-up/src/inner/state.rs", ""),
            ("made-up/src/base.rs", ""),
        ];
        files.iter_mut().find(|(file, _)| file.ends_with(name)).expect("a file").1 = text;
        let mut order = Order::parse(ORDER);
        let inner = order.room("inner", 1);
        assert_eq!(order.room_of(&["inner".into(), "elsewhere".into()]), Some(inner));
        order.findings_in(&Crate::made_up(&files)).into_iter().map(|finding| finding.key()).collect()
    }

    #[test]
    fn what_the_order_allows_is_not_found() {
        for (file, text) in [
            (
                "top.rs",
                "use crate::{Whole, left::{self, deep,}, base as b,}; use super::{}; use super::right;",
            ),
            (
                "left.rs",
                "mod deep { use super::X; } use crate::right::*; use crate::inner::state::S; fn f(_: self::X) {}",
            ),
            ("base.rs", "pub(in crate::top) fn f() { top::g(x.crate_, other::top::h(), std::left::f()) }"),
            ("inner/mod.rs", "mod state; use state::S; use crate::Whole; use super::base::f;"),
        ] {
            assert_eq!(found(file, text), [""; 0], "{text}");
        }
    }

    #[test]
    fn paths_against_the_order_are_found() {
        for (file, text, finding) in [
            ("base.rs", "use crate::top;", "direction: made-up: base names top"),
            ("base.rs", "use crate::{base, left::{X, deep::Y as Z}};", "direction: made-up: base names left"),
            (
                "base.rs",
                "fn f() { if a { crate::right::g::<u8>() } }",
                "direction: made-up: base names right",
            ),
            ("base.rs", "type T = Vec<super::other::T>;", "direction: made-up: base names other"),
            ("base.rs", "report!(a, crate::top::B);", "direction: made-up: base names top"),
            ("base.rs", "macro_rules! m { () => { $crate::top::B } }", "direction: made-up: base names top"),
            ("base.rs", "use crate::Whole;", "direction: made-up: base names crate"),
            ("base.rs", "use crate::inner::f;", "direction: made-up: base names inner"),
            ("top.rs", "use crate::*;", "direction: made-up: top takes in all"),
            ("top.rs", "use super::{self as everything};", "direction: made-up: top takes in all"),
            ("right.rs", "use crate::left::X;", "direction: made-up: right names left"),
            ("other.rs", "use super::right::*;", "direction: made-up: other names right"),
            ("state.rs", "use super::X;", "direction: made-up: inner::state names inner"),
            ("state.rs", "use super::super::left::X;", "direction: made-up: inner::state names left"),
            ("left.rs", "mod deep { use super::super::top; }", "direction: made-up: left names top"),
        ] {
            let found = found(file, text);
            assert!(!found.is_empty() && found.iter().all(|key| key == finding), "{text}: {found:?}");
        }
    }

    #[test]
    fn the_order_and_the_modules_are_the_same() {
        let tree = Crate::made_up(&[("made-up/src/lib.rs", "mod a { } mod b { mod c { } }")]);
        let order = &declared("# Head\n\n```rooms made-up\na\nd\n```\ntext\n")[0];
        let found: Vec<String> = order.findings_in(&tree).into_iter().map(|finding| finding.key()).collect();
        assert_eq!(
            found,
            [
                "direction: made-up: d is no module",
                "direction: made-up: b::c is in no room",
                "direction: made-up: b is in no room"
            ]
        );
    }
}
