//! The words by which CPUs hand a vCPU on, and wake it, under the model checker.

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::sync::words;

const FIRST: Option<CpuId> = CpuId::new(1);

/// A vCPU, and a word beside it.
fn vcpu() -> Arc<(Vcpu, words::AtomicU64)> {
    let vcpu = Vcpu::default();
    vcpu.running_on.store(u32::MAX, Ordering::Relaxed);
    vcpu.holder.store(u32::MAX, Ordering::Relaxed);
    Arc::new((vcpu, words::AtomicU64::new(0)))
}

/// A vCPU says that it waits, and looks for an event; a sender sends one, and looks whether the vCPU waits.
#[test]
fn a_vcpu_that_blocks_is_woken_or_sees_the_event() {
    loom::model(|| {
        let sleeper = vcpu();
        let sender = {
            let sleeper = Arc::clone(&sleeper);
            thread::spawn(move || {
                let (vcpu, event) = &*sleeper;
                event.swap(1, Ordering::SeqCst); // as `InfoCell::mark` does, and `Bits::set_pending`
                vcpu.is_blocked()
            })
        };
        let (vcpu, event) = &*sleeper;
        vcpu.set_reasons(PauseFlags::BLOCKED);
        let is_due = event.load(Ordering::Relaxed) != 0;
        assert!(sender.join().unwrap() || is_due, "the vCPU sleeps, and nobody wakes it");
    });
}

/// The holder saves the vCPU's state and lets go; another CPU that takes the vCPU finds all of the state.
#[test]
fn who_takes_a_vcpu_finds_what_the_holder_saved() {
    loom::model(|| {
        let shared = vcpu();
        shared.0.set_holder(FIRST);
        let holder = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (vcpu, state) = &*shared;
                state.store(7, Ordering::Relaxed);
                vcpu.set_holder(None);
            })
        };
        let (vcpu, state) = &*shared;
        if vcpu.holder().is_none() {
            vcpu.set_holder(CpuId::new(2));
            assert_eq!(state.load(Ordering::Relaxed), 7, "the state is not whole");
            state.store(8, Ordering::Relaxed);
        }
        holder.join().unwrap();
        let now = state.load(Ordering::Relaxed);
        assert_eq!(
            now,
            if vcpu.holder().is_some() { 8 } else { 7 },
            "the former holder wrote after it had let go"
        );
    });
}
