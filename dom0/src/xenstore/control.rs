//! `XS_CONTROL`: what dom0 asks of the daemon itself.
//!
//! The commands are those that Xen's daemons in C and in OCaml both take, and `help` and `quota` of the one in C. Both take
//! `logfile` too, which is refused here: there is no file.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pvrt::executor::time;

use super::connection::ConnId;
use super::deferred::Deferred;
use super::error::XsError;
use super::path::Path;
use super::request::{OK, all_strings, nul_terminated};
use super::server::Server;
use super::stream::Message;

/// The commands and their arguments.
const COMMANDS: [(&str, &str); 6] =
    [("check", ""), ("help", ""), ("log", "on|off"), ("memreport", ""), ("print", "<string>"), ("quota", "")];

/// Requests that the log shows in a second: a domain may make as many as it likes.
const LINES_A_SECOND: usize = 20;
/// Bytes of a request that the log shows.
const SHOWN_BYTES: usize = 64;

/// Which requests of domains the log shows.
#[derive(Debug, Default)]
pub(super) struct AccessLog {
    is_on: bool,
    /// The second that the lines are of, and whose requests they showed.
    second: u64,
    shown: Vec<u16>,
    /// Requests that were not shown since the last line.
    left_out: u64,
}

impl AccessLog {
    /// Notes a request of a domain. `Some`: the log shows the request, and so many before were not shown.
    ///
    /// A domain gets no more lines of a second than it leaves to the others: one that makes many requests hides none of
    /// a few other domains.
    fn note(&mut self, domid: u16, now_ns: u64) -> Option<u64> {
        if !self.is_on {
            return None;
        }
        let second = now_ns / 1_000_000_000;
        if second != self.second {
            self.second = second;
            self.shown.clear();
        }
        let own = self.shown.iter().filter(|other| **other == domid).count();
        if own >= LINES_A_SECOND - self.shown.len() {
            self.left_out += 1;
            return None;
        }
        self.shown.push(domid);
        Some(core::mem::take(&mut self.left_out))
    }
}

/// Nodes that were looked at so far by a `check`, and what is wrong.
#[derive(Clone, Debug, Default)]
pub(super) struct Checked {
    pub(super) nodes: usize,
    pub(super) wrong: usize,
}

/// Faults that the log tells of one `check`.
const FAULTS_SHOWN: usize = 8;

impl Server {
    /// `XS_CONTROL`, for dom0 alone.
    ///
    /// # Errors
    /// - `EACCES`: the caller is not dom0.
    /// - `EINVAL`: there is no such command, or it takes other arguments.
    /// - `EBUSY`: a check is under way.
    pub(super) fn control(&mut self, conn: ConnId, payload: &[u8]) -> Result<Vec<u8>, XsError> {
        self.dom0_only(conn)?;
        match all_strings(payload)?[..] {
            [b"check"] => {
                // One at a time: a script may ask again and again, and each would wait in memory.
                if core::mem::replace(&mut self.is_checking, true) {
                    return Err(XsError::Busy);
                }
                self.deferred.push_back(Deferred::Check(None, Checked::default()));
                Ok(Vec::from(OK))
            }
            [b"help"] => {
                let list: String =
                    COMMANDS.iter().map(|(name, takes)| format!("{name}\t{takes}\n")).collect();
                Ok(nul_terminated(&list))
            }
            [b"log", b"on"] => {
                self.access_log = AccessLog { is_on: true, ..AccessLog::default() };
                Ok(Vec::from(OK))
            }
            [b"log", b"off"] => {
                self.access_log = AccessLog::default();
                Ok(Vec::from(OK))
            }
            [b"memreport"] => {
                let figures = self.figures();
                log::info!(
                    "xenstored: {} nodes, {} watches and {} transactions take {} bytes, of {} domains",
                    figures.nodes,
                    figures.watches,
                    figures.transactions,
                    figures.bytes,
                    figures.domains.len()
                );
                Ok(Vec::from(OK))
            }
            [b"print", text] => {
                log::info!("xenstored: {}", text.escape_ascii());
                Ok(Vec::from(OK))
            }
            [b"quota"] => Ok(nul_terminated(&self.quota_text())),
            _ => Err(XsError::Inval),
        }
    }

