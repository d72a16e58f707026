//! Figures of packets, and their tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::bench::On;
use crate::bench::rounds::{median, ratios};

/// What is measured of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Bytes a second, printed in Mbit/s.
    Bytes,
    /// Packets a second.
    Packets,
    /// The time of an answer, printed in microseconds.
    Answer,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Bytes => "Mbit/s",
            Self::Packets => "packets/s",
            Self::Answer => "us",
        }
    }
}

/// Aims of a way: what the figure is to Xen's at least (an answer's time: at most), in hundredths; and the
/// instructions of hypervisor and dom0 for a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Aim {
    pub(super) percent: Option<u64>,
    pub(super) instructions: Option<u64>,
}

/// A way that packets take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) unit: Unit,
    pub(super) aim: Aim,
}

/// Instructions executed for all packets of a window, and what they did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Executed {
    pub(super) guests: u64,
    pub(super) hypervisor: u64,
    pub(super) dom0: u64,
    /// Events sent.
    pub(super) notifications: Option<u64>,
    /// Copies by the hypervisor from one domain's memory to another's.
    pub(super) copies: Option<u64>,
}

/// What moved in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) nanoseconds: u64,
    /// Where instructions were counted.
    pub(super) executed: Option<Executed>,
}

/// A figure of one way on one system.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Figure {
    /// Of packets that went one way.
    Moved(Window),
    /// Of packets that were answered: the average in microseconds. With one instruction a tick a nanosecond is an
    /// instruction.
    Answered(f64),
}

/// What one system reached, by way.
pub(super) type Figures = BTreeMap<&'static str, Figure>;

/// What systems reached in one round.
pub(super) type Round = Vec<(On, Figures)>;

impl Figure {
    /// Whether nothing moved.
    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Self::Moved(Window { packets: 0, .. }))
    }

    /// The figure in its unit; none where nothing moved.
    fn value(&self, unit: Unit) -> Option<f64> {
        let each_second = |count: u64, window: &Window| {
            (count > 0 && window.nanoseconds > 0).then(|| count as f64 * 1e9 / window.nanoseconds as f64)
        };
        match (unit, self) {
            (Unit::Bytes, Self::Moved(window)) => Some(each_second(window.bytes, window)? * 8.0 / 1e6),
            (Unit::Packets, Self::Moved(window)) => each_second(window.packets, window),
            (Unit::Answer, Self::Answered(microseconds)) => Some(*microseconds),
            _ => None,
        }
    }
}

/// A system's name in a table.
fn title(system: On) -> &'static str {
    if system == On::Microhv { "microhv" } else { "Xen 4.17" }
}

fn figure(round: &Round, system: On, way: &Way) -> Option<Figure> {
    round.iter().find(|(known, _)| *known == system)?.1.get(way.name).copied()
}

/// The table of figures at the host's speed, the medians of all rounds; and whether each figure that `expected` asks for
/// is there.
pub(super) fn speeds(
    ways: &[&Way],
    on: &[On],
    rounds: &[Round],
    expected: impl Fn(On, &Way) -> bool,
) -> (String, bool) {
    let compared = on.contains(&On::Microhv) && on.contains(&On::Xen);
    let mut text = String::from("| way |");
    for &system in on {
        let _ = write!(text, " {} |", title(system));
    }
    let more = if compared { " microhv / Xen: median (least to most) | aim |" } else { "" };
    let columns = 1 + on.len() + if compared { 2 } else { 0 };
    let _ = writeln!(text, "{more}\n|{}", " --- |".repeat(columns));
    let mut complete = true;
    for way in ways {
        let _ = write!(text, "| {}, {} |", way.title, way.unit.name());
        let value = |round: &Round, system| figure(round, system, way)?.value(way.unit);
        for &system in on {
            let values: Vec<f64> = rounds.iter().filter_map(|round| value(round, system)).collect();
            complete &= values.len() == rounds.len() || !expected(system, way);
            let _ = write!(text, " {} |", median(values).map_or("-".into(), |value| format!("{value:.0}")));
        }
        if compared {
            let ratio = |round| Some(value(round, On::Microhv)? / value(round, On::Xen)?);
            let (cell, _) = ratios(rounds.iter().filter_map(ratio));
            let aim = way.aim.percent.map_or("-".into(), |percent| format!("{:.1}", percent as f64 / 100.0));
            let _ = write!(text, " {cell} | {aim} |");
        }
        text.push('\n');
    }
    (text, complete)
}

