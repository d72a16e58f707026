//! Kernel files: ELF, bzImage, and every kind of compressed payload.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use dom0::builder::image::{ImageSink, load};

/// Most memory that a kernel gets here.
const MEMORY: u64 = 1 << 20;

/// A domain's memory. It keeps no bytes: what counts is where they go.
#[derive(Default)]
struct Memory {
    range: Option<(u64, u64)>,
}

impl ImageSink for Memory {
    fn begin(&mut self, first: u64, end: u64) -> Result<(), String> {
        assert!(
            self.range.is_none() && first.is_multiple_of(4096) && end.is_multiple_of(4096) && first <= end
        );
        if end - first > MEMORY {
            return Err("too large".into());
        }
        self.range = Some((first, end));
        Ok(())
    }

    fn write(&mut self, paddr: u64, bytes: &[u8]) -> Result<(), String> {
        let (first, end) = self.range.expect("begun");
        let inside = paddr >= first && paddr.checked_add(bytes.len() as u64).is_some_and(|to| to <= end);
        assert!(inside, "{paddr:#x} and {} bytes are not in {first:#x}..{end:#x}", bytes.len());
        Ok(())
    }
}

/// Loads the file: an error, or a kernel within its range.
pub(crate) fn run(data: &[u8]) {
    let mut memory = Memory::default();
    let mut loading = pin!(load(data, MEMORY, &mut memory));
    // It waits for nothing; it only lets others run.
    let loaded = loop {
        if let Poll::Ready(loaded) = loading.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            break loaded;
        }
    };
    match loaded {
        Ok(kernel) => assert!(kernel.first <= kernel.end && kernel.end - kernel.first <= MEMORY),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