    fn quota_text(&self) -> String {
        let q = self.quotas();
        format!(
            "nodes: {}\nwatches: {}\ntransactions: {}\noutstanding: {}\ntransaction-nodes: {}\n\
             memory: {}\nnode-size: {}\npermissions: {}",
            q.nodes,
            q.watches,
            q.transactions,
            q.outstanding,
            q.transaction_nodes,
            q.memory_bytes,
            q.value_bytes,
            q.perms
        )
    }

    /// Shows a request in the log, if that is on.
    #[inline]
    pub(super) fn log_request(&mut self, conn: ConnId, request: &Message) {
        if self.access_log.is_on {
            self.show_request(conn, request);
        }
    }

    #[cold]
    fn show_request(&mut self, conn: ConnId, request: &Message) {
        let domid = self.connections.get(&conn).map_or(0, |connection| connection.domid);
        let Some(left_out) = self.access_log.note(domid, time::now_ns()) else { return };
        if left_out > 0 {
            log::info!("xenstored: {left_out} requests are not shown");
        }
        let shown = &request.payload[..request.payload.len().min(SHOWN_BYTES)];
        log::info!("xenstored: d{domid}: request {}: {}", request.header.r#type, shown.escape_ascii());
    }

    /// A step of a `check`: looks at the node after `after`. `None`: that was the last, and the log tells what was found.
    pub(super) fn check_next(
        &mut self,
        after: Option<&Path>,
        mut checked: Checked,
    ) -> Option<(Path, Checked)> {
        let Some((path, fault)) = self.store.check_next(after) else {
            self.is_checking = false;
            log::info!("xenstored: check: {} nodes, {} of them wrong", checked.nodes, checked.wrong);
            return None;
        };
        checked.nodes += 1;
        if let Some(fault) = fault {
            checked.wrong += 1;
            if checked.wrong <= FAULTS_SHOWN {
                log::error!("xenstored: check: {path}: {fault}");
            }
        }
        Some((path, checked))
    }
}

#[cfg(test)]
mod tests {
    use ring_abi::io::xs_wire as wire;

    use super::super::tests::Bed;
    use super::*;

    fn control(bed: &mut Bed, words: &[&str]) -> Result<String, XsError> {
        let payload: Vec<u8> = words.iter().flat_map(|word| nul_terminated(word)).collect();
        let reply = bed.server.control(bed.dom0, &payload);
        bed.server.flush();
        reply.map(|reply| String::from_utf8(reply).unwrap())
    }

    #[test]
    fn dom0_is_answered_as_by_xens_daemons() {
        let mut bed = Bed::new(1);
        for words in [
            &["check"][..],
            &["log", "on"],
            &["log", "off"],
            &["memreport"],
            &["print", "a b"],
            &["print", ""],
        ] {
            assert_eq!(control(&mut bed, words), Ok("OK\0".into()), "{words:?}");
            while bed.server.settle_some() {}
        }
        let help = control(&mut bed, &["help"]).unwrap();
        for (name, _) in COMMANDS {
            assert!(help.contains(&format!("{name}\t")), "{help}");
            // None is named that is not there.
            let arguments: &[&str] = match name {
                "log" => &["on"],
                "print" => &["x"],
                _ => &[],
            };
            assert!(control(&mut bed, &[&[name], arguments].concat()).is_ok(), "{name}");
        }
        assert!(control(&mut bed, &["quota"]).unwrap().starts_with("nodes: 1000\n"));
        for words in [
            &[][..],
            &[""],
            &["frobnicate"],
            &["help", "x"],
            &["log"],
            &["log", "maybe"],
            &["log", "on", "x"],
            &["print"],
            &["print", "a", "b"],
            &["check", "x"],
            &["logfile", "/tmp/x"],
        ] {
            assert_eq!(control(&mut bed, words), Err(XsError::Inval), "{words:?}");
        }
        assert_eq!(bed.server.control(bed.dom0, b"help"), Err(XsError::Inval), "without its NUL");
    }

