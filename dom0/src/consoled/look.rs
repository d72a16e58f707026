//! An administrator at a domain's console: keys go to the domain, and its output to dom0's terminal.

use alloc::collections::VecDeque;
use core::pin::pin;

use pvrt::executor::{Either, select, time};
use pvrt::{console, println};

use super::Attachment;
use crate::shell::Terminal;

/// `^]` leaves a console.
const LEAVE: u8 = 0x1d;
/// A domain that does not read its console is offered the rest again after this long.
const RETRY_NS: u64 = 10_000_000;

/// Keys that wait for a domain that does not read its console; the bell answers more.
const KEYS_MAX: usize = 4096;
const BELL: &[u8] = b"\x07";

/// How looking at a console ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The user left.
    ByKey,
    /// The console is over.
    Over,
    /// The domain has ruined its ring.
    Ruined,
}

/// Shows a console and types into it, until either end leaves.
///
/// Each key is read as it comes, whatever the domain does with those before: the way out must be heard.
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
            // The wait for a key goes on while output comes.
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

/// Shows what a dead domain's console still has.
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
