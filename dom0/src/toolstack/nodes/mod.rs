//! A domain's nodes in the store, in the layout of libxl.
//!
//! Source: `docs/misc/xenstore-paths.pandoc` of Xen 4.17, and what frontends read.

mod devices;
mod disks;
#[cfg(test)]
mod tests;
mod vifs;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pvrt::yield_now;
use ring_abi::types::{DomId, Mfn, Port};

use crate::config::DomainConfig;
use crate::xenstore::{Access, Client, Nodes, Perms, Xenstore, XsError};

pub(super) use devices::write_device;
pub(super) use disks::{disks, put_disk};
pub(super) use vifs::{put_vif, vifs};

/// dom0's name.
pub(super) const OWN_NAME: &str = "Domain-0";
/// Bytes of output that the console daemon keeps.
const CONSOLE_LIMIT: u32 = 1_048_576;
/// ABI: `XenbusStateInitialising`.
pub(super) const INITIALISING: &str = "1";
/// ABI: `XenbusStateClosed`.
pub(super) const CLOSED: &str = "6";

/// The facts that a domain's nodes contain.
pub(super) struct Facts<'a> {
    pub(super) id: DomId,
    pub(super) uuid: &'a str,
    pub(super) config: &'a DomainConfig,
    /// The domain that serves each of its disks, then each of its network interfaces.
    pub(super) servers: &'a [DomId],
    pub(super) store: (Mfn, Port),
    pub(super) console: (Mfn, Port),
}

/// A domain's home.
pub(super) fn home(id: DomId) -> String {
    format!("/local/domain/{id}")
}

/// The home of a domain that may have ended: the domain's end removes the nodes, and a node that is written after that stays for
/// good. Between this and the write there is no await.
fn standing_home(client: &Client, id: DomId) -> Result<String, XsError> {
    let home = home(id);
    client.read(&home)?;
    Ok(home)
}

/// The directory with the toolstack's own records of a domain's devices, at libxl's place. No domain may read or
/// write it.
fn records(id: DomId) -> String {
    format!("/libxl/{id}")
}

/// The domains that may have backends, by the names of their homes.
fn servers(homes: &[String]) -> impl Iterator<Item = DomId> {
    homes.iter().filter_map(|home| home.parse().ok()).map(DomId::new)
}

/// Writes dom0's own nodes.
pub(super) fn write_own(store: &Xenstore) {
    let client = store.client();
    let written = client.atomically(|tx| {
        tx.write("/local/domain/0/name", OWN_NAME)?;
        tx.write("/local/domain/0/domid", "0")?;
        // Made once, so that they do not come and stay with the first domain.
        ["/vm", "/libxl"].into_iter().try_for_each(|path| tx.mkdir(path))?;
        let kinds = ["vbd", "vif", "console"].into_iter();
        kinds.map(|kind| format!("/local/domain/0/backend/{kind}")).try_for_each(|path| tx.mkdir(&path))
    });
    if let Err(error) = written {
        log::error!("xenstore: dom0's nodes: {}", error.name());
    }
}

/// Writes a request to a domain: the node `control/NODE`.
pub(super) fn write_control(store: &Xenstore, id: DomId, node: &str, value: &str) -> Result<(), XsError> {
    let client = store.client();
    client.write(&format!("{}/control/{node}", standing_home(&client, id)?), value)
}

/// Empties `control/NODE` if a request stands there that nobody has taken; whether one did.
pub(super) fn take_back_control(store: &Xenstore, id: DomId, node: &str, request: &str) -> bool {
    let client = store.client();
    let path = format!("{}/control/{node}", home(id));
    let taken_back = client.atomically(|tx| {
        let stands = tx.read(&path)? == request.as_bytes();
        if stands { tx.write(&path, "").map(|()| true) } else { Ok(false) }
    });
    taken_back.unwrap_or(false)
}

/// Waits until a domain has taken the request in `control/NODE`: the node is empty, or gone.
pub(super) async fn control_taken(store: &Xenstore, id: DomId, node: &str) -> Result<(), XsError> {
    let path = format!("{}/control/{node}", home(id));
    // The value is compared as bytes, since the domain may write anything to the node.
    let taken = |client: &Client| Ok(present(client.read(&path))?.is_none_or(|value| value.is_empty()));
    until(&store.client(), &path, taken).await
}

/// Turns `ENOENT` into `None`.
fn present<T>(result: Result<T, XsError>) -> Result<Option<T>, XsError> {
    match result {
        Err(XsError::NoEnt) => Ok(None),
        other => other.map(Some),
    }
}

/// Whether the value of a `state` node is `state`. The value is compared as bytes, since a driver domain may
/// write anything.
pub(super) fn is_state(value: impl AsRef<[u8]>, state: &str) -> bool {
    value.as_ref() == state.as_bytes()
}