    #[test]
    fn a_guest_controls_nothing() {
        let mut bed = Bed::new(1);
        for payload in [&b"help\0"[..], b"print\0x\0", b"log\0on\0", b"frobnicate\0", b"", b"x"] {
            assert_eq!(bed.err(1, wire::XS_CONTROL, 0, payload), "EACCES");
        }
        assert!(!bed.server.access_log.is_on);
    }

    #[test]
    fn the_log_of_requests_has_a_measure() {
        const SECOND: u64 = 1_000_000_000;
        let mut log = AccessLog::default();
        assert_eq!(log.note(1, 0), None);
        log.is_on = true;
        let shown = |log: &mut AccessLog, domid: u16, second: u64| {
            (0..1000).filter_map(|at| log.note(domid, second * SECOND + at)).collect::<Vec<u64>>()
        };
        assert_eq!(shown(&mut log, 1, 0), [0; LINES_A_SECOND / 2]);
        let next = shown(&mut log, 1, 7);
        assert_eq!(next.len(), LINES_A_SECOND / 2);
        assert!(next[0] == 990 && next[1..].iter().all(|left| *left == 0));
        // The others have the rest, in the same way, and all together no more than there are.
        let others: Vec<usize> = (2..100).map(|domid| shown(&mut log, domid, 7).len()).collect();
        assert_eq!(others[..3], [5, 3, 1]);
        assert!(others.iter().sum::<usize>() <= LINES_A_SECOND / 2);
    }

    #[test]
    fn a_check_looks_at_every_node_in_steps() {
        let mut bed = Bed::new(2);
        for at in 0..200 {
            bed.ok(1, wire::XS_WRITE, 0, format!("d/{at}/x\0v").as_bytes());
        }
        let mut steps = 0;
        let (mut after, mut checked) = (None, Checked::default());
        while let Some((path, so_far)) = bed.server.check_next(after.as_ref(), checked.clone()) {
            (after, checked, steps) = (Some(path), so_far, steps + 1);
        }
        assert_eq!((checked.nodes, checked.wrong), (bed.server.store.len(), 0));
        assert_eq!(checked.nodes, steps);
        // The reply does not wait for it: a step leaves the rest.
        bed.server.control(bed.dom0, b"check\0").unwrap();
        bed.server.flush();
        assert!(bed.server.settle_some(), "200 nodes are more than a step's work");
        while bed.server.settle_some() {}
        // A node without the node above it is found, and one that the index of names has not.
        let lost = Path::absolute(b"/lost/below").unwrap();
        let node = bed.server.store.get(&Path::absolute(b"/local/domain/2").unwrap()).unwrap().clone();
        bed.server.store.put(&lost, node);
        bed.server.store.unname(&Path::absolute(b"/local/domain/1").unwrap());
        let (mut after, mut checked) = (None, Checked::default());
        while let Some((path, so_far)) = bed.server.check_next(after.as_ref(), checked.clone()) {
            (after, checked) = (Some(path), so_far);
        }
        assert_eq!(checked.wrong, 2);
    }

    /// A domain decides how long a check takes: the domain's own nodes are checked, too.
    #[test]
    fn no_other_work_waits_for_a_check() {
        let mut bed = Bed::new(2);
        for at in 0..900 {
            bed.ok(1, wire::XS_WRITE, 0, format!("d/{at}\0v").as_bytes());
        }
        bed.ok(2, wire::XS_WATCH, 0, b"x\0token\0");
        bed.events(2);
        bed.server.control(bed.dom0, b"check\0").unwrap();
        bed.server.flush();
        let path = Path::absolute(b"/local/domain/2/x").unwrap();
        bed.server.view(bed.dom0, 0, |view| view.write(&path, b"v")).unwrap();
        bed.server.flush();
        let mark = bed.server.mark_left();
        let steps = (0..).take_while(|_| bed.server.settle_until(mark)).count();
        assert!(steps < 2, "{steps} steps");
        assert_eq!(bed.events(2), ["x|token|"]);
        // Nor does a second check begin.
        assert_eq!(control(&mut bed, &["check"]), Err(XsError::Busy));
        let left = (0..).take_while(|_| bed.server.settle_some()).count();
        assert!(left > 50, "the check goes on in steps: {left}");
        assert_eq!(control(&mut bed, &["check"]), Ok("OK\0".into()), "once the first is over");
    }
}
