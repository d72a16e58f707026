//! The block backend's state machine and what it reads of a frontend's nodes.

use backends::vbd::{Connection, MAX_RING_PAGE_ORDER};
use backends::xenbus::{Action, Backend, Observed};
use ring_abi::io::xenbus::XenbusState;

use crate::input::Input;

/// Nodes in any state at any time: connected only when not, disconnected only when connected, and every walk over
/// states that stay as they are comes to rest.
pub(crate) fn run(data: &[u8]) {
    let input = Input::new(data);
    let mut vbd = Backend::new();
    let mut running = false;
    while !input.is_empty() {
        let flags = input.u8();
        let seen = Observed {
            frontend: (flags & 4 == 0)
                .then(|| XenbusState::from_raw(u32::from(flags >> 4)).unwrap_or(XenbusState::Unknown)),
            online: flags & 1 == 0,
            present: flags & 2 == 0,
        };
        let mut steps = 0;
        while let Some(action) = vbd.step(&seen) {
            match action {
                Action::Connect => {
                    assert!(!running, "connected twice");
                    running = connection(&input);
                    if running { vbd.connected() } else { vbd.failed() }
                }
                Action::Disconnect => {
                    assert!(running, "disconnected twice");
                    running = false;
                    vbd.disconnected();
                }
                Action::Remove => {
                    assert!(!running, "removed with the ring in use");
                    return;
                }
                Action::Announce | Action::SetState(_) => {}
            }
            steps += 1;
            assert!(steps < 16, "no rest: {seen:?}");
        }
        if running && flags & 8 != 0 {
            vbd.failed();
        }
    }
}

/// A frontend's parameters, each any text.
fn connection(input: &Input) -> bool {
    match Connection::read(|_| (input.u8() & 7 != 0).then(|| input.text(input.below(12)))) {
        Ok(connection) => {
            assert!(
                connection.ring.len().is_power_of_two() && connection.ring.len() <= 1 << MAX_RING_PAGE_ORDER
            );
            true
        }
        Err(error) => {
            assert!(error.to_string().len() < 200, "a log line of any length");
            false
        }
    }
}
