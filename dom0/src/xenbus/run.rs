//! One instance: carries out what the state machine says.

use alloc::format;
use alloc::string::String;

use backends::xenbus::{self, Action};
use pvrt::executor::sync::Receiver;
use pvrt::executor::{Either, select};
use pvrt::time;
use ring_abi::io::xenbus::XenbusState;

use super::Device;

/// How long a frontend that broke its connection waits for the next connection. The pause bounds what such a frontend
/// costs dom0, log lines included.
const FAULT_PAUSE_NS: u64 = 100_000_000;

/// The least time from one connection of a device to the next: a frontend that comes and goes in a loop costs no more than
/// a hundred connections in a second. A loader and the kernel after it do not notice.
pub const RECONNECT_NS: u64 = 10_000_000;

/// What is particular to the backend of a kind of device.
pub trait Backend: Send {
    /// A connected frontend.
    type Connection: Connection;

    /// Nodes of the frontend's directory that [`Self::follow`] follows, beside the state.
    const WATCHED: &'static [&'static str] = &[];

    /// Finds what is behind the device, once; and writes what the frontend must know before it connects.
    ///
    /// # Errors
    /// Why the device cannot be served, for the administrator.
    fn announce(&mut self, device: &Device) -> Result<(), String>;

    /// Reads the frontend's parameters and begins to serve the frontend; and writes what the frontend must know then.
    ///
    /// # Errors
    /// What is wrong with the parameters.
    fn connect(&mut self, device: &Device) -> Result<Self::Connection, String>;

    /// A node changed while the frontend is connected: one of [`Self::WATCHED`], or another.
    fn follow(&mut self, _device: &Device, _connection: &Self::Connection) {}
}

/// A connected frontend, served by a task of its own.
pub trait Connection: Send {
    /// How the connection ended.
    type Ended: Ended;

    /// Has the task end.
    fn stop(&self);

    /// Gives the task's result when nothing of the frontend's is held any more: the frontend ruined the connection, or
    /// [`Self::stop`] was called.
    fn ended(&mut self) -> &mut Receiver<Self::Ended>;
}

/// How a connection ended. Nothing of the frontend's is held any more.
pub trait Ended: Send {
    /// Why, if the frontend ruined the connection.
    fn reason(&self) -> Option<String>;

    /// Requests that were bad, and did not end the connection.
    fn refused(&self) -> u64 {
        0
    }

    /// What the connection did, for the log.
    fn summary(&self) -> String;
}

/// Serves a device until it is over.
pub async fn run<B: Backend>(mut device: Device, mut backend: B) {
    let mut machine = xenbus::Backend::new();
    B::WATCHED.iter().for_each(|node| device.watch_front(node));
    let mut connection: Option<B::Connection> = None;
    // When the next may be made: system time in nanoseconds.
    let mut may_connect_ns = 0;
    loop {
        while let Some(action) = machine.step(&device.observe()) {
            match action {
                Action::Announce => match backend.announce(&device) {
                    Ok(()) => {
                        device.write("hotplug-status", "connected");
                        device.set_state(XenbusState::InitWait);
                    }
                    Err(error) => return device.refuse(&error),
                },
                // The nodes may have changed during the pause, so the loop looks at the nodes anew.
                Action::Connect if time::now_ns() < may_connect_ns => {
                    time::sleep_until(may_connect_ns).await;
                }
                Action::Connect => match backend.connect(&device) {
                    Ok(connected) => {
                        connection = Some(connected);
                        may_connect_ns = time::now_ns().saturating_add(RECONNECT_NS);
                        device.set_state(XenbusState::Connected);
                        machine.connected();
                    }
                    Err(error) => {
                        device.complain(&error);
                        machine.failed();
                        time::sleep(FAULT_PAUSE_NS).await;
                    }
                },
                Action::Disconnect => {
                    if let Some(mut connection) = connection.take() {
                        connection.stop();
                        if let Ok(ended) = connection.ended().await {
                            report(&mut device, &ended);
                        }
                    }
                    machine.disconnected();
                }
                Action::SetState(state) => device.set_state(state),
                Action::Remove => return,
            }
        }
        if let Some(ended) = wait(&device, &mut connection).await {
            report(&mut device, &ended);
            machine.failed();
            time::sleep(FAULT_PAUSE_NS).await;
        } else if let Some(connection) = &connection {
            backend.follow(&device, connection);
        }
    }
}

/// Waits for a change of the nodes, or for a connection's end that nobody asked for. The result is that end.
async fn wait<C: Connection>(device: &Device, open: &mut Option<C>) -> Option<C::Ended> {
    let Some(connection) = open else {
        device.changed().await;
        return None;
    };
    match select(connection.ended(), device.changed()).await {
        Either::Left(ended) => {
            *open = None;
            ended.ok()
        }
        Either::Right(()) => None,
    }
}

/// Tells how a connection ended.
fn report(device: &mut Device, ended: &impl Ended) {
    if let Some(reason) = ended.reason() {
        device.complain(&format!("disconnect: {reason}"));
    } else if ended.refused() > 0 && device.observe().frontend.is_some_and(closes) {
        // A domain that ends amid its work takes the pages of its requests along, which is no fault.
        device.complain(&format!("bad requests: {}", ended.refused()));
    }
    log::debug!("{}: disconnected: {}", device.named(), ended.summary());
}

/// Whether a frontend in this state ends its connection in order.
fn closes(state: XenbusState) -> bool {
    matches!(state, XenbusState::Closing | XenbusState::Closed)
}
