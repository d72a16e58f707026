//! What a path gives.

use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;

use crate::http::Status;

const PAGE: &str = include_str!("page.html");
const ICON: &str = include_str!("icon.svg");

/// Most bytes that `/bytes/N` gives: more than any measurement needs.
const MAX_BYTES: u64 = 1 << 40;

/// A response's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Bytes of the image.
    Static(&'static [u8]),
    /// Bytes made for this response.
    Owned(Vec<u8>),
    /// So many bytes of a pattern: byte number N is [`pattern`]`(N)`.
    Pattern(u64),
}

impl Body {
    /// Bytes in all.
    pub fn len(&self) -> u64 {
        match self {
            Self::Static(bytes) => bytes.len() as u64,
            Self::Owned(bytes) => bytes.len() as u64,
            Self::Pattern(len) => *len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies what begins at byte `from` to `to`; gives the number of bytes, 0 at the end.
    pub fn copy(&self, from: u64, to: &mut [u8]) -> usize {
        let left = usize::try_from(self.len().saturating_sub(from)).unwrap_or(usize::MAX);
        let len = left.min(to.len());
        let to = &mut to[..len];
        match self {
            Self::Static(bytes) => to.copy_from_slice(&bytes[from as usize..][..len]),
            Self::Owned(bytes) => to.copy_from_slice(&bytes[from as usize..][..len]),
            Self::Pattern(_) => {
                for (index, byte) in to.iter_mut().enumerate() {
                    *byte = pattern(from + index as u64);
                }
            }
        }
        len
    }
}

/// Byte `index` of what `/bytes/N` gives: no two packets of a stream are alike.
pub fn pattern(index: u64) -> u8 {
    (index ^ index >> 8 ^ index >> 16) as u8
}

/// The guest's figures, as `/status.json` gives them. Counters begin with the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// The domain's name.
    pub name: String,
    /// Nanoseconds since the start.
    pub uptime_ns: u64,
    /// Nanoseconds for which the guest's CPU ran; nothing where the hypervisor does not say.
    pub cpu_ns: Option<u64>,
    /// Ticks of the time stamp counter since the start. Under an emulator that counts instructions, its instructions.
    pub ticks: u64,
    /// Requests answered.
    pub requests: u64,
    /// Of these with an error.
    pub refused: u64,
    /// Bytes of heads and bodies sent.
    pub body_bytes: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections that are open now.
    pub open: u64,
    /// Most connections at a time.
    pub most: u64,
    /// Packets sent and received by the network interface, and their bytes.
    pub sent_packets: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Packets lost to an error, either way.
    pub errors: u64,
    /// Events sent to netback.
    pub notifications: u64,
    /// Transmit slots that the backend has now.
    pub transmit_used: u64,
    /// Transmit slots.
    pub transmit_slots: u64,
    /// Receive slots that hold an empty buffer now.
    pub receive_posted: u64,
    /// Receive slots.
    pub receive_slots: u64,
    /// The interface's MTU.
    pub mtu: u64,
    /// Addresses, with their prefixes.
    pub addresses: Vec<String>,
}

/// What is at `path`: status, type and body. `figures` is asked where they are needed.
pub fn find(path: &str, figures: impl FnOnce() -> Figures) -> (Status, &'static str, Body) {
    const TEXT: &str = "text/plain; charset=utf-8";
    match path {
        "/" | "/index.html" => (Status::Ok, "text/html; charset=utf-8", Body::Static(PAGE.as_bytes())),
        "/icon.svg" | "/favicon.ico" => (Status::Ok, "image/svg+xml", Body::Static(ICON.as_bytes())),
        "/status.json" => match serde_json::to_vec(&figures()) {
            Ok(json) => (Status::Ok, "application/json", Body::Owned(json)),
            Err(error) => {
                log::error!("figures: {error}");
                refusal(Status::NotFound)
            }
        },
        _ => match path.strip_prefix("/bytes/").map(str::parse) {
            Some(Ok(len)) if len <= MAX_BYTES => (Status::Ok, "application/octet-stream", Body::Pattern(len)),
            Some(_) => (Status::NotFound, TEXT, Body::Static(b"/bytes/N: N is a number of at most 2^40\n")),
            None => refusal(Status::NotFound),
        },
    }
}

/// The response to a request that cannot be served.
pub fn refusal(status: Status) -> (Status, &'static str, Body) {
    let mut text = String::from(status.line());
    text.push('\n');
    (status, "text/plain; charset=utf-8", Body::Owned(text.into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> (Status, &'static str, Body) {
        find(path, || Figures { name: "a \"quoted\" name".into(), requests: 7, ..Default::default() })
    }

    #[test]
    fn paths() {
        assert!(matches!(at("/"), (Status::Ok, "text/html; charset=utf-8", Body::Static(_))));
        let (status, kind, Body::Owned(json)) = at("/status.json") else { panic!("made for the response") };
        assert_eq!((status, kind), (Status::Ok, "application/json"));
        let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        assert_eq!((json["requests"].as_u64(), json["name"].as_str()), (Some(7), Some("a \"quoted\" name")));
        assert!(json["cpu_ns"].is_null());
        assert_eq!(at("/bytes/1099511627776").2.len(), 1 << 40);
        for path in ["/x", "/bytes/", "/bytes/-1", "/bytes/1099511627777", "/../etc", "//"] {
            assert_eq!(at(path).0, Status::NotFound, "{path}");
        }
    }

    #[test]
    fn bodies_in_pieces_are_whole() {
        let expected: Vec<u8> = (0..1000).map(pattern).collect();
        for body in [Body::Pattern(1000), Body::Owned(expected.clone())] {
            let (mut whole, mut piece) = (Vec::<u8>::new(), [0; 77]);
            loop {
                match body.copy(whole.len() as u64, &mut piece) {
                    0 => break,
                    len => whole.extend(&piece[..len]),
                }
            }
            assert_eq!(whole, expected);
        }
    }

    /// The page asks for what `/status.json` has: a name that only one of the two knows is a mistake.
    #[test]
    fn the_page_uses_figures_that_there_are() {
        let known = serde_json::to_value(Figures::default()).expect("JSON");
        let mut used = 0;
        for part in PAGE.split("now.").skip(1).chain(PAGE.split("last.").skip(1)) {
            let name: String = part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            assert!(known.get(&name).is_some(), "{name}");
            used += 1;
        }
        assert!(used > 15, "{used}");
    }
}
