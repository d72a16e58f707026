//! A frontend's rings, mapped, and the task that carries what the frontend sends.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::pending;
use core::sync::atomic::{AtomicBool, Ordering};

use backends::net::vif;
use backends::net::{Control, Disconnect, Intake, RxQueue, TxQueue};
use pvrt::event::{self, Port};
use pvrt::executor::sync::{Notify, Receiver as Outcome};
use pvrt::executor::{select, spawn_join, time};
use pvrt::grant::{CopyPages, GrantMap, map_grants};
use ring_abi::ring::{BackRing, RingProtocol};
use ring_abi::types::{DomId, GrantRef, Port as PortNumber};

use super::control::ControlRing;
use super::sender::Sender;
use super::{HEAD_PAGES, OpenPort};
use crate::xenbus::{self, Bell};

/// How a connection ended.
pub(super) struct Ended {
    /// Why the connection ended; `None` when the instance asked for the end.
    reason: Option<Disconnect>,
    packets: u64,
    bytes: u64,
    /// Packets that the frontend sent and that were none.
    errors: u64,
}

impl xenbus::Ended for Ended {
    fn reason(&self) -> Option<String> {
        self.reason.as_ref().map(ToString::to_string)
    }

    fn refused(&self) -> u64 {
        self.errors
    }

    fn summary(&self) -> String {
        format!("{} packets sent, {} bytes", self.packets, self.bytes)
    }
}

/// A connected frontend.
pub(super) struct Connection {
    stop: Arc<AtomicBool>,
    task: Arc<Notify>,
    ended: Outcome<Ended>,
}

impl xenbus::Connection for Connection {
    type Ended = Ended;

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.notify_one();
    }

    fn ended(&mut self) -> &mut Outcome<Ended> {
        &mut self.ended
    }
}

impl Connection {
    /// Maps the rings, binds the event channels, and begins to serve.
    pub(super) fn open(
        domain: DomId,
        port: &Arc<OpenPort>,
        parameters: &vif::Connection,
        intake: Intake,
    ) -> Result<Self, String> {
        let heads = CopyPages::new(HEAD_PAGES).map_err(|_| "no memory to serve it")?;
        let pages_each = HEAD_PAGES / parameters.queues.len();
        let (mut senders, mut receivers, mut events) = (Vec::new(), Vec::new(), Vec::new());
        for (queue, frames) in parameters.queues.iter().zip(heads.frames().chunks(pages_each)) {
            let tx_port = bind(domain, queue.tx_port)?;
            let rx_port = match queue.rx_port {
                Some(port) => bind(domain, port)?,
                None => tx_port.clone(),
            };
            let tx_ring = map(domain, queue.tx_ring, "for sending")?;
            let rx_ring = map(domain, queue.rx_ring, "for receiving")?;
            let sender = TxQueue::new(tx_ring, Bell(tx_port.clone()), domain, frames.to_vec());
            senders.push(sender.map_err(|_| "no memory to serve it")?);
            receivers.push(RxQueue::new(rx_ring, Bell(rx_port.clone()), domain));
            events.push(tx_port);
            events.extend(queue.rx_port.map(|_| rx_port));
        }
        let control = match parameters.control {
            None => None,
            Some((ring, port)) => {
                let port = bind(domain, port)?;
                let ring = Control::new(map(domain, ring, "for control")?, Bell(port.clone()));
                Some(ControlRing::new(ring, port, domain))
            }
        };
        let (stop, task) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
        let sender = Sender::new(port.id, senders, heads);
        port.network.0.lock().way.connect(port.id, receivers, intake, parameters.abilities, task.clone());
        let port = port.clone();
        let service = Service { port, sender, events, control, stop: stop.clone(), task: task.clone() };
        Ok(Self { stop, task, ended: spawn_join(service.run()) })
    }
}

fn bind(domain: DomId, port: PortNumber) -> Result<Arc<Port>, String> {
    let bound = Port::bind_interdomain(domain, port);
    bound.map(Arc::new).map_err(|errno| format!("binding port {port}: {errno}"))
}

fn map<P: RingProtocol>(domain: DomId, ring: GrantRef, what: &str) -> Result<BackRing<P, GrantMap>, String> {
    let page = map_grants(domain, &[ring], true);
    let page = page.map_err(|status| format!("mapping the ring {what}: {status}"))?;
    BackRing::attach(page).map_err(|error| format!("attaching to the ring {what}: {error}"))
}

/// What the serving task owns.
struct Service {
    port: Arc<OpenPort>,
    sender: Sender,
    events: Vec<Arc<Port>>,
    control: Option<ControlRing>,
    stop: Arc<AtomicBool>,
    task: Arc<Notify>,
}

impl Service {
    async fn run(mut self) -> Ended {
        let reason = self.serve().await;
        // Nothing is under way between two batches: the rings may go, but for what a card may still read. The card gets the
        // time that it needs.
        self.control = None;
        self.port.network.0.lock().way.quiet(self.port.id);
        while self.port.network.0.lock().settle_lent(&mut self.sender) {
            self.task.notified().await;
        }
        self.port.network.0.lock().way.disconnect(self.port.id);
        let (packets, bytes, errors) = self.sender.sent();
        Ended { reason, packets, bytes, errors }
    }

    async fn serve(&mut self) -> Option<Disconnect> {
        while !self.stop.load(Ordering::Relaxed) {
            if let Some(control) = &mut self.control
                && control.is_due()
                && let Err(reason) = self.port.network.0.lock().control(self.port.id, control)
            {
                return Some(reason);
            }
            let round = self.port.network.0.lock().round(&mut self.sender, time::now_ns());
            let armed = match round {
                Ok(next) if next.again || self.control.as_mut().is_some_and(ControlRing::is_due) => Ok(true),
                Ok(_) => self.sender.arm(),
                Err(reason) => return Some(reason),
            };
            match (armed, round) {
                (Ok(true), _) => pvrt::yield_now().await,
                (Ok(false), next) => self.wait(next.ok().and_then(|next| next.at_ns)).await,
                (Err(reason), _) => return Some(reason),
            }
        }
        None
    }

    /// Waits for the frontend, for others, or for a time.
    async fn wait(&mut self, at_ns: Option<u64>) {
        let clock = async {
            match at_ns {
                Some(at_ns) => time::sleep_until(at_ns).await,
                None => pending().await,
            }
        };
        let control = async {
            match &mut self.control {
                Some(control) => control.wait().await,
                None => pending().await,
            }
        };
        select(select(event::any(&self.events), control), select(self.task.notified(), clock)).await;
        // An event may tell of room for what others send here.
        self.port.network.0.lock().way.roomy(self.port.id);
    }
}
