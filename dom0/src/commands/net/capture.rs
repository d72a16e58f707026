//! Captured packets on their way to the host: bytes of a pcap file, written to a port of the machine's, one at a time.
//!
//! Packets wait in the capture's ring, and a task writes them. What comes faster than the port takes bytes is counted as missed.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::executor::{spawn, time};
use pvrt::{println, yield_now};
use spin::Mutex;

use crate::commands::Outcome;
use crate::net::capture::Capture;
use crate::netback::{CaptureState, Network};

/// Bytes that are taken from the ring at a time, and those written in one turn: writing one takes a port's time.
const TAKEN_BYTES: usize = 4096;
const TURN_BYTES: usize = 128;
/// How often the ring is looked at that had nothing.
const LOOK_NS: u64 = 5_000_000;

/// The port to a file of the host's, and what is still to be written.
pub struct CaptureFile {
    port: Option<u16>,
    rest: Mutex<Rest>,
}

#[derive(Default)]
struct Rest {
    bytes: VecDeque<u8>,
    /// A capture that has ended, with packets that are still to be written. A megabyte of packets stays where the packets are.
    ended: Option<Capture>,
    /// A file begins once, however often captures begin.
    has_begun: bool,
    is_served: bool,
}

impl CaptureFile {
    /// The file behind `port`, if the machine has such a port.
    pub fn new(port: Option<u16>) -> Arc<Self> {
        Arc::new(Self { port, rest: Mutex::default() })
    }

    /// Begins to capture what passes these ports, or all.
    ///
    /// # Errors
    /// There is no file; a capture goes on; there is no such port.
    pub fn start(self: &Arc<Self>, network: &Arc<Network>, ports: &[&str]) -> Outcome {
        if self.port.is_none() {
            return Err("there is no file for a capture: `cargo xtask run --capture FILE` gives one".into());
        }
        // An end that was interrupted left the rest to the task.
        if network.capture_state().is_none() && self.rest.lock().is_served {
            return Err("the last capture is still being written".into());
        }
        let header = network.start_capture(ports)?;
        let mut rest = self.rest.lock();
        if !core::mem::replace(&mut rest.has_begun, true) {
            rest.bytes.extend(header);
        }
        if !core::mem::replace(&mut rest.is_served, true) {
            let (file, network) = (self.clone(), network.clone());
            spawn(async move { file.serve(&network).await });
        }
        Ok(())
    }

    /// Ends the capture, if one goes on, when all that was captured is in the file. Gives how the capture went.
    pub async fn finish(&self, network: &Network) -> Option<CaptureState> {
        let (state, capture) = network.stop_capture()?;
        self.rest.lock().ended = Some(capture);
        while self.rest.lock().is_served {
            time::sleep(LOOK_NS).await;
        }
        Some(state)
    }

    /// The next bytes for the file; `None`: the capture has ended, and all of it is written.
    fn next(&self, network: &Network) -> Option<Vec<u8>> {
        let rest = &mut *self.rest.lock();
        if rest.bytes.is_empty() {
            let mut taken = Vec::new();
            let is_over = match &mut rest.ended {
                Some(ended) => ended.take(TAKEN_BYTES, &mut taken) == 0,
                None => network.take_captured(TAKEN_BYTES, &mut taken).is_none(),
            };
            if is_over {
                rest.ended = None;
                rest.is_served = false;
                return None;
            }
            rest.bytes.extend(taken);
        }
        let len = rest.bytes.len().min(TURN_BYTES);
        Some(rest.bytes.drain(..len).collect())
    }

    async fn serve(&self, network: &Network) {
        let Some(port) = self.port else { return };
        while let Some(bytes) = self.next(network) {
            bytes.iter().for_each(|byte| pvrt::pio::write_u8(port, *byte));
            if bytes.is_empty() {
                time::sleep(LOOK_NS).await;
            } else {
                yield_now().await;
            }
        }
    }
}

/// `net capture [start [PORT...] | stop]`.
pub(super) async fn run(network: &Arc<Network>, file: &Arc<CaptureFile>, arguments: &[&str]) -> Outcome {
    match arguments {
        [] => match network.capture_state() {
            Some(state) => show("captured so far", &state),
            None => println!("no capture goes on"),
        },
        ["start", ports @ ..] => file.start(network, ports)?,
        ["stop"] => match file.finish(network).await {
            Some(state) => show("captured", &state),
            None => return Err("no capture goes on".into()),
        },
        _ => return Err("usage: net capture [start [PORT...]|stop]".into()),
    }
    Ok(())
}

fn show(what: &str, state: &CaptureState) {
    let CaptureState { ports, packets, missed } = state;
    let ports = if ports.is_empty() { "all ports".into() } else { ports.join(", ") };
    let missed = if *missed == 0 { "none missed".into() } else { format!("{missed} of them missed") };
    println!("{what} at {ports}: {packets} packets, {missed}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrt::executor::block_on_test;

    #[test]
    fn what_a_capture_has_at_its_end_is_written() {
        let (network, file) = (Network::new(), CaptureFile::new(Some(0x3e8)));
        let capture = || {
            let mut capture = Capture::new(1 << 20, 256).unwrap();
            (0..100u8).for_each(|n| capture.packet(n.into(), &[n; 200], 200));
            capture
        };
        let mut all = Vec::new();
        capture().take(usize::MAX, &mut all);
        let rest = Rest { ended: Some(capture()), is_served: true, ..Rest::default() };
        *file.rest.lock() = rest;
        let written: Vec<u8> = core::iter::from_fn(|| file.next(&network)).flatten().collect();
        assert!(written == all && !file.rest.lock().is_served && file.rest.lock().ended.is_none());
    }

    #[test]
    fn the_file_is_whole_whenever_captures_begin_and_end() {
        let network = Arc::new(Network::new());
        block_on_test(async {
            let none = CaptureFile::new(None);
            assert!(none.start(&network, &[]).unwrap_err().contains("--capture FILE"));
            assert_eq!(network.capture_state(), None);
            let file = CaptureFile::new(Some(0x3e8));
            assert!(file.start(&network, &["vif9.9"]).unwrap_err().starts_with("`vif9.9`: no port"));
            file.start(&network, &[]).unwrap();
            assert!(file.start(&network, &[]).unwrap_err().starts_with("a capture goes on"));
            assert_eq!(file.rest.lock().bytes.len(), 24, "a file's header");
            let state = file.finish(&network).await.unwrap();
            assert_eq!(state, CaptureState { ports: Vec::new(), packets: 0, missed: 0 });
            assert!(file.rest.lock().bytes.is_empty() && !file.rest.lock().is_served);
            file.start(&network, &[]).unwrap();
            assert!(file.rest.lock().bytes.is_empty(), "the header is there already");
            assert!(file.finish(&network).await.is_some() && file.finish(&network).await.is_none());
        });
    }
}
