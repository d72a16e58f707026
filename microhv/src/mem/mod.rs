//! Machine memory: who owns each frame, what it may be used as, and the page tables made of it.

/// Owner, type and counts of every machine frame.
#[derive(Debug, Default)]
pub struct FrameTable {}

impl FrameTable {
    /// A table of no frames.
    pub const fn new() -> Self {
        Self {}
    }
}

/// The memory of one domain.
#[derive(Debug, Default)]
pub struct DomainMm {}

impl DomainMm {
    /// No memory.
    pub const fn new() -> Self {
        Self {}
    }
}