/// The table of instructions, each of one packet; and whether each figure that `expected` asks for is there.
pub(super) fn instructions(
    ways: &[&Way],
    round: &Round,
    expected: impl Fn(On, &Way) -> bool,
) -> (String, bool) {
    let mut text = String::from(
        "| way | system | bytes a packet | guests | hypervisor | dom0 | in all | of Xen's | hypervisor + dom0 | aim | \
         notifications a packet | copies a packet |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let mut complete = true;
    for way in ways {
        if way.unit == Unit::Answer {
            complete &= answers(&mut text, round, way, &expected);
            continue;
        }
        let xen = counted(round, On::Xen, way).map(|(_, each)| each.total());
        for (system, _) in round {
            let Some((window, each)) = counted(round, *system, way) else {
                complete &= !expected(*system, way);
                let _ = writeln!(text, "| {} | {} |{}", way.title, title(*system), " - |".repeat(10));
                continue;
            };
            let optional = |count: Option<u64>| {
                count.map_or("-".into(), |count| format!("{:.3}", count as f64 / window.packets as f64))
            };
            let ours = *system == On::Microhv;
            let ratio = xen.filter(|_| ours).map_or("-".into(), |xen| format!("{:.2}", each.total() / xen));
            let aim = way.aim.instructions.filter(|_| ours).map_or("-".into(), |aim| aim.to_string());
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {ratio} | {:.0} | {aim} | {} | {} |",
                way.title,
                title(*system),
                window.bytes / window.packets,
                each.guests,
                each.hypervisor,
                each.dom0,
                each.total(),
                each.hypervisor + each.dom0,
                optional(each.notifications),
                optional(each.copies),
            );
        }
    }
    (text, complete)
}

/// The lines of a way whose packets are answered: the time in between is the instructions of all.
fn answers(text: &mut String, round: &Round, way: &Way, expected: &impl Fn(On, &Way) -> bool) -> bool {
    let nanoseconds = |system| Some(figure(round, system, way)?.value(Unit::Answer)? * 1000.0);
    let mut complete = true;
    for &(system, _) in round {
        let Some(own) = nanoseconds(system) else {
            complete &= !expected(system, way);
            continue;
        };
        let xen = nanoseconds(On::Xen).filter(|_| system == On::Microhv);
        let ratio = xen.map_or("-".into(), |xen| format!("{:.2}", own / xen));
        let _ = writeln!(
            text,
            "| {} | {} | - | - | - | - | {own:.0} | {ratio} | - | - | - | - |",
            way.title,
            title(system)
        );
    }
    complete
}

/// Instructions of one packet.
struct Each {
    guests: f64,
    hypervisor: f64,
    dom0: f64,
    notifications: Option<u64>,
    copies: Option<u64>,
}

impl Each {
    fn total(&self) -> f64 {
        self.guests + self.hypervisor + self.dom0
    }
}

/// What was counted on a way, and of it each packet's part.
fn counted(round: &Round, system: On, way: &Way) -> Option<(Window, Each)> {
    let Figure::Moved(window) = figure(round, system, way)? else { return None };
    let executed = window.executed.filter(|_| window.packets > 0)?;
    let each = |count: u64| count as f64 / window.packets as f64;
    let Executed { guests, hypervisor, dom0, notifications, copies } = executed;
    let [guests, hypervisor, dom0] = [guests, hypervisor, dom0].map(each);
    Some((window, Each { guests, hypervisor, dom0, notifications, copies }))
}