/// Waits until `done` is true, and checks `done` again whenever the node `path` is written.
pub(super) async fn until(
    client: &Client,
    path: &str,
    done: impl Fn(&Client) -> Result<bool, XsError>,
) -> Result<(), XsError> {
    client.watch(path, "until")?;
    while !done(client)? {
        client.next_event().await;
    }
    client.unwatch(path, "until")
}

/// A domain's memory target and maximum, in KiB.
pub(super) fn memory(store: &Xenstore, id: DomId) -> Result<(u64, u64), XsError> {
    let client = store.client();
    let kib = |node: &str| {
        let text = client.read_str(&format!("{}/memory/{node}", home(id)))?;
        text.parse().map_err(|_| XsError::Inval)
    };
    Ok((kib("target")?, kib("static-max")?))
}

/// Writes `memory/NODE`.
pub(super) fn write_memory(store: &Xenstore, id: DomId, node: &str, kib: u64) -> Result<(), XsError> {
    let client = store.client();
    client.write(&format!("{}/memory/{node}", standing_home(&client, id)?), kib.to_string())
}

/// Writes the nodes by which a domain uses the first `online` of `all` vCPUs. The domain watches each node.
///
/// # Errors
/// `ENOENT`: the domain is not `wanted` any more.
pub(super) async fn write_vcpus(
    store: &Xenstore,
    id: DomId,
    all: u32,
    online: u32,
    wanted: impl Fn() -> bool,
) -> Result<(), XsError> {
    let home = standing_home(&store.client(), id)?;
    Pieces::new(store, wanted).availability(&home, all, online).await
}

/// Writes a domain's new name. A domain whose end has removed the nodes gets the name in its next life.
pub(super) fn rename(store: &Xenstore, id: DomId, uuid: &str, name: &str) -> Result<(), XsError> {
    let client = store.client();
    let Some(home) = present(standing_home(&client, id))? else { return Ok(()) };
    client.atomically(|tx| {
        tx.write(&format!("{home}/name"), name)?;
        tx.write(&format!("/vm/{uuid}/name"), name)
    })
}

/// Moves the nodes below a domain's UUID to a new UUID, with the domain's new name: the successor takes the old UUID.
pub(super) fn move_away(
    store: &Xenstore,
    id: DomId,
    from: &str,
    to: &str,
    name: &str,
) -> Result<(), XsError> {
    let told = Perms::shared_with(0, id.raw());
    let (old, new) = (format!("/vm/{from}"), format!("/vm/{to}"));
    store.client().atomically(|tx| {
        tx.rm(&old)?;
        tx.write(&new, "")?;
        tx.set_perms(&new, told.clone())?;
        tx.write(&format!("{new}/uuid"), to)?;
        tx.write(&format!("{new}/name"), name)?;
        tx.write(&format!("{}/vm", home(id)), &new)?;
        tx.write(&format!("{}/name", home(id)), name)
    })
}

/// Writes everything that a domain finds at its start: in pieces, as nobody looks before the domain is introduced, but for
/// its devices, each of which its backend finds whole.
///
/// # Errors
/// `ENOENT`: the domain is not `wanted` any more. The domain's end then removes what was written of it, else the caller does.
pub(super) async fn write(
    store: &Xenstore,
    facts: &Facts<'_>,
    wanted: impl Fn() -> bool,
) -> Result<(), XsError> {
    let mut pieces = Pieces::new(store, wanted);
    pieces.domain(facts).await?;
    let mut servers = facts.servers.iter();
    for (disk, server) in facts.config.disks.iter().zip(&mut servers) {
        pieces.next(PIECE).await?;
        write_device(store, facts.id, disk, *server)?;
    }
    for (vif, server) in facts.config.vifs.iter().zip(servers) {
        pieces.next(PIECE).await?;
        write_device(store, facts.id, vif, *server)?;
    }
    Ok(())
}

/// Nodes that are written between two yields.
const PIECE: usize = 8;

/// Writes nodes, and yields between pieces.
struct Pieces<W> {
    client: Client,
    /// Whether the domain is still wanted, which is checked after each yield: the domain's end removes its nodes,
    /// and no node may be written after that.
    wanted: W,
    /// Nodes that were written since the last yield.
    written: usize,
}

impl<W: Fn() -> bool> Pieces<W> {
    fn new(store: &Xenstore, wanted: W) -> Self {
        Self { client: store.client(), wanted, written: 0 }
    }

    /// Notes that `nodes` more nodes will be written, and yields before them if the piece is full.
    async fn next(&mut self, nodes: usize) -> Result<(), XsError> {
        if self.written + nodes > PIECE {
            self.written = 0;
            yield_now().await;
            if !(self.wanted)() {
                return Err(XsError::NoEnt);
            }
        }
        self.written += nodes;
        Ok(())
    }

    async fn write(&mut self, path: &str, value: &str) -> Result<(), XsError> {
        self.next(1).await?;
        self.client.write(path, value)
    }

