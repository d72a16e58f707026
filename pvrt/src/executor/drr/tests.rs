use super::*;
use proptest::prelude::*;

/// An account's task in simulated time: the task is always ready, or ready at fixed intervals.
struct Load {
    account: usize,
    /// Ticks of each poll.
    cost: u64,
    /// Ticks from one wake of the task to the next; 0: the task wakes itself.
    every: u64,
}

/// The outcome of a load.
#[derive(Clone, Default, Debug)]
struct Outcome {
    polls: u64,
    ticks: u64,
    /// The longest time from a wake to the end of the poll that follows.
    latency: u64,
}

/// Runs loads for `ticks`; also gives the ticks in which nothing ran.
fn run(loads: &[Load], ticks: u64) -> (Vec<Outcome>, u64) {
    let mut drr = Drr::new();
    let mut outcomes = alloc::vec![Outcome::default(); loads.len()];
    let mut woken: Vec<Option<u64>> = alloc::vec![None; loads.len()];
    let mut next_wake: Vec<u64> = alloc::vec![0; loads.len()];
    let (mut now, mut idle) = (0, 0);
    for load in loads {
        drr.reserve(load.account, loads.len());
    }
    while now < ticks {
        for (index, load) in loads.iter().enumerate() {
            if next_wake[index] <= now && woken[index].is_none() {
                woken[index] = Some(next_wake[index]);
                drr.push(load.account, index);
            }
        }
        match drr.next() {
            Some((account, index)) => {
                let load = &loads[index];
                assert_eq!(load.account, account);
                now += load.cost;
                drr.charge(account, load.cost);
                let outcome = &mut outcomes[index];
                outcome.polls += 1;
                outcome.ticks += load.cost;
                let since = woken[index].take().expect("it was woken");
                outcome.latency = outcome.latency.max(now - since);
                next_wake[index] = if load.every == 0 { now } else { now.max(since + load.every) };
            }
            None => {
                let next = next_wake.iter().min().copied().unwrap_or(ticks).max(now + 1);
                idle += next - now;
                now = next;
            }
        }
    }
    (outcomes, idle)
}

const TICKS: u64 = 400_000_000;

#[test]
fn one_account_runs_in_order_of_arrival() {
    let mut drr = Drr::new();
    drr.reserve(0, 4);
    for task in 0..4 {
        drr.push(0, task);
    }
    let order: Vec<_> = core::iter::from_fn(|| drr.next()).map(|(_, task)| task).collect();
    assert_eq!(order, [0, 1, 2, 3]);
}

#[test]
fn many_tasks_get_no_more_than_one() {
    let mut loads: Vec<Load> = (0..20).map(|_| Load { account: 1, cost: 20_000, every: 0 }).collect();
    loads.push(Load { account: 2, cost: 20_000, every: 0 });
    let (outcomes, idle) = run(&loads, TICKS);
    let many: u64 = outcomes[..20].iter().map(|outcome| outcome.ticks).sum();
    let one = outcomes[20].ticks;
    assert_eq!(idle, 0);
    assert!(one * 100 > many * 97 && many * 100 > one * 97, "{many} and {one}");
    // The tasks of one account share among themselves.
    assert!(outcomes[..20].iter().all(|outcome| outcome.ticks * 21 > many));
}

#[test]
fn long_polls_get_no_more_than_short_ones() {
    let loads = [Load { account: 1, cost: 900_000, every: 0 }, Load { account: 2, cost: 5_000, every: 0 }];
    let (outcomes, _) = run(&loads, TICKS);
    let [long, short] = [outcomes[0].ticks, outcomes[1].ticks];
    assert!(short * 100 > long * 97 && long * 100 > short * 97, "{long} and {short}");
}

#[test]
fn the_kernel_itself_has_its_weight() {
    let loads = [Load { account: 0, cost: 10_000, every: 0 }, Load { account: 1, cost: 10_000, every: 0 }];
    let (outcomes, _) = run(&loads, TICKS);
    let (own, guest) = (outcomes[0].ticks as i64, outcomes[1].ticks as i64);
    assert!((own - guest * OWN_WEIGHT).abs() * 50 < own, "{own} and {guest}");
}

