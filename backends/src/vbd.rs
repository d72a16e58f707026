//! The xenbus side of one block backend instance, as a pure state machine.
//!
//! The owner reads nodes and runs the engine; this machine says what the owner does next. The states move as Linux's
//! xen-blkback moves them, because frontends were written against xen-blkback. A frontend that closed may start again
//! on the same nodes (a boot loader hands over to a kernel), so a closed backend that the toolstack still wants returns
//! to `InitWait`.
//!
//! ABI: `xen/include/public/io/blkif.h`, `xenbus.h`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use ring_abi::io::blkif::{VDISK_CDROM, VDISK_READONLY};
use ring_abi::io::xenbus::XenbusState;
use ring_abi::types::{GrantRef, Port};

use crate::blk::MAX_INDIRECT_SEGMENTS;
use crate::traits::{Geometry, SECTOR_SIZE};

/// Largest `ring-page-order` accepted: 4 pages, 128 requests.
pub const MAX_RING_PAGE_ORDER: u32 = 2;

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
    /// Write the [`features`] nodes, then the own `state` node: `InitWait`.
    Announce,
    /// Read the frontend's parameters, start the engine, write [`properties`], and write `Connected` to `state`. Then
    /// call [`Vbd::connected`] or [`Vbd::failed`].
    Connect,
    /// Stop the engine, wait until the device has returned every frame; then call [`Vbd::disconnected`].
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

/// One backend instance.
#[derive(Debug)]
pub struct Vbd {
    state: State,
    /// The engine runs.
    running: bool,
    /// The ring is ruined or could not be attached: closed for good until the frontend closes, too.
    broken: bool,
}

impl Default for Vbd {
    fn default() -> Self {
        Self::new()
    }
}

impl Vbd {
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

/// What a frontend says of its ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Grants of the ring's pages, in order; a power of two of them.
    pub ring: Vec<GrantRef>,
    /// The frontend's event channel.
    pub port: Port,
}

/// A frontend's parameters make no sense. The text names the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadParameter {
    node: String,
    value: Option<String>,
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

impl Connection {
    /// Reads a frontend's parameters by `read`, which gives the value of a node in the frontend's directory.
    ///
    /// # Errors
    /// [`BadParameter`]: a node is missing, not a number, out of range, or names another protocol.
    pub fn read(mut read: impl FnMut(&str) -> Option<String>) -> Result<Self, BadParameter> {
        if let Some(protocol) = read("protocol")
            && protocol != "x86_64-abi"
        {
            return Err(BadParameter { node: "protocol".to_string(), value: Some(protocol) });
        }
        let order = match read("ring-page-order") {
            None => None,
            Some(text) => match text.trim().parse::<u32>() {
                Ok(order) if order <= MAX_RING_PAGE_ORDER => Some(order),
                _ => return Err(BadParameter { node: "ring-page-order".to_string(), value: Some(text) }),
            },
        };
        let mut number = |node: String| -> Result<u32, BadParameter> {
            let Some(text) = read(&node) else { return Err(BadParameter { node, value: None }) };
            text.trim().parse().map_err(|_| BadParameter { node, value: Some(text) })
        };
        let port = Port::new(number("event-channel".to_string())?);
        let ring = match order {
            None => alloc::vec![GrantRef::new(number("ring-ref".to_string())?)],
            Some(order) => (0..1 << order)
                .map(|page| number(format!("ring-ref{page}")).map(GrantRef::new))
                .collect::<Result<_, _>>()
                .or_else(|error| {
                    // Some frontends write an order of 0 and the old node.
                    if order != 0 {
                        return Err(error);
                    }
                    number("ring-ref".to_string()).map(|gref| alloc::vec![GrantRef::new(gref)])
                })?,
        };
        Ok(Self { ring, port })
    }
}

/// The nodes to write before `InitWait`: name and value.
pub fn features(geometry: &Geometry) -> Vec<(&'static str, String)> {
    let flag = |on: bool| if on { "1" } else { "0" }.to_string();
    let mut nodes = alloc::vec![
        ("max-ring-page-order", MAX_RING_PAGE_ORDER.to_string()),
        ("feature-flush-cache", flag(geometry.flush && !geometry.read_only)),
        ("feature-barrier", flag(geometry.flush && !geometry.read_only)),
        ("feature-max-indirect-segments", MAX_INDIRECT_SEGMENTS.to_string()),
        ("feature-persistent", flag(false)),
    ];
    let discard = geometry.discard.filter(|_| !geometry.read_only);
    nodes.push(("feature-discard", flag(discard.is_some())));
    if let Some(limits) = discard {
        let bytes = |sectors: u32| (u64::from(sectors) * u64::from(SECTOR_SIZE)).to_string();
        nodes.push(("discard-granularity", bytes(limits.granularity)));
        nodes.push(("discard-alignment", bytes(limits.alignment)));
        nodes.push(("discard-secure", flag(false)));
    }
    nodes
}

