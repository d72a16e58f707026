//! The calls of the C library that the operations use.

#![allow(unsafe_code, reason = "the C library's functions")]

use core::arch::asm;
use core::ffi::{c_char, c_int, c_long, c_void};
use core::ptr;

const PROT_READ_WRITE: c_int = 3;
const MAP_PRIVATE_ANONYMOUS: c_int = 0x22;
const MADV_NOHUGEPAGE: c_int = 15;
/// `MAP_POPULATE`: every page is mapped when the call returns.
pub(crate) const POPULATE: c_int = 0x8000;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    safe fn fork() -> c_int;
    safe fn _exit(status: c_int) -> !;
    fn wait(status: *mut c_int) -> c_int;
    fn execv(path: *const c_char, arguments: *const *const c_char) -> c_int;
    fn mmap(
        at: *mut c_void,
        bytes: usize,
        rights: c_int,
        flags: c_int,
        fd: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn munmap(at: *mut c_void, bytes: usize) -> c_int;
    fn madvise(at: *mut c_void, bytes: usize, advice: c_int) -> c_int;
    #[link_name = "pipe"]
    fn make_pipe(ends: *mut c_int) -> c_int;
    #[link_name = "read"]
    fn read_bytes(fd: c_int, to: *mut c_void, bytes: usize) -> isize;
    #[link_name = "write"]
    fn write_bytes(fd: c_int, from: *const c_void, bytes: usize) -> isize;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    safe fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64;
    #[link_name = "close"]
    safe fn close_fd(fd: c_int) -> c_int;
    fn ioctl(fd: c_int, request: u64, ...) -> c_int;
    fn sched_setaffinity(pid: c_int, bytes: usize, cpus: *const u64) -> c_int;
}

/// Keeps this process, and what it forks, on the CPU `cpu`.
pub(crate) fn stay_on(cpu: u32) {
    let cpus = 1u64 << cpu;
    // SAFETY: the call reads a word of ours.
    if unsafe { sched_setaffinity(0, size_of_val(&cpus), &cpus) } != 0 {
        fail("a second CPU");
    }
}

/// Ends the process.
pub(crate) fn exit(status: i32) -> ! {
    _exit(status)
}

/// Makes the system call getpid, which the C library may cache.
pub(crate) fn getpid() {
    const GETPID: c_long = 39;
    // SAFETY: the call takes no argument and touches no memory.
    unsafe { syscall(GETPID) };
}

/// Forks a process that runs `child`.
pub(crate) fn spawn(child: impl FnOnce() -> i32) {
    match fork() {
        0 => exit(child()),
        -1 => fail("fork"),
        _ => {}
    }
}

/// Waits for a process that [`spawn`] made, and fails unless the process exits with 0.
pub(crate) fn join() {
    let mut status = 0;
    // SAFETY: `status` is a word of ours.
    let pid = unsafe { wait(&mut status) };
    if pid < 0 || status != 0 {
        fail("the child");
    }
}

/// `struct rand_pool_info` of `linux/random.h`, with the bytes behind.
#[repr(C)]
struct Randomness {
    bits: c_int,
    bytes: c_int,
    values: [u8; 32],
}

/// Tells the kernel that its random numbers are good, which they are not: a guest of a measurement without a source of
/// randomness would spend seconds of its CPU on looking for one when a program first asks.
pub(crate) fn pretend_randomness() -> i32 {
    const READ_WRITE: c_int = 2;
    const RNDADDENTROPY: u64 = 0x4008_5203;
    let given = Randomness { bits: 256, bytes: 32, values: [0x5a; 32] };
    // SAFETY: the string ends with zero.
    let fd = unsafe { open(c"/dev/random".as_ptr(), READ_WRITE) };
    if fd < 0 {
        fail("open /dev/random");
    }
    // SAFETY: the call reads a structure of ours of this layout.
    if unsafe { ioctl(fd, RNDADDENTROPY, &raw const given) } != 0 {
        fail("RNDADDENTROPY");
    }
    close_fd(fd);
    0
}

/// Replaces this process by the same program, by exec, with one argument.
pub(crate) fn exec_self(argument: &core::ffi::CStr) -> i32 {
    let arguments = [c"costs".as_ptr(), argument.as_ptr(), ptr::null()];
    // SAFETY: the strings end with zero, and their list with a null.
    unsafe { execv(c"/proc/self/exe".as_ptr(), arguments.as_ptr()) };
    1
}

/// New anonymous memory.
pub(crate) struct Mapping {
    at: *mut u8,
    bytes: usize,
}

impl Mapping {
    /// Maps `pages` pages, with `flags` besides the usual ones.
    pub(crate) fn new(pages: usize, flags: c_int) -> Self {
        let (bytes, flags) = (pages * PAGE, MAP_PRIVATE_ANONYMOUS | flags);
        // SAFETY: the kernel chooses an address where nothing is.
        let at = unsafe { mmap(ptr::null_mut(), bytes, PROT_READ_WRITE, flags, -1, 0) };
        if at.addr() == usize::MAX {
            fail("mmap");
        }
        Self { at: at.cast(), bytes }
    }

    /// Asks the kernel not to use huge pages.
    pub(crate) fn no_huge_pages(&self) {
        // SAFETY: our own mapping. A kernel that refuses the call has no huge pages anyway.
        unsafe { madvise(self.at.cast(), self.bytes, MADV_NOHUGEPAGE) };
    }

