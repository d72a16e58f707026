use super::*;
use crate::toolstack::End;
use crate::toolstack::disks::tests::start_with;
use crate::toolstack::{nodes, uuid};
use pvrt::executor::{block_on_test, yield_now};
use pvrt::host::Machine;
use ring_abi::sched::SHUTDOWN_REBOOT;
use ring_abi::types::{Mfn, Port};

/// The first domain that is made.
const FIRST: DomId = DomId::new(Machine::FIRST);

fn config(name: &str) -> Arc<DomainConfig> {
    let text = alloc::format!("name='{name}'\nkernel='/boot/k'\nmemory=64\n");
    let config = crate::config::Config::parse("t.cfg", text.as_bytes()).unwrap();
    Arc::new(DomainConfig::from_config(&config).unwrap().0)
}

/// Lets a build go on until the domain has some of its memory.
async fn until_populated(machine: &Machine) {
    while machine.free() == Machine::FRAMES {
        yield_now().await;
    }
    assert!(machine.free() > Machine::FRAMES - (64 << 8), "not all of it");
}

/// Checks the state when no domain is being made.
fn assert_nothing_is_left(toolstack: &Toolstack, machine: &Machine) {
    assert_eq!(machine.free(), Machine::FRAMES);
    assert_eq!(machine.count(), 0);
    assert!(toolstack.is_free_name("new") && !toolstack.has_claims());
    assert!(pvrt::account::all().iter().all(|figures| figures.domain != Some(FIRST)));
}

/// Runs the toolstack of `start_with` over a machine that makes domains, on a thread of its own, and so with accounts
/// of its own.
fn on_a_machine<F: Future<Output = ()> + Send + 'static>(
    test: impl FnOnce(Toolstack, Machine) -> F + Send + 'static,
) {
    let test = std::thread::spawn(|| {
        let machine = Machine::install();
        let (toolstack, _) = start_with(&[("k", b"no kernel")]);
        block_on_test(test(toolstack, machine));
    });
    test.join().unwrap();
}

#[test]
fn one_that_is_being_made_is_known_by_name_and_number() {
    on_a_machine(|toolstack, machine| async move {
        let all = toolstack.clone();
        let made = spawn_join(async move { all.ask(config("new")).await });
        until_populated(&machine).await;
        assert_eq!(toolstack.name(FIRST), "new");
        assert_eq!(toolstack.number("new"), Ok(FIRST));
        assert_eq!(toolstack.number("7"), Ok(FIRST));
        let told = toolstack.find("new").unwrap_err();
        assert_eq!(told, "new: the domain is still being made; `xl destroy` gives it up");
        assert!(toolstack.find("7").unwrap_err().contains("still being made"));
        // The file holds no kernel, so the domain is removed.
        assert!(matches!(made.await.unwrap(), Err(CreateError::Build(_))));
        assert_eq!(toolstack.name(FIRST), "(null)");
        assert_nothing_is_left(&toolstack, &machine);
    });
}

#[test]
fn one_that_is_being_made_can_be_destroyed() {
    for text in ["new", "7"] {
        on_a_machine(move |toolstack, machine| async move {
            let all = toolstack.clone();
            let made = spawn_join(async move { all.ask(config("new")).await });
            until_populated(&machine).await;
            assert!(toolstack.give_up(text).await);
            assert_nothing_is_left(&toolstack, &machine);
            assert_eq!(made.await.unwrap().err(), Some(CreateError::GivenUp("new".into())));
            assert!(!toolstack.give_up(text).await, "once");
        });
    }
}

/// A domain is given up amid the building, and is built in that instant: giving up waits until the domain is gone.
#[test]
fn one_that_is_built_as_it_is_given_up_is_gone_too() {
    on_a_machine(|toolstack, _| async move {
        let making = Making::default();
        let claim = toolstack.claim_domain(&config("new"), &making).unwrap();
        let one = toolstack.find("one").unwrap();
        making.has(one.id);
        let all = toolstack.clone();
        let given_up = spawn_join(async move {
            assert!(all.give_up("new").await);
            all.domain(DomId::new(1)).is_none()
        });
        while !making.is_given_up() {
            yield_now().await;
        }
        assert!(toolstack.claim(one.id));
        let (all, domain) = (toolstack.clone(), one.clone());
        spawn(async move { all.undo(&domain).await });
        drop(claim);
        assert_eq!(given_up.await, Ok(true), "its record is there");
    });
}

/// `xl destroy` takes a domain down whose nodes are being written: what fails then is not why it was not made.
#[test]
fn one_that_another_takes_down_was_given_up() {
    on_a_machine(|toolstack, _| async move {
        let (one, two) = (toolstack.find("one").unwrap(), toolstack.find("two").unwrap());
        let failed = || CreateError::Store("writing the domain's nodes", crate::xenstore::XsError::Again);
        assert_eq!(toolstack.not_made(&one, failed()).await, failed());
        assert!(toolstack.find("one").is_err() && one.fate.lock().over);
        assert!(toolstack.claim(two.id));
        assert_eq!(toolstack.not_made(&two, failed()).await, CreateError::GivenUp("two".into()));
        assert!(toolstack.find("two").is_ok(), "the other has it");
    });
}

