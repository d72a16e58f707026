//! The kernel's console and the logger that writes to it. In dom0 the console is the hypervisor's own, in a domU the
//! console ring.

mod logger;

use alloc::sync::Arc;
use core::fmt::{self, Write};

use ring_abi::shared::SharedBytes;
use ring_abi::types::Mfn;

use crate::event::Port;

pub use logger::init_logger;

/// Writes bytes to the console, waiting for space for a while; bytes that the daemon does not drain are lost
/// in the end.
pub fn write(bytes: &[u8]) {
    backend::write(bytes);
}

/// Whether so much waits for the hypervisor's serial line that a task which can wait should wait: a write may then
/// block the vCPU. The answer is always no in a domU, and on Xen, which does not tell.
pub fn is_busy() -> bool {
    backend::is_busy()
}

/// Takes typed bytes, waiting for at least one. The result is the number of bytes.
pub async fn read(buffer: &mut [u8]) -> usize {
    backend::read(buffer).await
}

/// Takes one typed byte, waiting for the byte.
pub async fn read_byte() -> u8 {
    let mut byte = [0];
    read(&mut byte).await;
    byte[0]
}

/// Waits until the other side has taken everything written, at most for a second.
pub async fn flush() {
    backend::flush().await;
}

/// Blocks the vCPU until the other side has taken everything written, at most for a second; no task runs meanwhile.
pub fn drain() {
    backend::drain();
}

/// The ring of a domU's console.
#[derive(Clone)]
pub struct Ring {
    /// The console ring's page.
    pub page: SharedBytes<'static>,
    /// The page's machine frame, as `start_info` names the frame.
    pub mfn: Mfn,
    /// The event channel to the console daemon.
    pub port: Arc<Port>,
}

/// The ring that the builder set up for this kernel's console; none in dom0.
pub fn ring() -> Option<Ring> {
    backend::ring()
}

/// A pause in which the kernel keeps off its console ring, so that another may use the ring. What the kernel prints
/// meanwhile is lost. When this value is dropped, the kernel goes on where the ring's indices then stand.
#[must_use]
pub struct Paused(());

/// Begins a pause of the console.
pub fn pause() -> Paused {
    backend::pause();
    Paused(())
}

impl Drop for Paused {
    fn drop(&mut self) {
        backend::resume();
    }
}

/// Formats into lines of bytes on the console.
pub struct Out;

impl Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(text.as_bytes());
        Ok(())
    }
}

/// Prints formatted text on the console.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        let mut text = $crate::console::Line::new();
        let _ = write!(text, $($arg)*);
    }};
}

/// Prints a formatted line on the console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        let mut text = $crate::console::Line::new();
        let _ = write!(text, $($arg)*);
        let _ = text.write_str("\n");
    }};
}

/// Number of bytes gathered before they are written: a hypercall or an event for each formatted piece would cost too
/// much.
const LINE_BYTES: usize = 256;

/// Gathers formatted text and writes it in pieces of at most 256 bytes, the rest on drop.
pub struct Line {
    bytes: [u8; LINE_BYTES],
    used: usize,
}

impl Line {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { bytes: [0; LINE_BYTES], used: 0 }
    }

    fn flush(&mut self) {
        if self.used > 0 {
            write(&self.bytes[..self.used]);
            self.used = 0;
        }
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            if self.used == LINE_BYTES {
                self.flush();
            }
            let count = rest.len().min(LINE_BYTES - self.used);
            self.bytes[self.used..self.used + count].copy_from_slice(&rest[..count]);
            self.used += count;
            rest = &rest[count..];
        }
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(freestanding)]
pub(crate) use backend::{Emergency, init, init_early};

#[cfg(freestanding)]
mod backend {
    use super::*;
    use crate::hypercall::{console as hypervisor, sched};
    use crate::time;
    use core::sync::atomic::{AtomicBool, Ordering};
    use ring_abi::evtchn::VIRQ_CONSOLE;
    use ring_abi::io::console::frontend;
    use ring_abi::ring::bytes::ByteRing;
    use ring_abi::start_info::StartInfo;
    use spin::{Mutex, Once};

    /// Times a full ring is waited for, 10 ms each, before output is thrown away.
    const PATIENCE: usize = 200;
    const WAIT_NS: u64 = 10_000_000;

    /// The console is the hypervisor's own.
    static HYPERVISOR: AtomicBool = AtomicBool::new(false);
    /// The ring of a domU; none while another uses the ring.
    static RING: Mutex<Option<ByteRing<SharedBytes<'static>>>> = Mutex::new(None);
    /// The ring's page and the page's machine frame.
    static PAGE: Once<(SharedBytes<'static>, Mfn)> = Once::new();
    /// The daemon has not drained the ring for a long time: output is dropped without waiting until there is
    /// room again.
    static STUCK: AtomicBool = AtomicBool::new(false);
    /// The port whose events signal input, and room after output was taken.
    static PORT: Once<Arc<Port>> = Once::new();

    /// From here on output works in dom0; a domU's ring needs its port first.
    pub(crate) fn init_early(initial_domain: bool) {
        HYPERVISOR.store(initial_domain, Ordering::Relaxed);
        init_logger(log::LevelFilter::Info);
    }

    /// Input, and in a domU output, work from here on.
    pub(crate) fn init(info: &StartInfo, initial_domain: bool) {
        if initial_domain {
            match Port::bind_virq(VIRQ_CONSOLE) {
                Ok(port) => drop(PORT.call_once(|| Arc::new(port))),
                Err(errno) => log::warn!("no console input: {errno}"),
            }
        } else if info.console_evtchn != 0 {
            PORT.call_once(|| Arc::new(Port::adopt(ring_abi::types::Port::new(info.console_evtchn))));
            PAGE.call_once(|| (crate::boot::shared_page(info.console_mfn), Mfn::new(info.console_mfn)));
            resume();
        }
    }

    pub(super) fn ring() -> Option<Ring> {
        let (page, mfn) = *PAGE.get()?;
        Some(Ring { page, mfn, port: PORT.get()?.clone() })
    }

    pub(super) fn pause() {
        *RING.lock() = None;
    }

    pub(super) fn resume() {
        *RING.lock() = attach();
    }

    fn attach() -> Option<ByteRing<SharedBytes<'static>>> {
        frontend(PAGE.get()?.0).ok()
    }

