//! Writes to a new domain's memory by pseudo-physical addresses, through a window that moves.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::mem::{ForeignMap, map_foreign};
use ring_abi::types::{DomId, Mfn, PAGE_SIZE};

use super::image::ImageSink;

/// The most pages mapped at a time.
const WINDOW_PAGES: u64 = 128;
/// The most bytes written before a yield: as many as the window has.
const PIECE_BYTES: usize = WINDOW_PAGES as usize * PAGE_SIZE;
const PAGE: u64 = PAGE_SIZE as u64;

/// The memory of a domain under construction.
pub(super) struct Frames {
    dom: DomId,
    /// Machine frame of each pseudo-physical one.
    mfns: Arc<Vec<u64>>,
    window: Option<(u64, ForeignMap)>,
    /// The frame where the window must end, since frames behind it will be written later.
    end: u64,
    /// End of the kernel, once known.
    pub(super) kernel_end: u64,
}

impl Frames {
    pub(super) fn new(dom: DomId, mfns: Vec<u64>) -> Self {
        let end = mfns.len() as u64;
        Self { dom, mfns: Arc::new(mfns), window: None, end, kernel_end: 0 }
    }

    /// The machine frames, by pseudo-physical number.
    pub(super) fn mfns(&self) -> Arc<Vec<u64>> {
        self.mfns.clone()
    }

    /// The machine frame of `pfn`.
    pub(super) fn mfn(&self, pfn: u64) -> Mfn {
        Mfn::new(self.mfns[pfn as usize])
    }

    /// Notes that writes from now on end at frame `end`.
    pub(super) fn set_end(&mut self, end: u64) {
        self.end = end.min(self.mfns.len() as u64);
    }

    /// Unmaps the window.
    pub(super) fn close(&mut self) {
        self.window = None;
    }

    /// Writes at a pseudo-physical address.
    ///
    /// # Errors
    /// The address is outside the domain, or the hypervisor refuses the mapping.
    pub(super) fn put(&mut self, paddr: u64, bytes: &[u8]) -> Result<(), String> {
        let mut paddr = paddr;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (first, window) = self.window_at(paddr / PAGE)?;
            let offset = (paddr - first * PAGE) as usize;
            let (now, later) = rest.split_at(rest.len().min(window.count() * PAGE_SIZE - offset));
            window.bytes().write(offset, now);
            paddr += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Writes many bytes at a pseudo-physical address, in pieces with a yield between.
    ///
    /// # Errors
    /// See [`Frames::put`].
    pub(super) async fn put_in_pieces(&mut self, paddr: u64, bytes: &[u8]) -> Result<(), String> {
        let mut paddr = paddr;
        for piece in bytes.chunks(PIECE_BYTES) {
            self.put(paddr, piece)?;
            paddr += piece.len() as u64;
            pvrt::yield_now().await;
        }
        Ok(())
    }

    /// Moves the window so that it contains frame `pfn`.
    fn window_at(&mut self, pfn: u64) -> Result<(u64, &ForeignMap), String> {
        let inside =
            |window: &(u64, ForeignMap)| (window.0..window.0 + window.1.count() as u64).contains(&pfn);
        let window = match self.window.take() {
            Some(window) if inside(&window) => window,
            old => {
                drop(old);
                let end = (pfn + WINDOW_PAGES).min(self.end.max(pfn + 1));
                let frames = self.mfns.get(pfn as usize..end as usize);
                let frames =
                    frames.ok_or_else(|| format!("frame {pfn:#x} is outside the domain's memory"))?;
                let frames: Vec<Mfn> = frames.iter().map(|&mfn| Mfn::new(mfn)).collect();
                let map = map_foreign(self.dom, &frames, true).map_err(|error| {
                    format!("mapping frame {:#x}: {}", pfn + error.index as u64, error.errno)
                })?;
                (pfn, map)
            }
        };
        let (first, map) = self.window.insert(window);
        Ok((*first, map))
    }
}

impl ImageSink for Frames {
    fn begin(&mut self, _first: u64, end: u64) -> Result<(), String> {
        let has = self.mfns.len() as u64 * PAGE;
        if end > has {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            return Err(format!("its {} MiB do not fit into memory = {}", mib(end), mib(has)));
        }
        self.kernel_end = end / PAGE;
        self.set_end(self.kernel_end);
        Ok(())
    }

    fn write(&mut self, paddr: u64, bytes: &[u8]) -> Result<(), String> {
        self.put(paddr, bytes)
    }
}
