//! Events between two domains. One serves (`echo=CLIENT` on its command line), the other measures (`partner=SERVER`);
//! the ports are passed through xenstore.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use frontends::xenbus::{Nodes, Xenstore};
use pvrt::event::Port;
use pvrt::hypercall::event::own_domid;
use pvrt::time;
use ring_abi::io::xs_wire::XS_SET_PERMS;
use ring_abi::types::{DomId, Port as Number};

use crate::measure::{Bench, Clock, WARM_UP, report};
use crate::polling;

/// Events sent in a row, each on a port of its own, until the other side takes them.
const BATCH: u64 = 64;
/// The node where the server writes its ports: first the port on which the server answers.
const NODE: &str = "data/bench";
/// How often the client looks for the node.
const TRIES: u32 = 200;
const TRY_NS: u64 = 50_000_000;

/// Answers `client` for ever.
///
/// # Errors
/// There is no such domain, or xenstore refuses.
pub(crate) async fn echo(store: &Xenstore, client: DomId) -> Result<(), String> {
    let mut ports = Vec::new();
    let mut text = String::new();
    for _ in 0..=BATCH {
        let port = Port::alloc_unbound(client).map_err(|errno| format!("port: {errno}"))?;
        text.push_str(&format!("{} ", port.number().raw()));
        ports.push(port);
    }
    let own = own_domid().map_err(|errno| format!("own number: {errno}"))?;
    let rights = format!("n{}\0r{}\0", own.raw(), client.raw());
    // Permissions are set before the value, so that a partner who sees the node can read all of it.
    store.write(NODE, "").await.map_err(|error| format!("{error}"))?;
    store
        .request(XS_SET_PERMS, &[NODE.as_bytes(), b"\0", rights.as_bytes()])
        .await
        .map_err(|error| format!("{error}"))?;
    store.write(NODE, text.trim_end()).await.map_err(|error| format!("{error}"))?;
    let ping = ports[0].number();
    loop {
        polling::wait(ping, 0);
        polling::take_all();
        polling::send(ping);
    }
}

/// Times events to the server.
///
/// # Errors
/// The server named no ports, or the ports cannot be bound.
pub(crate) async fn run(bench: &Bench, store: &Xenstore, server: DomId) -> Result<(), String> {
    let path = format!("/local/domain/{}/{NODE}", server.raw());
    let mut text = String::new();
    for _ in 0..TRIES {
        text = store.read_str(&path).await.unwrap_or_default();
        if !text.is_empty() {
            break;
        }
        time::sleep(TRY_NS).await;
    }
    let bind = |word: &str| -> Result<Port, String> {
        let number = Number::new(word.parse().map_err(|_| format!("port {word:?}"))?);
        Port::bind_interdomain(server, number).map_err(|errno| format!("port {word}: {errno}"))
    };
    let ports = text.split_whitespace().map(bind).collect::<Result<Vec<_>, _>>()?;
    let (ping, others) = ports.split_first().ok_or("the other domain named no ports")?;
    let round_trip = || {
        polling::send(ping.number());
        polling::wait(ping.number(), 0);
    };
    // Binding made the event pending here.
    polling::wait(ping.number(), 0);
    bench.time("domain_round_trip", round_trip);
    if let Some(count) = bench.count("evtchn_send_domain", u64::MAX) {
        let batch = || others.iter().for_each(|port| polling::send(port.number()));
        for _ in 0..WARM_UP / 8 {
            batch();
            round_trip();
        }
        let batches = count.div_ceil(BATCH);
        let mut ticks = 0;
        for _ in 0..batches {
            let clock = Clock::start();
            batch();
            ticks += clock.stop();
            round_trip();
        }
        report("evtchn_send_domain", ticks, batches * others.len() as u64);
    }
    polling::look_again();
    Ok(())
}