    pub(super) fn write(bytes: &[u8]) {
        if HYPERVISOR.load(Ordering::Relaxed) {
            let _ = hypervisor::write(bytes);
            return;
        }
        let mut rest = bytes;
        for _ in 0..PATIENCE {
            let (count, more) = put(&mut RING.lock(), rest);
            rest = &rest[count..];
            let Some(port) = PORT.get() else { return };
            if count > 0 {
                STUCK.store(false, Ordering::Relaxed);
                port.notify();
            }
            if rest.is_empty() || !more {
                return;
            }
            if count == 0 {
                if STUCK.load(Ordering::Relaxed) {
                    return;
                }
                // The daemon sends an event when the daemon has taken something. An old event must not end the wait.
                crate::event::poll();
                let _ = sched::poll(&[port.number()], time::now_ns() + WAIT_NS);
            }
        }
        STUCK.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_busy() -> bool {
        HYPERVISOR.load(Ordering::Relaxed) && hypervisor::is_busy()
    }

    /// Puts what fits into the ring; false when the ring is absent or broken.
    fn put(ring: &mut Option<ByteRing<SharedBytes<'static>>>, bytes: &[u8]) -> (usize, bool) {
        match ring.as_mut().map(|ring| ring.write(bytes)) {
            Some(Ok(count)) => (count, true),
            Some(Err(_)) => {
                *ring = None;
                (0, false)
            }
            None => (0, false),
        }
    }

    pub(super) async fn read(buffer: &mut [u8]) -> usize {
        loop {
            let count = take(buffer);
            if count > 0 || buffer.is_empty() {
                return count;
            }
            match PORT.get() {
                Some(port) => port.wait().await,
                None => core::future::pending().await,
            }
        }
    }

    fn take(buffer: &mut [u8]) -> usize {
        if HYPERVISOR.load(Ordering::Relaxed) {
            return hypervisor::read(buffer).unwrap_or(0);
        }
        let count = match RING.lock().as_mut() {
            Some(ring) => ring.read(buffer).unwrap_or(0),
            None => 0,
        };
        if count > 0
            && let Some(port) = PORT.get()
        {
            port.notify();
        }
        count
    }

    pub(super) async fn flush() {
        for _ in 0..100 {
            if is_drained() {
                return;
            }
            time::sleep(WAIT_NS).await;
        }
    }

    pub(super) fn drain() {
        let Some(port) = PORT.get() else { return };
        for _ in 0..100 {
            // An old event must not end the wait.
            crate::event::poll();
            if is_drained() {
                return;
            }
            let _ = sched::poll(&[port.number()], time::now_ns() + WAIT_NS);
        }
    }

    fn is_drained() -> bool {
        RING.lock().as_ref().is_none_or(|ring| ring.is_drained().unwrap_or(true))
    }

    /// Output of a panic: takes no lock that the panicking code may hold.
    pub(crate) struct Emergency;

    impl Write for Emergency {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            if HYPERVISOR.load(Ordering::Relaxed) {
                let _ = hypervisor::write(text.as_bytes());
                return Ok(());
            }
            let mut rest = text.as_bytes();
            for _ in 0..PATIENCE {
                let Some(mut ring) = RING.try_lock() else { return Ok(()) };
                // The task that had borrowed the ring will not go on.
                if ring.is_none() {
                    *ring = attach();
                }
                let (count, more) = put(&mut ring, rest);
                drop(ring);
                rest = &rest[count..];
                if let Some(port) = PORT.get() {
                    let _ = crate::hypercall::event::send(port.number());
                }
                if rest.is_empty() || !more {
                    break;
                }
                sched::yield_cpu();
            }
            Ok(())
        }
    }
}

#[cfg(not(freestanding))]
mod backend {
    /// To the thread's stand-in for the hypervisor, as in dom0.
    pub(super) fn write(bytes: &[u8]) {
        let _ = crate::hypercall::console::write(bytes);
    }

    pub(super) fn is_busy() -> bool {
        crate::hypercall::console::is_busy()
    }

    pub(super) async fn read(buffer: &mut [u8]) -> usize {
        loop {
            match crate::hypercall::console::read(buffer) {
                Ok(0) | Err(_) if !buffer.is_empty() => crate::time::sleep(1_000_000).await,
                other => return other.unwrap_or(0),
            }
        }
    }

    pub(super) async fn flush() {}

    pub(super) fn drain() {}

    pub(super) fn ring() -> Option<super::Ring> {
        None
    }

    pub(super) fn pause() {}

    pub(super) fn resume() {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host;

    #[test]
    fn long_lines_come_whole() {
        let text = "x".repeat(LINE_BYTES * 2 + 1);
        crate::println!("{text}");
        crate::print!("end");
        assert_eq!(host::take_console_output(), format!("{text}\nend").into_bytes());
    }

    #[test]
    fn typed_bytes_arrive() {
        host::type_input(b"ab");
        let got = crate::executor::block_on_test(async { [read_byte().await, read_byte().await] });
        assert_eq!(&got, b"ab");
    }
}
