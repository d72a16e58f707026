use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::AtomicUsize;

use ring_abi::types::PAGE_SIZE;

use super::*;
use crate::executor::{block_on_test, run_for, spawn_for, time, yield_now};
use crate::host;
use crate::mem::Pages;

#[global_allocator]
static HEAP: host::Heap = host::Heap;

/// Bytes that are charged to `account`.
fn used(account: &Account) -> usize {
    account.figures().map_or(0, |figures| figures.used)
}

#[test]
fn whoever_frees_it_the_account_that_was_charged_gets_it_back() {
    let (one, two) = (Account::claim(1 << 20).unwrap(), Account::claim(1 << 20).unwrap());
    let object = one.charge(|| Box::new([0u8; 1000]));
    let bytes = used(&one);
    // The object, its tail and the heap's word, in units of 32.
    assert_eq!(bytes, 1024);
    two.charge(|| drop(object));
    assert_eq!((used(&one), used(&two)), (0, 0));
}

#[test]
fn a_buffer_that_another_has_grow_becomes_the_others() {
    let (one, two) = (Account::claim(1 << 20).unwrap(), Account::claim(1 << 20).unwrap());
    let mut buffer = one.charge(|| Vec::<u8>::with_capacity(100));
    assert!(used(&one) > 0);
    two.charge(|| buffer.resize(5000, 0));
    assert_eq!(used(&one), 0);
    assert!(used(&two) >= 5000);
    drop(buffer);
    assert_eq!(used(&two), 0);
}

#[test]
fn pages_and_what_is_held_count_too() {
    let account = Account::claim(1 << 20).unwrap();
    let pages = account.charge(|| Pages::alloc(3).unwrap());
    assert_eq!(used(&account), 3 * PAGE_SIZE);
    let mut held = account.hold();
    held.resize(500);
    held.resize(200);
    assert_eq!(used(&account), 3 * PAGE_SIZE + 200);
    drop((pages, held));
    assert_eq!(used(&account), 0);
    assert_eq!(account.figures().map(|figures| figures.peak), Some(3 * PAGE_SIZE + 500));
}

#[test]
fn what_is_held_keeps_its_account_even_when_it_is_nothing() {
    let account = Account::claim(1 << 20).unwrap();
    let (index, mut held) = (account.index(), account.hold());
    drop(account);
    let next = Account::claim(1 << 20).unwrap();
    assert_ne!(next.index(), index);
    held.resize(100);
    assert_eq!(used(&next), 0);
    drop(held);
    assert_eq!(Account::claim(1 << 20).unwrap().index(), index);
}

#[test]
fn a_smaller_budget_does_not_count_what_was_used_before() {
    let account = Account::claim(10_000).unwrap();
    account.set_budget(20_000).unwrap();
    account.charge(|| drop(alloc::vec![0u8; 15_000]));
    account.set_budget(10_000).unwrap();
    account.charge(|| drop(alloc::vec![0u8; 5_000]));
    assert!(!account.is_overdrawn(), "it was within its budget all the time");
    account.charge(|| drop(alloc::vec![0u8; 15_000]));
    assert!(account.is_overdrawn());
}

#[test]
fn a_task_is_charged_with_what_it_spawns() {
    let account = Account::claim(1 << 20).unwrap();
    let seen = account.clone();
    spawn_for(&account, async move {
        assert_eq!(Account::current(), seen);
        let kept = alloc::vec![0u8; 2000];
        crate::spawn(async move {
            yield_now().await;
            assert_eq!(Account::current(), seen);
            time::sleep(10).await;
            drop(kept);
        });
    });
    assert_eq!(Account::current(), Account::own());
    block_on_test(async {
        time::sleep(5).await;
        assert!(used(&account) > 2000);
        assert_eq!(account.figures().map(|figures| figures.tasks), Some(1));
        time::sleep(10).await;
    });
    assert_eq!(used(&account), 0);
    assert_eq!(account.figures().map(|figures| figures.tasks), Some(0));
}

#[test]
fn a_domain_number_that_comes_again_is_another_account() {
    let id = DomId::new(7);
    let first = Account::claim(1 << 20).unwrap();
    first.assign(id);
    let left = Account::of(id).charge(|| Box::new(1u64));
    first.retire();
    assert_eq!(Account::of(id), Account::own());
    drop(first);
    let second = Account::claim(1 << 20).unwrap();
    second.assign(id);
    assert_eq!(Account::of(id), second);
    assert_eq!(used(&second), 0, "what is left of the first is not the second's");
    drop(left);
    assert_eq!(used(&second), 0);
    // Only now is the place of the first account free.
    let index = second.index();
    let third = Account::claim(1 << 20).unwrap();
    assert_ne!(third.index(), index);
    assert!(all().iter().filter(|figures| figures.open).count() == 1);
}

#[test]
fn an_account_that_is_over_leaves_a_place_and_no_more() {
    let account = Account::claim(1 << 20).unwrap();
    block_on_test(run_for(&account, async { yield_now().await }));
    let index = account.index();
    assert!(executor::room_of_account(index) > 0);
    drop(account.clone());
    assert!(executor::room_of_account(index) > 0, "there is another handle");
    drop(account);
    assert_eq!((executor::room_of_account(index), places()), (0, 1));
    for _ in 0..3 {
        let both = [Account::claim(1 << 20).unwrap(), Account::claim(1 << 20).unwrap()];
        assert_eq!((both.len(), places()), (2, 2), "the places are taken again");
    }
}

