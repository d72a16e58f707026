use super::*;
use crate::toolstack::disks::tests::{start, start_with};
use alloc::vec::Vec;
use pvrt::executor::{block_on_test, spawn};
use pvrt::host::Machine;

const SECOND: u64 = 1_000_000_000;

#[test]
fn short_runs_in_a_row_wait_ever_longer() {
    let (mut now, mut runs, mut waits) = (0, 0, Vec::new());
    for _ in 0..8 {
        let started = now;
        (now, runs) = next_start(started, started + SECOND / 10, runs);
        waits.push((now - started) / SECOND);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 32, 32]);
    // A domain that ran long enough starts at once, and its count of short runs begins anew.
    assert_eq!(next_start(5, 5 + SHORT_RUN_NS, runs), (5 + SHORT_RUN_NS, 0));
    let (at, _) = next_start(5, 5 + 2 * SECOND, 0);
    assert!(at < 5 + 2 * SECOND, "a single restart does not wait");
    assert_eq!(next_start(u64::MAX - 1, u64::MAX, 9).0, u64::MAX);
}

/// Domain `one`, whose configuration `change` changes first, has shut down for `reason`. A task ends the domain from now on.
fn ending(toolstack: &Toolstack, reason: u32, change: impl FnOnce(&mut DomainConfig)) -> Domain {
    let mut one = toolstack.find("one").unwrap();
    one.started_ns = time::now_ns();
    change(Arc::make_mut(&mut one.config));
    toolstack.0.domains.lock().insert(one.id, one.clone());
    assert!(toolstack.claim(one.id));
    let (all, domain) = (toolstack.clone(), one.clone());
    spawn(async move { all.finish(domain, End::ShutDown(reason)).await });
    one
}

/// Domain `one` reboots while another domain maps a page of it until `let_go`. Returns when `one` is over, in
/// nanoseconds.
fn over_while_held(let_go: impl Future<Output = ()> + Send + 'static, destroy: bool) -> u64 {
    let (toolstack, _) = start();
    block_on_test(async move {
        pvrt::host::hold_dead_domain(Some(toolstack.find("one").unwrap().id.raw()));
        let begun = time::now_ns();
        let one = ending(&toolstack, SHUTDOWN_REBOOT, |config| config.on_reboot = Action::Restart);
        let_go.await;
        assert!(toolstack.domain(one.id).is_some() && !one.fate.lock().over, "it is still there");
        if destroy {
            toolstack.destroy(&one).await.unwrap();
        } else {
            pvrt::host::hold_dead_domain(None);
            let _ = toolstack.wait_over(&one).await;
        }
        assert!(toolstack.domain(one.id).is_none());
        pvrt::host::hold_dead_domain(None);
        time::now_ns() - begun
    })
}

#[test]
fn none_starts_again_while_others_map_its_former_life() {
    let took = over_while_held(time::sleep(60 * SECOND), false);
    assert!((60 * SECOND..62 * SECOND).contains(&took), "{took}");
    let took = over_while_held(time::sleep(60 * SECOND), true);
    assert!((60 * SECOND..61 * SECOND).contains(&took), "{took}");
}

/// Domain `one` ends at once for `reason`, for the fourth time in a row. Returns when `one` is over, in
/// nanoseconds.
fn over_after(reason: u32, destroyed_after: Option<u64>) -> u64 {
    let (toolstack, _) = start();
    block_on_test(async move {
        toolstack.find("one").unwrap().fate.lock().short_runs = 3;
        let one = ending(&toolstack, reason, |config| {
            (config.on_reboot, config.on_crash) = (Action::Restart, Action::Restart);
        });
        let begun = time::now_ns();
        match destroyed_after {
            Some(ns) => {
                time::sleep(ns).await;
                toolstack.destroy(&one).await.unwrap();
            }
            None => drop(toolstack.wait_over(&one).await),
        }
        time::now_ns() - begun
    })
}

#[test]
fn a_reboot_waits_as_a_crash_does() {
    for reason in [SHUTDOWN_REBOOT, SHUTDOWN_CRASH] {
        assert!(over_after(reason, None) >= 8 * SECOND, "reason {reason}");
    }
}

/// Domain `one` reboots while other domains have the machine's memory for a minute. Returns when `one` is
/// over, in nanoseconds.
fn over_while_memory_is_short(give_up: bool) -> u64 {
    let (toolstack, _) = start_with(&[("k", b"no kernel")]);
    block_on_test(async move {
        pvrt::host::set_memory(1 << 20);
        let begun = time::now_ns();
        let one = ending(&toolstack, SHUTDOWN_REBOOT, |config| {
            (config.on_reboot, config.disks) = (Action::Restart, Vec::new());
        });
        time::sleep(60 * SECOND).await;
        assert!(!one.fate.lock().over, "it waits");
        assert!(!toolstack.is_free_name("one"), "its name is its own");
        assert!(!toolstack.give_up("two").await);
        if give_up {
            assert!(toolstack.give_up("one").await);
        }
        pvrt::host::set_memory(usize::MAX);
        let _ = toolstack.wait_over(&one).await;
        assert!(toolstack.is_free_name("one") && !toolstack.give_up("one").await);
        time::now_ns() - begun
    })
}

