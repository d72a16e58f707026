//! Kept console output, with times: each domain's scroll-back, and the last output of the domains that ended last.
//!
//! Budgets: a domain's account pays for its scroll-back and its times, [`super::SCROLLBACK_BYTES`] and
//! [`STAMPS_MAX`]. The output of ended domains is dom0's own: [`ENDED_MAX`] times [`ENDED_BYTES`] and the same number
//! of times, allocated at the start.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use backends::console::Scrollback;
use pvrt::executor::time::Utc;

/// How many ended domains' last output is kept: the last ones to end, one of each name.
pub const ENDED_MAX: usize = 8;
/// Bytes of output that are kept of each ended domain.
pub const ENDED_BYTES: usize = 16 * 1024;
/// Times that are kept for a console's output.
pub const STAMPS_MAX: usize = 256;
/// Output within this time gets one stamp.
const STAMP_NS: u64 = 1_000_000_000;
/// The longest name of a domain.
const NAME_MAX: usize = 255;

/// A position in the output, and the wall clock when the byte there came.
type Stamp = (u64, u64);

/// The times at which a console's output came.
#[derive(Default)]
pub(super) struct Stamps(VecDeque<Stamp>);

impl Stamps {
    /// Notes the time of output that begins at `position`. Each second with output has a stamp. When there are
    /// too many, every second stamp is dropped.
    pub(super) fn note(&mut self, position: u64, wall_ns: u64) {
        if self.0.back().is_some_and(|&(_, last)| wall_ns.saturating_sub(last) < STAMP_NS) {
            return;
        }
        if self.0.len() == STAMPS_MAX {
            let mut at = 0;
            self.0.retain(|_| {
                at += 1;
                at % 2 == 1
            });
        }
        self.0.push_back((position, wall_ns));
    }
}

/// Output that was copied out of a console, with its times.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Position of the first byte.
    first: u64,
    bytes: Vec<u8>,
    stamps: Vec<Stamp>,
}

impl Kept {
    /// Replaces the contents by the last bytes of `output`, at most `most`.
    pub(super) fn take(&mut self, output: &Scrollback, stamps: &Stamps, most: usize) {
        self.first = output.start().max(output.end().saturating_sub(most as u64));
        self.bytes.clear();
        self.bytes.resize((output.end() - self.first) as usize, 0);
        output.read(self.first, &mut self.bytes);
        self.stamps.clear();
        self.stamps.extend(&stamps.0);
    }

    /// Each line with the time of its first byte. A line whose beginning was not kept is left out.
    pub fn lines(&self) -> impl Iterator<Item = (Utc, &[u8])> {
        let cut = match self.first {
            0 => 0,
            _ => self.bytes.iter().position(end_of).map_or(self.bytes.len(), |at| at + 1),
        };
        let mut at = self.first + cut as u64;
        self.bytes[cut..].split_inclusive(end_of).map(move |line| {
            let time = self.time(at);
            at += line.len() as u64;
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            (time, line.strip_suffix(b"\r").unwrap_or(line))
        })
    }

    /// When the byte at `position` came.
    fn time(&self, position: u64) -> Utc {
        let after = self.stamps.partition_point(|&(first, _)| first <= position);
        Utc(self.stamps.get(after.saturating_sub(1)).map_or(0, |&(_, wall_ns)| wall_ns))
    }
}

/// Whether a line ends here.
fn end_of(byte: &u8) -> bool {
    *byte == b'\n'
}

/// The last output of domains that have ended, in the order of their ends.
pub(super) struct Ended(Vec<(String, Kept)>);

impl Ended {
    /// Makes an empty list, and allocates all of its memory now.
    pub(super) fn new() -> Self {
        let empty = |_| {
            let kept = Kept {
                first: 0,
                bytes: Vec::with_capacity(ENDED_BYTES),
                stamps: Vec::with_capacity(STAMPS_MAX),
            };
            (String::with_capacity(NAME_MAX), kept)
        };
        Self((0..ENDED_MAX).map(empty).collect())
    }

