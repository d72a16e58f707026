//! The table of the operations' figures.

use std::fmt::Write;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::{IMAGE, Measured, OPERATIONS, Operation};
use crate::images;

/// What there is to print.
pub(super) struct Table<'a> {
    pub(super) only: Option<&'a str>,
    pub(super) ours: Option<&'a Measured>,
    pub(super) theirs: Option<&'a Measured>,
    /// The machine is that of the figures of Xen's that are known.
    pub(super) is_standard: bool,
    /// How often each operation was done, if loads of CR3 and writes of MSRs were counted.
    pub(super) registers_of: Option<u64>,
}

impl Table<'_> {
    /// The operations asked for, with their figures: ours, Xen's.
    fn rows(&self) -> Vec<(&Operation, Option<u64>, Option<u64>)> {
        let figure = |measured: Option<&Measured>, name: &str| measured?.figures.get(name).copied();
        let wanted = OPERATIONS.iter().filter(|known| self.only.is_none_or(|only| only == known.name));
        let row = |known: &'static Operation| {
            let Operation { name, xen, .. } = *known;
            let xen = match self.theirs {
                Some(_) => figure(self.theirs, name),
                None => self.is_standard.then_some(xen),
            };
            (known, figure(self.ours, name), xen)
        };
        wanted.map(row).collect()
    }

    /// The table, and whether every figure is there that was to be measured.
    pub(super) fn text(&self) -> (String, bool) {
        let mut text = String::from(
            "| operation | microhv | Xen 4.17 | ratio | aim | |\n| --- | --- | --- | --- | --- | --- |\n",
        );
        let mut complete = true;
        let shown = |figure: Option<u64>| figure.map_or("-".into(), thousands);
        for (known, ours, xen) in self.rows() {
            let verdict = match (ours, xen) {
                (Some(ours), Some(xen)) => known.verdict(ours, xen),
                _ if ours.is_none() && self.ours.is_some() || xen.is_none() && self.theirs.is_some() => {
                    complete = false;
                    "missing"
                }
                _ => "",
            };
            let ratio = ratio(ours, xen)
                .map_or("-".into(), |hundredths| format!("{}.{:02}", hundredths / 100, hundredths % 100));
            let (title, ours, xen, aim) = (known.title, shown(ours), shown(xen), thousands(known.aim));
            let _ = writeln!(text, "| {title} | {ours} | {xen} | {ratio} | {aim} | {verdict} |");
        }
        if let Some(ops) = self.registers_of {
            text += &self.registers(ops);
        }
        for measured in [self.ours, self.theirs].into_iter().flatten() {
            for (name, ticks) in &measured.figures {
                if !OPERATIONS.iter().any(|known| known.name == name) {
                    let _ = writeln!(text, "{name}: {ticks}");
                }
            }
            for line in &measured.skipped {
                let _ = writeln!(text, "{line}");
            }
        }
        (text, complete)
    }

    /// How often each operation loads CR3 and writes an MSR, of `ops`.
    fn registers(&self, ops: u64) -> String {
        let mut text = String::from(
            "| operation | CR3 loads | Xen 4.17 | MSR writes | Xen 4.17 |\n| --- | --- | --- | --- | --- |\n",
        );
        for (known, ..) in self.rows() {
            let of = |measured: Option<&Measured>| {
                let counts = measured.and_then(|measured| measured.registers.get(known.name));
                counts.map_or(["-".into(), "-".into()], |counts| {
                    [counts.cr3_loads, counts.msr_writes].map(|count| {
                        let hundredths = (count * 100 + ops / 2) / ops;
                        format!("{}.{:02}", hundredths / 100, hundredths % 100)
                    })
                })
            };
            let ([loads, writes], [xen_loads, xen_writes]) = (of(self.ours), of(self.theirs));
            let title = known.title;
            let _ = writeln!(text, "| {title} | {loads} | {xen_loads} | {writes} | {xen_writes} |");
        }
        text
    }

    /// The same for programs: the image, and by name the figures and their ratio in hundredths.
    pub(super) fn json(&self) -> Result<Value> {
        let mut operations = Map::new();
        for (known, ours, xen) in self.rows() {
            let row = json!({
                "title": known.title,
                "microhv": ours,
                "xen": xen,
                "ratio_percent": ratio(ours, xen),
                "aim": known.aim,
            });
            operations.insert(known.name.into(), row);
        }
        Ok(json!({
            "image": IMAGE,
            "sha256": images::find(IMAGE)?.sha256()?,
            "xen_measured": self.theirs.is_some(),
            "operations": operations,
        }))
    }
}