#[test]
fn one_that_finds_no_memory_when_it_starts_again_waits_for_it() {
    // The toolstack tries after 1, 2, 4, 8, 16 and 32 seconds. Then there is memory, but the file holds no
    // kernel.
    let took = over_while_memory_is_short(false);
    assert!((63 * SECOND..65 * SECOND).contains(&took), "{took}");
    let took = over_while_memory_is_short(true);
    assert!((60 * SECOND..61 * SECOND).contains(&took), "{took}");
}

/// What the administrator changes between a domain's end and its next start is the next life's.
#[test]
fn what_changes_before_a_restart_stays() {
    let machine = Machine::install();
    let (toolstack, client) = start_with(&[("k", b"no kernel")]);
    block_on_test(async move {
        for (node, kib) in [("target", "8192"), ("static-max", "65536")] {
            client.write(&format!("/local/domain/1/memory/{node}"), kib).unwrap();
        }
        let one = ending(&toolstack, SHUTDOWN_CRASH, |config| {
            (config.on_crash, config.maxmem_mib) = (Action::Restart, 64);
            config.disks.clear();
        });
        // `finish` waits for the second to be over, and then for its turn to get memory.
        time::sleep(SECOND / 2).await;
        toolstack.set_memory(&one, 16_384).unwrap();
        toolstack.rename(&one, "other").unwrap();
        let turn = toolstack.0.populating.lock().await;
        while machine.count() == 0 {
            time::sleep(SECOND / 1000).await;
        }
        let again = DomId::new(machine.newest());
        assert_eq!((toolstack.number_of_name("other"), toolstack.is_free_name("one")), (Ok(again), true));
        drop(turn);
        let most = loop {
            if let Some(kib) = machine.limit_kib(again.raw()) {
                break kib;
            }
            pvrt::yield_now().await;
        };
        assert_eq!(most, 16_384 + crate::builder::SLACK_KIB);
        let _ = toolstack.wait_over(&one).await;
    });
}

/// The same where its devices or its pages take their time to go.
#[test]
fn a_name_given_while_a_domain_is_torn_down_is_its_next_lifes() {
    let (toolstack, _) = start();
    block_on_test(async move {
        pvrt::host::hold_dead_domain(Some(toolstack.find("one").unwrap().id.raw()));
        let one = ending(&toolstack, SHUTDOWN_REBOOT, |config| config.on_reboot = Action::Restart);
        time::sleep(60 * SECOND).await;
        pvrt::host::take_console_output();
        toolstack.rename(&one, "other").unwrap();
        pvrt::host::hold_dead_domain(None);
        let _ = toolstack.wait_over(&one).await;
        let said = String::from_utf8(pvrt::host::take_console_output()).unwrap();
        assert!(said.contains("other: starting it again: /boot/k: no such file"), "{said}");
    });
}

/// `on_crash="preserve"`: the domain's disk is closed first, which takes a backend up to ten seconds.
#[test]
fn a_domain_that_is_being_preserved_can_be_destroyed() {
    let (toolstack, _) = start();
    block_on_test(async move {
        let one = ending(&toolstack, SHUTDOWN_CRASH, |config| config.on_crash = Action::Preserve);
        pvrt::yield_now().await;
        // Two callers destroy the domain at once: one does the work, and both wait for its end.
        let (all, domain) = (toolstack.clone(), one.clone());
        let other = pvrt::executor::spawn_join(async move {
            let destroyed = all.destroy(&domain).await;
            (destroyed, all.domain(domain.id).is_none())
        });
        assert_eq!(toolstack.destroy(&one).await, Ok(()));
        assert!(toolstack.domain(one.id).is_none(), "it is gone");
        assert_eq!(other.await, Ok((Ok(()), true)));
        assert_eq!(one.fate.lock().end, Some(End::ShutDown(SHUTDOWN_CRASH)));
        assert_eq!(toolstack.destroy(&one).await, Ok(()), "once more is no error");
        assert!(toolstack.find("two").is_ok());
    });
}

#[test]
fn a_number_is_digits_alone() {
    let (toolstack, _) = start();
    block_on_test(async {
        assert_eq!(toolstack.find("1").map(|domain| domain.name), Ok("one".into()));
        for text in ["+1", "-1", " 1", "", "1 ", "65537", "99999999999"] {
            assert!(toolstack.find(text).is_err(), "{text}");
        }
        let two = toolstack.find("two").unwrap();
        toolstack.rename(&two, "+1").unwrap();
        assert_eq!(toolstack.find("+1").map(|domain| domain.id), Ok(two.id));
    });
}

#[test]
fn a_domain_that_waits_to_start_again_can_be_destroyed_at_once() {
    let took = over_after(SHUTDOWN_REBOOT, Some(SECOND));
    assert!((SECOND..2 * SECOND).contains(&took), "{took}");
}
