//! The xenbus side of one backend instance, as a pure state machine, and how a frontend's nodes are read.
//!
//! The owner reads nodes and runs the engine; this machine says what the owner does next. The states move as Linux's
//! back ends move them, because frontends were written against those. A frontend that closed may start again on the
//! same nodes (a boot loader hands over to a kernel), so a closed backend that the toolstack still wants returns to
//! `InitWait`.
//!
//! ABI: `xen/include/public/io/xenbus.h`.

use alloc::string::{String, ToString};
use core::fmt;

use ring_abi::io::xenbus::XenbusState;

/// Longest value of a node that an error message repeats.
const SHOWN_BYTES: usize = 32;

/// What the owner sees in xenstore now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The frontend's `state` node; `None` when the node is gone.
    pub frontend: Option<XenbusState>,
    /// The backend's `online` node: the toolstack wants the device to stay.
    pub online: bool,
    /// The backend's own directory still exists.
    pub present: bool,
}

/// What the owner does next. After each action the owner observes the nodes and asks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the nodes that say what the device can do, then the own `state` node: `InitWait`.
    Announce,
    /// Read the frontend's parameters, start the engine, write the device's properties, and write `Connected` to
    /// `state`. Then call [`Backend::connected`] or [`Backend::failed`].
    Connect,
    /// Stop the engine, wait until the device has returned every frame; then call [`Backend::disconnected`].
    Disconnect,
    /// Write the own `state` node.
    SetState(XenbusState),
    /// The instance is over.
    Remove,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Initialising,
    InitWait,
    Connected,
    /// The frontend is closing; the engine was stopped.
    Closing,
    Closed,
}

/// One backend instance, whatever the device.
#[derive(Debug)]
pub struct Backend {
    state: State,
    /// The engine runs.
    running: bool,
    /// The ring is ruined or could not be attached: closed for good until the frontend closes, too.
    broken: bool,
}

impl Default for Backend {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend {
    /// A new instance: nothing announced yet.
    pub fn new() -> Self {
        Self { state: State::Initialising, running: false, broken: false }
    }

    /// The next action. `None`: the owner waits until the nodes change or the engine fails.
    ///
    /// The machine takes a state as written when the machine hands out the action.
    pub fn step(&mut self, seen: &Observed) -> Option<Action> {
        let gone = !seen.present || seen.frontend.is_none();
        // A frontend that never began, or that began anew, has nothing to close.
        let unused = !seen.online && seen.frontend == Some(XenbusState::Initialising);
        let leaving = gone
            || unused
            || self.broken
            || matches!(seen.frontend, Some(XenbusState::Closing | XenbusState::Closed));
        if self.running && leaving {
            return Some(Action::Disconnect);
        }
        if !seen.present {
            return Some(Action::Remove);
        }
        let Some(frontend) = seen.frontend else {
            return self.close_then_remove();
        };
        match frontend {
            XenbusState::Closed if !seen.online => self.close_then_remove(),
            XenbusState::Closed => self.close(),
            XenbusState::Closing => self.enter(State::Closing, XenbusState::Closing),
            _ if self.broken => self.enter(State::Closing, XenbusState::Closing),
            XenbusState::Initialising if !seen.online => self.close_then_remove(),
            XenbusState::Initialising | XenbusState::InitWait => match self.state {
                State::Initialising | State::Closed => {
                    self.state = State::InitWait;
                    Some(Action::Announce)
                }
                _ => None,
            },
            XenbusState::Initialised | XenbusState::Connected => match self.state {
                // A frontend may be ahead of us: announce first, then connect.
                State::Initialising => {
                    self.state = State::InitWait;
                    Some(Action::Announce)
                }
                State::InitWait => Some(Action::Connect),
                _ => None,
            },
            _ => None,
        }
    }

    /// The engine runs and `Connected` was written.
    pub fn connected(&mut self) {
        self.running = true;
        self.state = State::Connected;
    }

    /// Notes that the engine could not be started, or that the frontend ruined the engine's ring.
    pub fn failed(&mut self) {
        self.broken = true;
    }

    /// The engine is stopped and holds nothing of the frontend's.
    pub fn disconnected(&mut self) {
        self.running = false;
    }

