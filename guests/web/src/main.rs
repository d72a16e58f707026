#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]
//! The guest `web`: a web server on its first network interface.
//!
//! The toolstack may take the interface away and give another: the guest goes on with that.
//!
//! Words on its command line: `ip=ADDRESS/BITS` and `gateway=ADDRESS` (else DHCP), `port=NUMBER` (else 80), `peer=ADDRESS`
//! (another such guest, which this guest asks for bytes all the time).

#[cfg(freestanding)]
extern crate alloc;

#[cfg(freestanding)]
pvrt::kernel!(async guest::start);

#[cfg(freestanding)]
mod guest {
    use alloc::string::{String, ToString};
    use alloc::vec::Vec;
    use core::net::Ipv4Addr;

    use frontends::control::shutdown_request;
    use frontends::netfront::{self, NetError, Statistics};
    use frontends::xenbus::{self, Nodes, StoreError, Watch, Xenstore};
    use pvrt::event::Port;
    use pvrt::executor::{select, spawn, yield_now};
    use pvrt::hypercall::{sched, vcpu};
    use pvrt::{BootInfo, println, time};
    use ring_abi::sched::SHUTDOWN_CRASH;
    use ring_abi::vcpu::RUNSTATE_RUNNING;
    use smoltcp::iface::{Config, Interface, SocketSet};
    use smoltcp::time::Instant;
    use smoltcp::wire::{EthernetAddress, HardwareAddress};
    use web_guest::address::{Addresses, Wanted};
    use web_guest::client::Client;
    use web_guest::content::Figures;
    use web_guest::device::Device;
    use web_guest::server::{CONNECTIONS, Counters, Server};

    /// Runs everything; a failure ends the domain as crashed, so that the toolstack sees it.
    pub(crate) async fn start(boot: BootInfo) {
        if let Err(error) = run(boot).await {
            println!("web: FAILED: {error}");
            pvrt::console::flush().await;
            sched::shutdown(SHUTDOWN_CRASH);
        }
    }

    async fn run(boot: BootInfo) -> Result<(), String> {
        let text = |error: &dyn core::fmt::Display| error.to_string();
        let wanted = Wanted::read(boot.option("ip"), boot.option("gateway"))?;
        let port = match boot.option("port") {
            None => 80,
            Some(word) => word.parse().ok().filter(|port| *port != 0).ok_or("port=: expected 1 to 65535")?,
        };
        let peer = match boot.option("peer") {
            None => None,
            Some(word) => Some(word.parse().map_err(|_| "peer=: expected an address such as 10.88.0.2")?),
        };
        let info = boot.store.ok_or("no xenstore, so no network")?;
        let store = Xenstore::connect(info.page, Port::adopt(info.port)).map_err(|error| text(&error))?;
        spawn(stop_when_asked(store.clone()));
        let name = store.read_str("name").await.unwrap_or_else(|_| "web".into());
        let mut guest = Guest::new(wanted, port, peer, name);
        let vifs = store.watch("device/vif").await.map_err(|error| text(&error))?;
        loop {
            let interface = next_interface(&store, &vifs).await.map_err(|error| text(&error))?;
            let error = guest.serve(&interface).await;
            println!("web: the network is gone: {error}");
        }
    }

    /// Waits for a network interface and connects to it. The toolstack may give and take interfaces as long as the guest lives.
    async fn next_interface(store: &Xenstore, vifs: &Watch) -> Result<netfront::Interface, StoreError> {
        loop {
            // Before the list is read: what changes from here on is another event.
            vifs.changed().await.ok_or(StoreError::Broken)?;
            for path in xenbus::Device::list(store, "vif").await? {
                match netfront::Interface::connect(store, &path).await {
                    Ok(interface) => return Ok(interface),
                    // The toolstack took the interface away meanwhile.
                    Err(NetError::Disconnected) => {}
                    Err(NetError::Store(error)) if error.is_missing() => {}
                    Err(NetError::Store(StoreError::Broken)) => return Err(StoreError::Broken),
                    Err(error) => println!("web: {path}: {error}"),
                }
            }
        }
    }

    /// Ends the guest when the toolstack asks for that.
    async fn stop_when_asked(store: Xenstore) {
        match shutdown_request(&store).await {
            Ok(request) => {
                println!("web: asked to stop ({request:?})");
                pvrt::console::flush().await;
                sched::shutdown(request.reason());
            }
            Err(error) => log::warn!("waiting for a request to stop: {error}"),
        }
    }

    fn now() -> Instant {
        Instant::from_micros((time::now_ns() / 1000) as i64)
    }

