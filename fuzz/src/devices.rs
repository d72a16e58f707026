//! What the frontends' targets stand on: a xenstore with a guest, and a device's nodes in it.

use std::pin::Pin;

use dom0::xenstore::{Client, Nodes, Perms, Quotas, serve_rings};
use frontends::xenbus::Xenstore;
use pvrt::event::Port;
use pvrt::executor::time::sleep;
use pvrt::executor::{block_on_test, join_all, spawn};
use pvrt::grant::{GrantMap, map_grants};
use pvrt::mem::Pages;
use ring_abi::types::{DomId, GrantRef, Port as PortNumber};

use crate::input::Input;

/// The guest's number.
pub(crate) const GUEST: DomId = DomId::new(5);

/// A xenstore, dom0's way to it and the guest's: made once, since a guest connects once.
struct World {
    dom0: Client,
    guest: Xenstore,
}

thread_local!(static WORLD: &'static World = Box::leak(Box::new(connect())));

impl World {
    fn get() -> &'static World {
        WORLD.with(|world| *world)
    }
}

fn connect() -> World {
    let store = dom0::xenstore::Xenstore::new(Quotas::XEN);
    spawn(serve_rings(store.clone()));
    spawn(store.clone().settle());
    let page = Pages::zeroed(1).expect("a page");
    let port = Port::alloc_unbound(DomId::DOM0).expect("a port");
    let dom0 = store.client();
    dom0.introduce(GUEST.raw(), page.mfn(0).raw(), port.number().raw()).expect("introduced");
    let guest = Xenstore::connect(page.leak(), port).expect("a ring");
    World { dom0, guest }
}

/// Where a device's nodes are: the frontend's, and the backend's.
#[derive(Clone, Copy)]
pub(crate) struct Paths {
    pub(crate) front: &'static str,
    pub(crate) back: &'static str,
}

impl Paths {
    /// Makes the nodes anew. Now and then the backend writes nonsense in place of a usual value.
    pub(crate) fn make(&self, dom0: &Client, input: &Input, back: &[(&str, &str)], front: &[(&str, &str)]) {
        let guest = GUEST.raw();
        let _ = dom0.rm(self.front);
        let _ = dom0.rm(self.back);
        dom0.mkdir(self.front).expect("made");
        dom0.set_perms(self.front, Perms::shared_with(guest, 0)).expect("owned");
        dom0.mkdir(self.back).expect("made");
        dom0.set_perms(self.back, Perms::shared_with(0, guest)).expect("readable");
        let text = |usual: &str| if input.u8() & 7 == 0 { input.text(8) } else { usual.into() };
        for (name, usual) in back {
            dom0.write(&format!("{}/{name}", self.back), text(usual)).expect("written");
        }
        for (name, usual) in front {
            dom0.write(&format!("{}/{name}", self.front), text(usual)).expect("written");
        }
        dom0.write(&format!("{}/state", self.back), "2").expect("written");
        for (name, value) in [("backend", self.back), ("backend-id", "0"), ("state", "1")] {
            dom0.write(&format!("{}/{name}", self.front), value).expect("written");
        }
    }

    /// Waits until the frontend is in this state, and takes what it grants: a page for each name, and the port.
    pub(crate) async fn attach<const N: usize>(
        &self,
        dom0: &Client,
        state: u32,
        rings: [&str; N],
    ) -> Option<([GrantMap; N], Port)> {
        self.reach(dom0, state).await;
        self.take(dom0, rings, "event-channel")
    }

    /// Waits a while until the frontend is in this state.
    pub(crate) async fn reach(&self, dom0: &Client, state: u32) {
        for _ in 0..100 {
            if self.number(dom0, "state") == Some(state) {
                break;
            }
            sleep(1000).await;
        }
    }

    /// What the frontend's node says.
    pub(crate) fn number(&self, dom0: &Client, name: &str) -> Option<u32> {
        dom0.read_as(&format!("{}/{name}", self.front)).ok()
    }

    /// Takes a page for each of the nodes `rings`, and the port.
    pub(crate) fn take<const N: usize>(
        &self,
        dom0: &Client,
        rings: [&str; N],
        port: &str,
    ) -> Option<([GrantMap; N], Port)> {
        let map = |name: &str| map_grants(GUEST, &[GrantRef::new(self.number(dom0, name)?)], true).ok();
        let pages: Vec<GrantMap> = rings.into_iter().map_while(map).collect();
        let port = Port::bind_interdomain(GUEST, PortNumber::new(self.number(dom0, port)?)).ok()?;
        Some((pages.try_into().ok()?, port))
    }

    pub(crate) fn set_state(&self, dom0: &Client, state: &str) {
        dom0.write(&format!("{}/state", self.back), state).expect("written");
    }
}

/// Has a frontend and a hostile backend do what `data` says, with the nodes that `make` makes. Both end, and then no grant is left.
pub(crate) fn meet(
    data: &[u8],
    make: impl Fn(&Client, &Input),
    frontend: impl AsyncFn(&Xenstore, &Input),
    backend: impl AsyncFn(&Client, &Input),
) {
    let input = Input::new(data);
    let world = World::get();
    let grants = pvrt::grant::usage().used;
    block_on_test(async {
        make(&world.dom0, &input);
        let both: [Pin<Box<dyn Future<Output = ()>>>; 2] =
            [Box::pin(frontend(&world.guest, &input)), Box::pin(backend(&world.dom0, &input))];
        join_all(both).await;
        // The frontend's own task ends.
        sleep(10_000).await;
    });
    check_grants(grants);
}

/// Both ends are gone: every grant must have come back.
fn check_grants(before: usize) {
    // What was kept is taken back with the next grant.
    let page = Pages::zeroed(1).expect("a page");
    drop(pvrt::grant::Granted::whole(page, DomId::DOM0, true).expect("an entry"));
    assert_eq!(pvrt::grant::usage().used, before, "grants were left behind");
}