    async fn put(&mut self, path: &str, value: &str, perms: &Perms) -> Result<(), XsError> {
        self.next(1).await?;
        put(&self.client, path, value, perms)
    }

    async fn availability(&mut self, home: &str, all: u32, online: u32) -> Result<(), XsError> {
        for vcpu in 0..all {
            let state = if vcpu < online { "online" } else { "offline" };
            self.write(&format!("{home}/cpu/{vcpu}/availability"), state).await?;
        }
        Ok(())
    }

    async fn domain(&mut self, facts: &Facts<'_>) -> Result<(), XsError> {
        let id = facts.id.raw();
        let home = home(facts.id);
        let vm = format!("/vm/{}", facts.uuid);
        let told = Perms::shared_with(0, id);
        let own = Perms::owned_by(id, Access::None);
        self.put(&vm, "", &told).await?;
        self.write(&format!("{vm}/uuid"), facts.uuid).await?;
        self.write(&format!("{vm}/name"), &facts.config.name).await?;
        // Children have the permissions of the node that they are made under.
        self.put(&home, "", &told).await?;
        let kib = facts.config.memory_mib << 10;
        let max_kib = facts.config.maxmem_mib << 10;
        for (node, value) in [
            ("vm", vm),
            ("name", facts.config.name.clone()),
            ("domid", id.to_string()),
            ("memory/static-max", max_kib.to_string()),
            ("memory/target", kib.to_string()),
            ("control/platform-feature-multiprocessor-suspend", "1".to_string()),
            ("control/platform-feature-xs_reset_watches", "1".to_string()),
            ("store/port", facts.store.1.to_string()),
            ("store/ring-ref", facts.store.0.raw().to_string()),
            ("device", String::new()),
        ] {
            self.write(&format!("{home}/{node}"), &value).await?;
        }
        self.availability(&home, facts.config.maxvcpus, facts.config.vcpus).await?;
        for node in [
            "control/shutdown",
            "control/sysrq",
            "control/feature-poweroff",
            "control/feature-reboot",
            "control/feature-suspend",
        ]
        .into_iter()
        .chain(["data", "drivers", "feature", "attr", "error", "device/suspend/event-channel"])
        {
            self.put(&format!("{home}/{node}"), "", &own).await?;
        }
        self.console(facts, &home).await
    }

    async fn console(&mut self, facts: &Facts<'_>, home: &str) -> Result<(), XsError> {
        let id = facts.id.raw();
        let back = format!("/local/domain/0/backend/console/{id}/0");
        for (node, value) in [
            ("backend", back.clone()),
            ("backend-id", "0".to_string()),
            ("limit", CONSOLE_LIMIT.to_string()),
            ("type", "xenconsoled".to_string()),
            ("output", "pty".to_string()),
            ("tty", String::new()),
            ("port", facts.console.1.to_string()),
            ("ring-ref", facts.console.0.raw().to_string()),
        ] {
            self.write(&format!("{home}/console/{node}"), &value).await?;
        }
        self.put(&back, "", &Perms::shared_with(0, id)).await?;
        for (node, value) in [
            ("frontend", format!("{home}/console")),
            ("frontend-id", id.to_string()),
            ("online", "1".to_string()),
            ("state", INITIALISING.to_string()),
            ("protocol", "vt100".to_string()),
        ] {
            self.write(&format!("{back}/{node}"), &value).await?;
        }
        Ok(())
    }
}

fn put(nodes: &impl Nodes, path: &str, value: &str, perms: &Perms) -> Result<(), XsError> {
    nodes.write(path, value)?;
    nodes.set_perms(path, perms.clone())
}

/// dom0's backend directories that serve a domain, the console's apart.
pub(super) fn backends(store: &Xenstore, id: DomId) -> Vec<String> {
    let client = store.client();
    let root = "/local/domain/0/backend";
    let mut found = Vec::new();
    for kind in client.directory(root).unwrap_or_default() {
        if kind == "console" {
            continue;
        }
        let of_domain = format!("{root}/{kind}/{id}");
        let devices = client.directory(&of_domain).unwrap_or_default();
        found.extend(devices.into_iter().map(|device| format!("{of_domain}/{device}")));
    }
    found
}

/// Removes everything of a domain that is dead.
pub(super) fn remove(store: &Xenstore, id: DomId, uuid: &str) {
    let client = store.client();
    let removed = client.atomically(|tx| {
        let mut paths = alloc::vec![home(id), format!("/vm/{uuid}"), records(id)];
        for server in servers(&tx.directory("/local/domain").unwrap_or_default()) {
            let root = format!("/local/domain/{server}/backend");
            let kinds = tx.directory(&root).unwrap_or_default();
            paths.extend(kinds.iter().map(|kind| format!("{root}/{kind}/{id}")));
        }
        paths.iter().try_for_each(|path| present(tx.rm(path)).map(drop))
    });
    if let Err(error) = removed {
        log::error!("d{id}: removing its nodes: {}", error.name());
    }
}