    /// The frontend has closed: so do we, and a fault of the last connection is history.
    fn close(&mut self) -> Option<Action> {
        self.broken = false;
        match self.state {
            // Never used: Linux, booted after a loader closed the device, waits for `InitWait` from here.
            State::Initialising => {
                self.state = State::InitWait;
                Some(Action::Announce)
            }
            State::InitWait => None,
            _ => self.enter(State::Closed, XenbusState::Closed),
        }
    }

    fn close_then_remove(&mut self) -> Option<Action> {
        self.enter(State::Closed, XenbusState::Closed).or(Some(Action::Remove))
    }

    fn enter(&mut self, state: State, written: XenbusState) -> Option<Action> {
        if self.state == state {
            return None;
        }
        self.state = state;
        Some(Action::SetState(written))
    }
}

/// A frontend's parameters make no sense. The text names the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadParameter {
    node: String,
    value: Option<String>,
}

impl BadParameter {
    /// There is no `node`.
    pub(crate) fn missing(node: &str) -> Self {
        Self { node: node.to_string(), value: None }
    }

    /// The node has a value that makes no sense.
    pub(crate) fn bad(node: &str, value: String) -> Self {
        Self { node: node.to_string(), value: Some(value) }
    }
}

impl fmt::Display for BadParameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            // A node holds kilobytes of the domain's choice, and the log repeats the line: so the line gives the
            // value's length alone.
            Some(value) if value.len() > SHOWN_BYTES => {
                write!(f, "bad {}, {} bytes long", self.node, value.len())
            }
            Some(value) => write!(f, "bad {} \"{}\"", self.node, value.escape_debug()),
            None => write!(f, "no {}", self.node),
        }
    }
}

/// Checks that a frontend speaks the protocol of this machine.
pub(crate) fn protocol(read: &mut impl FnMut(&str) -> Option<String>) -> Result<(), BadParameter> {
    match read("protocol") {
        Some(protocol) if protocol != "x86_64-abi" => Err(BadParameter::bad("protocol", protocol)),
        _ => Ok(()),
    }
}

/// Reads the number in `node`; `read` gives a node's value.
pub(crate) fn number(read: &mut impl FnMut(&str) -> Option<String>, node: &str) -> Result<u32, BadParameter> {
    optional_number(read, node)?.ok_or_else(|| BadParameter::missing(node))
}