/// The nodes that the owner writes before `Connected`: name and value. `cdrom`: the toolstack asked for that type of
/// device.
pub fn properties(geometry: &Geometry, cdrom: bool) -> Vec<(&'static str, String)> {
    let info = if geometry.read_only { VDISK_READONLY } else { 0 } | if cdrom { VDISK_CDROM } else { 0 };
    alloc::vec![
        // The unit is 512 bytes whatever the sector size, as Linux's blkback writes the node and Linux's blkfront reads
        // the node.
        ("sectors", geometry.sectors.to_string()),
        ("info", info.to_string()),
        ("sector-size", geometry.sector_size.to_string()),
        ("physical-sector-size", geometry.physical_sector_size.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState as S;
    use alloc::collections::BTreeMap;

    fn seen(frontend: XenbusState) -> Observed {
        Observed { frontend: Some(frontend), online: true, present: true }
    }

    /// Steps until there is nothing to do, playing the owner; returns the actions.
    fn run(vbd: &mut Vbd, seen: &Observed) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(action) = vbd.step(seen) {
            actions.push(action);
            match action {
                Action::Connect => vbd.connected(),
                Action::Disconnect => vbd.disconnected(),
                Action::Remove => break,
                Action::Announce | Action::SetState(_) => {}
            }
            assert!(actions.len() < 10, "no end: {actions:?}");
        }
        actions
    }

    #[test]
    fn usual_life() {
        let mut vbd = Vbd::new();
        assert_eq!(run(&mut vbd, &seen(S::Initialising)), [Action::Announce]);
        assert_eq!(run(&mut vbd, &seen(S::Initialised)), [Action::Connect]);
        assert_eq!(run(&mut vbd, &seen(S::Connected)), []);
        assert_eq!(run(&mut vbd, &seen(S::Closing)), [Action::Disconnect, Action::SetState(S::Closing)]);
        assert_eq!(run(&mut vbd, &seen(S::Closed)), [Action::SetState(S::Closed)]);
        let offline = Observed { online: false, ..seen(S::Closed) };
        assert_eq!(run(&mut vbd, &offline), [Action::Remove]);
    }

    #[test]
    fn taken_away_from_a_frontend_that_serves_it() {
        let mut vbd = Vbd::new();
        run(&mut vbd, &seen(S::Initialising));
        run(&mut vbd, &seen(S::Initialised));
        // The toolstack asks for the end; the frontend goes on until the frontend has closed, in one step or two.
        let asked = Observed { online: false, ..seen(S::Connected) };
        assert_eq!(run(&mut vbd, &asked), []);
        let closed = Observed { online: false, ..seen(S::Closed) };
        let ended = [Action::Disconnect, Action::SetState(S::Closed), Action::Remove];
        assert_eq!(run(&mut vbd, &closed), ended);
    }

    #[test]
    fn taken_away_from_a_frontend_that_never_began() {
        let offline = Observed { online: false, ..seen(S::Initialising) };
        let mut vbd = Vbd::new();
        run(&mut vbd, &seen(S::Initialising));
        assert_eq!(run(&mut vbd, &offline), [Action::SetState(S::Closed), Action::Remove]);
        // Or the frontend began anew without having closed.
        let mut vbd = Vbd::new();
        run(&mut vbd, &seen(S::Initialised));
        let ended = [Action::Disconnect, Action::SetState(S::Closed), Action::Remove];
        assert_eq!(run(&mut vbd, &offline), ended);
    }

    #[test]
    fn loader_then_kernel_on_the_same_nodes() {
        let mut vbd = Vbd::new();
        run(&mut vbd, &seen(S::Initialising));
        run(&mut vbd, &seen(S::Initialised));
        run(&mut vbd, &seen(S::Connected));
        // The loader closes at once.
        assert_eq!(run(&mut vbd, &seen(S::Closed)), [Action::Disconnect, Action::SetState(S::Closed)]);
        assert_eq!(run(&mut vbd, &seen(S::Initialising)), [Action::Announce]);
        assert_eq!(run(&mut vbd, &seen(S::Initialised)), [Action::Connect]);
    }

    #[test]
    fn frontend_ahead_of_the_backend() {
        let mut vbd = Vbd::new();
        assert_eq!(run(&mut vbd, &seen(S::Initialised)), [Action::Announce, Action::Connect]);
    }

    #[test]
    fn broken_ring_closes_once_and_recovers_after_the_frontend_closes() {
        let mut vbd = Vbd::new();
        run(&mut vbd, &seen(S::Initialised));
        vbd.failed();
        assert_eq!(run(&mut vbd, &seen(S::Connected)), [Action::Disconnect, Action::SetState(S::Closing)]);
        assert_eq!(run(&mut vbd, &seen(S::Connected)), []);
        assert_eq!(run(&mut vbd, &seen(S::Closed)), [Action::SetState(S::Closed)]);
        assert_eq!(run(&mut vbd, &seen(S::Initialising)), [Action::Announce]);
        assert_eq!(run(&mut vbd, &seen(S::Initialised)), [Action::Connect]);
    }

    #[test]
    fn connection_that_cannot_be_made() {
        let mut vbd = Vbd::new();
        assert_eq!(vbd.step(&seen(S::Initialised)), Some(Action::Announce));
        assert_eq!(vbd.step(&seen(S::Initialised)), Some(Action::Connect));
        vbd.failed();
        assert_eq!(run(&mut vbd, &seen(S::Initialised)), [Action::SetState(S::Closing)]);
    }

    #[test]
    fn dead_domain_removes_from_every_state() {
        for steps in [&[][..], &[S::Initialising], &[S::Initialised], &[S::Initialised, S::Closing]] {
            let mut vbd = Vbd::new();
            for &state in steps {
                run(&mut vbd, &seen(state));
            }
            let dead = Observed { frontend: None, online: true, present: true };
            assert_eq!(run(&mut vbd, &dead).last(), Some(&Action::Remove), "{steps:?}");
            assert!(!vbd.running);
        }
    }

    #[test]
    fn directory_gone_removes_at_once_but_stops_the_engine_first() {
        let mut vbd = Vbd::new();
        run(&mut vbd, &seen(S::Initialised));
        let gone = Observed { frontend: Some(S::Connected), online: true, present: false };
        assert_eq!(run(&mut vbd, &gone), [Action::Disconnect, Action::Remove]);
    }

    fn read(nodes: &[(&str, &str)]) -> Result<Connection, String> {
        let nodes: BTreeMap<_, _> = nodes.iter().copied().collect();
        Connection::read(|node| nodes.get(node).map(ToString::to_string)).map_err(|e| e.to_string())
    }

    #[test]
    fn connection_parameters() {
        let one = read(&[("ring-ref", "8"), ("event-channel", "4294967295"), ("protocol", "x86_64-abi")]);
        let expected = Connection { ring: alloc::vec![GrantRef::new(8)], port: Port::new(u32::MAX) };
        assert_eq!(one, Ok(expected));
        let two =
            read(&[("ring-page-order", "1"), ("ring-ref0", "8"), ("ring-ref1", "9"), ("event-channel", "3")]);
        assert_eq!(two.map(|c| c.ring.len()), Ok(2));
        let zero = read(&[("ring-page-order", "0"), ("ring-ref", "8"), ("event-channel", "3")]);
        assert_eq!(zero.map(|c| c.ring.len()), Ok(1));
        assert_eq!(read(&[("event-channel", "3")]), Err("no ring-ref".into()));
        assert_eq!(read(&[("ring-ref", "8")]), Err("no event-channel".into()));
        let wide = read(&[("ring-ref", "4294967296"), ("event-channel", "3")]);
        assert_eq!(wide, Err("bad ring-ref \"4294967296\"".into()));
        let order = read(&[("ring-page-order", "3"), ("event-channel", "3")]);
        assert_eq!(order, Err("bad ring-page-order \"3\"".into()));
        let long = "\x1b".repeat(2048);
        let long = read(&[("ring-ref", &long), ("event-channel", "3")]);
        assert_eq!(long, Err("bad ring-ref, 2048 bytes long".into()));
        let protocol = read(&[("protocol", "x86_32-abi"), ("ring-ref", "1"), ("event-channel", "3")]);
        assert_eq!(protocol, Err("bad protocol \"x86_32-abi\"".into()));
    }
}
