//! The lines of a run's report, gathered from consoles; the format is described in `conformance::run`.

use std::collections::{BTreeMap, BTreeSet};

/// The prefix of each line of the report, behind the prefix that the console's owner adds.
const PREFIX: &str = "conformance: ";

/// The outcome of a case in one place, in order from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Skip,
    Pass,
    Fail,
    Error,
}

const OUTCOMES: [(Outcome, &str); 4] =
    [(Outcome::Pass, "pass"), (Outcome::Fail, "fail"), (Outcome::Skip, "skip"), (Outcome::Error, "error")];

impl Outcome {
    fn parse(word: &str) -> Option<Self> {
        OUTCOMES.iter().find(|(_, name)| *name == word).map(|(outcome, _)| *outcome)
    }

    fn word(self) -> &'static str {
        OUTCOMES.iter().find(|(outcome, _)| *outcome == self).map_or("?", |(_, name)| name)
    }
}

/// One case's result.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    outcome: Outcome,
    place: String,
    ms: u64,
    detail: String,
    rule: String,
    source: String,
}

/// The results of all cases. A case that ran in several places counts once, with its worst outcome. A skip does
/// not count if the case ran elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Report {
    entries: BTreeMap<String, Entry>,
    /// Runs that did not come to their end.
    broken: Vec<String>,
    /// Milliseconds that the cases of a place took, where the report has them.
    times: BTreeMap<String, u64>,
    /// Cases whose failure the document explains as a fault of the place itself.
    explained: BTreeSet<String>,
}

/// The heading over the table of such cases.
const EXPLAINED: &str = "## What fails elsewhere";

impl Report {
    /// Adds what the console of a run in `place` says.
    pub(super) fn add(&mut self, place: &str, console: &str) {
        let mut running: Option<String> = None;
        let mut last: Option<String> = None;
        let (mut expected, mut seen, mut ended) = (None, 0usize, false);
        let mut counted = Counted::default();
        for line in console.lines() {
            let Some((_, text)) = line.trim_end().split_once(PREFIX) else { continue };
            let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
            match word {
                "begin" => expected = rest.parse().ok(),
                "run" => {
                    running = Some(rest.to_string());
                    counted = Counted::default();
                }
                "count" => counted.add(rest),
                "result" => {
                    if let Some((id, mut entry)) = parse_result(place, rest) {
                        if let Some(lost) = counted.broken().filter(|_| entry.outcome == Outcome::Pass) {
                            (entry.outcome, entry.detail) = (Outcome::Fail, lost);
                        }
                        seen += 1;
                        running = None;
                        last = Some(id.clone());
                        self.put(id, entry);
                    }
                }
                "rule" | "source" => {
                    let entry = last.as_ref().and_then(|id| self.entries.get_mut(id));
                    if let Some(entry) = entry.filter(|entry| entry.place == place) {
                        *if word == "rule" { &mut entry.rule } else { &mut entry.source } = rest.to_string();
                    }
                }
                "time" => {
                    if let Ok(ms) = rest.parse() {
                        self.times.insert(place.to_string(), ms);
                    }
                }
                "end" => ended = true,
                "broken" => self.broken.push(format!("{place}: {rest}")),
                _ => {}
            }
        }
        if let Some(id) = running {
            let detail = "the run ended in it".to_string();
            let entry = Entry { outcome: Outcome::Error, detail, ..empty(place) };
            self.put(id, entry);
        }
        if !ended || expected != Some(seen) {
            let expected = expected.map_or("?".into(), |count: usize| count.to_string());
            let end = console.lines().rev().take(12).collect::<Vec<_>>();
            let end = end.into_iter().rev().collect::<Vec<_>>().join("\n    ");
            self.broken.push(format!("{place}: {seen} results of {expected}; its last lines:\n    {end}"));
        }
    }

    fn put(&mut self, id: String, entry: Entry) {
        match self.entries.get(&id) {
            Some(old) if old.outcome > entry.outcome => {}
            _ => drop(self.entries.insert(id, entry)),
        }
    }