#[test]
fn an_honest_task_waits_for_one_turn_of_each_hog() {
    // Each hog can begin a poll at the end of its turn.
    let cost = 300_000;
    for hogs in [1, 2, 8] {
        let mut loads: Vec<Load> =
            (1..=hogs).flat_map(|account| (0..5).map(move |_| Load { account, cost, every: 0 })).collect();
        loads.push(Load { account: hogs + 1, cost: 10_000, every: 5_000_000 });
        let (outcomes, _) = run(&loads, TICKS);
        let honest = outcomes.last().expect("the honest one");
        // Each hog runs its quantum and one poll beyond in one round.
        let bound = hogs as u64 * (QUANTUM as u64 + cost) + cost + 10_000;
        assert!(honest.latency <= bound, "{hogs} hogs: {} ticks, bound {bound}", honest.latency);
        assert!(honest.polls >= TICKS / 5_000_000 - 2, "{honest:?}");
    }
}

/// An account that waits much and uses little waits for the poll that runs, and not for turns. The hogs have all the
/// rest of the time.
#[test]
fn one_that_uses_less_than_its_part_waits_for_a_poll() {
    let cost = 50_000;
    for hogs in [1, 2, 8] {
        let mut loads: Vec<Load> = (1..=hogs).map(|account| Load { account, cost, every: 0 }).collect();
        loads.push(Load { account: hogs + 1, cost: 10_000, every: 250_000 });
        let (outcomes, idle) = run(&loads, TICKS);
        let honest = outcomes.last().expect("the honest one");
        // After 25 polls the account's credit is used up, and the account waits for its turn, which comes after a turn
        // of each hog.
        let round = 25 * 250_000 + hogs as u64 * (QUANTUM as u64 + cost);
        assert!(honest.polls >= TICKS / round * 25, "{hogs} hogs: {honest:?}");
        let hogged: u64 = outcomes[..hogs].iter().map(|outcome| outcome.ticks).sum();
        assert!(hogged + honest.ticks + idle >= TICKS && idle == 0);
    }
}

/// A fresh account has no more than its part, however often it sleeps.
#[test]
fn sleeping_gains_no_time() {
    let loads =
        [Load { account: 1, cost: 50_000, every: 0 }, Load { account: 2, cost: 20_000, every: 20_001 }];
    let (outcomes, _) = run(&loads, TICKS);
    let [hog, sleeper] = [outcomes[0].ticks, outcomes[1].ticks];
    assert!(sleeper * 100 <= hog * 105, "{sleeper} and {hog}");
}

#[test]
fn a_debt_is_void_once_nobody_lacked_the_time() {
    let mut drr = Drr::new();
    drr.reserve(1, 1);
    drr.reserve(2, 1);
    drr.push(1, "long");
    assert_eq!(drr.next(), Some((1, "long")));
    drr.charge(1, 50 * QUANTUM as u64);
    // While others want the time, the debt counts.
    drr.push(2, "other");
    drr.push(1, "long");
    let mut others = 0;
    while drr.next() == Some((2, "other")) {
        drr.charge(2, QUANTUM as u64);
        drr.push(2, "other");
        others += 1;
    }
    assert!((DEBT_QUANTA - 1..=DEBT_QUANTA + 2).contains(&others), "{others} turns");
    // No other account wants the time: the account in debt runs.
    drr.charge(1, 50 * QUANTUM as u64);
    assert_eq!(drr.next(), Some((2, "other")));
    drr.push(1, "long");
    assert_eq!(drr.next(), Some((1, "long")));
    assert_eq!(drr.next(), None);
    drr.charge(1, 50 * QUANTUM as u64);
    assert_eq!(drr.next(), None);
    drr.push(1, "long");
    drr.push(2, "other");
    assert_eq!(drr.next(), Some((1, "long")), "it came first, and owes nothing");
}

#[test]
fn a_clock_that_stands_still_starves_nobody() {
    let mut drr = Drr::new();
    drr.reserve(1, 1);
    drr.reserve(2, 1);
    drr.push(1, 1);
    drr.push(2, 2);
    let mut polls = 0;
    while let Some((1, task)) = drr.next() {
        drr.charge(1, 0);
        drr.push(1, task);
        polls += 1;
        assert!(polls <= QUANTUM / LEAST_COST);
    }
}

