//! The screen's memory, for `microhv::console::screen`.
#![allow(unsafe_code)] // the screen's memory

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use microhv::boot::Options;
use microhv::boot::memory_map::{MemoryMap, Range};
use microhv::console::screen::{Framebuffer, Layout, Screen, Surface};

use super::{paging, serial};

/// Where the screen's memory is mapped, and how many bytes; none before [`begin`].
static START: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// The screen's memory; only who holds the output's lock draws.
pub(crate) struct ScreenMemory;

impl Surface for ScreenMemory {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        if at.checked_add(bytes.len()).is_some_and(|end| end <= BYTES.load(Ordering::Relaxed)) {
            let to = START.load(Ordering::Relaxed) + at as u64;
            // SAFETY: `begin` has mapped so many bytes there for ever, which are the screen's and no RAM.
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        }
    }
}

/// Shows the hypervisor's text on the loader's screen, if there is one that can be used and the command line wants it. Needs the
/// final tables, the heap, and the PAT.
pub(crate) fn begin(screen: Option<&Framebuffer>, memory: &MemoryMap, options: &Options) {
    let Some(screen) = screen.filter(|_| options.screen) else { return };
    let range = |layout: &Layout| Range::sized(layout.address, layout.bytes);
    let layout = match Layout::new(screen) {
        Ok(layout) if memory.has_ram(range(&layout)) => Err("it lies in RAM"),
        other => other,
    };
    match layout {
        Ok(layout) => {
            let mapped = if layout.is_text() {
                Some(paging::direct(layout.address))
            } else {
                paging::map_screen(range(&layout))
            };
            START.store(mapped.unwrap_or(0), Ordering::Relaxed);
            BYTES.store(mapped.map_or(0, |_| layout.bytes as usize), Ordering::Relaxed);
            serial::begin_screen(Screen::new(layout));
            log::info!("screen: {} columns, {} lines", layout.columns, layout.rows);
        }
        Err(why) => log::warn!("no text on the screen: {why}: {screen:?}"),
    }
}