/// Ours by Xen's, in hundredths.
fn ratio(ours: Option<u64>, xen: Option<u64>) -> Option<u64> {
    let (ours, xen) = (ours?, xen.filter(|xen| *xen > 0)?);
    Some((ours * 100 + xen / 2) / xen)
}

/// A number with commas.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl Operation {
    fn verdict(&self, ours: u64, xen: u64) -> &'static str {
        if ours > xen {
            "over Xen"
        } else if ours <= self.aim {
            "reached"
        } else {
            "below Xen"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::operation;
    use super::*;

    fn table_of<'a>(
        only: Option<&'a str>,
        ours: Option<&'a Measured>,
        theirs: Option<&'a Measured>,
    ) -> Table<'a> {
        Table { only, ours, theirs, is_standard: true, registers_of: None }
    }

    #[test]
    fn registers_are_counted_for_each_figure() {
        let mark = |number: u32, cr3: u64, wrmsr: u64| {
            format!("mark {number} cpu 0 firmware 0 hyp 0 kernel 0 user 0 cr3 {cr3} wrmsr {wrmsr}\n")
        };
        let counts = [mark(200, 5, 5), mark(201, 5, 15), mark(200, 5, 15), mark(201, 25, 16)].concat();
        let mut ours = Measured::default();
        let console = "bench clts 4 ticks-per-op 10 ops\nbench int3 401 ticks-per-op 10 ops\n";
        ours.add(console);
        ours.add_registers(console, &counts);
        let table = Table { is_standard: false, registers_of: Some(10), ..table_of(None, Some(&ours), None) };
        let (text, _) = table.text();
        assert!(text.contains("| emulated `clts` | 0.00 | - | 1.00 | - |"), "{text}");
        assert!(text.contains("| kernel `int3` bounce | 2.00 | - | 0.10 | - |"), "{text}");
        assert!(
            text.contains("| kernel `int3` bounce | 401 | - | - |"),
            "figures of another machine: {text}"
        );
    }

    #[test]
    fn the_table_says_what_is_missing() {
        let of = |figures: &[(&str, u64)]| Measured {
            figures: figures.iter().map(|(name, ticks)| (name.to_string(), *ticks)).collect(),
            ..Measured::default()
        };
        let (ours, theirs) = (of(&[("clts", 1_500)]), of(&[("clts", 3_000)]));
        let table = table_of(Some("clts"), Some(&ours), Some(&theirs));
        let (text, complete) = table.text();
        assert!(
            complete && text.contains("| emulated `clts` | 1,500 | 3,000 | 0.50 | 500 | below Xen |"),
            "{text}"
        );
        let none = of(&[]);
        for (ours, theirs) in [(Some(&none), None), (Some(&ours), Some(&none)), (None, Some(&none))] {
            assert!(!table_of(Some("clts"), ours, theirs).text().1);
        }
        assert!(table_of(Some("clts"), None, Some(&theirs)).text().1);
        assert!(!table_of(None, Some(&ours), None).text().1);
    }

    #[test]
    fn numbers_are_read_easily() {
        assert_eq!(["0", "999", "1,000", "12,345,678"], [0, 999, 1_000, 12_345_678].map(thousands));
    }

    #[test]
    fn verdicts_at_their_edges() {
        let known = operation("x", "x", 300, 100);
        assert_eq!(known.verdict(100, 300), "reached");
        assert_eq!(known.verdict(101, 300), "below Xen");
        assert_eq!(known.verdict(300, 300), "below Xen");
        assert_eq!(known.verdict(301, 300), "over Xen");
        assert_eq!(known.verdict(100, 99), "over Xen");
    }
}