#[test]
fn a_frozen_account_runs_again_when_thawed() {
    let mut drr = Drr::new();
    drr.reserve(1, 2);
    drr.push(1, "before");
    drr.freeze(1);
    drr.push(1, "while");
    assert_eq!(drr.next(), None);
    drr.thaw(1);
    assert_eq!(drr.next(), Some((1, "before")));
    assert_eq!(drr.next(), Some((1, "while")));
    assert_eq!(drr.next(), None);
    drr.freeze(9);
    drr.thaw(9);
}

/// A task that waits for what was ready waits for no more than that, whichever account has the record afterwards.
#[test]
fn what_was_ready_has_run_though_its_account_is_taken_anew() {
    let mut drr = Drr::new();
    drr.reserve(1, 1);
    for task in 0..1000 {
        drr.push(1, task);
        assert!(drr.next().is_some());
    }
    drr.push(1, 1000);
    let ready = drr.ready_now();
    assert!(!drr.have_run(&ready));
    assert_eq!(drr.next(), Some((1, 1000)));
    drr.forget(1);
    assert!(drr.have_run(&ready), "the account is over");
    drr.reserve(1, 1);
    drr.push(1, 0);
    assert!(drr.have_run(&ready), "another account has its record");
    // A caller waits for the ready tasks of the new account as for any others.
    let ready = drr.ready_now();
    assert!(!drr.have_run(&ready));
    assert!(drr.next().is_some() && drr.have_run(&ready));
}

#[test]
fn waking_allocates_nothing() {
    let mut drr = Drr::new();
    drr.reserve(3, 7);
    let (queue, ring) = (drr.queues[3].ready.capacity(), drr.ring.capacity());
    for round in 0..100 {
        (0..7).for_each(|task| drr.push(3, task + round));
        while drr.next().is_some() {}
    }
    assert_eq!((drr.queues[3].ready.capacity(), drr.ring.capacity()), (queue, ring));
}

proptest! {
    /// Whatever the loads: no account starves, no time is wasted, and accounts that always want the time get equal
    /// shares.
    #[test]
    fn time_is_shared_whatever_the_loads(
        // For each account: tasks, ticks of a poll, whether it sleeps between polls.
        accounts in proptest::collection::vec((1usize..6, 1_000u64..1_000_000, any::<bool>()), 1..6),
    ) {
        let mut loads = Vec::new();
        for (index, (tasks, cost, sleeps)) in accounts.iter().enumerate() {
            for _ in 0..*tasks {
                let every = if *sleeps { cost * 50 } else { 0 };
                loads.push(Load { account: index + 1, cost: *cost, every });
            }
        }
        let ticks = 1_000_000_000;
        let (outcomes, idle) = run(&loads, ticks);
        if loads.iter().any(|load| load.every == 0) {
            prop_assert_eq!(idle, 0, "somebody always wanted the time");
        }
        let share = |account: usize| -> u64 {
            loads.iter().zip(&outcomes).filter(|(load, _)| load.account == account).map(|(_, o)| o.ticks).sum()
        };
        let greedy: Vec<u64> = accounts.iter().enumerate().filter(|(_, (_, _, sleeps))| !sleeps)
            .map(|(index, _)| share(index + 1)).collect();
        if let (Some(least), Some(most)) = (greedy.iter().min(), greedy.iter().max()) {
            // A turn of a million ticks each way.
            prop_assert!(most - least <= 3_000_000, "shares {greedy:?}");
        }
        let longest = accounts.iter().map(|(_, cost, _)| *cost).max().unwrap_or(0);
        for (load, outcome) in loads.iter().zip(&outcomes) {
            prop_assert!(outcome.polls > 0);
            // A round is each account's quantum and one poll beyond. An account's own tasks wait for each other, and
            // the account may sit out the rounds that one of its polls cost.
            let round = accounts.len() as u64 * (QUANTUM as u64 + longest);
            let own = accounts[load.account - 1].0 as u64 * load.cost;
            let bound = round * (own / QUANTUM as u64 + 3);
            if load.every > 0 {
                prop_assert!(outcome.latency <= bound, "{} of {bound}", outcome.latency);
            }
        }
    }
}