#[test]
fn claims_leave_the_reserve() {
    let memory = RESERVE_BYTES + (3 << 20);
    host::set_memory(memory);
    let first = Account::claim(2 << 20).unwrap();
    assert_eq!(Account::claim(2 << 20), Err(Shortage { wanted: 2 << 20, missing: 1 << 20 }));
    let second = Account::claim(1 << 20).unwrap();
    assert_eq!(first.set_budget((2 << 20) + 1), Err(Shortage { wanted: 1, missing: 1 }));
    drop(second);
    assert_eq!(first.set_budget(3 << 20), Ok(()));
    // An account that is over gives its budget back with its last object, not before.
    let object = first.charge(|| Box::new(1u64));
    drop(first);
    assert!(Account::claim(3 << 20).is_err());
    drop(object);
    assert!(Account::claim(3 << 20).is_ok());
}

/// What an account uses beyond its budget for a while is not taken for its budget: the kernel still owes the budget
/// when the while is over.
#[test]
fn a_claim_leaves_what_was_promised_to_one_that_uses_more_for_a_while() {
    host::set_memory(RESERVE_BYTES + (3 << 20));
    let building = Account::claim(2 << 20).unwrap();
    building.allow(100 << 20);
    let window = building.charge(|| alloc::vec![0u8; 50 << 20]);
    assert_eq!(Account::claim(2 << 20), Err(Shortage { wanted: 2 << 20, missing: 1 << 20 }));
    let other = Account::claim(1 << 20).unwrap();
    assert_eq!(other.set_budget((1 << 20) + 1), Err(Shortage { wanted: 1, missing: 1 }));
    drop(window);
    building.allow(0);
    let _kept = building.charge(|| alloc::vec![0u8; 1 << 20]);
    // Now the kernel knows which of the used bytes belong to the budget.
    assert_eq!(other.set_budget((2 << 20) - 4096), Ok(()));
}

#[test]
fn an_overdrawn_account_stops_and_is_reported_once() {
    let account = Account::claim(10_000).unwrap();
    account.assign(DomId::new(3));
    let polls = Arc::new(AtomicUsize::new(0));
    let (counted, other) = (polls.clone(), polls.clone());
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeps = kept.clone();
    spawn_for(&account, async move {
        loop {
            counted.fetch_add(1, Relaxed);
            keeps.lock().push(alloc::vec![0u8; 3000]);
            time::sleep(1).await;
        }
    });
    spawn_for(&account, async move {
        loop {
            other.fetch_add(1000, Relaxed);
            time::sleep(1).await;
        }
    });
    block_on_test(async {
        assert_eq!(overdrawn().await, account);
        assert!(account.is_overdrawn());
        assert_eq!(account.headroom(), 0);
        let stopped = polls.load(Relaxed);
        assert_eq!(stopped % 1000, 4, "ended by the poll that went over");
        time::sleep(100).await;
        assert_eq!(polls.load(Relaxed), stopped, "none of its tasks runs");
        // The account is reported once only.
        assert!(time::timeout(10, overdrawn()).await.is_err());
        account.thaw();
        time::sleep(10).await;
        assert!(polls.load(Relaxed) > stopped);
    });
}

#[test]
fn an_allowance_is_over_the_budget_and_ends() {
    let account = Account::claim(1000).unwrap();
    account.allow(100_000);
    account.charge(|| drop(alloc::vec![0u8; 50_000]));
    assert!(!account.is_overdrawn());
    assert!(account.headroom() > 90_000);
    account.allow(0);
    assert!(!account.is_overdrawn(), "what was freed does not count");
    account.charge(|| drop(alloc::vec![0u8; 2000]));
    assert!(account.is_overdrawn(), "that it was freed does not help");
}

#[test]
fn who_runs_a_task_for_another_gets_its_result_or_drops_it() {
    let account = Account::claim(1 << 20).unwrap();
    block_on_test(async {
        let value = run_for(&account, async {
            time::sleep(5).await;
            Account::current().index()
        });
        assert_eq!(value.await, account.index());
        let kept = Arc::new(());
        let inside = kept.clone();
        let endless = run_for(&account, async move {
            core::future::pending::<()>().await;
            drop(inside);
        });
        assert!(time::timeout(10, endless).await.is_err());
        assert_eq!(Arc::strong_count(&kept), 1, "it was dropped with the one who waited");
    });
    assert_eq!(account.figures().map(|figures| (figures.tasks, figures.used)), Some((0, 0)));
}

#[test]
fn what_is_allowed_was_promised_by_nobody() {
    let account = Account::claim(10_000).unwrap();
    account.allow(1 << 20);
    assert!(account.headroom() > 10_000 && account.was_promised(10_000));
    assert!(!account.was_promised(10_001), "others' promises are not for this");
    assert!(!Account::own().was_promised(1), "the kernel itself has what nobody was promised");
}

#[test]
fn promised_pages_are_for_those_whose_budget_they_are() {
    use Supply::{Free, Hypervisor, Promised};
    let account = Account::claim(10_000).unwrap();
    account.allow(1 << 20);
    let within = [Promised, Hypervisor];
    let beyond = [Free, Hypervisor, Promised];
    account.charge(|| {
        assert_eq!(supplies(10_000), within);
        assert_eq!(supplies(10_001), beyond, "what it may use beyond its budget is nobody's promise");
        let _used = alloc::vec![0u8; 9_000];
        assert_eq!(supplies(500), within);
        assert_eq!(supplies(2_000), beyond);
    });
    assert_eq!(supplies(1), beyond, "the kernel's own comes from what nobody was promised");
}
