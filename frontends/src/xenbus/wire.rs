//! Messages on the xenstore ring: assembled from pieces, taken apart into strings.
//!
//! ABI: `struct xsd_sockmsg`, `xen/include/public/io/xs_wire.h`.

use alloc::string::String;
use alloc::vec::Vec;
use ring_abi::io::xs_wire::{XENSTORE_PAYLOAD_MAX, XsdSockmsg};
use zerocopy::{FromBytes, IntoBytes};

/// One whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) header: XsdSockmsg,
    pub(crate) payload: Vec<u8>,
}

impl Message {
    /// The bytes on the ring.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size_of::<XsdSockmsg>() + self.payload.len());
        bytes.extend_from_slice(self.header.as_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// A message claims to be longer than a message may be: no end is known, so nothing after this message can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Puts messages together from bytes that arrive in pieces.
#[derive(Default)]
pub(crate) struct Assembler {
    bytes: Vec<u8>,
}

impl Assembler {
    /// Adds bytes as they came.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
    }

    /// Takes the next whole message, if there is one.
    pub(crate) fn next(&mut self) -> Result<Option<Message>, TooLong> {
        let Ok((header, rest)) = XsdSockmsg::read_from_prefix(&self.bytes) else { return Ok(None) };
        let len = header.len as usize;
        if len > XENSTORE_PAYLOAD_MAX {
            return Err(TooLong);
        }
        let Some(payload) = rest.get(..len) else { return Ok(None) };
        let payload = payload.to_vec();
        self.bytes.drain(..size_of::<XsdSockmsg>() + len);
        Ok(Some(Message { header, payload }))
    }
}

/// The strings of a payload, each ended by a NUL (the last one's may be missing).
pub(crate) fn strings(payload: &[u8]) -> impl Iterator<Item = Option<String>> + '_ {
    let payload = payload.strip_suffix(&[0]).unwrap_or(payload);
    let mut parts = payload.split(|byte| *byte == 0);
    let mut empty = payload.is_empty();
    core::iter::from_fn(move || {
        if core::mem::take(&mut empty) {
            // `split` gives one empty part for an empty payload.
            parts.next();
        }
        parts.next().map(|part| core::str::from_utf8(part).ok().map(String::from))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: u32, payload: &[u8]) -> Message {
        Message { header: XsdSockmsg { r#type: 2, req_id: 7, tx_id: 0, len }, payload: payload.to_vec() }
    }

    #[test]
    fn messages_in_single_bytes() {
        let messages = [message(0, b""), message(3, b"abc"), message(4096, &[9; 4096])];
        let mut assembler = Assembler::default();
        let mut got = Vec::new();
        for byte in messages.iter().flat_map(Message::to_bytes) {
            assembler.push(&[byte]);
            got.extend(assembler.next().expect("valid"));
        }
        assert_eq!(got, messages);
        assert_eq!(assembler.next(), Ok(None));
    }

    #[test]
    fn several_messages_in_one_piece() {
        let mut assembler = Assembler::default();
        assembler.push(&[message(1, b"a").to_bytes(), message(1, b"b").to_bytes()].concat());
        assert_eq!(assembler.next(), Ok(Some(message(1, b"a"))));
        assert_eq!(assembler.next(), Ok(Some(message(1, b"b"))));
        assert_eq!(assembler.next(), Ok(None));
    }

    #[test]
    fn one_byte_too_long_is_refused() {
        for len in [4097, u32::MAX] {
            let mut assembler = Assembler::default();
            assembler.push(message(len, b"").header.as_bytes());
            assert_eq!(assembler.next(), Err(TooLong));
        }
    }

    #[test]
    fn strings_of_a_payload() {
        let list = |payload: &[u8]| strings(payload).collect::<Vec<_>>();
        let some = |text: &str| Some(String::from(text));
        assert_eq!(list(b""), []);
        assert_eq!(list(b"\0"), []);
        assert_eq!(list(b"a\0bc\0"), [some("a"), some("bc")]);
        assert_eq!(list(b"a\0bc"), [some("a"), some("bc")]);
        assert_eq!(list(b"a\0\0"), [some("a"), some("")]);
        assert_eq!(list(b"\xff\0"), [None]);
    }
}
