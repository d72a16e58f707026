//! One vbd: carries out what the state machine says.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;

use backends::BlockDevice;
use backends::vbd::{self, Action, Observed, Vbd};
use pvrt::executor::{Either, select};
use pvrt::time;
use ring_abi::io::xenbus::XenbusState;

use super::Id;
use super::MAX_VBDS;
use super::connection::{Connection, Ended};
use super::grants::SharedStage;
use crate::blkdev::{Disks, NoDiscard, OpenDisk, ReadOnly, SharedDevice, User};
use crate::xenstore::{Client, Nodes, Xenstore, XsError};

/// How long a frontend that broke its connection waits for the next connection. The pause bounds what such a frontend
/// costs dom0, log lines included.
const FAULT_PAUSE_NS: u64 = 100_000_000;

/// The least time from one connection of a vbd to the next: a frontend that comes and goes in a loop costs no more than a
/// hundred connections in a second. A loader and the kernel after it do not notice.
pub(super) const RECONNECT_NS: u64 = 10_000_000;

/// Number of faults of one frontend that the log tells: a frontend may go on to break connections for ever.
const FAULTS_LOGGED: u32 = 8;

/// An instance, and the parts of dom0 that the instance works with.
struct Instance<'a> {
    id: Id,
    client: Client,
    disks: &'a Disks,
    stage: &'a SharedStage,
    /// The backend's directory.
    back: String,
    /// The frontend's directory.
    front: String,
    device: Option<(SharedDevice, OpenDisk)>,
    connection: Option<Connection>,
    /// When the next may be made: system time in nanoseconds.
    may_connect_ns: u64,
    /// Faults so far.
    faults: u32,
}

/// Serves the vbd `id` until it is over.
pub(super) async fn run(store: &Xenstore, disks: &Disks, stage: &SharedStage, id: Id) {
    let client = store.client();
    let back = id.path();
    let Ok(front) = client.read_str(&format!("{back}/frontend")) else {
        log::warn!("{}: it has no frontend node", id.named(&client));
        return;
    };
    let watched = client.watch(&back, "back").and_then(|()| client.watch(&format!("{front}/state"), "front"));
    if let Err(error) = watched {
        log::error!("{}: watching: {}", id.named(&client), error.name());
        return;
    }
    let mut instance = Instance {
        id,
        client,
        disks,
        stage,
        back,
        front,
        device: None,
        connection: None,
        may_connect_ns: 0,
        faults: 0,
    };
    let mut machine = Vbd::new();
    loop {
        while let Some(action) = machine.step(&instance.observe()) {
            match action {
                Action::Announce => {
                    if let Err(error) = instance.announce() {
                        instance.refuse(&error);
                        return;
                    }
                }
                // The nodes may have changed during the pause, so the loop looks at the nodes anew.
                Action::Connect if time::now_ns() < instance.may_connect_ns => {
                    time::sleep_until(instance.may_connect_ns).await;
                }
                Action::Connect => match instance.connect() {
                    Ok(()) => machine.connected(),
                    Err(error) => {
                        instance.complain(&error);
                        machine.failed();
                        time::sleep(FAULT_PAUSE_NS).await;
                    }
                },
                Action::Disconnect => {
                    instance.disconnect().await;
                    machine.disconnected();
                }
                Action::SetState(state) => instance.set_state(state),
                Action::Remove => return,
            }
        }
        if let Some(ended) = instance.wait().await {
            instance.report(&ended);
            machine.failed();
            time::sleep(FAULT_PAUSE_NS).await;
        }
    }
}

