//! Keeps known patterns in memory, by each way in which a Linux program's memory is written, and says each round whether all of it is as
//! it was written: private pages, pages of which forks have copies, shared pages by two addresses, pages of a file by `write` and by an
//! address. Threads write all the while.
//!
//! `keeper MIB THREADS`: so much private memory for each thread, a tenth of it shared.

use std::ffi::c_void;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn _exit(status: i32) -> !;
    fn mmap(at: *mut c_void, len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut c_void;
    fn sched_yield() -> i32;
}

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;
const READ_WRITE: i32 = 3;
const SHARED: i32 = 1;
/// What stands for the page's number and version in a word.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
/// Words of a page that are written and looked at.
const LOOKED_AT: [usize; 4] = [0, 77, 300, WORDS - 1];

fn pattern(page: usize, version: u64, word: usize) -> u64 {
    ((page as u64) << 32 ^ version ^ (word as u64) << 20).wrapping_mul(MIX)
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// Pages, by one address for writing and one for reading, and the version of each page.
struct Pages {
    write: &'static [AtomicU64],
    read: &'static [AtomicU64],
    versions: Vec<u64>,
}

impl Pages {
    fn private(count: usize) -> Self {
        let words = Box::leak((0..count * WORDS).map(|_| AtomicU64::new(0)).collect::<Box<[_]>>());
        Self::of(words, words, count)
    }

    fn of(write: &'static [AtomicU64], read: &'static [AtomicU64], count: usize) -> Self {
        let mut pages = Self { write, read, versions: vec![0; count] };
        (0..count).for_each(|page| pages.set(page, 1));
        pages
    }

    /// Shared pages of a file without a name, by two addresses.
    fn shared(file: &File, count: usize) -> Self {
        file.set_len((count * PAGE) as u64).expect("room in the file");
        let map = || {
            // SAFETY: a new mapping, at an address of the kernel's choice.
            let at = unsafe {
                mmap(std::ptr::null_mut(), count * PAGE, READ_WRITE, SHARED, file.as_raw_fd(), 0)
            };
            assert!(at as isize > 0, "mmap");
            // SAFETY: the mapping has so many words, and lasts as long as the process.
            unsafe { std::slice::from_raw_parts(at.cast::<AtomicU64>(), count * WORDS) }
        };
        Self::of(map(), map(), count)
    }

    fn set(&mut self, page: usize, version: u64) {
        for word in LOOKED_AT {
            self.write[page * WORDS + word].store(pattern(page, version, word), Ordering::Relaxed);
        }
        self.versions[page] = version;
    }

    fn wrong(&self) -> usize {
        let is_wrong = |page: &usize| {
            LOOKED_AT.iter().any(|word| {
                let found = self.read[page * WORDS + word].load(Ordering::Relaxed);
                found != pattern(*page, self.versions[*page], *word)
            })
        };
        (0..self.versions.len()).filter(is_wrong).count()
    }

    fn change(&mut self, random: &mut Random, times: usize) {
        for _ in 0..times {
            let page = random.below(self.versions.len());
            let version = self.versions[page] + 1;
            self.set(page, version);
        }
    }
}

fn file(name: &str) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(name).expect(name);
    std::fs::remove_file(name).expect(name);
    file
}

/// Writes pages of a file by `write`, and finds them by an address.
fn by_file(file: &File, pages: &mut Pages, random: &mut Random, times: usize) {
    for _ in 0..times {
        let page = random.below(pages.versions.len());
        let version = pages.versions[page] + 1;
        for word in LOOKED_AT {
            let at = page * PAGE + word * 8;
            file.write_all_at(&pattern(page, version, word).to_le_bytes(), at as u64).expect("room");
        }
        pages.versions[page] = version;
    }
}

/// A child that has the pages of the moment of the fork, whatever parent and child write. Gives what was wrong.
fn forked(pages: &mut Pages, random: &mut Random) -> usize {
    // SAFETY: the child uses its memory alone, and no lock.
    let child = unsafe { fork() };
    if child == 0 {
        let mut wrong = pages.wrong();
        pages.change(random, 50);
        // SAFETY: it gives the CPU away.
        unsafe { sched_yield() };
        wrong += pages.wrong();
        // SAFETY: the child ends.
        unsafe { _exit(i32::from(wrong != 0)) }
    }
    pages.change(random, 50);
    let mut status = 0;
    // SAFETY: the status has room for what the kernel writes.
    if unsafe { waitpid(child, &mut status, 0) } != child {
        return 1;
    }
    usize::from(status != 0)
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("a number"));
    let (mib, threads) = (arguments.next().expect("MIB"), arguments.next().expect("THREADS"));
    let count = (mib << 20) / PAGE;
    for thread in 1..threads {
        std::thread::spawn(move || {
            let (mut random, mut pages) = (Random(thread as u64 + 7), Pages::private(count));
            loop {
                pages.change(&mut random, 200);
                let wrong = pages.wrong();
                if wrong != 0 {
                    println!("keeper: WRONG: {wrong} private pages of thread {thread}");
                }
            }
        });
    }
    let mut random = Random(3);
    let (shared, written) = (file("/shared"), file("/written"));
    let mut private = Pages::private(count);
    let mut alias = Pages::shared(&shared, count / 10 + 1);
    let mut of_file = Pages::shared(&written, count / 10 + 1);
    for round in 1.. {
        private.change(&mut random, 300);
        alias.change(&mut random, 100);
        by_file(&written, &mut of_file, &mut random, 20);
        let mut wrong = [0; 4];
        for _ in 0..5 {
            wrong[0] += forked(&mut private, &mut random);
        }
        wrong[1..].copy_from_slice(&[private.wrong(), alias.wrong(), of_file.wrong()]);
        if wrong != [0; 4] {
            println!("keeper: WRONG: forks, private, shared, file: {wrong:?}");
        }
        println!("keeper: round {round}");
        std::io::stdout().flush().expect("a console");
    }
}
