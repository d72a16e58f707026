//! Every target with its seeds, and for a moment with random changes of them.
//!
//! `MICROHV_FUZZ_SECONDS` makes the moment longer. `cargo xtask fuzz` searches better, but needs a C++ compiler.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuzz::Target;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 16) as usize % bound.max(1)
    }

    /// `input` with a few changes.
    fn change(&mut self, input: &mut Vec<u8>, others: &[Vec<u8>], longest: usize) {
        for _ in 0..=self.below(6) {
            let at = self.below(input.len() + 1);
            match self.below(6) {
                0 if at < input.len() => input[at] = self.next() as u8,
                1 if at < input.len() => input[at] ^= 1 << self.below(8),
                2 => {
                    let end = (at + self.below(16)).min(input.len());
                    input.drain(at..end);
                }
                3 => {
                    let other = &others[self.below(others.len())];
                    let from = self.below(other.len());
                    let end = (from + self.below(40)).min(other.len());
                    input.splice(at..at, other[from..end].iter().copied());
                }
                _ => {
                    let new: Vec<u8> = (0..self.below(64)).map(|_| self.next() as u8).collect();
                    input.splice(at..at, new);
                }
            }
        }
        input.truncate(longest);
    }
}

fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target.name);
    let files =
        std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("readable").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no seeds in {}", directory.display());
    paths.iter().map(|path| std::fs::read(path).expect("readable")).collect()
}

fn play(target: &Target, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("finding-{}", target.name));
        std::fs::write(&path, input).expect("writable");
        panic!("{}: a finding, kept in {}", target.name, path.display());
    }
}

fn all(name: &str) {
    let target = fuzz::find(name).expect("a target");
    let seconds = std::env::var("MICROHV_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let mut pool = seeds(target);
    pool.iter().for_each(|seed| play(target, seed));
    pool.push(Vec::new());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs_f64(seconds.unwrap_or(0.7)) {
        let mut input = pool[random.below(pool.len())].clone();
        random.change(&mut input, &pool, target.longest);
        play(target, &input);
    }
}

macro_rules! targets {
    ($( $test:ident = $name:literal; )*) => {
        $(
            #[test]
            fn $test() {
                all($name);
            }
        )*

        #[test]
        fn every_target_is_here() {
            let here = [$( $name ),*];
            assert!(fuzz::TARGETS.iter().map(|target| target.name).eq(here));
        }
    };
}

targets! {
    ring_back = "ring-back";
    ring_front = "ring-front";
    ring_bytes = "ring-bytes";
    blkback = "blkback";
    blkfront = "blkfront";
    console = "console";
    xenstored = "xenstored";
    store_client = "store-client";
    vbd = "vbd";
    netback = "netback";
    netback_control = "netback-control";
    netfront = "netfront";
    config = "config";
    guests = "guests";
    guests_smp = "guests-smp";
    kernel = "kernel";
    net_headers = "net-headers";
    net_switch = "net-switch";
    net_segment = "net-segment";
    net_capture = "net-capture";
    saved = "saved";
    net_gateway = "net-gateway";
}