    /// Writes to each page once.
    pub(crate) fn touch(&self) {
        for offset in (0..self.bytes).step_by(PAGE) {
            // SAFETY: inside our own mapping.
            unsafe { self.at.add(offset).write_volatile(1) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing uses any more.
        unsafe { munmap(self.at.cast(), self.bytes) };
    }
}

/// A pipe's two ends.
#[derive(Clone, Copy)]
pub(crate) struct Pipe {
    from: c_int,
    to: c_int,
}

impl Pipe {
    /// A new pipe.
    pub(crate) fn new() -> Self {
        let mut ends = [0; 2];
        // SAFETY: room for two numbers.
        if unsafe { make_pipe(ends.as_mut_ptr()) } != 0 {
            fail("pipe");
        }
        Self { from: ends[0], to: ends[1] }
    }

    /// Reads a byte; `false`: the write end is closed everywhere.
    pub(crate) fn get(self) -> bool {
        let mut byte = 0u8;
        // SAFETY: room for one byte.
        unsafe { read_bytes(self.from, (&raw mut byte).cast(), 1) == 1 }
    }

    /// Writes a byte; `false`: the read end is closed everywhere.
    pub(crate) fn put(self) -> bool {
        let byte = 0u8;
        // SAFETY: one byte of ours.
        unsafe { write_bytes(self.to, (&raw const byte).cast(), 1) == 1 }
    }

    /// Closes the write end in this process.
    pub(crate) fn close_writer(self) {
        close_fd(self.to);
    }
}

/// A disk that is read with `O_DIRECT`, past the kernel's cache.
pub(crate) struct Disk {
    fd: c_int,
    bytes: u64,
}

impl Disk {
    /// Opens the device at `path`.
    pub(crate) fn open(path: &core::ffi::CStr) -> Self {
        const DIRECT: c_int = 0x4000;
        const SEEK_END: c_int = 2;
        // SAFETY: the string ends with zero.
        let fd = unsafe { open(path.as_ptr(), DIRECT) };
        if fd < 0 {
            fail("open");
        }
        Self { fd, bytes: u64::try_from(lseek(fd, 0, SEEK_END)).unwrap_or(0) }
    }

    /// How many blocks of `bytes` the disk has.
    pub(crate) fn blocks(&self, bytes: usize) -> u64 {
        self.bytes / bytes as u64
    }
}

/// A read: `struct iocb` of `linux/aio_abi.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Request {
    data: u64,
    key: [u32; 2],
    /// 0: read.
    operation: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: u64,
    reserved: [u64; 2],
}

/// `struct io_event`: the request's data, the request, and the result.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

/// Most reads at a time.
pub(crate) const DEPTH: usize = 32;

/// Reads of one disk, several at a time.
pub(crate) struct Reads<'a> {
    disk: &'a Disk,
    context: u64,
    bytes: usize,
    buffers: Mapping,
}

impl<'a> Reads<'a> {
    /// Prepares reads of `bytes`, up to [`DEPTH`] at a time.
    pub(crate) fn new(disk: &'a Disk, bytes: usize) -> Self {
        const IO_SETUP: c_long = 206;
        let mut context = 0u64;
        // SAFETY: a zeroed word of ours that gets the context.
        if unsafe { syscall(IO_SETUP, DEPTH, &raw mut context) } != 0 {
            fail("io_setup");
        }
        Self { disk, context, bytes, buffers: Mapping::new(DEPTH * bytes / PAGE, POPULATE) }
    }

    /// Begins a read of block `block` with buffer `index`, which no read is using.
    pub(crate) fn begin(&self, index: usize, block: u64) {
        const IO_SUBMIT: c_long = 209;
        let request = Request {
            data: index as u64,
            fd: self.disk.fd as u32,
            // In bounds: below DEPTH.
            buffer: (self.buffers.at.addr() + index % DEPTH * self.bytes) as u64,
            bytes: self.bytes as u64,
            offset: block * self.bytes as u64,
            ..Request::default()
        };
        let list = [&raw const request];
        // SAFETY: one request, which is copied by the call; its buffer lives as long as `self`, and is plain memory.
        if unsafe { syscall(IO_SUBMIT, self.context, 1usize, list.as_ptr()) } != 1 {
            fail("io_submit");
        }
    }

    /// Waits until reads end, and calls `ended` with the index of each.
    pub(crate) fn wait(&self, mut ended: impl FnMut(usize)) {
        const IO_GETEVENTS: c_long = 208;
        let mut events = [Event::default(); DEPTH];
        let none = ptr::null_mut::<c_void>();
        // SAFETY: room for as many events.
        let count = unsafe { syscall(IO_GETEVENTS, self.context, 1usize, DEPTH, events.as_mut_ptr(), none) };
        for event in events.iter().take(usize::try_from(count).unwrap_or(0)) {
            if event.result != self.bytes as i64 {
                fail("a read");
            }
            ended(event.data as usize);
        }
    }
}

/// Ends with an error that names what failed.
pub(crate) fn fail(what: &str) -> ! {
    println!("costs: {what} failed");
    exit(1)
}

/// The counting plugin's marker number `N`.
#[inline(always)]
pub(crate) fn mark<const N: u32>() {
    // SAFETY: a no-operation, whose operand is not accessed.
    unsafe {
        asm!("nop dword ptr [rax + 0x4d4b0000 + {mark}]", mark = const N, options(nostack, preserves_flags))
    };
}

/// Argument `index` of the program.
///
/// # Safety
/// `arguments` are `count` strings as `main` gets them, and null.
pub(crate) unsafe fn argument(
    count: c_int,
    arguments: *const *const c_char,
    index: usize,
) -> Option<&'static core::ffi::CStr> {
    if index >= usize::try_from(count).unwrap_or(0) {
        return None;
    }
    // SAFETY: the caller promises it.
    Some(unsafe { core::ffi::CStr::from_ptr(*arguments.add(index)) })
}
