//! The protocol between the cases in a driver domain and the agent in the frontend's domain.
//!
//! The driver domain writes each order as a node of the directory `data/agent` in its home; the node's name is the
//! order's number. The agent lists the directory, carries out new orders concurrently, and overwrites each order
//! with the answer. Numbers rise. No disk data go this way: both ends make the data to write from a seed, and a
//! checksum stands for the data read.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use crate::ends::{FrontError, Sum};

/// The directory of orders, below the driver domain's home.
pub const DIRECTORY: &str = "data/agent";
/// The prefix of each answer.
pub const ANSWER: &str = "= ";

/// Something that the agent is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Wait until the disk of this device can be used.
    Connect(u32),
    /// Read sectors of 512 bytes, past the kernel's cache: device, first sector, number.
    Read(u32, u64, usize),
    /// Write sectors: device, first sector, number, seed.
    Write(u32, u64, usize, u8),
    /// Make what was written durable.
    Flush(u32),
    /// Give up sectors: device, first sector, number.
    Discard(u32, u64, u64),
    /// Close the device.
    Close(u32),
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(device) => write!(f, "connect {device}"),
            Self::Read(device, sector, sectors) => write!(f, "read {device} {sector} {sectors}"),
            Self::Write(device, sector, sectors, seed) => {
                write!(f, "write {device} {sector} {sectors} {seed}")
            }
            Self::Flush(device) => write!(f, "flush {device}"),
            Self::Discard(device, sector, sectors) => write!(f, "discard {device} {sector} {sectors}"),
            Self::Close(device) => write!(f, "close {device}"),
        }
    }
}

impl FromStr for Order {
    /// The text is no order.
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        fn number<T: FromStr>(text: &str) -> Result<T, ()> {
            text.parse().map_err(|_| ())
        }
        let words: Vec<&str> = text.split(' ').collect();
        Ok(match words[..] {
            ["connect", device] => Self::Connect(number(device)?),
            ["read", device, sector, sectors] => {
                Self::Read(number(device)?, number(sector)?, number(sectors)?)
            }
            ["write", device, sector, sectors, seed] => {
                Self::Write(number(device)?, number(sector)?, number(sectors)?, number(seed)?)
            }
            ["flush", device] => Self::Flush(number(device)?),
            ["discard", device, sector, sectors] => {
                Self::Discard(number(device)?, number(sector)?, number(sectors)?)
            }
            ["close", device] => Self::Close(number(device)?),
            _ => return Err(()),
        })
    }
}

/// The result of an order; a read's result has a checksum.
pub type Came = Result<Option<Sum>, FrontError>;

const ERRORS: [(FrontError, &str); 4] = [
    (FrontError::Failed, "failed"),
    (FrontError::Unsupported, "unsupported"),
    (FrontError::Refused, "refused"),
    (FrontError::Gone, "gone"),
];

/// The text of an answer.
pub fn answer(result: Came) -> String {
    match result {
        Ok(None) => format!("{ANSWER}done"),
        Ok(Some(sum)) => format!("{ANSWER}{} {}", sum.bytes, sum.value),
        Err(error) => {
            let name = ERRORS.iter().find(|(other, _)| *other == error).map_or("gone", |(_, name)| name);
            format!("{ANSWER}{name}")
        }
    }
}

/// Reads an answer from the node's text; `None` while the node still holds the order.
pub fn parse_answer(node: &str) -> Option<Came> {
    let text = node.strip_prefix(ANSWER)?;
    if text == "done" {
        return Some(Ok(None));
    }
    if let Some((bytes, value)) = text.split_once(' ') {
        return Some(Ok(Some(Sum { bytes: bytes.parse().ok()?, value: value.parse().ok()? })));
    }
    ERRORS.iter().find(|(_, name)| **name == *text).map(|(error, _)| Err(*error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_answers_are_understood() {
        for order in [
            Order::Connect(51712),
            Order::Read(1 << 28 | 4096, u64::MAX, 8),
            Order::Write(51712, 3, 512, 255),
            Order::Flush(51712),
            Order::Discard(51712, 40, 300),
            Order::Close(51712),
        ] {
            let text = order.to_string();
            assert_eq!(text.parse(), Ok(order));
            assert_eq!(parse_answer(&text), None, "an order is no answer");
        }
        for result in
            [Ok(None), Ok(Some(Sum::of(b"x")))].into_iter().chain(ERRORS.map(|(error, _)| Err(error)))
        {
            assert_eq!(parse_answer(&answer(result)), Some(result));
        }
        for bad in ["", "read", "read 1 2", "read 1 2 x", "write 1 2 3 256", "sing 1"] {
            assert_eq!(bad.parse::<Order>(), Err(()), "{bad}");
        }
    }
}