/// `^C` of `xl create`: the one who asked leaves.
#[test]
fn one_that_nobody_waits_for_any_more_is_not_made() {
    on_a_machine(|toolstack, machine| async move {
        let asked = toolstack.ask(config("new"));
        // The request is dropped before the build begins.
        drop(asked);
        while toolstack.has_claims() {
            time::sleep(1_000_000).await;
        }
        assert_nothing_is_left(&toolstack, &machine);
        // The request is dropped during the build.
        let left = select(toolstack.ask(config("new")), until_populated(&machine)).await;
        assert!(matches!(left, Either::Right(())));
        assert_eq!(toolstack.name(DomId::new(machine.newest())), "new", "its name stays until it is gone");
        while toolstack.has_claims() {
            time::sleep(1_000_000).await;
        }
        assert_nothing_is_left(&toolstack, &machine);
    });
}

#[test]
fn one_that_was_given_up_and_is_mapped_somewhere_keeps_its_name() {
    on_a_machine(|toolstack, machine| async move {
        machine.hold(true);
        let left = select(toolstack.ask(config("new")), until_populated(&machine)).await;
        assert!(matches!(left, Either::Right(())));
        while toolstack.has_claims() {
            time::sleep(1_000_000).await;
        }
        assert_eq!(toolstack.name(FIRST), "new");
        assert!(toolstack.is_free_name("new"), "another may have that name");
        machine.hold(false);
        assert_eq!(toolstack.name(FIRST), "(null)");
    });
}

/// `xl destroy` also ends the making of a domain that reboots.
#[test]
fn one_that_is_made_again_can_be_destroyed_meanwhile() {
    on_a_machine(|toolstack, machine| async move {
        let mut one = toolstack.find("one").unwrap();
        let mut config = (*one.config).clone();
        config.disks.clear();
        one.config = Arc::new(config);
        toolstack.0.domains.lock().insert(one.id, one.clone());
        assert!(toolstack.claim(one.id));
        let (all, domain) = (toolstack.clone(), one.clone());
        spawn(async move { all.finish(domain, End::ShutDown(SHUTDOWN_REBOOT)).await });
        // The domain waits while another is populated.
        let turn = toolstack.0.populating.lock().await;
        while machine.count() == 0 {
            time::sleep(1_000_000).await;
        }
        assert_eq!(toolstack.name(FIRST), "one");
        assert!(toolstack.find("one").unwrap_err().contains("still being made"));
        assert!(toolstack.give_up("one").await);
        while !one.fate.lock().over {
            yield_now().await;
        }
        drop(turn);
        assert_eq!(one.fate.lock().successor, None);
        assert!(toolstack.is_free_name("one"));
        assert_nothing_is_left(&toolstack, &machine);
    });
}

/// The building of a domain that starts again finds too little memory, and `xl destroy` comes while the remains of that
/// try go: the domain does not wait for memory then.
#[test]
fn one_that_is_given_up_as_memory_runs_short_does_not_start_again() {
    on_a_machine(|toolstack, machine| async move {
        let mut one = toolstack.find("one").unwrap();
        let mut config = (*one.config).clone();
        config.disks.clear();
        config.memory_mib = 2 * (Machine::FRAMES >> 8);
        one.config = Arc::new(config);
        toolstack.0.domains.lock().insert(one.id, one.clone());
        assert!(toolstack.claim(one.id));
        machine.hold(true);
        let (all, domain) = (toolstack.clone(), one.clone());
        spawn(async move { all.finish(domain, End::ShutDown(SHUTDOWN_REBOOT)).await });
        while machine.newest() < Machine::FIRST || machine.count() != 0 {
            time::sleep(1_000_000).await;
        }
        assert!(toolstack.find("one").unwrap_err().contains("still being made"));
        assert!(toolstack.give_up("one").await);
        machine.hold(false);
        time::sleep(1_000_000).await;
        assert!(one.fate.lock().over, "it waits for memory");
        assert_nothing_is_left(&toolstack, &machine);
    });
}

/// A domain is on record, and can be renamed, before its console is served.
#[test]
fn one_that_is_renamed_as_its_nodes_are_written_has_a_console_of_that_name() {
    use crate::consoled::tests::{DOMAIN, guest};
    let (toolstack, _) = start_with(&[]);
    let guest = guest();
    block_on_test(async {
        let two = toolstack.find("two").unwrap();
        let new = Domain { id: DOMAIN, name: "new".into(), ..two };
        toolstack.0.domains.lock().insert(DOMAIN, new.clone());
        let facts = nodes::Facts {
            id: DOMAIN,
            uuid: &uuid::text(&new.uuid),
            config: &new.config,
            servers: &[],
            store: (Mfn::new(3), Port::new(3)),
            console: (Mfn::new(4), guest.port.number()),
        };
        let renaming = async {
            yield_now().await;
            toolstack.rename(&new, "other").unwrap();
            core::future::pending::<()>().await;
        };
        let connected = select(toolstack.connect(&new, &facts), renaming).await;
        assert!(matches!(connected, Either::Left(Ok(()))));
        assert!(toolstack.consoles().kept("other")[1].is_some());
    });
}
