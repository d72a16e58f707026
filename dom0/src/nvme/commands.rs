//! Commands, and what a controller says of their ends. Source: NVM Express Base Specification 2.0, sections 3.3.3 and 5;
//! NVM Command Set Specification 1.0, section 3.

use core::fmt;

/// Eight words of 64 bits: a submission queue entry.
pub(super) type Command = [u64; 8];

mod admin {
    pub(super) const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    pub(super) const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    pub(super) const IDENTIFY: u8 = 0x06;
    pub(super) const SET_FEATURES: u8 = 0x09;
}

mod io {
    pub(super) const FLUSH: u8 = 0x00;
    pub(super) const WRITE: u8 = 0x01;
    pub(super) const READ: u8 = 0x02;
    pub(super) const DATASET_MANAGEMENT: u8 = 0x09;
}

/// What Identify is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identify {
    Namespace(u32),
    Controller,
    /// The numbers of the namespaces that are there.
    Namespaces,
    /// What the controller's NVM command set is like.
    NvmController,
}

const FEATURE_QUEUES: u64 = 7;
const QUEUE_IN_ONE_PIECE: u64 = 1;
const QUEUE_INTERRUPTS: u64 = 1 << 1;
const DEALLOCATE: u64 = 1 << 2;

fn command(opcode: u8, namespace: u32, words: [u64; 5]) -> Command {
    let [first, second, ten, twelve, fourteen] = words;
    [u64::from(opcode) | u64::from(namespace) << 32, 0, 0, first, second, ten, twelve, fourteen]
}

/// The command under the number `id`.
pub(super) fn numbered(mut command: Command, id: u16) -> Command {
    command[0] |= u64::from(id) << 16;
    command
}

/// Writes 4 KiB of answers to the page at `page`.
pub(super) fn identify(what: Identify, page: u64) -> Command {
    let (structure, namespace) = match what {
        Identify::Namespace(number) => (0, number),
        Identify::Controller => (1, 0),
        Identify::Namespaces => (2, 0),
        Identify::NvmController => (6, 0),
    };
    command(admin::IDENTIFY, namespace, [page, 0, structure, 0, 0])
}

/// Asks for one pair of queues.
pub(super) fn one_queue_pair() -> Command {
    command(admin::SET_FEATURES, 0, [0, 0, FEATURE_QUEUES, 0, 0])
}

/// Makes completion queue `queue` with `entries` entries at `page`, whose interrupts have MSI-X vector `vector`.
pub(super) fn create_completion_queue(queue: u16, entries: u16, page: u64, vector: u16) -> Command {
    let ten = u64::from(queue) | u64::from(entries - 1) << 16;
    let eleven = QUEUE_IN_ONE_PIECE | QUEUE_INTERRUPTS | u64::from(vector) << 16;
    command(admin::CREATE_COMPLETION_QUEUE, 0, [page, 0, ten | eleven << 32, 0, 0])
}

/// Makes submission queue `queue`, whose commands end in completion queue `queue`.
pub(super) fn create_submission_queue(queue: u16, entries: u16, page: u64) -> Command {
    let ten = u64::from(queue) | u64::from(entries - 1) << 16;
    let eleven = QUEUE_IN_ONE_PIECE | u64::from(queue) << 16;
    command(admin::CREATE_SUBMISSION_QUEUE, 0, [page, 0, ten | eleven << 32, 0, 0])
}

/// Reads or writes `blocks` blocks, 1 to 65,536, from `block` on. `prp` are the command's two entries.
pub(super) fn transfer(is_write: bool, namespace: u32, prp: [u64; 2], block: u64, blocks: u32) -> Command {
    let opcode = if is_write { io::WRITE } else { io::READ };
    command(opcode, namespace, [prp[0], prp[1], block, u64::from(blocks - 1), 0])
}

/// Makes every completed write durable.
pub(super) fn flush(namespace: u32) -> Command {
    command(io::FLUSH, namespace, [0; 5])
}

/// Gives up the blocks of one range, which [`range`] wrote at `at`.
pub(super) fn deallocate(namespace: u32, at: u64) -> Command {
    command(io::DATASET_MANAGEMENT, namespace, [at, 0, DEALLOCATE << 32, 0, 0])
}

/// The two words of a range of blocks.
pub(super) fn range(block: u64, blocks: u32) -> [u64; 2] {
    [u64::from(blocks) << 32, block]
}

/// Why a command failed: status code type in bits 8-10, status code in bits 0-7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(u16);

impl Status {
    /// The status of the last word of a completion without its phase; `None`: the command went well.
    pub(super) fn failed(status: u16) -> Option<Self> {
        let status = status & 0x7ff;
        (status != 0).then_some(Self(status))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0x001 => "invalid opcode",
            0x002 => "invalid field",
            0x003 => "command number in use",
            0x004 => "data transfer error",
            0x005 => "power was lost",
            0x006 => "internal error",
            0x007 => "aborted on request",
            0x008 => "aborted with its queue",
            0x00b => "invalid namespace or format",
            0x013 => "invalid PRP offset",
            0x020 => "namespace is write protected",
            0x021 => "command interrupted",
            0x022 => "transient transport error",
            0x080 => "block out of range",
            0x081 => "capacity exceeded",
            0x082 => "namespace not ready",
            0x084 => "format in progress",
            0x100 => "invalid completion queue",
            0x101 => "invalid queue number",
            0x102 => "invalid queue size",
            0x182 => "write to a read-only range",
            0x280 => "write fault",
            0x281 => "unrecovered read error",
            0x286 => "access denied",
            0x287 => "deallocated block",
            _ => "unknown reason",
        };
        write!(f, "{name} (status {:#x}, {:#04x})", self.0 >> 8, self.0 & 0xff)
    }
}
