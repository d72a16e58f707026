//! Guests that are asked to suspend, in each order of what can happen.

use pvrt::executor::{Either, block_on_test, select, spawn, time};
use pvrt::host::Machine;
use ring_abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_SUSPEND};

use super::super::Domain;
use super::*;
use crate::toolstack::disks::tests::start;
use crate::xenstore::{Client, Nodes};

const NODE: &str = "/local/domain/1/control/shutdown";
const SECOND: u64 = 1_000_000_000;

/// The guest of domain `one` takes a request after so many seconds, and suspends `later` seconds after that.
fn guest(toolstack: &Toolstack, machine: &Machine, takes: u64, later: u64) {
    let (toolstack, machine, client) = (toolstack.clone(), machine.clone(), toolstack.0.store.client());
    spawn(async move {
        time::sleep(takes * SECOND).await;
        client.write(NODE, "").unwrap();
        time::sleep(later * SECOND).await;
        machine.shut_down(1, SHUTDOWN_SUSPEND);
        // As the toolstack does when the hypervisor says so.
        let one = toolstack.find("one").unwrap();
        assert!(toolstack.is_of_a_save(&one), "its suspend is no end");
    });
}

fn run(test: impl AsyncFnOnce(Toolstack, Domain, Client, Machine)) {
    let machine = Machine::install();
    let (toolstack, client) = start();
    block_on_test(async {
        let one = toolstack.find("one").unwrap();
        machine.has(1);
        test(toolstack, one, client, machine).await;
    });
}

#[test]
fn one_that_suspends_stays_down_or_goes_on() {
    run(async |toolstack, one, _, machine| {
        for time in 1..4 {
            guest(&toolstack, &machine, 1, 3);
            let suspended = toolstack.suspend(&one).await.unwrap();
            assert_eq!(machine.resumed(1), time - 1);
            match time {
                1 => suspended.go_on().unwrap(),
                2 => drop(suspended), // the save failed, or nobody waits for it
                _ => {
                    suspended.keep_down();
                    assert_eq!(machine.resumed(1), 2, "it stays down");
                    break;
                }
            }
            assert_eq!(machine.resumed(1), time);
            assert!(toolstack.0.saving.lock().is_empty());
            machine.shut_down(1, SHUTDOWN_SUSPEND);
            assert!(!toolstack.is_of_a_save(&one), "a suspend of its own");
            machine.has(1);
        }
        // Destroyed, the domain leaves nothing: another may get its number.
        toolstack.destroy(&one).await.unwrap();
        assert!(toolstack.0.saving.lock().is_empty());
    });
}

#[test]
fn one_that_does_not_take_the_request_finds_none_later() {
    run(async |toolstack, one, client, machine| {
        let begun = time::now_ns();
        let told = toolstack.suspend(&one).await.err().unwrap();
        assert!(told.starts_with("one: the domain did not suspend within a minute"), "{told}");
        assert!(time::now_ns() - begun >= 60 * SECOND);
        assert_eq!(client.read_str(NODE).as_deref(), Ok(""));
        assert!(toolstack.0.saving.lock().is_empty());
        assert_eq!(machine.resumed(1), 0);
    });
}

#[test]
fn one_that_suspends_too_late_goes_on() {
    run(async |toolstack, one, _, machine| {
        guest(&toolstack, &machine, 1, 100);
        assert!(toolstack.suspend(&one).await.is_err());
        time::sleep(50 * SECOND).await;
        assert_eq!(machine.resumed(1), 1, "it came back by itself");
        assert!(toolstack.0.saving.lock().is_empty());
    });
}

#[test]
fn a_paused_one_is_not_waited_for() {
    run(async |toolstack, one, client, machine| {
        machine.pause(1);
        let told = toolstack.suspend(&one).await.err().unwrap();
        assert!(told.starts_with("one: the domain is paused"), "{told}");
        assert!(client.read_str(NODE).is_err() && toolstack.0.saving.lock().is_empty());
    });
}

#[test]
fn two_saves_at_once_are_one_too_many() {
    run(async |toolstack, one, client, machine| {
        let (first, second) = (toolstack.suspend(&one), toolstack.suspend(&one));
        let told = match select(core::pin::pin!(first), core::pin::pin!(second)).await {
            Either::Right(told) => told.err().unwrap(),
            Either::Left(_) => panic!("the first waits"),
        };
        assert!(told.ends_with("is being saved already"), "{told}");
        // The first was dropped with the other: the guest finds no request.
        assert_eq!(client.read_str(NODE).as_deref(), Ok(""));
        assert!(toolstack.0.saving.lock().is_empty());
        guest(&toolstack, &machine, 1, 1);
        toolstack.suspend(&one).await.unwrap().go_on().unwrap();
    });
}

/// The guest suspends by a request that was called off, while the request of a later save stands in the store.
#[test]
fn a_late_one_serves_the_next_save_and_suspends_once() {
    run(async |toolstack, one, client, machine| {
        guest(&toolstack, &machine, 1, 90);
        assert!(toolstack.suspend(&one).await.is_err());
        let suspended = toolstack.suspend(&one).await.unwrap();
        assert_eq!(client.read_str(NODE).as_deref(), Ok("suspend"));
        suspended.go_on().unwrap();
        assert_eq!((client.read_str(NODE).as_deref(), machine.resumed(1)), (Ok(""), 1));
        assert!(toolstack.0.saving.lock().is_empty());
    });
}

#[test]
fn one_that_ends_instead_is_no_saved_one() {
    run(async |toolstack, one, _, machine| {
        let (other, ending) = (toolstack.clone(), one.clone());
        spawn(async move {
            time::sleep(2 * SECOND).await;
            machine.shut_down(1, SHUTDOWN_CRASH);
            assert!(!other.is_of_a_save(&ending));
            other.destroy(&ending).await.unwrap();
        });
        let told = toolstack.suspend(&one).await.err().unwrap();
        assert_eq!(told, "one: the domain ended before it was saved");
        assert!(toolstack.0.saving.lock().is_empty());
    });
}