impl Instance<'_> {
    fn node(&self, name: &str) -> String {
        format!("{}/{name}", self.back)
    }

    fn observe(&self) -> Observed {
        let frontend = self.client.read_str(&format!("{}/state", self.front));
        Observed {
            frontend: frontend.ok().map(|state| XenbusState::parse(&state)),
            online: self.client.read_as::<u32>(&self.node("online")).is_ok_and(|online| online != 0),
            present: self.client.exists(&self.node("frontend")),
        }
    }

    /// Waits for a change of the nodes, or for a connection's end that nobody asked for. The result is that end.
    async fn wait(&mut self) -> Option<Ended> {
        let change = async {
            self.client.next_event().await;
            // One look at the nodes serves all events that have come.
            while self.client.try_event().is_some() {}
        };
        let ended = match &mut self.connection {
            Some(connection) => match select(connection.ended(), change).await {
                Either::Left(ended) => ended,
                Either::Right(()) => return None,
            },
            None => {
                change.await;
                return None;
            }
        };
        self.connection = None;
        ended
    }

    /// Finds the disk and tells the frontend what the disk can do.
    fn announce(&mut self) -> Result<(), String> {
        if self.device.is_none() {
            self.device = Some(self.find_disk()?);
            self.write("hotplug-status", "connected");
        }
        if let Some((device, _)) = &self.device {
            for (name, value) in vbd::features(&device.geometry()) {
                self.write(name, &value);
            }
        }
        self.set_state(XenbusState::InitWait);
        Ok(())
    }

    fn find_disk(&self) -> Result<(SharedDevice, OpenDisk), String> {
        let path = self.client.read_str(&self.node("params")).unwrap_or_default();
        let disk = self.disks.find(&path).ok_or_else(|| {
            let known = self.disks.paths();
            if known.is_empty() {
                format!("{path}: no such disk (there are none)")
            } else {
                format!("{path}: no such disk (there are {})", known.join(", "))
            }
        })?;
        let mode = self.client.read_str(&self.node("mode")).unwrap_or_default();
        let Id { domain, device: number } = self.id;
        if self.disks.users().iter().filter(|user| user.domain == domain).count() >= MAX_VBDS {
            return Err(format!("{path}: a domain has {MAX_VBDS} disks at most"));
        }
        let writable = mode.starts_with('w');
        let device: SharedDevice = match (writable, disk.device.geometry().read_only) {
            (true, true) => return Err(format!("{path}: the disk is read-only")),
            (true, false) if self.client.read_as::<u32>(&self.node("discard-enable")) == Ok(0) => {
                Arc::new(NoDiscard(disk.device))
            }
            (true, false) => disk.device,
            (false, _) => Arc::new(ReadOnly(disk.device)),
        };
        let open = self.disks.open(User { disk: disk.name, domain, device: number, writable });
        Ok((device, open))
    }

    fn connect(&mut self) -> Result<(), String> {
        let Some(device) = self.device.as_ref().map(|(device, _)| device.clone()) else {
            return Err("no disk".into());
        };
        let parameters =
            vbd::Connection::read(|name| self.client.read_str(&format!("{}/{name}", self.front)).ok())
                .map_err(|error| error.to_string())?;
        let geometry = device.geometry();
        self.may_connect_ns = time::now_ns().saturating_add(RECONNECT_NS);
        self.connection = Some(Connection::open(self.id.domain, &parameters, device, self.stage.clone())?);
        let cdrom = self.client.read_str(&self.node("device-type")).is_ok_and(|kind| kind == "cdrom");
        for (name, value) in vbd::properties(&geometry, cdrom) {
            self.write(name, &value);
        }
        self.set_state(XenbusState::Connected);
        log::debug!("{}: connected, {} ring pages", self.named(), parameters.ring.len());
        Ok(())
    }

    async fn disconnect(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            connection.stop();
            if let Some(ended) = connection.ended().await {
                self.report(&ended);
            }
        }
    }

    /// Logs how a connection ended.
    fn report(&mut self, ended: &Ended) {
        let Ended { reason, stats } = ended;
        if let Some(reason) = reason {
            if self.is_to_be_logged() {
                log::error!("{}: disconnect: {reason}", self.named());
            }
            self.write_error(&format!("disconnect: {reason}"));
        }
        log::debug!(
            "{}: disconnected: {} requests, {} failed, {} bytes read, {} written",
            self.named(),
            stats.requests,
            stats.errors,
            stats.read_bytes,
            stats.written_bytes,
        );
    }

    /// The disk cannot be served: the reason goes into a node for the toolstack.
    fn refuse(&mut self, error: &str) {
        self.complain(error);
        self.write("hotplug-error", error);
        self.write("hotplug-status", "error");
        self.set_state(XenbusState::Closed);
    }

    fn complain(&mut self, error: &str) {
        if self.is_to_be_logged() {
            log::error!("{}: {error}", self.named());
        }
        self.write_error(error);
    }

    /// The disk in its user's words.
    fn named(&self) -> String {
        self.id.named(&self.client)
    }

    /// Counts a fault, and returns whether to log the fault.
    fn is_to_be_logged(&mut self) -> bool {
        self.faults = self.faults.saturating_add(1);
        if self.faults == FAULTS_LOGGED {
            log::warn!("{}: further faults are not logged", self.named());
        }
        self.faults < FAULTS_LOGGED
    }

    /// Writes what went wrong to the node where xenbus drivers put errors.
    fn write_error(&self, error: &str) {
        self.write("error", error);
    }

    fn set_state(&self, state: XenbusState) {
        self.write("state", &state.to_string());
    }

    /// Writes a node of the backend's directory, unless the toolstack removed the directory: a write would make the
    /// directory again.
    fn write(&self, name: &str, value: &str) {
        if !self.client.exists(&self.back) {
            return;
        }
        match self.client.write(&self.node(name), value) {
            Ok(()) | Err(XsError::NoEnt) => {}
            Err(error) => log::warn!("{}: writing {name}: {}", self.named(), error.name()),
        }
    }
}