    /// Takes the cases of the document's table for explained.
    pub(super) fn explain(&mut self, document: &str) {
        let table = document.split_once(EXPLAINED).map_or("", |(_, rest)| rest);
        let table = table.split_once("\n## ").map_or(table, |(table, _)| table);
        let id = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_string());
        self.explained = table.lines().filter_map(id).collect();
    }

    /// The cases that failed or are in error without an explanation.
    pub fn unexplained(&self) -> Vec<&str> {
        let bad = |entry: &Entry| matches!(entry.outcome, Outcome::Fail | Outcome::Error);
        let bad = self.entries.iter().filter(|(id, entry)| bad(entry) && !self.explained.contains(*id));
        bad.map(|(id, _)| id.as_str()).collect()
    }

    /// Everything ran to its end and nothing failed, or what failed is explained.
    pub fn is_clean(&self) -> bool {
        self.broken.is_empty() && self.unexplained().is_empty()
    }

    /// Prints the table by area, then what there is to say.
    pub fn print(&self) {
        let mut areas: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
        let mut total = [0; 4];
        for (id, entry) in &self.entries {
            let area = id.split('.').next().unwrap_or(id);
            let column = OUTCOMES.iter().position(|(outcome, _)| *outcome == entry.outcome).unwrap_or(0);
            areas.entry(area).or_default()[column] += 1;
            total[column] += 1;
        }
        println!("| area | cases | pass | fail | skip | error |");
        println!("| --- | --- | --- | --- | --- | --- |");
        for (area, counts) in areas.iter().chain([(&"all", &total)]) {
            let [pass, fail, skip, error] = counts;
            println!("| {area} | {} | {pass} | {fail} | {skip} | {error} |", counts.iter().sum::<usize>());
        }
        let of = |wanted: Outcome| self.entries.iter().filter(move |(_, entry)| entry.outcome == wanted);
        let mut skipped: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (id, entry) in of(Outcome::Skip) {
            skipped.entry(&entry.detail).or_default().push(id);
        }
        for (why, ids) in skipped {
            println!("skipped, {why}: {}", ids.join(" "));
        }
        for (id, entry) in of(Outcome::Fail).chain(of(Outcome::Error)) {
            println!("\n{} {id} ({}): {}", entry.outcome.word(), entry.place, entry.detail);
            println!("    rule: {}\n    source: {}", entry.rule, entry.source);
            if self.explained.contains(id) {
                println!("    explained in docs/CONFORMANCE.md");
            }
        }
        for (place, ms) in &self.times {
            println!("{}", self.pace(place, *ms));
        }
        for broken in &self.broken {
            println!("\nbroken off: {broken}");
        }
    }

    /// How fast a place's cases were, without those that it skipped.
    fn pace(&self, place: &str, ms: u64) -> String {
        let ran = |entry: &&Entry| entry.place == place && entry.outcome != Outcome::Skip;
        let cases = self.entries.values().filter(ran).count() as u64;
        format!("{place}: {cases} cases in {ms} ms, {} a second", cases * 1000 / ms.max(1))
    }

    /// The results for programs.
    pub(super) fn json(&self) -> String {
        let cases: Vec<_> = self
            .entries
            .iter()
            .map(|(id, entry)| {
                serde_json::json!({
                    "id": id,
                    "outcome": entry.outcome.word(),
                    "place": entry.place,
                    "ms": entry.ms,
                    "detail": entry.detail,
                })
            })
            .collect();
        let value = serde_json::json!({ "complete": self.broken.is_empty(), "cases": cases });
        format!("{value:#}\n")
    }
}

/// The lines `N of M` that a case prints, which must all arrive in order.
#[derive(Debug, Default)]
struct Counted {
    seen: usize,
    of: usize,
    /// A line came out of order or is incomplete.
    disorder: Option<String>,
}

