//! An administrator at a domain's console: keys go to the domain, and its output to dom0's terminal.

use alloc::collections::VecDeque;
use core::pin::pin;

use pvrt::executor::{Either, select, time};
use pvrt::{console, println};

use super::Attachment;
use crate::shell::Terminal;

/// `^]` leaves a console.
const LEAVE: u8 = 0x1d;
/// The time after which the rest of the keys is offered again to a domain that does not read its console.
const RETRY_NS: u64 = 10_000_000;

/// The most keys that wait for a domain that does not read its console; the bell rings for further ones.
const KEYS_MAX: usize = 4096;
const BELL: &[u8] = b"\x07";

/// How looking at a console ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The user left.
    ByKey,
    /// The console has ended.
    Over,
    /// The domain has ruined its ring.
    Ruined,
}

/// Shows a console and types into it, until either end leaves.
///
/// Each key is read as it comes, even if the domain does not take those before it, so that `^]` always works.
pub(crate) async fn look(terminal: &Terminal, attachment: &mut Attachment) -> Left {
    let keys = terminal.raw();
    let mut buffer = alloc::vec![0; 1024];
    let mut waiting: VecDeque<u8> = VecDeque::new();
    let mut last = b'\n';
    let left = 'looking: loop {
        let is_waiting = !waiting.is_empty();
        let again = async {
            match is_waiting {
                false => core::future::pending().await,
                true => time::sleep(RETRY_NS).await,
            }
        };
        let mut key = pin!(select(keys.read(), again));
        let key = loop {
            // The same wait for a key continues while output comes.
            match select(attachment.read(&mut buffer), key.as_mut()).await {
                Either::Left(0) if attachment.is_ruined() => break 'looking Left::Ruined,
                Either::Left(0) => break 'looking Left::Over,
                Either::Left(count) => {
                    console::write(&buffer[..count]);
                    last = buffer[count - 1];
                    if is_waiting {
                        break None;
                    }
                }
                Either::Right(Either::Left(key)) => break Some(key),
                Either::Right(Either::Right(())) => break None,
            }
        };
        match key {
            Some(LEAVE) => break Left::ByKey,
            Some(_) if waiting.len() == KEYS_MAX => console::write(BELL),
            Some(key) => waiting.push_back(key),
            None => {}
        }
        if !waiting.is_empty() {
            let taken = attachment.write(waiting.make_contiguous());
            waiting.drain(..taken);
        }
    };
    if last != b'\n' {
        println!();
    }
    left
}

/// Shows the rest of a dead domain's output.
pub(crate) async fn show_rest(attachment: &mut Attachment) {
    let mut buffer = alloc::vec![0; 1024];
    loop {
        match time::timeout(RETRY_NS, attachment.read(&mut buffer)).await {
            Ok(0) => break,
            Ok(count) => console::write(&buffer[..count]),
            // There is more, but the serial line is busy.
            Err(_) if attachment.has_more() => {}
            Err(_) => break,
        }
    }
}
