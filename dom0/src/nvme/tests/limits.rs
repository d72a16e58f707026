//! What a controller in memory is like, and how it lies.

/// What the controller is like.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) entries: u32,
    pub(super) stride: u32,
    pub(super) smallest_page: u32,
    pub(super) nvm: bool,
    /// Power of two of the block size, and bytes of metadata.
    pub(super) shift: u8,
    pub(super) metadata: u16,
    pub(super) most: u8,
    pub(super) deallocates: bool,
    pub(super) cache: bool,
    pub(super) namespaces: u32,
    /// The controller knows what its NVM command set is like: blocks of a range.
    pub(super) range: Option<u32>,
    /// The controller becomes ready; the controller stops.
    pub(super) starts: bool,
    pub(super) stops: bool,
    /// Administrative commands end.
    pub(super) answers: bool,
    /// The status of administrative commands with this opcode.
    pub(super) refuses: Option<(u8, u16)>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 2048,
            stride: 0,
            smallest_page: 0,
            nvm: true,
            shift: 9,
            metadata: 0,
            most: 7,
            deallocates: true,
            cache: true,
            namespaces: 1,
            range: Some(1 << 20),
            starts: true,
            stops: true,
            answers: true,
            refuses: None,
        }
    }
}

/// A false word in the next completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lie {
    /// A command that was never given.
    Command(u16),
    /// The command that ended before.
    Again,
    Queue(u16),
    Head(u16),
}