/// Reads the number in `node`, if there is the node.
pub(crate) fn optional_number(
    read: &mut impl FnMut(&str) -> Option<String>,
    node: &str,
) -> Result<Option<u32>, BadParameter> {
    let Some(text) = read(node) else { return Ok(None) };
    match text.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(BadParameter::bad(node, text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState as S;
    use alloc::vec::Vec;

    fn seen(frontend: XenbusState) -> Observed {
        Observed { frontend: Some(frontend), online: true, present: true }
    }

    /// Steps until there is nothing to do, playing the owner; gives the actions.
    fn run(backend: &mut Backend, seen: &Observed) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(action) = backend.step(seen) {
            actions.push(action);
            match action {
                Action::Connect => backend.connected(),
                Action::Disconnect => backend.disconnected(),
                Action::Remove => break,
                Action::Announce | Action::SetState(_) => {}
            }
            assert!(actions.len() < 10, "no end: {actions:?}");
        }
        actions
    }

    #[test]
    fn usual_life() {
        let mut backend = Backend::new();
        assert_eq!(run(&mut backend, &seen(S::Initialising)), [Action::Announce]);
        assert_eq!(run(&mut backend, &seen(S::Initialised)), [Action::Connect]);
        assert_eq!(run(&mut backend, &seen(S::Connected)), []);
        assert_eq!(run(&mut backend, &seen(S::Closing)), [Action::Disconnect, Action::SetState(S::Closing)]);
        assert_eq!(run(&mut backend, &seen(S::Closed)), [Action::SetState(S::Closed)]);
        let offline = Observed { online: false, ..seen(S::Closed) };
        assert_eq!(run(&mut backend, &offline), [Action::Remove]);
    }

    #[test]
    fn taken_away_from_a_frontend_that_serves_it() {
        let mut backend = Backend::new();
        run(&mut backend, &seen(S::Initialising));
        run(&mut backend, &seen(S::Initialised));
        // The toolstack asks for the end; the frontend goes on until the frontend has closed, in one step or two.
        let asked = Observed { online: false, ..seen(S::Connected) };
        assert_eq!(run(&mut backend, &asked), []);
        let closed = Observed { online: false, ..seen(S::Closed) };
        let ended = [Action::Disconnect, Action::SetState(S::Closed), Action::Remove];
        assert_eq!(run(&mut backend, &closed), ended);
    }

    #[test]
    fn taken_away_from_a_frontend_that_never_began() {
        let offline = Observed { online: false, ..seen(S::Initialising) };
        let mut backend = Backend::new();
        run(&mut backend, &seen(S::Initialising));
        assert_eq!(run(&mut backend, &offline), [Action::SetState(S::Closed), Action::Remove]);
        // Or the frontend began anew without having closed.
        let mut backend = Backend::new();
        run(&mut backend, &seen(S::Initialised));
        let ended = [Action::Disconnect, Action::SetState(S::Closed), Action::Remove];
        assert_eq!(run(&mut backend, &offline), ended);
    }

    #[test]
    fn loader_then_kernel_on_the_same_nodes() {
        let mut backend = Backend::new();
        run(&mut backend, &seen(S::Initialising));
        run(&mut backend, &seen(S::Initialised));
        run(&mut backend, &seen(S::Connected));
        // The loader closes at once.
        assert_eq!(run(&mut backend, &seen(S::Closed)), [Action::Disconnect, Action::SetState(S::Closed)]);
        assert_eq!(run(&mut backend, &seen(S::Initialising)), [Action::Announce]);
        assert_eq!(run(&mut backend, &seen(S::Initialised)), [Action::Connect]);
    }

    #[test]
    fn frontend_ahead_of_the_backend() {
        let mut backend = Backend::new();
        assert_eq!(run(&mut backend, &seen(S::Initialised)), [Action::Announce, Action::Connect]);
    }

    #[test]
    fn broken_ring_closes_once_and_recovers_after_the_frontend_closes() {
        let mut backend = Backend::new();
        run(&mut backend, &seen(S::Initialised));
        backend.failed();
        assert_eq!(
            run(&mut backend, &seen(S::Connected)),
            [Action::Disconnect, Action::SetState(S::Closing)]
        );
        assert_eq!(run(&mut backend, &seen(S::Connected)), []);
        assert_eq!(run(&mut backend, &seen(S::Closed)), [Action::SetState(S::Closed)]);
        assert_eq!(run(&mut backend, &seen(S::Initialising)), [Action::Announce]);
        assert_eq!(run(&mut backend, &seen(S::Initialised)), [Action::Connect]);
    }

    #[test]
    fn connection_that_cannot_be_made() {
        let mut backend = Backend::new();
        assert_eq!(backend.step(&seen(S::Initialised)), Some(Action::Announce));
        assert_eq!(backend.step(&seen(S::Initialised)), Some(Action::Connect));
        backend.failed();
        assert_eq!(run(&mut backend, &seen(S::Initialised)), [Action::SetState(S::Closing)]);
    }

    #[test]
    fn dead_domain_removes_from_every_state() {
        for steps in [&[][..], &[S::Initialising], &[S::Initialised], &[S::Initialised, S::Closing]] {
            let mut backend = Backend::new();
            for &state in steps {
                run(&mut backend, &seen(state));
            }
            let dead = Observed { frontend: None, online: true, present: true };
            assert_eq!(run(&mut backend, &dead).last(), Some(&Action::Remove), "{steps:?}");
            assert!(!backend.running);
        }
    }

    #[test]
    fn directory_gone_removes_at_once_but_stops_the_engine_first() {
        let mut backend = Backend::new();
        run(&mut backend, &seen(S::Initialised));
        let gone = Observed { frontend: Some(S::Connected), online: true, present: false };
        assert_eq!(run(&mut backend, &gone), [Action::Disconnect, Action::Remove]);
    }
}