/// What was measured, for a program: a list of rounds, and in each the system, the way and its figures.
pub(super) fn json(rounds: &[Round]) -> serde_json::Value {
    let figure = |figure: &Figure| match figure {
        Figure::Answered(microseconds) => serde_json::json!({ "answer_us": microseconds }),
        Figure::Moved(window) => {
            let mut value = serde_json::json!({
                "packets": window.packets, "bytes": window.bytes, "nanoseconds": window.nanoseconds,
            });
            if let Some(executed) = window.executed {
                value["executed"] = serde_json::json!({
                    "guests": executed.guests, "hypervisor": executed.hypervisor, "dom0": executed.dom0,
                    "notifications": executed.notifications, "copies": executed.copies,
                });
            }
            value
        }
    };
    let figures = |figures: &Figures| -> serde_json::Value {
        figures
            .iter()
            .map(|(name, one)| (name.to_string(), figure(one)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let round = |round: &Round| -> serde_json::Value {
        round
            .iter()
            .map(|(on, all)| (on.name().to_string(), figures(all)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    rounds.iter().map(round).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAY: Way = Way {
        name: "w",
        title: "a way",
        unit: Unit::Bytes,
        aim: Aim { percent: Some(400), instructions: Some(900) },
    };

    fn moved(packets: u64, executed: Option<Executed>) -> Figure {
        Figure::Moved(Window { packets, bytes: packets * 1000, nanoseconds: 1_000_000, executed })
    }

    fn round(ours: Figure, xens: Option<Figure>) -> Round {
        let all = |figure: Option<Figure>| figure.map(|figure| ("w", figure)).into_iter().collect();
        vec![(On::Microhv, all(Some(ours))), (On::Xen, all(xens))]
    }

    #[test]
    fn a_figure_is_in_its_ways_unit() {
        assert_eq!(moved(5, None).value(Unit::Bytes), Some(40.0), "5,000 bytes in a millisecond");
        assert_eq!(moved(5, None).value(Unit::Packets), Some(5000.0));
        assert_eq!(moved(0, None).value(Unit::Packets), None);
        assert_eq!(moved(5, None).value(Unit::Answer), None);
        assert_eq!(Figure::Answered(1.5).value(Unit::Answer), Some(1.5));
        let instant = Figure::Moved(Window { packets: 1, bytes: 1, ..Window::default() });
        assert_eq!(instant.value(Unit::Bytes), None, "no time passed");
    }

    #[test]
    fn speeds_are_compared_within_a_round() {
        let on = [On::Microhv, On::Xen];
        let rounds =
            [round(moved(100, None), Some(moved(25, None))), round(moved(10, None), Some(moved(2, None)))];
        let (text, complete) = speeds(&[&WAY], &on, &rounds, |_, _| true);
        assert!(complete);
        assert_eq!(text.lines().last(), Some("| a way, Mbit/s | 80 | 16 | 4.00 (4.00 to 5.00) | 4.0 |"));
        let (text, complete) = speeds(&[&WAY], &on[..1], &rounds, |_, _| true);
        assert!(
            complete && text.ends_with("| way | microhv |\n| --- | --- |\n| a way, Mbit/s | 80 |\n"),
            "{text}"
        );
    }

    #[test]
    fn a_missing_figure_is_told_where_one_is_expected() {
        let on = [On::Microhv, On::Xen];
        let rounds = [round(moved(100, None), None)];
        let (text, complete) = speeds(&[&WAY], &on, &rounds, |_, _| true);
        assert!(!complete && text.ends_with("| 800 | - | - | 4.0 |\n"), "{text}");
        assert!(speeds(&[&WAY], &on, &rounds, |system, _| system == On::Microhv).1);
        let (text, complete) = instructions(&[&WAY], &rounds[0], |_, _| true);
        assert!(!complete && text.contains("| a way | microhv | - |"), "{text}");
    }

    #[test]
    fn an_answers_time_is_its_instructions() {
        let way = Way { title: "an echo", unit: Unit::Answer, ..WAY };
        let round = round(Figure::Answered(30.0), Some(Figure::Answered(120.0)));
        let (text, complete) = instructions(&[&way], &round, |_, _| true);
        assert!(complete);
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(rows[0], "| an echo | microhv | - | - | - | - | 30000 | 0.25 | - | - | - | - |");
        assert_eq!(rows[1], "| an echo | Xen 4.17 | - | - | - | - | 120000 | - | - | - | - | - |");
        assert!(!instructions(&[&way], &vec![(On::Microhv, Figures::new())], |_, _| true).1);
    }

    #[test]
    fn instructions_are_of_one_packet() {
        let executed = |dom0, notifications, copies| {
            Some(Executed { guests: 3000, hypervisor: 2000, dom0, notifications, copies })
        };
        let ours = moved(10, executed(1000, Some(1), Some(20)));
        let round = round(ours, Some(moved(10, executed(19_000, None, None))));
        let (text, complete) = instructions(&[&WAY], &round, |_, _| true);
        assert!(complete);
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| a way | microhv | 1000 | 300 | 200 | 100 | 600 | 0.25 | 300 | 900 | 0.100 | 2.000 |",
                "| a way | Xen 4.17 | 1000 | 300 | 200 | 1900 | 2400 | - | 2100 | - | - | - |",
            ]
        );
        let json = json(&[round]);
        assert_eq!(json[0]["microhv"]["w"]["executed"]["copies"], 20);
        assert_eq!(json[0]["xen"]["w"]["packets"], 10);
    }
}
