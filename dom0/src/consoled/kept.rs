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
pub(super) struct Stamps {
    list: VecDeque<Stamp>,
    /// The system time from which on output gets a new stamp.
    next_ns: u64,
}

impl Stamps {
    /// Output came at system time `now_ns` that begins at `position`; what is before `start` is no more kept. Most output
    /// has the stamp of the output before: so `wall_at`, which gives the wall clock's time, is called for a new stamp alone.
    #[inline]
    pub(super) fn came(&mut self, now_ns: u64, position: u64, start: u64, wall_at: impl FnOnce(u64) -> u64) {
        if now_ns >= self.next_ns {
            self.next_ns = now_ns.saturating_add(STAMP_NS);
            self.note(position, start, wall_at(now_ns));
        }
    }

    /// A stamp for output that begins at `position`; what is before `start` is no more kept. Each second has a stamp.
    /// If these are too many, the one goes between whose neighbours the least time is: so the time of a line is wrong
    /// by a small part of the time that all lines took, the oldest of a console that says little as well.
    #[cold]
    #[inline(never)]
    fn note(&mut self, position: u64, start: u64, wall_ns: u64) {
        // The last stamp before the start is that of the first byte.
        while self.list.get(1).is_some_and(|&(second, _)| second <= start) {
            self.list.pop_front();
        }
        if self.list.len() == STAMPS_MAX {
            let apart = |at: &usize| self.list[*at + 1].1.saturating_sub(self.list[*at - 1].1);
            if let Some(at) = (1..STAMPS_MAX - 1).min_by_key(apart) {
                self.list.remove(at);
            }
        }
        self.list.push_back((position, wall_ns));
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
        self.stamps.extend(&stamps.list);
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
            stamps.came(second * STAMP_NS, output.end(), output.start(), |now| now);
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
    fn the_wall_clock_is_read_once_a_second() {
        let mut stamps = Stamps::default();
        let mut read = 0;
        for at in 0..1000 {
            stamps.came(5 * STAMP_NS + at * STAMP_NS / 250, at, 0, |now| {
                read += 1;
                now
            });
        }
        assert_eq!((read, stamps.list.len()), (4, 4));
    }

    /// The error of the time of each line that is kept, in seconds: of lines that come with such pauses between them.
    fn errors(pauses: impl Iterator<Item = u64>) -> Vec<u64> {
        let (mut output, mut stamps) = (Scrollback::new(64 * 1024), Stamps::default());
        let (mut second, mut written) = (0, Vec::new());
        for pause in pauses {
            second += pause;
            stamps.came(second * STAMP_NS, output.end(), output.start(), |now| now);
            written.push(second);
            output.push(format!("{:79}\n", written.len() - 1).as_bytes());
            assert!(stamps.list.len() <= STAMPS_MAX);
        }
        let mut kept = Kept::default();
        kept.take(&output, &stamps, 64 * 1024);
        let number = |line: &[u8]| core::str::from_utf8(line).unwrap().trim().parse::<usize>().unwrap();
        let error = |(time, line): (Utc, &[u8])| {
            written[number(line)].checked_sub(time.0 / STAMP_NS).expect("no line is from the future")
        };
        let errors: Vec<u64> = kept.lines().map(error).collect();
        assert!(errors.len() >= 64 * 1024 / 80 - 1);
        errors
    }

    #[test]
    fn the_oldest_lines_of_a_slow_console_have_about_their_time() {
        // A line a minute for two months: about 819 of them are kept, which took as many minutes.
        let errors = errors(core::iter::repeat_n(60, 90_000));
        let worst = errors.into_iter().max().unwrap();
        assert!(worst <= 2 * 820 * 60 / 250, "{worst} seconds");
    }

    #[test]
    fn a_burst_costs_a_slow_consoles_times_little() {
        // Three lines an hour apart, then 300 a second apart, and so on: those far apart stay exact.
        let pauses =
            (0..1000).flat_map(|_| [3600, 3600, 3600].into_iter().chain(core::iter::repeat_n(1, 300)));
        let worst = errors(pauses).into_iter().max().unwrap();
        assert!(worst <= 60, "{worst} seconds");
    }

    #[test]
    fn a_burst_of_many_seconds_is_covered() {
        let worst = errors(core::iter::repeat_n(1, 100_000)).into_iter().max().unwrap();
        assert!(worst <= 2 * 820 / 250 + 1, "{worst} seconds");
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