    /// What stays when one network interface goes and another comes.
    struct Guest {
        wanted: Wanted,
        port: u16,
        name: String,
        /// Nanoseconds and ticks at the start.
        started: (u64, u64),
        sockets: SocketSet<'static>,
        addresses: Addresses,
        server: Server,
        client: Option<Client>,
        /// What went through the interfaces that are gone.
        before: Statistics,
    }

    impl Guest {
        fn new(wanted: Wanted, port: u16, peer: Option<Ipv4Addr>, name: String) -> Self {
            let mut sockets = SocketSet::new(Vec::new());
            let addresses = Addresses::new(&mut sockets, wanted, name.clone());
            let server = Server::new(&mut sockets, port, CONNECTIONS);
            let client = peer.map(|peer| Client::new(&mut sockets, peer, now()));
            let started = (time::now_ns(), time::tsc());
            Self {
                wanted,
                port,
                name,
                started,
                sockets,
                addresses,
                server,
                client,
                before: Statistics::default(),
            }
        }

        /// Serves on an interface until the interface ends.
        async fn serve(&mut self, net: &netfront::Interface) -> NetError {
            let Self { wanted, port, name, started, sockets, addresses, server, client, before } = self;
            let mac = EthernetAddress(net.properties().mac);
            let mut device = Device::new(net);
            let mut config = Config::new(HardwareAddress::Ethernet(mac));
            config.random_seed = time::tsc();
            let mut interface = Interface::new(config, &mut device, now());
            addresses.begin(&mut interface, sockets, mac);
            server.restart(sockets);
            if let Some(client) = client {
                client.restart(sockets, now());
            }
            println!("web: {mac}, port {port}");
            if let Wanted::Static(cidr, _) = wanted {
                println!("web: http://{}:{port}/", cidr.address());
            }
            loop {
                interface.poll(now(), &mut device, sockets);
                if let Some(cidr) = addresses.refresh(&mut interface, sockets) {
                    println!("web: http://{}:{port}/", cidr.address());
                }
                let figures = |counters: &Counters, open| {
                    figures(net, *before, &interface, counters, open, name, *started)
                };
                server.serve(sockets, now(), &figures);
                let report =
                    client.as_mut().and_then(|client| client.serve(sockets, interface.context(), now()));
                if let Some(report) = report {
                    println!("web: peer: {report}");
                }
                // What the server and the client wrote goes out at once.
                interface.poll(now(), &mut device, sockets);
                let flushed = net.flush();
                if let Some(error) = device.failed.take().or(flushed.err()) {
                    *before = *before + net.statistics();
                    return error;
                }
                let due = client.as_ref().map(Client::next_deadline);
                let next = [interface.poll_at(now(), sockets), server.next_deadline(), due];
                match next.into_iter().flatten().min() {
                    Some(at) if at <= now() => yield_now().await,
                    Some(at) => {
                        let until = at.total_micros() as u64 * 1000;
                        select(net.ready(), time::sleep_until(until)).await;
                    }
                    None => net.ready().await,
                }
            }
        }
    }

    fn figures(
        net: &netfront::Interface,
        before: Statistics,
        interface: &Interface,
        counters: &Counters,
        open: usize,
        name: &str,
        started: (u64, u64),
    ) -> Figures {
        let statistics = before + net.statistics();
        let rings = net.ring_state();
        Figures {
            name: name.into(),
            uptime_ns: time::now_ns() - started.0,
            cpu_ns: vcpu::runstate(0).ok().map(|info| info.time[RUNSTATE_RUNNING as usize]),
            ticks: time::tsc().wrapping_sub(started.1),
            requests: counters.requests,
            refused: counters.refused,
            body_bytes: counters.bytes,
            connections: counters.connections,
            open: open as u64,
            most: counters.most,
            sent_packets: statistics.sent,
            sent_bytes: statistics.sent_bytes,
            received_packets: statistics.received,
            received_bytes: statistics.received_bytes,
            errors: statistics.send_errors + statistics.receive_errors,
            notifications: statistics.notifications,
            transmit_used: rings.transmit_used.into(),
            transmit_slots: rings.transmit_slots.into(),
            receive_posted: rings.receive_posted.into(),
            receive_slots: rings.receive_slots.into(),
            mtu: net.properties().mtu.into(),
            addresses: interface.ip_addrs().iter().map(ToString::to_string).collect(),
        }
    }
}

#[cfg(not(freestanding))]
fn main() {
    eprintln!("web is a freestanding image: build it with `cargo xtask build`");
}
