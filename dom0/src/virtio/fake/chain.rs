//! Chains of descriptors, as a device reads them.

use alloc::vec::Vec;

use super::Arena;

pub(super) struct Descriptor {
    pub(super) maddr: u64,
    pub(super) len: usize,
    pub(super) flags: u16,
    next: u16,
}

fn descriptor(arena: &Arena, table: u64, index: u64) -> Descriptor {
    let at = table + index * 16;
    Descriptor {
        maddr: arena.number(at, 8),
        len: arena.number(at + 8, 4) as usize,
        flags: arena.number(at + 12, 2) as u16,
        next: arena.number(at + 14, 2) as u16,
    }
}

/// Collects a chain of a queue with `size` descriptors, checking the rules of section 2.7.5.
pub(super) fn chain(arena: &Arena, table: u64, head: u16, size: u16, indirect: bool) -> Vec<Descriptor> {
    let (mut table, mut index, mut entries) = (table, u64::from(head), u64::from(size));
    let mut out: Vec<Descriptor> = Vec::new();
    loop {
        assert!(index < entries, "descriptor {index} of {entries}");
        let descriptor = descriptor(arena, table, index);
        if descriptor.flags & 4 != 0 {
            assert!(indirect && out.is_empty() && descriptor.flags == 4);
            assert_eq!(descriptor.len % 16, 0);
            (table, index, entries) = (descriptor.maddr, 0, descriptor.len as u64 / 16);
            continue;
        }
        assert!(descriptor.len > 0);
        let after_write = out.last().is_some_and(|last| last.flags & 2 != 0);
        assert!(!after_write || descriptor.flags & 2 != 0, "a readable part behind a writable one");
        let (flags, next) = (descriptor.flags, descriptor.next);
        out.push(descriptor);
        assert!(out.len() <= usize::from(size), "a chain longer than the queue");
        if flags & 1 == 0 {
            return out;
        }
        index = next.into();
    }
}