    /// Keeps the last output of a domain, in place of that of an earlier domain of the same name, or of the domain
    /// that ended first.
    pub(super) fn keep(&mut self, name: &str, take: impl FnOnce(&mut Kept)) {
        let at = self.0.iter().position(|(known, _)| known == name).unwrap_or(0);
        let (known, kept) = &mut self.0[at];
        known.clear();
        // Longer ones there are none: the configuration refuses them.
        known.push_str(name.get(..NAME_MAX).unwrap_or(name));
        take(kept);
        self.0[at..].rotate_left(1);
    }

    /// The last words of the domain of this name that ended last.
    pub(super) fn of(&self, name: &str) -> Option<&Kept> {
        self.0.iter().find(|(known, _)| known == name && !name.is_empty()).map(|(_, kept)| kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    fn kept(output: &Scrollback, stamps: &Stamps, most: usize) -> Vec<String> {
        let mut kept = Kept::default();
        kept.take(output, stamps, most);
        kept.lines().map(|(time, line)| format!("{time} {}", core::str::from_utf8(line).unwrap())).collect()
    }

    #[test]
    fn each_line_has_the_time_of_its_first_byte() {
        let (mut output, mut stamps) = (Scrollback::new(100), Stamps::default());
        for (second, text) in [(1, "one\r\nt"), (1, "wo\n"), (70, "\nthree"), (80, "\nfour")] {
            stamps.note(output.end(), second * STAMP_NS);
            output.push(text.as_bytes());
        }
        let all = [
            "1970-01-01T00:00:01Z one",
            "1970-01-01T00:00:01Z two",
            "1970-01-01T00:01:10Z ",
            "1970-01-01T00:01:10Z three",
            "1970-01-01T00:01:20Z four",
        ];
        assert_eq!(kept(&output, &stamps, 1000), all);
        // A line without its beginning is left out.
        assert_eq!(kept(&output, &stamps, 12), all[2..]);
        assert_eq!(kept(&output, &stamps, 11), all[3..]);
        assert_eq!(kept(&output, &stamps, 3), [] as [&str; 0]);
        assert_eq!(kept(&Scrollback::new(10), &Stamps::default(), 1000), [] as [&str; 0]);
    }

    #[test]
    fn stamps_are_bounded_and_cover_all_output() {
        let mut stamps = Stamps::default();
        for second in 0..100_000 {
            stamps.note(second * 10, second * STAMP_NS);
            assert!(stamps.0.len() <= STAMPS_MAX);
        }
        let kept = Kept { stamps: stamps.0.into(), ..Kept::default() };
        assert_eq!(kept.time(0), Utc(0));
        assert_eq!(kept.time(999_999), Utc(99_999 * STAMP_NS));
        let known = kept.time(500_000);
        assert!(known <= Utc(50_000 * STAMP_NS), "{known}");
    }

    #[test]
    fn the_last_that_ended_are_kept_one_of_each_name() {
        let mut ended = Ended::new();
        let keep = |ended: &mut Ended, name: &str, text: &str| {
            let mut output = Scrollback::new(1 << 20);
            output.push(text.as_bytes());
            ended.keep(name, |kept| kept.take(&output, &Stamps::default(), ENDED_BYTES));
        };
        let of = |ended: &Ended, name: &str| ended.of(name).map(|kept| kept.bytes.len());
        assert_eq!(of(&ended, ""), None);
        keep(&mut ended, "web", "first");
        keep(&mut ended, "web", "second");
        for at in 0..ENDED_MAX - 1 {
            keep(&mut ended, &format!("d{at}"), "x");
        }
        assert_eq!(of(&ended, "web"), Some(6));
        keep(&mut ended, "more", "y");
        assert_eq!((of(&ended, "web"), of(&ended, "d0")), (None, Some(1)));
        keep(&mut ended, "more", &"z".repeat(2 * ENDED_BYTES));
        assert_eq!(of(&ended, "more"), Some(ENDED_BYTES));
        let taken = ended
            .0
            .iter()
            .all(|(name, kept)| name.capacity() == NAME_MAX && kept.bytes.capacity() == ENDED_BYTES);
        assert!(taken && ended.0.len() == ENDED_MAX, "no memory came and none went");
    }
}