impl Counted {
    fn add(&mut self, text: &str) {
        let numbers = text.split_once(" of ").and_then(|(n, of)| Some((n.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((number, of)) if number == self.seen + 1 && (self.seen == 0 || of == self.of) => {
                (self.seen, self.of) = (number, of);
            }
            _ if self.disorder.is_none() => {
                self.disorder = Some(format!("behind line {} of {} came {text:?}", self.seen, self.of));
            }
            _ => {}
        }
    }

    /// What is wrong with them.
    fn broken(&self) -> Option<String> {
        let short = || {
            (self.seen != self.of).then(|| format!("of {} lines the console shows {}", self.of, self.seen))
        };
        self.disorder.clone().or_else(short)
    }
}

fn empty(place: &str) -> Entry {
    let text = String::new;
    let place = place.to_string();
    Entry { outcome: Outcome::Skip, place, ms: 0, detail: text(), rule: text(), source: text() }
}

/// `ID OUTCOME MS DETAIL`.
fn parse_result(place: &str, text: &str) -> Option<(String, Entry)> {
    let mut words = text.splitn(4, ' ');
    let id = words.next()?.to_string();
    let outcome = Outcome::parse(words.next()?)?;
    let ms = words.next()?.parse().ok()?;
    let detail = words.next().unwrap_or("").to_string();
    Some((id, Entry { outcome, ms, detail, ..empty(place) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "noise\r\n(d1) conformance: begin 2\r\nconformance: run a.b\r\nconformance: result a.b fail 7 status 0\r\n\
        conformance: rule The rule.\r\nconformance: source x.h\r\nconformance: run a.c\r\nconformance: result a.c pass 1\r\n\
        conformance: end 1 pass 1 fail 0 skip 0 error\r\n";

    #[test]
    fn a_whole_run() {
        let mut report = Report::default();
        report.add("here", RUN);
        assert!(report.broken.is_empty() && !report.is_clean());
        let entry = &report.entries["a.b"];
        assert_eq!((entry.outcome, entry.ms, entry.detail.as_str()), (Outcome::Fail, 7, "status 0"));
        assert_eq!((entry.rule.as_str(), entry.source.as_str()), ("The rule.", "x.h"));
        assert_eq!(report.entries["a.c"].outcome, Outcome::Pass);
        assert!(report.json().contains("\"a.b\""));
    }

    #[test]
    fn the_pace_is_of_the_cases_that_ran() {
        let mut report = Report::default();
        let cases = "conformance: result a.b pass 1\nconformance: result a.c skip 0\nconformance: result a.d fail 1\n";
        report.add("x", &format!("conformance: begin 3\n{cases}conformance: time 10\nconformance: end\n"));
        assert!(report.broken.is_empty());
        assert_eq!(report.pace("x", report.times["x"]), "x: 2 cases in 10 ms, 200 a second");
    }

    #[test]
    fn a_run_that_breaks_off_blames_the_last_case() {
        let mut report = Report::default();
        report.add("here", "conformance: begin 2\nconformance: run a.b\nconformance: result a.b pass 1\nconformance: run a.c\n");
        assert_eq!(report.entries["a.c"].outcome, Outcome::Error);
        assert!(!report.is_clean() && report.broken.len() == 1);
        let mut report = Report::default();
        report.add("here", "nothing");
        assert!(!report.is_clean());
    }

    #[test]
    fn counted_lines_are_looked_for() {
        let run = |lines: &str| {
            let mut report = Report::default();
            let around = ("conformance: begin 1\nconformance: run a.b\n", "conformance: result a.b pass 1\n");
            report.add("x", &format!("{}{lines}{}conformance: end\n", around.0, around.1));
            report.entries["a.b"].clone()
        };
        let line = |n: usize| format!("(d1) conformance: count {n} of 3\r\n");
        let all = [line(1), line(2), line(3)];
        assert_eq!(run("").outcome, Outcome::Pass);
        assert_eq!(run(&all.concat()).outcome, Outcome::Pass);
        for lost in [&all[..2], &all[1..], &[line(1), line(3)], &[line(1), line(1), line(2), line(3)]] {
            assert_eq!(run(&lost.concat()).outcome, Outcome::Fail, "{lost:?}");
        }
        let mixed = run(&[&line(1)[..], "conformance: count 2 o", &line(3)].concat());
        assert!(mixed.detail.contains("behind line 1 of 3"), "{}", mixed.detail);
    }

    #[test]
    fn what_the_document_explains_does_not_count() {
        let mut report = Report::default();
        report.add("here", RUN);
        assert_eq!(report.unexplained(), ["a.b"]);
        report.explain(
            "# x\n| `a.b` | no |\n## What fails elsewhere\n\n| `a.c` | x |\n\n## y\n| `a.b` | no |\n",
        );
        assert_eq!(report.unexplained(), ["a.b"]);
        report.explain("## What fails elsewhere\n\n| case | x |\n| --- | --- |\n| `a.b` | x |\n");
        assert!(report.is_clean());
    }

    #[test]
    fn the_worst_of_two_places_counts_and_a_skip_least() {
        let one = |outcome: &str| {
            format!("conformance: begin 1\nconformance: result a.b {outcome} 1\nconformance: end\n")
        };
        for (first, second, wanted) in [
            ("skip", "pass", Outcome::Pass),
            ("pass", "skip", Outcome::Pass),
            ("pass", "fail", Outcome::Fail),
            ("fail", "pass", Outcome::Fail),
        ] {
            let mut report = Report::default();
            report.add("x", &one(first));
            report.add("y", &one(second));
            assert_eq!(report.entries["a.b"].outcome, wanted, "{first} {second}");
        }
    }
}
